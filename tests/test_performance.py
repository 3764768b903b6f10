"How good is it today: before labels, with labels from a file, with a budget of labels, and is a change harmful"
import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def live(clone, tmp_path_factory):
    "Rows of 2014-18 without labels, and their labels: files outside the clone"
    d = tmp_path_factory.mktemp("live")
    raw = pd.read_parquet(clone.root/"data/raw/gss_wages.parquet").query("2014 <= year <= 2018").iloc[::3]
    raw.assign(realrinc=np.nan).to_csv(d/"rows.csv", index=False)
    known = raw.dropna(subset="realrinc")
    pd.DataFrame(dict(id=known.id, high_income=(known.realrinc > 20000).astype(int))).to_csv(d/"labels.csv", index=False)
    return d


def audit(p, d, *more, name="performance", rows="rows.csv"):
    "Audit a file; what was said, the verdict, and the measures of its window"
    said = p.run(f"mlgov audit {name} --current {d/rows} --out {d/'out'} {' '.join(map(str, more))}").stdout
    v, recs = (json.loads((d/"out"/f"{name}{x}.json").read_text()) for x in (".verdict", ""))
    return said, v, {(m["name"], m["subject"]): m for m in recs[-1]["measures"]}


def test_before_labels_an_estimate_is_judged(clone, live):
    said, v, m = audit(clone, live)
    assert "no labels yet" in said and v["harm"]["verdict"] == "harmless" and v["verdict"] in ("pass", "warn")
    now, expected = m["auc_now", "all rows"], m["auc_expected", "all rows"]
    assert now["value"] == expected["value"] and "confirmed windows" in expected["note"] and now["note"] == "expected, before labels"
    assert {k[1] for k in m if k[0] == "accuracy_expected"} >= {"gender=Female", "gender=Male"}
    assert m["auc", "all rows"]["value"] is None


def test_labels_from_a_file_confirm_it(clone, live):
    audit(clone, live, name="drift")
    said, v, m = audit(clone, live, "--labels", live/"labels.csv")
    truth, guess = m["auc", "all rows"], m["auc_expected", "all rows"]
    n = len(pd.read_csv(live/"labels.csv"))
    assert truth["n"] == n and guess["low"] <= truth["value"] <= guess["high"]
    assert f"{n:,} of" in said and f"confirmed {truth['value']:.3f}".rstrip("0") in said and f"on {n:,} labels of rows unlike the rest" in said
    assert "drift in" in v["harm"]["sentence"], "the drift audit of the same folder is joined"
    html = (live/"out/performance.html").read_text()
    assert html.index(v["harm"]["sentence"].split(":")[0] + ": drift in") < html.index("Every check"), "the sentence leads the page"


def test_a_changed_relation_is_harmful(clone, live):
    labels = pd.read_csv(live/"labels.csv")
    flip = np.random.default_rng(0).random(len(labels)) < 0.25
    labels.assign(high_income=np.where(flip, 1 - labels.high_income, labels.high_income)).to_csv(live/"flipped.csv", index=False)
    _, v, m = audit(clone, live, "--labels", live/"flipped.csv")
    assert v["verdict"] == "fail" and v["harm"]["verdict"] == "harmful" and "from a changed relation" in v["harm"]["sentence"]
    assert m["concept_part", "auc"]["high"] < 0 and m["covariate_part", "auc"]["low"] < 0 < m["covariate_part", "auc"]["high"]


def test_too_little_is_cannot_tell(clone, live):
    labels = pd.read_csv(live/"labels.csv")
    labels.assign(high_income=1).to_csv(live/"one.csv", index=False)
    _, v, m = audit(clone, live, "--labels", live/"one.csv")
    assert v["verdict"] == "unknown" and v["harm"]["verdict"] == "cannot tell" and "of one class" in v["harm"]["sentence"]
    pd.read_csv(live/"rows.csv").head(5).to_csv(live/"five.csv", index=False)
    _, v, m = audit(clone, live, rows="five.csv")
    assert v["verdict"] == "unknown" and "only 5 rows" in v["harm"]["sentence"] and m["auc_now", "all rows"]["value"] is None


def test_labels_that_do_not_fit(clone, live):
    labels = pd.read_csv(live/"labels.csv")
    bad = dict(text=(labels.assign(high_income="maybe"), "'maybe'", "expected 0 or 1"), unknown=(labels.assign(id=labels.id + 10**8), "none of"), nothing=(labels[["id"]], "high_income"),
               conflict=(pd.concat([labels, labels.head(1).assign(high_income=1 - labels.high_income.iloc[0])]), "different labels of one id", "observed_at"))
    for name, (t, *texts) in bad.items():
        t.to_csv(live/f"{name}.csv", index=False)
        clone.refuses(f"mlgov audit performance --current {live/'rows.csv'} --labels {live/name}.csv --out {live/'never'}", *texts)
    assert not (live/"never").exists()
    clone.refuses("mlgov audit performance --labels x.csv", "go with --current")


def test_a_budget_of_labels(clone, live):
    ask = live/"ask.csv"
    assert "200 of" in clone.run(f"mlgov label next {live/'rows.csv'} --budget 200 -o {ask}").stdout
    clone.refuses(f"mlgov label next {live/'rows.csv'} --budget 200 -o {ask}", "may hold labels")
    clone.refuses(f"mlgov label next {live/'rows.csv'} --budget 0 -o {live/'b.csv'}", "--budget 0")
    pd.read_csv(live/"rows.csv").head(0).to_csv(live/"none.csv", index=False)
    clone.refuses(f"mlgov label next {live/'none.csv'} --budget 5 -o {live/'b.csv'}", "no rows to label", "the file is empty")
    clone.refuses(f"mlgov label estimate {live/'rows.csv'} {ask}", "no label is filled in")
    rows = pd.read_csv(ask)
    assert abs(rows.weight.sum() - len(pd.read_csv(live/"rows.csv"))) < 1 and rows.stratum.str.contains("gender=").all()
    rows.assign(high_income=(rows.score > np.random.default_rng(0).random(len(rows))).astype(int)).to_csv(ask, index=False)     # outcomes as the scores promise
    got = {r["measure"]: r for r in json.loads(clone.run(f"mlgov label estimate {live/'rows.csv'} {ask} --json").stdout)}
    assert got["auc"]["n"] == 200 and got["auc"]["low"] < got["auc"]["value"] < got["auc"]["high"]
    raw = pd.read_csv(live/"rows.csv")
    pd.concat([raw, raw.head(1)]).to_csv(live/"twice.csv", index=False)
    said = clone.run(f"mlgov label estimate {live/'twice.csv'} {ask} --json")
    assert json.loads(said.stdout) and "twice.csv: 1 rows refused" in said.stderr, "the answer alone on stdout"


def test_the_committed_report_leads_with_harm():
    "The default data and policy: drift everywhere, and none of it hurts the champion"
    told = json.loads((ROOT/"reports/gss_wages/harm.json").read_text())
    assert [w["verdict"] for w in told["windows"]] == ["harmless"] * 6 and "expected AUC" in told["sentence"] and "confirmed" in told["sentence"]
    recs = {r["window"]["name"]: {(m["name"], m["subject"]): m for m in r["measures"]} for r in json.loads((ROOT/"reports/gss_wages/performance.json").read_text())}
    held = [m["auc_expected", "all rows"]["low"] <= m["auc", "all rows"]["value"] <= m["auc_expected", "all rows"]["high"] for w, m in recs.items() if w != "reference"]
    assert sum(held) >= 5, "what was promised before labels is what they showed"


def test_index_and_gate_say_it(clone):
    told = json.loads((clone.scope()/"harm.json").read_text())
    assert told["sentence"] in (clone.root/"reports/index.html").read_text()
    assert told["verdict"] in clone.run("mlgov gate").stdout and len(clone.run("mlgov stage harm").stdout.splitlines()) >= 6
