"""Verdicts on data in which nothing is wrong, or something is, with the uncertainty that the rows leave."""

import numpy as np
import pandas as pd
import pytest

from mlgov_nb.data.card import card_path, load_card
from mlgov_nb.data.prepare import prepare
from mlgov_nb.data.read import read_rows
from mlgov_nb.drift.audit import Comparison, WindowRows, audit_drift, compare_rows
from mlgov_nb.drift.columns import decide, drift_measures, drift_table
from mlgov_nb.fairness.rates import fairness_measures
from mlgov_nb.pipeline.drift_check import drift_of
from mlgov_nb.profile.build import profile
from mlgov_nb.settings import AuditSettings, Limit, project_root
from mlgov_nb.stats.measures import measure
from mlgov_nb.verdict.judge import check, judge

ROOT = project_root()
FEW = AuditSettings(resamples=400)


@pytest.fixture(scope="module")
def survey():
    "Answers of the General Social Survey, one row a person"
    card = load_card(card_path(ROOT, "gss_wages"))
    return prepare(read_rows(ROOT/"data/raw"/card.path), card)[0], card


def alarms(pairs, **options):
    "Share of pairs of frames in which a column is called drifted"
    found = [drift_of(before, now, settings=FEW, **options).table.drifted for before, now in pairs]
    return np.mean([(table == True).any() for table in found])


def amounts(rows, share, seed):
    "Four independent columns of amounts, most of them zero"
    rng = np.random.default_rng(seed)
    return pd.DataFrame({name: np.where(rng.random(rows) < share, rng.lognormal(3, 1, rows).round(2), 0.0)
                         for name in "abcd"})


@pytest.mark.parametrize(("share", "old", "new"), [(.05, 30, 3000), (.02, 100, 3000), (.01, 200, 10_000)])
def test_rare_amounts_against_a_small_reference_are_no_drift(share, old, new):
    pairs = [(amounts(old, share, seed), amounts(new, share, 1000 + seed)) for seed in range(25)]
    assert alarms(pairs) <= 0.12


def repeated(rows, copies, seed, half=400):
    "Two windows of different people, each with several equal rows"
    chosen = rows.sample(2 * half, random_state=seed).assign(person=np.arange(2 * half))
    parts = chosen[:half], chosen[half:]
    return tuple(part.loc[part.index.repeat(copies)].reset_index(drop=True) for part in parts)


@pytest.mark.parametrize("copies", [2, 5])
def test_several_rows_of_each_person_are_no_drift(survey, copies):
    rows, card = survey
    pairs = [repeated(rows[card.features], copies, seed) for seed in range(15)]
    assert alarms(pairs, unit="person") <= 0.14
    assert alarms(pairs, ignore=["person"]) >= 0.6, "without a unit the rows count as if each told something new"
    note = drift_of(*pairs[0], settings=FEW, ignore=["person"]).notes
    assert any("rows come in groups" in each and "--unit" in each for each in note)


def test_copies_are_no_drift_for_tests_of_all_columns(survey):
    rows, card = survey
    def with_copies(part, rng): return pd.concat([part[:600], part[:600].sample(200, random_state=rng)])
    found = []
    for seed in range(8):
        chosen = rows.sample(1200, random_state=seed)
        before, now = with_copies(chosen[:600], seed), with_copies(chosen[600:], seed)
        kinds = {**dict.fromkeys(card.numeric, "numeric"), **dict.fromkeys(card.categorical, "categorical")}
        comparison = compare_rows(WindowRows(before, now), kinds, card.target.name)
        table = audit_drift({"w": comparison}, card, card.features, FEW).tables["w"]
        found.append((table.drifted == True).any())
    assert sum(found) <= 2


def test_a_quiet_window_beside_changed_ones_is_judged_as_alone(survey):
    rows, card = survey
    kinds = {**dict.fromkeys(card.numeric, "numeric"), **dict.fromkeys(card.categorical, "categorical")}
    quiet = []
    for seed in range(12):
        order = rows.sample(4000 + 6 * 300, random_state=seed)[card.features]
        before, windows = order[:4000], [order[4000 + 300 * i:4300 + 300 * i] for i in range(6)]
        bins = profile(before, kinds=kinds)
        changed = {f"w{i}": window.assign(age=window.age + 9, childs=window.childs + 1, prestg10=window.prestg10 + 8)
                   for i, window in enumerate(windows[:5])}
        tables = decide({name: drift_table(bins, profile(window, bins), draws=400)
                         for name, window in {**changed, "quiet": windows[5]}.items()})
        assert (tables["w0"].drifted == True).sum() >= 2
        quiet.append((tables["quiet"].drifted == True).any())
    assert sum(quiet) <= 2


def test_unchanged_small_windows_do_not_fail_on_a_distance():
    "A column of a hundred categories that carries the importance, and windows of 30 to 200 rows"
    rng = np.random.default_rng(0)
    def rows(n): return pd.DataFrame(dict(dest=rng.choice([f"d{i}" for i in range(104)], n), x=rng.normal(size=n)))
    limit = Limit(measure="drift_impact", subject="features", max=.21)
    verdicts = []
    for n in (30, 100, 200) * 5:
        before = rows(4000)
        bins = profile(before)
        table = decide({"w": drift_table(bins, profile(rows(n), bins), draws=400)})["w"]
        measured = drift_measures(table, ["dest", "x"], dict(dest=.7, x=.3))
        impact = next(each for each in measured if (each.name, each.subject) == ("drift_impact", "features"))
        verdicts.append(check(impact, "w", limit)["verdict"])
    assert "fail" not in verdicts and verdicts.count("unknown") <= 3


BROKEN = {
    "zeros": lambda values, rng: values.mask(rng.random(len(values)) < .05, 0.0),
    "unit lost": lambda values, rng: values.where(rng.random(len(values)) >= .02, values / 1000),
    "cap": lambda values, _: values.clip(upper=values.quantile(.95)),
    "tail doubled": lambda values, _: values.where(values < values.quantile(.96), 2 * values),
    "missing": lambda values, rng: values.mask(rng.random(len(values)) < .03),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_breaks_pipelines_is_found(fault):
    rng = np.random.default_rng(1)
    def rows(n): return pd.Series(rng.integers(20, 80, n) * 1000.0)
    found = []
    for _ in range(6):
        before, now = rows(4000), BROKEN[fault](rows(1000), rng)
        found.append(drift_of(pd.DataFrame(dict(x=before)), pd.DataFrame(dict(x=now)), settings=FEW).table.drifted["x"])
    assert sum(found) >= 5


def test_a_column_that_cannot_be_told_hides_no_other():
    rng = np.random.default_rng(0)
    a = pd.DataFrame(dict(country="US", note=[f"note {i}" for i in range(500)], x=rng.normal(size=500)))
    b = a.assign(x=rng.normal(2, 1, 500))
    changed, same = drift_of(a, b, settings=FEW), drift_of(a, a, settings=FEW)
    assert (changed.verdict["verdict"], same.verdict["verdict"]) == ("warn", "pass")
    assert changed.table.drifted["x"] and any("note: not compared" in note for note in changed.notes)
    share = next(m for m in drift_measures(decide({"w": pd.DataFrame([
        dict(p=1e-9, effect=.3, low=.2, js=.3, high=.4, n=500, why="", words="moved"),
        dict(p=np.nan, effect=np.nan, low=np.nan, js=np.nan, high=np.nan, n=500, why="too few rows", words="")],
        index=["x", "y"])})["w"], ["x", "y"]) if m.name == "drift_share")
    assert share.value == 1.0 and "y: cannot tell, too few rows" in share.note


@pytest.mark.parametrize(("rate", "sizes"),
                         [(.3, [100] * 5), (.2, [335, 200, 40, 38]), (.1, [500] * 20), (.5, [70] * 30)])
def test_equal_groups_do_not_fail(rate, sizes):
    "The four-fifths rule on groups that are selected alike"
    limit, verdicts = Limit(measure="selection_rate_ratio_all", min=.8), []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        group = pd.DataFrame(dict(g=np.repeat([f"g{i}" for i in range(len(sizes))], sizes)))
        score = (rng.random(len(group)) < rate) * 1.0
        measured = fairness_measures(group, [["g"]], "binary", np.full(len(group), np.nan), score, .5, draws=1000)
        ratio = next(each for each in measured if each.name == "selection_rate_ratio_all")
        verdicts.append(check(ratio, "w", limit))
    assert [each["verdict"] for each in verdicts].count("fail") <= 2
    unsure = next(each for each in verdicts if each["verdict"] == "unknown")
    assert "perhaps by chance" in unsure["sentence"] and "rows would, at this value" in unsure["sentence"]


def test_unequal_groups_fail():
    group = pd.DataFrame(dict(g=np.repeat(["a", "b"], 2000)))
    score = np.r_[np.arange(2000) < 1000, np.arange(2000) < 500] * 1.0
    measured = fairness_measures(group, [["g"]], "binary", np.full(4000, np.nan), score, .5, draws=1000)
    ratio = next(each for each in measured if each.name == "selection_rate_ratio_all")
    assert check(ratio, "w", Limit(measure="selection_rate_ratio_all", min=.8))["verdict"] == "fail"


def test_a_left_out_group_is_named_in_the_sentence():
    group = pd.DataFrame(dict(g=["a"] * 500 + ["b"] * 500 + ["c"] * 20))
    score = np.random.default_rng(0).random(len(group))
    measured = fairness_measures(group, [["g"]], "binary", np.full(len(group), np.nan), score, .5, draws=500)
    window = dict(name="w", start=None, end=None, rows=1020, labelled=0, sha256="0" * 16)
    found = dict(audit="fairness", model=dict(name="m", version="1"), reference=None, window=window,
                 measures=[each.as_dict() for each in measured])
    verdict = judge("fairness", [found], [Limit(measure="selection_rate_ratio_all", subject="g", min=.5)], ["g"])
    assert "without c (20): too few rows" in verdict["line"]
    share = next(each for each in measured if each.name == "left_out_share")
    assert share.value == 20 / 1020


def test_a_limit_may_ask_for_the_figure_itself():
    unsure = measure("auc", "all rows", .74, 400, .70, .78)
    assert check(unsure, "w", Limit(measure="auc", min=.75))["verdict"] == "unknown"
    assert check(unsure, "w", Limit(measure="auc", min=.75, decide_by="value"))["verdict"] == "fail"


def test_profiles_are_compared_without_rows(survey):
    "Nothing of this needs rows where rows are independent"
    rows, card = survey
    bins = profile(rows[:3000][card.features])
    found = audit_drift({"w": Comparison(bins, profile(rows[-3000:][card.features], bins))}, card, card.features, FEW)
    assert (found.tables["w"].drifted == True).any()
    assert not [each for each in found.measures["w"] if each.name == "row_dispersion"]
