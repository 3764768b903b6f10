"Fairness and explanation audits and `mlgov explain` on odd input: they say what they cannot tell, and never pass for it"
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from mlgov_nb.audit.notebook import run_notebook
from mlgov_nb.model.artifact import Fitted, card_of, load, parity_rows, save

MODEL = ROOT/"data/sample/model"


def audit(tmp_path, name, rows=None, model=MODEL, **more):
    "Run an audit notebook on changed rows; its measures by window, (name, subject)"
    ref, late = (pd.read_parquet(ROOT/f"data/sample/{k}.parquet") for k in ("reference", "2014-18"))
    for k, v in (("reference", ref), ("late", late)): (rows(v) if rows else v).to_parquet(tmp_path/f"{k}.parquet", index=False)
    given = dict(root=str(ROOT), card="data/raw/gss_wages.yaml", model=str(model), reference=str(tmp_path/"reference.parquet"), windows={"late": str(tmp_path/"late.parquet")}, settings=dict(explain_rows=40, resamples=300), out=str(tmp_path))
    nb = next((ROOT/"nbs/audits").glob(f"*_{name}.ipynb"))
    run_notebook(nb, tmp_path/f"{name}.ipynb", ROOT, {**given, **more})
    return {r["window"]["name"]: {(m["name"], m["subject"]): m for m in r["measures"]} for r in json.loads((tmp_path/f"{name}.json").read_text())}


@pytest.fixture(scope="module")
def constant(tmp_path_factory):
    "A model that says the same of everybody"
    art, home = load(MODEL), tmp_path_factory.mktemp("constant")
    k, d = len(art.encoder.numeric), len(art.encoder.features)
    arrays = dict(w0=np.zeros((2 * k + sum(map(len, art.encoder.levels)), 1)), b0=np.array([1.0]), background=np.zeros((5, d)))
    fitted = Fitted("dense", arrays, lambda Z: np.full(len(Z), 1.0), [], {})
    card = card_of(art)
    rows = parity_rows(pd.read_parquet(ROOT/"data/sample/reference.parquet"), card)
    meta = {k: v for k, v in art.meta.items() if k not in ("kind", "encoder", "note", "parity_tolerance")}
    return save(home/"model", fitted, art.encoder, meta, rows, dict(card=card.model_dump()))


def test_a_constant_model_is_audited(tmp_path, constant):
    fair = audit(tmp_path, "fairness", model=constant)["late"]
    assert fair["selection_rate_ratio", "gender"]["value"] == 1.0 and fair["auc", "gender=Female"]["value"] == 0.5
    assert fair["true_negative_rate", "gender=Female"]["value"] == 0 and fair["negative_predictive_value", "gender=Female"]["value"] is None
    why = audit(tmp_path, "explanation", model=constant)["late"]
    assert why["importance_share_max", "age"]["value"] is None and why["attribution_ndcg", "features"]["value"] is None
    assert why["additivity_error", "all rows"]["value"] < 1e-9


def test_an_attribute_with_one_value_cannot_be_compared(tmp_path):
    got = audit(tmp_path, "fairness", lambda d: d.assign(gender="Female"))["late"]
    for k in ("selection_rate_ratio", "equalized_odds_difference", "auc_difference", "disparate_impact"): assert got[k, "gender"]["value"] is None, k
    assert got["differs", "selection_rate of gender=Female"]["value"] is None
    assert "there is only gender=Female" in got["selection_rate_ratio_all", "gender"]["note"]


def test_a_group_may_have_any_name(tmp_path):
    got = audit(tmp_path, "fairness", lambda d: d.assign(gender=d.gender.replace({"Female": "a@b & c=d"})))["late"]
    assert got["selection_rate", "gender=a(at)b and c=d"]["value"] is not None and got["selection_rate_ratio_all", "gender"]["value"] < 1


def test_twenty_rows_are_too_few_to_explain(tmp_path):
    got = audit(tmp_path, "explanation", lambda d: d.head(20))["late"]
    assert got["additivity_error", "all rows"]["value"] < 1e-9
    assert all(v["value"] is None for (name, _), v in got.items() if name != "additivity_error")


def test_a_missing_attribute_is_a_group_of_its_own(tmp_path):
    got = audit(tmp_path, "fairness", lambda d: d.assign(gender=d.gender.where(np.arange(len(d)) % 3 > 0, None)))["late"]
    lost = got["selection_rate", "gender=(missing)"]
    assert lost["n"] >= 30 and lost["value"] is not None
    assert sum(got["label_coverage", f"gender={g}"]["n"] for g in ("Female", "Male", "(missing)")) == 400


def test_without_labels_the_measures_that_need_none_are_there(tmp_path):
    got = audit(tmp_path, "fairness", lambda d: d.assign(high_income=np.nan))["late"]
    assert got["selection_rate_ratio_all", "gender"]["value"] is not None and got["mean_score_difference_all", "gender"]["value"] is not None
    assert got["selection_rate_ratio", "gender"]["value"] is None and got["label_coverage", "gender=Male"]["value"] == 0


def test_numbers_as_text_are_numbers_and_other_text_is_refused(project):
    rows = pd.read_parquet(ROOT/"data/sample/2014-18.parquet").head(5)
    rows = rows.assign(age=rows.age.map(lambda v: f"{v:g}"), educcat=["never seen", *rows.educcat[1:]])
    rows.to_csv(project.root/"rows.csv", index=False)
    told = json.loads(project.run(f"mlgov explain data/sample/model rows.csv --row {rows.id[0]} --json").stdout)
    assert abs(told["base_score"] + sum(c["in_score"] for c in told["contributions"]) - told["score"]) < 1e-6
    assert next(c["value"] for c in told["contributions"] if c["feature"] == "educcat") == "missing or never seen"
    rows.assign(age=["old", *rows.age[1:]]).to_csv(project.root/"rows.csv", index=False)
    project.refuses(f"mlgov explain data/sample/model rows.csv --row {rows.id[0]}", "is refused: age: not a number")


def test_explain_in_the_terminal(project):
    row = pd.read_parquet(ROOT/"data/sample/2014-18.parquet").id[5]
    said = project.run(f"mlgov explain data/sample/model data/sample/2014-18.parquet --row {row}").stdout
    assert "Reasons" in said and "What would change the decision" in said
    assert "is a proxy for" in said and "{value}" not in said
    project.refuses("mlgov explain data/sample/model data/sample/2014-18.parquet --row nobody", "no row with id nobody")
    project.refuses("mlgov explain data/sample data/sample/2014-18.parquet --row 1", "not an artifact")
    project.refuses("mlgov explain models/none data/sample/2014-18.parquet --row 1", "no such folder")
    rows = pd.read_parquet(ROOT/"data/sample/2014-18.parquet").head(4)
    rows.assign(id=[1, 1, 2, 3], age=[40.0, 41.0, np.nan, 50.0]).to_csv(project.root/"odd.csv", index=False)
    project.refuses("mlgov explain data/sample/model odd.csv --row 1", "2 rows have id 1")
    assert "at age missing" not in project.run("mlgov explain data/sample/model odd.csv --row 2").stdout
    shutil.copytree(project.root/"data/sample/model", project.root/"bad")
    (project.root/"bad/card.json").write_text("{}")
    project.refuses("mlgov explain bad data/sample/2014-18.parquet --row 1", "card.json is changed")
