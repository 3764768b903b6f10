"""False alarms and power of drift detection on real rows, side by side with the peers' defaults.

One repetition: the training period's rows are shuffled; the first are the reference, the next n the current window,
which is then changed by a shift of one kind and size. Every detector is given the same reference, of 16 windows.
Windows without a change have shuffles, and so references, of their own. Every detector says whether the window raises
an alarm.

    python bench/quality.py               everything; over an hour on two cores
    python bench/quality.py --minutes 40  stops then; like an interrupted run, it reports the repetitions that are done
    python bench/quality.py --small       a smoke test, into .bench/
"""
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from peers import python_of, version_of
from report import HERE, command_line, document, machine, summary, table, versions, write
from scipy.special import ndtr, stdtrit
from scipy.stats import binom, chi2_contingency, ks_2samp, rankdata
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedKFold
from tqdm import tqdm

from data import HELD_OUT, SHA256, card_and_rows
from mlgov_nb.drift.columns import decide, drift_table
from mlgov_nb.drift.joint import combined
from mlgov_nb.profile.build import profile
from mlgov_nb.profile.source import kinds_of
from mlgov_nb.settings import load_params
from mlgov_nb.stats.measures import wilson

ROOT = HERE.parent
OURS = "mlgov-nb, full audit"
C2ST_HALF, C2ST_FOLDS = "C2ST, half trains, half tests", "C2ST, cross-fitted"
CHUNKS = 16            # windows that a reference is as long as
QUIET = 8              # windows without a change in a repetition
DRAWS, SHUFFLES = 500, 100
LISTED = 0.15          # rate of false alarms up to which a detector that is ahead of ours is listed


class Where(NamedTuple):
    "What is shifted on a data set, and how long its windows are"
    rows: tuple          # of a window: small, medium and large
    number: str
    column: str          # a category,
    level: str           # and one of its levels
    link: str            # the column whose link to the others is broken
    slice: tuple         # column and levels of about 20% of the rows
    attribute: str       # that rows are redrawn by
    later: tuple = ()    # first and last time value of three later windows


WHERE = dict(
    gss_wages=Where(
        rows=(250, 500, 800),            # 13,935 rows of the training period are no more than 16 windows of 820
        number="age",
        column="educcat",
        level="Bachelor",
        link="educcat",
        slice=("maritalcat", ["Never Married", "Separated"]),
        attribute="gender",
        later=((1985, 1989), (1996, 2000), (2014, 2018)),
    ),
    acs_employment=Where(
        rows=(250, 1_000, 2_500),
        number="AGEP",
        column="MAR",
        level="3",
        link="MAR",
        slice=("SCHL", ["21"]),
        attribute="sex",
        later=((2016, 2016), (2017, 2017), (2018, 2018)),
    ),
    flights=Where(
        rows=(250, 1_000, 2_500),
        number="hour",
        column="carrier",
        level="MQ",
        link="carrier",
        slice=("carrier", ["UA"]),
        attribute="late",
        later=((7, 7), (9, 9), (12, 12)),
    ),
    adult=Where(
        rows=(250, 1_000, 2_500),
        number="age",
        column="workclass",
        level="Self-emp-not-inc",
        link="occupation",
        slice=("relationship", ["Own-child", "Wife"]),
        attribute="sex",
    ),
)
CHOSEN = {name: name not in HELD_OUT for name in WHERE}      # were choices made on it?
GROUPS = ("data that choices were made on", "held-out data")
KINDS = {                        # small, medium and large
    "none": ("", "", ""),
    "mean": (.1, .2, .4),
    "scale": (1.15, 1.3, 1.6),
    "one category's share": (.03, .06, .12),
    "missing values": (.01, .03, .1),
    "unit error": (.005, .01, .03),
    "new category": (.005, .01, .03),
    "correlation, equal marginals": (.25, .5, 1.0),
    "20% slice only": (.3, .6, 1.0),
    "10% of rows only": (.5, 1.0, 2.0),
    "resampled by an attribute": (1.25, 1.6, 2.5),
    "later years": (0, 1, 2),
}
SHIFTS = [kind for kind in KINDS if kind != "none"]
MEANING = {
    "mean": "a number plus so many reference deviations",
    "scale": "its distance from the median times",
    "one category's share": "so many rows get one category",
    "missing values": "so many rows of a number are missing",
    "unit error": "so many rows of a number times 12",
    "new category": "so many rows get a category that never was",
    "correlation, equal marginals": "so many rows' categories are shuffled among themselves",
    "20% slice only": "the number plus so many deviations in one slice",
    "10% of rows only": "plus so many deviations in a random tenth",
    "resampled by an attribute": "rows are redrawn with such odds for one sex (flights: for those on time), no feature",
    "later years": "GSS 1985-89, 1996-2000, 2014-18; ACS 2016, 2017, 2018 against 2015; flights of July, September, "
                   "December against January to June",
}


# Windows
@cache
def data(name):
    "Card, rows of the training period, and three later windows, where there is a time"
    card, rows = card_and_rows(name)
    if not card.time: return card, rows, []
    time, until = rows[card.time], 2015 if name == "acs_employment" else card.split.train_until
    later = [rows[time.between(*years)].reset_index(drop=True) for years in WHERE[name].later]
    return card, rows[time <= until].reset_index(drop=True), later


def like_seen(numbers, seen, rng):
    "Numbers within the range of those seen; where these are whole, rounded up or down at random, to keep the mean"
    seen = seen.dropna()
    if (seen % 1 == 0).all(): numbers = np.floor(numbers + rng.random(len(numbers)))
    return numbers.clip(seen.min(), seen.max())


def redrawn(pool, attribute, odds, count, rng):
    "Rows drawn with such odds for the attribute's most frequent value"
    values = pool[attribute]
    weight = np.where(values == values.value_counts().index[0], odds, 1.0)
    drawn = rng.choice(len(pool), count, replace=False, p=weight / weight.sum())
    return pool.iloc[drawn].reset_index(drop=True)


def shift(window, kind, size, name, pool, later, rng):
    "A window changed by one kind of shift"
    where, amount, row_count = WHERE[name], KINDS[kind][size], len(window)
    number, column = where.number, where.column
    deviation = pool[number].std()
    def moved(rows, numbers): window.loc[rows, number] = like_seen(numbers[rows], pool[number], rng)
    window, random = window.copy(), rng.random(row_count)
    if kind == "mean":
        moved(random < 1, window[number] + amount * deviation)
    elif kind == "scale":
        median = window[number].median()
        moved(random < 1, median + (window[number] - median) * amount)
    elif kind == "one category's share":
        window.loc[random < amount, column] = where.level
    elif kind == "missing values":
        window.loc[random < amount, number] = np.nan
    elif kind == "unit error":
        window.loc[random < amount, number] *= 12
    elif kind == "new category":
        window.loc[random < amount, column] = "recoded"
    elif kind == "correlation, equal marginals":
        some = np.flatnonzero(random < amount)
        window.loc[some, where.link] = window[where.link].to_numpy()[rng.permutation(some)]
    elif kind == "20% slice only":
        slice_column, levels = where.slice
        moved(window[slice_column].isin(levels), window[number] + amount * deviation)
    elif kind == "10% of rows only":
        moved(random < .1, window[number] + amount * deviation)
    elif kind == "resampled by an attribute":
        window = redrawn(pool, where.attribute, amount, row_count, rng)
    elif kind == "later years":
        year = later[size]
        window = year.iloc[rng.permutation(len(year))[:row_count]].reset_index(drop=True)
    return window


def deal(name, row_count, reference, *seed):
    "Reference, current window, and all rows but the reference, from one shuffle"
    _, rows, _ = data(name)
    rng = np.random.default_rng([*seed, row_count, zlib.crc32(name.encode())])
    order = rng.permutation(len(rows))
    old = rows.iloc[order[:reference]].reset_index(drop=True)
    new = rows.iloc[order[reference:reference + row_count]].reset_index(drop=True)
    return old, new, rows.iloc[order[reference:]], rng


def windows(name, row_count, repeat):
    "Pairs of reference and current window of one repetition, by kind and size of the shift"
    card, _, later = data(name)
    seed = repeat + 1_000
    reference = CHUNKS * row_count
    old, new, pool, rng = deal(name, row_count, reference, seed)
    pairs = {("none", i): deal(name, row_count, reference, seed, i + 1)[:2] for i in range(QUIET)}
    for kind in SHIFTS:
        if kind == "later years" and not later: continue
        for size in range(3):
            pairs[kind, size] = (old, shift(new, kind, size, name, pool, later, rng))
    return card, pairs


# Detectors
def ours(card, old, new, audit, seed, reference=None):
    "Alarms of the columns alone and of the full audit, with the default effect floors and without"
    reference = reference or profile(old, kinds=kinds_of(old, card))
    columns = drift_table(reference, profile(new, reference), audit.min_n, DRAWS, seed)
    joint = combined(card, old, new, audit.min_n, seed, SHUFFLES, explain=False)[0]
    def alarm(tests, floors):
        decided = decide({"window": tests}, audit.alpha, *floors)["window"]
        return bool((decided.drifted == True).any())      # None, cannot be determined, is no alarm
    alarms = {}
    for label, floors in (("", (audit.effect_floor, audit.joint_floor)), (", no floor", (0.0, 0.0))):
        alarms[f"mlgov-nb, columns{label}"] = alarm(columns, floors)
        alarms[f"{OURS}{label}"] = alarm(pd.concat([columns, joint]), floors)
    return alarms


def merged(counts, least=5):
    "Counts (windows x levels), rare levels merged until each is expected at least five times in both windows"
    counts = counts[:, np.argsort(counts.sum(0))]
    def expected(): return counts.sum(0) * counts.sum(1).min() / counts.sum()
    while counts.shape[1] > 1 and expected().min() < least:
        rarest = np.argsort(counts.sum(0))[:2]
        counts = np.c_[np.delete(counts, rarest, axis=1), counts[:, rarest].sum(1)]
    return counts


def chi_square(old, new):
    "p-value of a category's change, a missing value being a category"
    level = pd.factorize(pd.concat([old, new]), use_na_sentinel=False)[0]
    counts = [np.bincount(part, minlength=level.max() + 1) for part in (level[:len(old)], level[len(old):])]
    counts = merged(np.array(counts))
    return 1.0 if counts.shape[1] == 1 else chi2_contingency(counts, correction=False).pvalue


def ks_bonferroni(card, old, new, alpha):
    "Kolmogorov-Smirnov per number, chi-square per category and per number's being missing, Bonferroni"
    present = [name for name in card.numeric if new[name].notna().any()]
    with_gaps = [name for name in card.numeric if old[name].isna().any() or new[name].isna().any()]
    p_values = [ks_2samp(old[name].dropna(), new[name].dropna()).pvalue for name in present]
    p_values += [chi_square(old[name], new[name]) for name in card.categorical]
    p_values += [chi_square(old[name].isna(), new[name].isna()) for name in with_gaps]
    return min(p_values) < alpha / len(p_values)


def as_numbers(card, rows):
    "Numbers as they are, categories as codes with gaps"
    def code(column): return np.where(column.isna(), np.nan, pd.factorize(column)[0])
    return np.column_stack([*(rows[name] for name in card.numeric), *(code(rows[name]) for name in card.categorical)])


def rank_sum(score, is_new):
    "Mann-Whitney's U of the new rows' scores less what is expected, and its variance, ties allowed for"
    ranks, (new, old) = rankdata(score), (is_new.sum(), (~is_new).sum())
    u = ranks[is_new].sum() - new * (new + 1) / 2
    return u - new * old / 2, new * old * ranks.var(ddof=1) / (new + old)


def c2st(card, old, new, alpha, seed, folds, tested):
    "Classifier two-sample test: is the AUC of boosted trees, within the folds that they did not see, above 0.5?"
    Z = as_numbers(card, pd.concat([old, new], ignore_index=True))
    is_new = np.arange(len(Z)) >= len(old)
    is_category = np.arange(Z.shape[1]) >= len(card.numeric)
    excess = variance = 0.0
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(Z, is_new)
    for train, test in islice(splits, tested):
        model = HistGradientBoostingClassifier(
            max_iter=50, early_stopping=False, categorical_features=is_category, random_state=seed)
        score = model.fit(Z[train], is_new[train]).predict_proba(Z[test])[:, 1]
        more, spread = rank_sum(score, is_new[test])
        excess, variance = excess + more, variance + spread
    return bool(ndtr(-excess / np.sqrt(variance)) < alpha) if variance else False


def evidently(card, old, new):
    "Share of drifted columns by Evidently's default statistics over 1,000 reference rows (both 0.1), called one by one"
    from evidently.legacy.calculations.stattests import jensenshannon_stat_test, wasserstein_stat_test
    from evidently.legacy.core import ColumnType
    def drifted(test, column_type, names):
        return [test(old[name].dropna(), new[name].dropna(), column_type, 0.1).drifted for name in names]
    numeric = drifted(wasserstein_stat_test, ColumnType.Numerical, card.numeric)
    categorical = drifted(jensenshannon_stat_test, ColumnType.Categorical, card.categorical)
    return float(np.mean(numeric + categorical))


def check_shortcut(card, old, new):
    "The statistics called one by one must decide as Evidently's report does"
    from evidently import Report
    from evidently.presets import DataDriftPreset
    audit = Report([DataDriftPreset(columns=card.features)])
    result = audit.run(current_data=new[card.features], reference_data=old[card.features]).dict()
    share, shortcut = result["metrics"][0]["value"]["share"], evidently(card, old, new)
    assert abs(share - shortcut) < 1e-9, (share, shortcut)


# Repetitions
def repetition(job):
    "Every window of one repetition through every detector that runs here"
    import torch
    torch.set_num_threads(1)
    name, row_count, repeat = job
    card, pairs = windows(name, row_count, repeat)
    audit = load_params(ROOT/"params.yaml").audit
    if repeat == 0: check_shortcut(card, *pairs["mean", 2])
    shared_reference = pairs["mean", 2][0]
    shared = profile(shared_reference, kinds=kinds_of(shared_reference, card))
    rows = []
    for (kind, size), (old, new) in pairs.items():
        share = evidently(card, old, new)
        alarms = ours(card, old, new, audit, repeat, None if kind == "none" else shared) | {
            "Evidently, dataset drift": share >= 0.5,
            "Evidently, any column": share > 0,
            "KS and chi-square, Bonferroni": bool(ks_bonferroni(card, old, new, audit.alpha)),
            C2ST_HALF: c2st(card, old, new, audit.alpha, repeat, folds=2, tested=1),
            C2ST_FOLDS: c2st(card, old, new, audit.alpha, repeat, folds=5, tested=5),
        }
        same = dict(data=name, n=row_count, repeat=repeat, kind=kind, size=size)
        rows += [dict(same, detector=detector, alarm=alarm) for detector, alarm in alarms.items()]
    return rows


class Hard(NamedTuple):
    "Unfavourable windows"
    reference: int                # rows
    window: int                   # rows
    as_categories: tuple = ()     # numbers that are treated as categories


HARD_REPEATS = 60
HARD = {
    "100 and 100 rows": Hard(100, 100),
    "100 and 2,000 rows": Hard(100, 2_000),
    "500 and 5,000 rows": Hard(500, 5_000),
    "4,000 and 1,000 rows, occupation code as a category": Hard(4_000, 1_000, ("occ10",)),
}


def hard(job):
    "Alarms of ours, without floors, where nothing changed and the windows or categories are unfavourable"
    import torch
    torch.set_num_threads(1)
    what, repeat = job
    case, card = HARD[what], data("gss_wages")[0]
    audit = load_params(ROOT/"params.yaml").audit
    if case.as_categories:
        numeric = [name for name in card.numeric if name not in case.as_categories]
        card = card.model_copy(update=dict(numeric=numeric, categorical=[*card.categorical, *case.as_categories]))
    old, new = deal("gss_wages", case.window, case.reference, repeat + 5_000)[:2]
    alarms = ours(card, old, new, audit, repeat)
    return [
        dict(case=what, detector=detector, alarm=alarm)
        for detector, alarm in alarms.items()
        if detector.endswith("no floor")
    ]


def write_windows(name, row_count, repeats, folder):
    "Write the windows for NannyML; the name of each: repetition, kind and size"
    keys = {}
    for repeat in range(repeats):
        card, pairs = windows(name, row_count, repeat)
        types = dict.fromkeys(card.categorical, "object")
        def plain(rows, card=card, types=types): return rows[card.features].astype(types)
        for (kind, size), (old, new) in pairs.items():
            place = folder/f"{repeat:03}-{size if kind == 'none' else 'shifted'}"
            if not place.exists():
                place.mkdir()
                plain(old).to_parquet(place/"reference.parquet")
            window = f"w{len(keys):06}"
            plain(new).to_parquet(place/f"{window}.parquet")
            keys[f"{place.name}/{window}"] = (repeat, kind, size)
    return keys


def nannyml(name, row_count, repeats):
    "Alarms of the same windows by NannyML in its own environment, and how often it gave which warning"
    python = python_of("nannyml")
    if not python: return [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        keys = write_windows(name, row_count, repeats, folder)
        result = subprocess.run([python, HERE/"nannyml_worker.py", folder], capture_output=True, text=True)
        if result.returncode:
            print(f"NannyML: {result.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return [], {}
        found = json.loads((folder/"alerts.json").read_text())
    same = dict(data=name, n=row_count, detector=f"NannyML {version_of('nannyml')}")
    alarms = [
        dict(same, repeat=repeat, kind=kind, size=size, alarm=found["alerts"][key])
        for key, (repeat, kind, size) in keys.items()
    ]
    return alarms, found["warnings"]


def measured(repeats, names, minutes):
    "All alarms, those in unfavourable windows, NannyML's warnings, and how many repetitions were done in time"
    python_of("nannyml")                                   # once, before the processes that use it
    until = time.monotonic() + 60 * minutes
    sets = [(name, row_count) for name in names for row_count in WHERE[name].rows]
    cases = [(what, repeat) for what in HARD for repeat in range(min(5 * repeats, HARD_REPEATS))]
    jobs = [(name, row_count, repeat) for repeat in range(repeats) for name, row_count in sets]
    rows, unkind, said, done = [], [], Counter(), 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        peers = pool.map(nannyml, *zip(*[(*one, repeats) for one in sets], strict=True))
        for alarms, warned in tqdm(peers, total=len(sets), desc="NannyML"):
            rows += alarms
            said.update(warned)
        for result in tqdm(pool.map(hard, cases), total=len(cases), desc="unkind nulls"): unkind += result
        try:
            for result in tqdm(pool.map(repetition, jobs), total=len(jobs), desc="windows"):
                rows += result
                done += 1
                if time.monotonic() > until: raise KeyboardInterrupt
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)      # what is done is reported
    alarms, repeats = pd.DataFrame(rows), done // len(sets)
    return alarms, pd.DataFrame(unkind), dict(said), repeats


def kept(small):
    "Where what was measured is kept, for tables without measuring again"
    return ROOT/".bench"/("quality-small.pickle" if small else "quality.pickle")


# Report
def rate(hits, count):
    low, high = wilson(hits, count)
    return f"{hits / count:.1%} ({low:.1%}–{high:.1%})"


def holds_rate(quiet):
    "Are so many false alarms likely at a rate of 5%, in all windows together and in each data set and sample size?"
    def chance(counts): return binom.sf(counts["sum"] - 1, counts["size"], 0.05)
    each = quiet.groupby(["data", "n"]).alarm.agg(["sum", "size"])
    in_each = all(chance(counts) > 0.01 / len(each) for _, counts in each.iterrows())
    return in_each and chance(dict(sum=quiet.alarm.sum(), size=len(quiet))) > 0.01


def false_alarms(alarms, detectors):
    "Table of the rates of false alarms, and which detectors hold 5%"
    quiet = alarms[alarms.kind == "none"]
    cells = {f"{name}, {n:,} rows": (quiet.data == name) & (quiet.n == n) for name in WHERE for n in WHERE[name].rows}
    cells |= {group: quiet.data.map(CHOSEN) == (group == GROUPS[0]) for group in GROUPS}
    cells["all"] = quiet.data != ""
    rows = []
    for cell, chosen in cells.items():
        if not chosen.any(): continue
        found = quiet[chosen].groupby("detector").alarm
        rows.append(dict(windows=cell) | {name: rate(found.sum()[name], found.size()[name]) for name in detectors})
    holds = {detector: holds_rate(quiet[quiet.detector == detector]) for detector in detectors}
    rows.append(dict(windows="holds 5%") | {name: "yes" if holds[name] else "no" for name in detectors})
    return rows, holds


def hard_rows(unkind):
    "Rates of false alarms in unfavourable windows"
    rows = []
    for what, case in unkind.groupby("case", sort=False):
        rates = {detector: rate(int(found.alarm.sum()), len(found)) for detector, found in case.groupby("detector")}
        rows.append(dict(windows=what, **rates))
    return rows


def power_of(alarms, detectors):
    "Share of changed windows with an alarm, kinds of shift x detectors, and the total"
    shifted = alarms[alarms.kind != "none"]
    power = shifted.groupby(["kind", "detector"]).alarm.mean().unstack()[detectors]
    power = power.loc[[kind for kind in SHIFTS if kind in power.index]]
    power.loc["total"] = shifted.groupby("detector").alarm.mean()
    return power


def power_rows(power, holds):
    "Rows of the table; the highest among the detectors that hold their rate is bold"
    holding = [detector for detector in power if holds[detector]]
    rows = []
    for kind, shares in power.iterrows():
        row = dict(shift=kind)
        for detector, share in shares.items():
            is_best = holds[detector] and share >= shares[holding].max() - 1e-9
            row[detector] = f"**{share:.2f}**" if is_best else f"{share:.2f}"
        rows.append(row)
    return rows


def paired(shifted, peer):
    "Mean difference of two detectors' alarms on the same windows, and half of its 95% interval, by repetition"
    both = shifted.pivot_table(index=["data", "n", "repeat", "kind", "size"], columns="detector", values="alarm")
    difference = (both[peer] - both[OURS]).dropna().groupby(["data", "n", "repeat"]).mean()
    count = len(difference)
    return difference.mean(), stdtrit(count - 1, 0.975) * difference.std() / np.sqrt(count)


def others_ahead(alarms, group, detectors):
    "Kinds of shift of which a detector with few false alarms sees more than our full audit"
    false = alarms[alarms.kind == "none"].groupby("detector").alarm.mean()
    power, rows = power_of(alarms, detectors), []
    for kind, shares in power.iterrows():
        shifted = alarms[(alarms.kind != "none") & ((alarms.kind == kind) | (kind == "total"))]
        for detector in detectors:
            is_other = not detector.startswith("mlgov-nb") and false[detector] <= LISTED
            if not is_other or shares[detector] <= shares[OURS] + 1e-9: continue
            mean, half = paired(shifted, detector)
            rows.append({
                "data": group,
                "shift": kind,
                "detector": detector,
                "its false alarms": f"{false[detector]:.1%}",
                "its power": f"{shares[detector]:.2f}",
                "full audit": f"{shares[OURS]:.2f}",
                "difference, 95%": f"{mean:+.2f} ± {half:.2f}",
                "beyond chance": "yes" if mean > half else "no",
            })
    return rows


def size_rows():
    "What the sizes of each kind of shift are"
    rows = []
    for kind in SHIFTS:
        small, medium, large = KINDS[kind]
        rows.append(dict(shift=kind, small=small, medium=medium, large=large, what=MEANING[kind]))
    return rows


def about(alarms, repeats):
    "What was measured"
    sets = {group: [name for name in dict.fromkeys(alarms.data) if CHOSEN[name] == (group == GROUPS[0])]
            for group in GROUPS}
    return (f"`python bench/quality.py`: {summary(__doc__)} {repeats} repetitions, each of 11 kinds of shift × 3 sizes "
            f"× 3 sample sizes on every data set ({QUIET} windows without a shift); adult has no time, and so no later "
            "years, and GSS has too few rows for larger windows of which 16 are a reference. Floors and rules of ours "
            f"were chosen with a view of {' and '.join(sets[GROUPS[0]])}; none was chosen on "
            f"{' and '.join(sets[GROUPS[1]]) or '(not measured here)'} (packages {', '.join(SHA256)}), the held-out "
            "sets. Peers run their drift defaults; the checks for missing values and unknown categories that they "
            "offer apart are not in them. Ours with the defaults of `params.yaml`, but "
            f"{DRAWS} simulated windows and {SHUFFLES} shuffles.")


ABOUT_PEERS = (
    "Every detector has the same reference of 16 windows, so NannyML, whose thresholds are three standard deviations "
    "of the reference's chunks, has 16 chunks. KS and chi-square: at 5%, Bonferroni over the columns; rare categories "
    "are merged until each is expected five times in both windows, and a number's being missing is a category. C2ST, a "
    "classifier two-sample test: boosted trees (scikit-learn, 50 iterations); their AUC on rows that they did not see "
    "against 0.5 at 5%, one-sided, by the normal approximation of Mann and Whitney. Trained on one half and tested on "
    "the other it holds its rate by design; cross-fitted in five folds it has more power, and more false alarms than "
    "5%, because the folds share rows. A shift of a whole-numbered column leaves whole numbers, and mean, scale and "
    "slice keep the column's range, so that no value alone betrays a window; 'unit error' and 'new category' are such "
    "values by nature.")


def warnings_text(said):
    "What NannyML warned of"
    if not said: return "NannyML gave no warnings."
    lines = [f"- {count:,} ×: {words}" for words, count in sorted(said.items(), key=lambda pair: -pair[1])]
    return document(
        "Warnings that NannyML and its libraries gave, and how often. It asks for at least six chunks; the reference "
        "has 16, and a window that is judged is one:",
        "\n".join(lines),
    )


def report(alarms, unkind, said, repeats, folder):
    alarms = alarms[alarms.repeat < repeats]
    detectors = sorted(dict.fromkeys(alarms.detector), key=lambda name: name.startswith("NannyML"))
    alarm_rows, holds = false_alarms(alarms, detectors)
    harder, sizes = hard_rows(unkind), size_rows()
    of_group = {group: alarms[alarms.data.map(CHOSEN) == (group == GROUPS[0])] for group in GROUPS}
    of_group = {group: found for group, found in of_group.items() if len(found)}
    power = {group: power_of(found, detectors) for group, found in of_group.items()}
    ahead = [row for group, found in of_group.items() for row in others_ahead(found, group, detectors)]
    power_tables = []
    for group, shares in power.items():
        lines = power_rows(shares, holds)
        power_tables += [f"{group[0].upper()}{group[1:]}:", table(lines, list(lines[0]))]
    text = document(
        "# Quality of drift detection",
        about(alarms, repeats),
        ABOUT_PEERS,
        "## False alarms, nothing changed (Wilson 95%)",
        "A detector holds its rate when so many alarms have a probability over 1% if its rate is 5%, in all windows "
        "together and (over 1% divided by their number) in each data set and sample size. It is a common yardstick, "
        "not a promise of every detector: NannyML alerts on each column by itself, and Evidently's thresholds are of "
        "distances. Here a window has an alarm when any of NannyML's columns has an alert.",
        table(alarm_rows, list(alarm_rows[0])),
        "Ours without floors where windows are small or uneven or a category has hundreds of values, GSS, "
        "nothing changed:",
        table(harder, list(harder[0])),
        warnings_text(said),
        "## Power: share of changed windows with an alarm, all sizes and samples",
        "Bold: the highest among the detectors that hold their rate. NannyML's and Evidently's shares are to be read "
        "beside their false alarms.",
        *power_tables,
        "## Where another test is more powerful than our full audit",
        f"Every kind of shift of which a detector with at most {LISTED:.0%} false alarms on the same data finds more "
        "than the full audit with its default floors; one with more than 5% is ahead in part for that. The difference "
        "is of the same windows, its interval by repetition. A floor is meant to cost power: changes that are real but "
        "smaller than it stay quiet.",
        table(ahead, list(ahead[0])) if ahead else "Nowhere.",
        "By size and sample: `quality.json`.",
        "## What the sizes are",
        table(sizes, list(sizes[0])),
    )
    grid = alarms.groupby(["data", "n", "kind", "size", "detector"]).alarm.agg(alarms="sum", windows="size")
    grid = grid.reset_index().rename(columns={"size": "shift_size"})
    used = versions("mlgov-nb", "evidently", "scipy", "scikit-learn", "torch") | dict(nannyml=version_of("nannyml"))
    figures = dict(
        machine=machine(),
        versions=used,
        repeats=repeats,
        unkind=harder,
        warnings=said,
        power={group: shares.to_dict() for group, shares in power.items()},
        ahead=ahead,
        grid=grid.to_dict("records"),
    )
    write("quality", text, figures, folder)
    print(Path(folder)/"quality.md")


def main(arguments):
    small = arguments.small
    if not arguments.tables:
        names, repeats = (["gss_wages", "adult"], 1) if small else (list(WHERE), arguments.repeats)
        found = measured(repeats, names, arguments.minutes)
        kept(small).write_bytes(pickle.dumps(found))
    report(*pickle.loads(kept(small).read_bytes()), ROOT/".bench" if small else HERE)


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=600, help="report what is done after so many minutes")
    parser.add_argument("--tables", action="store_true", help="the tables again, of what was measured last")
    parser.add_argument("--small", action="store_true")
    main(parser.parse_args())
