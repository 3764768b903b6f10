"""Fairness and explanation audits and `mlgov explain` on odd input.

They say what they cannot tell, and never give it a pass."""
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from mlgov_nb.audit.notebook import run_notebook
from mlgov_nb.cli.audits import _print_changes, _print_reasons, _print_score
from mlgov_nb.data.card import load_card
from mlgov_nb.data.prepare import read_prepared
from mlgov_nb.explanation.reasons import explain_row
from mlgov_nb.model.artifact import Fitted, card_of, load, parity_rows, save

MODEL = ROOT/"data/sample/model"


def audit(tmp_path, name, rows=None, model=MODEL):
    "Run an audit notebook on changed rows; its measures by window, (name, subject)"
    files = dict(reference=tmp_path/"reference.parquet", late=tmp_path/"late.parquet")
    for source, file in (("reference", files["reference"]), ("2014-18", files["late"])):
        sample = pd.read_parquet(ROOT/f"data/sample/{source}.parquet")
        changed = rows(sample) if rows else sample
        changed.to_parquet(file, index=False)
    parameters = dict(
        root=str(ROOT),
        card="data/raw/gss_wages.yaml",
        model=str(model),
        reference=str(files["reference"]),
        windows={"late": str(files["late"])},
        settings=dict(explain_rows=40, resamples=300),
        out=str(tmp_path),
    )
    notebook = next((ROOT/"nbs/audits").glob(f"*_{name}.ipynb"))
    run_notebook(notebook, tmp_path/f"{name}.ipynb", ROOT, parameters)
    records = json.loads((tmp_path/f"{name}.json").read_text())
    return {record["window"]["name"]: by_name(record["measures"]) for record in records}


def by_name(measures):
    "Measures by (name, subject)"
    return {(measure["name"], measure["subject"]): measure for measure in measures}


@pytest.fixture(scope="module")
def constant(tmp_path_factory):
    "A model that says the same of everybody"
    sample_model, home = load(MODEL), tmp_path_factory.mktemp("constant")
    encoder = sample_model.encoder
    inputs = 2 * len(encoder.numeric) + sum(map(len, encoder.levels))
    arrays = dict(w0=np.zeros((inputs, 1)), b0=np.array([1.0]), background=np.zeros((5, len(encoder.features))))
    fitted = Fitted("dense", arrays, lambda Z: np.full(len(Z), 1.0), [], {})
    card = card_of(sample_model)
    rows = parity_rows(pd.read_parquet(ROOT/"data/sample/reference.parquet"), card)
    own = ("kind", "encoder", "note", "parity_tolerance")
    meta = {name: value for name, value in sample_model.meta.items() if name not in own}
    return save(home/"model", fitted, encoder, meta, rows, dict(card=card.model_dump()))


@pytest.mark.slow("runs an audit notebook")
def test_a_constant_model_is_audited(tmp_path, constant):
    fair = audit(tmp_path, "fairness", model=constant)["late"]
    assert fair["selection_rate_ratio", "gender"]["value"] == 1.0
    assert fair["auc", "gender=Female"]["value"] == 0.5
    assert fair["true_negative_rate", "gender=Female"]["value"] == 0
    assert fair["negative_predictive_value", "gender=Female"]["value"] is None
    why = audit(tmp_path, "explanation", model=constant)["late"]
    assert why["importance_share_max", "age"]["value"] is None
    assert why["attribution_ndcg", "features"]["value"] is None
    assert why["additivity_error", "all rows"]["value"] < 1e-9


@pytest.mark.slow("runs an audit notebook")
def test_an_attribute_with_one_value_cannot_be_compared(tmp_path):
    measures = audit(tmp_path, "fairness", lambda rows: rows.assign(gender="Female"))["late"]
    for name in ("selection_rate_ratio", "equalized_odds_difference", "auc_difference", "disparate_impact"):
        assert measures[name, "gender"]["value"] is None, name
    assert measures["differs", "selection_rate of gender=Female"]["value"] is None
    assert "there is only Female" in measures["selection_rate_ratio_all", "gender"]["note"]


@pytest.mark.slow("runs an audit notebook")
def test_a_group_may_have_any_name(tmp_path):
    def rename(rows): return rows.assign(gender=rows.gender.replace({"Female": "a@b & c=d"}))
    measures = audit(tmp_path, "fairness", rename)["late"]
    assert measures["selection_rate", "gender=a%40b %26 c=d"]["value"] is not None
    assert measures["selection_rate_ratio_all", "gender"]["value"] < 1


@pytest.mark.slow("runs an audit notebook")
def test_twenty_rows_are_too_few_to_explain(tmp_path):
    measures = audit(tmp_path, "explanation", lambda rows: rows.head(20))["late"]
    assert measures["additivity_error", "all rows"]["value"] < 1e-9
    others = [measure for (name, _), measure in measures.items() if name != "additivity_error"]
    assert all(measure["value"] is None for measure in others)


@pytest.mark.slow("runs an audit notebook")
def test_a_missing_attribute_is_a_group_of_its_own(tmp_path):
    def lose_every_third(rows):
        kept = np.arange(len(rows)) % 3 > 0
        return rows.assign(gender=rows.gender.where(kept, None))

    measures = audit(tmp_path, "fairness", lose_every_third)["late"]
    lost = measures["selection_rate", "gender=(missing)"]
    assert lost["n"] >= 30 and lost["value"] is not None
    groups = ("Female", "Male", "(missing)")
    assert sum(measures["label_coverage", f"gender={group}"]["n"] for group in groups) == 400


@pytest.mark.slow("runs an audit notebook")
def test_without_labels_the_measures_that_need_none_are_there(tmp_path):
    measures = audit(tmp_path, "fairness", lambda rows: rows.assign(high_income=np.nan))["late"]
    assert measures["selection_rate_ratio_all", "gender"]["value"] is not None
    assert measures["mean_score_difference_all", "gender"]["value"] is not None
    assert measures["selection_rate_ratio", "gender"]["value"] is None
    assert measures["label_coverage", "gender=Male"]["value"] == 0


@pytest.mark.slow("explains rows in processes of their own")
def test_numbers_as_text_are_numbers_and_other_text_is_refused(project):
    rows = pd.read_parquet(ROOT/"data/sample/2014-18.parquet").head(5)
    rows = rows.assign(age=rows.age.map(lambda age: f"{age:g}"), educcat=["never seen", *rows.educcat[1:]])
    rows.to_csv(project.root/"rows.csv", index=False)
    explain = f"mlgov explain data/sample/model rows.csv --row {rows.id[0]}"
    answer = json.loads(project.run(f"{explain} --json").stdout)
    contributions = answer["contributions"]
    explained = answer["base_score"] + sum(part["in_score"] for part in contributions)
    assert abs(explained - answer["score"]) < 1e-6
    education = next(part for part in contributions if part["feature"] == "educcat")
    assert education["value"] == "missing or never seen"
    rows.assign(age=["old", *rows.age[1:]]).to_csv(project.root/"rows.csv", index=False)
    project.refuses(explain, "is refused: age: not a number")


@pytest.mark.slow("explains rows in processes of their own")
def test_explain_in_the_terminal(project):
    sample, window = "data/sample/model", "data/sample/2014-18.parquet"
    row = pd.read_parquet(ROOT/window).id[5]
    selected = project.run(f"mlgov explain {sample} {window} --row {row}").stdout
    assert "Reasons for the decision 1" in selected and "What would change" not in selected, "nobody asked for a change"
    page = project.run(f"mlgov explain {sample} {window} --row {row} --changes").stdout
    assert "Reasons" in page and "What would change the decision" in page
    assert "is a proxy for" in page and "{value}" not in page
    project.refuses(f"mlgov explain {sample} {window} --row nobody", "no row with id nobody")
    project.refuses(f"mlgov explain data/sample {window} --row 1", "not an artifact")
    project.refuses(f"mlgov explain models/none {window} --row 1", "no such folder")

    rows = pd.read_parquet(ROOT/window).head(4)
    odd = rows.assign(id=[1, 1, 2, 3], age=[40.0, 41.0, np.nan, 50.0])
    odd.to_csv(project.root/"odd.csv", index=False)
    project.refuses(f"mlgov explain {sample} odd.csv --row 1", "2 rows have id 1")
    assert "at age missing" not in project.run(f"mlgov explain {sample} odd.csv --row 2").stdout

    shutil.copytree(project.root/sample, project.root/"bad")
    (project.root/"bad/card.json").write_text("{}")
    project.refuses(f"mlgov explain bad {window} --row 1", "card.json is changed")


@pytest.mark.parametrize("name", ["gss_wages", "acs_employment"])
def test_what_follows_from_a_fixed_feature_is_not_called_actionable(name):
    "Nobody can raise the prestige of an occupation and keep the occupation"
    card = load_card(ROOT/f"data/raw/{name}.yaml")
    rows = read_prepared(ROOT/f"data/raw/{name}.parquet", card).rows
    assert card.actionable
    for feature in card.actionable:
        for fixed in set(card.features) - set(card.actionable):
            known = rows[[feature, fixed]].dropna()
            told = known.groupby(fixed)[feature].agg(lambda values: values.value_counts().iloc[0]).sum()
            assert told < 0.9 * len(known), f"{feature} follows from {fixed}"


def explained(tmp_path, **values):
    "How the sample model explains a row of the sample with other values"
    rows = pd.read_parquet(ROOT/"data/sample/2014-18.parquet").head(1).assign(**values)
    rows.to_csv(tmp_path/"rows.csv", index=False)
    return explain_row(MODEL, tmp_path/"rows.csv", str(rows.id[0]), changes=True)


@pytest.mark.parametrize("values, warnings", [
    (dict(age=-5.0), ["age: -5 is outside the range of training, 18 to 89"]),
    (dict(age=150.0, educcat="PhD"), ["age: 150 is outside the range of training, 18 to 89",
                                      "educcat: 'PhD' was never seen in training; scored as missing"]),
    (dict(age=np.nan, educcat=None), []),
])
def test_what_training_never_saw_is_told_with_the_explanation(tmp_path, capsys, values, warnings):
    found = explained(tmp_path, **values)
    assert found["warnings"] == warnings
    _print_score(found)
    assert capsys.readouterr().out.splitlines()[1:1 + len(warnings)] == warnings


def test_the_digits_of_a_score_show_on_which_side_of_the_threshold_it_is(tmp_path, capsys):
    found = explained(tmp_path)
    found["counterfactuals"] = [dict(changes={"age": ("40", "39")}, score=0.4999996, distance=0.1)]
    _print_score(found | dict(score=0.4999996, decision=0))
    _print_changes(found)
    page = capsys.readouterr().out
    assert "score 0.4999996, decision 0 (1 from a score of 0.5)" in page
    assert "age: 40 → 39 (score 0.4999996)" in page


@pytest.mark.parametrize("flags, meanings", [
    ([""], []),
    (["", "is a proxy for gender", "is a proxy for gender"], ["[is a proxy for]: "]),
    (["protected attribute: age_band", "is a proxy for gender"], ["[protected attribute]: ", "[is a proxy for]: "]),
])
def test_what_a_flag_means_is_said_once(capsys, flags, meanings):
    reasons = [dict(in_score=0.1, text="at this age", flag=flag) for flag in flags]
    _print_reasons(dict(decision=1, reasons=reasons))
    page = capsys.readouterr().out
    assert page.count("the same for everyone") == bool(meanings)
    for meaning in ("[protected attribute]: ", "[is a proxy for]: "):
        assert page.count(meaning) == (meaning in meanings)
