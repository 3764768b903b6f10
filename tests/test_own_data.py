"Other data than the default: a file of one's own, and the regression card"
import json

import numpy as np
import pandas as pd
import pytest
from conftest import copy_project, reduce


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    "A clone in which nothing has run"
    p = copy_project(tmp_path_factory.mktemp("fresh"))
    reduce(p)
    p.commit("a clone")
    return p


def verdict(p, card, audit): return json.loads((p.scope(card)/f"{audit}.verdict.json").read_text())


def test_own_data_from_a_csv(fresh):
    "Awkward on purpose: names with spaces, a time of day, no complete row, a feed that goes missing, nobody to ask parity for"
    rng, n = np.random.default_rng(0), 6000
    x = rng.normal(size=n)
    t = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 600 * 24, n)), "h")
    mine = pd.DataFrame({"customer": [f"c{i}" for i in range(n)], "signed_at": t, "hours per week": np.round(x * 10 + 40), "plan": rng.choice(["basic", "plus", "pro"], n), "half-empty": np.where(np.arange(n) % 2, rng.normal(size=n), np.nan),
                         "other half": np.where(np.arange(n) % 2, None, rng.choice(["a", "b"], n)), "feed": np.where(t < t[int(n * .9)], rng.normal(size=n), np.nan), "gender": rng.choice(["f", "m"], n), "age": rng.integers(18, 90, n), "churned": np.where(x + rng.normal(size=n) > 0, "yes", "no")})
    mine.to_csv(fresh.root/"my.csv", index=False)
    said = fresh.run("mlgov card new my.csv --target churned").stdout
    assert "1 means churned = yes" in said and "protected, guessed by name: gender, age" in said and "time: signed_at" in said
    assert "6,000 rows fit the card, 0 are refused" in fresh.run("mlgov card check my").stdout
    fresh.edit("params.yaml", "sample: 0.35", "sample: 1.0")
    fresh.run("dvc repro")
    parts = json.loads((fresh.root/"data/split/split.json").read_text())
    assert sum(p["rows"] for p in parts["parts"]) == n and parts["outside"] == 0, "no row is lost"
    drift = json.loads((fresh.scope("my")/"drift.json").read_text())[-1]
    assert {(m["name"], m["subject"]): m["value"] for m in drift["measures"]}["drifted", "feed"] == 1.0
    assert verdict(fresh, "my", "drift")["verdict"] == "warn" and "feed" in verdict(fresh, "my", "drift")["line"]
    assert verdict(fresh, "my", "fairness")["verdict"] == "unknown", "no parity is asked for, so none is claimed"
    assert "my/model_card.html" in (fresh.root/"reports/index.html").read_text()
    release = json.loads((fresh.root/"release/served/RELEASE.json").read_text())
    assert set(release["example"]) == {f["name"] for f in json.loads((fresh.root/"release/served/model/metadata.json").read_text())["features"]} and "hours per week" in release["example"]


def test_regression_card(fresh):
    fresh.run("git checkout -q -- params.yaml")
    fresh.edit("params.yaml", "card: gss_wages ", "card: gss_income ")
    fresh.run("dvc repro judge@fairness judge@performance")
    select, fair = verdict(fresh, "gss_income", "select"), verdict(fresh, "gss_income", "fairness")
    assert {c["measure"] for c in select["checks"]} == {"r2", "mean_prediction_difference"}
    gap = {c["subject"]: c["value"] for c in select["checks"] if c["measure"] == "mean_prediction_difference"}
    assert gap["gender@mlp_fair"] < min(v for k, v in gap.items() if k != "gender@mlp_fair")
    assert {"mean_prediction_difference", "mae_ratio"} == {c["measure"] for c in fair["checks"]}
    assert {"r2", "rmse_ratio_now"} == {c["measure"] for c in verdict(fresh, "gss_income", "performance")["checks"]}
