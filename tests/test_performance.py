"How good is it today: before labels, with labels from a file, with a budget of labels, and is a change harmful"
import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from mlgov_nb.cli.console import EXIT_CODES


def by_name(measures):
    "Measures by (name, subject)"
    return {(measure["name"], measure["subject"]): measure for measure in measures}


@pytest.fixture(scope="module")
def live(clone, tmp_path_factory):
    "Rows of 2014-18 without labels, and their labels: files outside the clone"
    folder = tmp_path_factory.mktemp("live")
    raw = pd.read_parquet(clone.root/"data/raw/gss_wages.parquet").query("2014 <= year <= 2018").iloc[::3]
    raw.assign(realrinc=np.nan).to_csv(folder/"rows.csv", index=False)
    known = raw.dropna(subset="realrinc")
    labels = pd.DataFrame(dict(id=known.id, high_income=(known.realrinc > 20000).astype(int)))
    labels.to_csv(folder/"labels.csv", index=False)
    return folder


def audit(project, folder, *options, name="performance", rows="rows.csv"):
    "Audit a file; what was printed, the verdict, and the measures of its window"
    out = folder/"out"
    more = " ".join(map(str, options))
    page = project.run(f"mlgov audit {name} --current {folder/rows} --out {out} {more}; echo exit $?").stdout
    verdict = json.loads((out/f"{name}.verdict.json").read_text())
    assert page.split()[-1] == str(EXIT_CODES[verdict["verdict"]]), "the command ends as its verdict says"
    records = json.loads((out/f"{name}.json").read_text())
    return page, verdict, by_name(records[-1]["measures"])


def test_before_labels_an_estimate_is_judged(clone, live):
    page, verdict, measures = audit(clone, live)
    assert "no labels yet" in page
    assert verdict["harm"]["verdict"] == "harmless" and verdict["verdict"] in ("pass", "warn")
    now, expected = measures["auc_now", "all rows"], measures["auc_expected", "all rows"]
    assert now["value"] == expected["value"]
    assert "confirmed windows" in expected["note"] and now["note"] == "expected, before labels"
    subjects = {subject for name, subject in measures if name == "accuracy_expected"}
    assert subjects >= {"gender=Female", "gender=Male"}
    assert measures["auc", "all rows"]["value"] is None


def test_labels_from_a_file_confirm_it(clone, live):
    audit(clone, live, name="drift")
    page, verdict, measures = audit(clone, live, "--labels", live/"labels.csv")
    truth, estimate = measures["auc", "all rows"], measures["auc_expected", "all rows"]
    labels = len(pd.read_csv(live/"labels.csv"))
    assert truth["n"] == labels and estimate["low"] <= truth["value"] <= estimate["high"]
    confirmed = f"confirmed {truth['value']:.3f}".rstrip("0")
    assert f"{labels:,} of" in page and f"{confirmed} on {labels:,} labels" in page
    assert "Labelled rows differ from unlabelled ones in " in page
    sentence = verdict["harm"]["sentence"]
    assert "drift in" in sentence, "the drift audit of the same folder is joined"
    html = (live/"out/performance.html").read_text()
    lead = sentence.split(":")[0] + ": drift in"
    assert html.index(lead) < html.index("Every check"), "the sentence leads the page"


def test_a_changed_relation_is_harmful(clone, live):
    labels = pd.read_csv(live/"labels.csv")
    flip = np.random.default_rng(0).random(len(labels)) < 0.25
    flipped = labels.assign(high_income=np.where(flip, 1 - labels.high_income, labels.high_income))
    flipped.to_csv(live/"flipped.csv", index=False)
    _, verdict, measures = audit(clone, live, "--labels", live/"flipped.csv")
    assert verdict["verdict"] == "fail" and verdict["harm"]["verdict"] == "harmful"
    assert "from a changed relation" in verdict["harm"]["sentence"]
    concept, covariate = measures["concept_part", "auc"], measures["covariate_part", "auc"]
    assert concept["high"] < 0 and covariate["low"] < 0 < covariate["high"]


def test_too_little_is_cannot_tell(clone, live):
    labels = pd.read_csv(live/"labels.csv")
    labels.assign(high_income=1).to_csv(live/"one.csv", index=False)
    _, verdict, _ = audit(clone, live, "--labels", live/"one.csv")
    assert verdict["verdict"] == "unknown" and verdict["harm"]["verdict"] == "cannot tell"
    assert "of one class" in verdict["harm"]["sentence"]
    pd.read_csv(live/"rows.csv").head(5).to_csv(live/"five.csv", index=False)
    _, verdict, measures = audit(clone, live, rows="five.csv")
    assert verdict["verdict"] == "unknown" and "only 5 rows" in verdict["harm"]["sentence"]
    assert measures["auc_now", "all rows"]["value"] is None


def test_labels_that_do_not_fit(clone, live):
    labels = pd.read_csv(live/"labels.csv")
    opposite = labels.head(1).assign(high_income=1 - labels.high_income.iloc[0])
    bad = dict(
        text=(labels.assign(high_income="maybe"), "'maybe'", "expected 0 or 1"),
        unknown=(labels.assign(id=labels.id + 10**8), "none of"),
        nothing=(labels[["id"]], "high_income"),
        conflict=(pd.concat([labels, opposite]), "different labels of one id", "observed_at"),
    )
    audit_rows = f"mlgov audit performance --current {live/'rows.csv'}"
    for name, (table, *texts) in bad.items():
        file = live/f"{name}.csv"
        table.to_csv(file, index=False)
        clone.refuses(f"{audit_rows} --labels {file} --out {live/'never'}", *texts)
    assert not (live/"never").exists()
    clone.refuses("mlgov audit performance --labels x.csv", "go with --current")


def test_a_budget_of_labels(clone, live):
    rows_file, chosen_file, none_file = live/"rows.csv", live/"ask.csv", live/"none.csv"
    choose = f"mlgov label next {rows_file}"
    assert "200 of" in clone.run(f"{choose} --budget 200 -o {chosen_file}").stdout
    clone.refuses(f"{choose} --budget 200 -o {chosen_file}", "may hold labels")
    clone.refuses(f"{choose} --budget 0 -o {live/'b.csv'}", "--budget 0")
    raw = pd.read_csv(rows_file)
    raw.head(0).to_csv(none_file, index=False)
    clone.refuses(f"mlgov label next {none_file} --budget 5 -o {live/'b.csv'}", "no rows to label", "the file is empty")
    clone.refuses(f"mlgov label estimate {rows_file} {chosen_file}", "no label is filled in")

    chosen = pd.read_csv(chosen_file)
    assert abs(chosen.weight.sum() - len(raw)) < 1 and chosen.stratum.str.contains("gender=").all()
    as_scores_promise = chosen.score > np.random.default_rng(0).random(len(chosen))
    chosen.assign(high_income=as_scores_promise.astype(int)).to_csv(chosen_file, index=False)
    answer = clone.run(f"mlgov label estimate {rows_file} {chosen_file} --json").stdout
    auc = {estimate["measure"]: estimate for estimate in json.loads(answer)}["auc"]
    assert auc["n"] == 200 and auc["low"] < auc["value"] < auc["high"]

    pd.concat([raw, raw.head(1)]).to_csv(live/"twice.csv", index=False)
    result = clone.run(f"mlgov label estimate {live/'twice.csv'} {chosen_file} --json")
    assert json.loads(result.stdout), "the answer alone on stdout"
    assert "twice.csv: 1 of" in result.stderr and "seen before" in result.stderr, "the answer alone on stdout"


def test_the_committed_report_leads_with_harm():
    "The default data and policy: drift everywhere, and none of it is known to hurt the champion"
    harm = json.loads((ROOT/"reports/gss_wages/harm.json").read_text())
    verdicts = [window["verdict"] for window in harm["windows"]]
    assert verdicts.count("harmless") >= 3 and "harmful" not in verdicts and harm["verdict"] == "harmless"
    unsure = [window["sentence"] for window in harm["windows"] if window["verdict"] == "cannot tell"]
    assert all("labels would tell" in sentence for sentence in unsure)
    assert "expected AUC" in harm["sentence"] and "confirmed" in harm["sentence"]
    records = json.loads((ROOT/"reports/gss_wages/performance.json").read_text())
    windows = {record["window"]["name"]: by_name(record["measures"]) for record in records}
    held = []
    for name, measures in windows.items():
        if name == "reference": continue
        truth, promise = measures["auc", "all rows"], measures["auc_expected", "all rows"]
        held.append(promise["low"] <= truth["value"] <= promise["high"])
    assert sum(held) >= 5, "what was promised before labels is what they showed"


def test_index_and_gate_say_it(clone):
    harm = json.loads((clone.scope()/"harm.json").read_text())
    assert harm["sentence"] in (clone.root/"reports/index.html").read_text()
    assert harm["verdict"] in clone.run("mlgov gate").stdout
    assert len(clone.run("mlgov stage harm").stdout.splitlines()) >= 6
