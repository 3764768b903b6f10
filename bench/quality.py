"""False alarms and power of drift detection on real rows, side by side with the peers' defaults.

One repetition: the training period's rows are shuffled; 4,000 are the reference, the next n the current window, which
is then changed by a shift of one kind and size. Windows without a change have shuffles, and so references, of their
own. Every detector says whether the window raises an alarm.

    python bench/quality.py            everything; over an hour on two cores; interrupted, it reports the repetitions
                                       that are done
    python bench/quality.py --small    a smoke test, into .bench/
"""
import json
import os
import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from peers import python_of, version_of
from report import HERE, command_line, document, machine, summary, table, versions, write
from scipy.stats import binom
from tqdm import tqdm

from mlgov_nb.data.card import card_path, load_card
from mlgov_nb.data.prepare import prepare
from mlgov_nb.data.read import read_rows
from mlgov_nb.drift.columns import decide, drift_table
from mlgov_nb.drift.joint import combined
from mlgov_nb.profile.build import profile
from mlgov_nb.profile.source import kinds_of
from mlgov_nb.settings import load_params
from mlgov_nb.stats.measures import wilson

ROOT = HERE.parent
OURS = "mlgov-nb, full audit"
REFERENCE = 4_000                # rows of the reference
SAMPLES = (250, 1_000, 2_500)    # rows of a window
DRAWS, SHUFFLES = 500, 100


class Where(NamedTuple):
    "What is shifted on a data set"
    number: str
    column: str          # a category,
    level: str           # and one of its levels
    link: str            # the column whose link to the others is broken
    slice: tuple         # column and levels of about 20% of the rows
    attribute: str       # that rows are redrawn by
    later: list | None   # windows of the card; None: the years after 2015


WHERE = dict(
    gss_wages=Where(
        number="age",
        column="educcat",
        level="Bachelor",
        link="educcat",
        slice=("maritalcat", ["Never Married", "Separated"]),
        attribute="gender",
        later=["1985-89", "1996-2000", "2014-18"],
    ),
    acs_employment=Where(
        number="AGEP",
        column="MAR",
        level="3",
        link="MAR",
        slice=("SCHL", ["21"]),
        attribute="sex",
        later=None,
    ),
)
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
    "resampled by an attribute": "rows are redrawn with such odds for one sex, which is no feature",
    "later years": "GSS 1985-89, 1996-2000, 2014-18; ACS 2016, 2017, 2018 against 2015",
}


# Windows
@cache
def data(name):
    "Card, rows of the training period, and three later windows"
    card, where = load_card(card_path(ROOT, name)), WHERE[name]
    rows, _ = prepare(read_rows(ROOT/"data/raw"/card.path), card)
    time = rows[card.time]
    until = card.split.train_until if name == "gss_wages" else 2015
    if where.later: later = [rows[time.between(*card.split.windows[window])] for window in where.later]
    else: later = [rows[time == year] for year in (2016, 2017, 2018)]
    return card, rows[time <= until].reset_index(drop=True), [window.reset_index(drop=True) for window in later]


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
    window, random = window.copy(), rng.random(row_count)
    if kind == "mean":
        window[number] += amount * deviation
    elif kind == "scale":
        median = window[number].median()
        window[number] = median + (window[number] - median) * amount
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
        window.loc[window[slice_column].isin(levels), number] += amount * deviation
    elif kind == "10% of rows only":
        window.loc[random < .1, number] += amount * deviation
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
    old, new, pool, rng = deal(name, row_count, REFERENCE, seed)
    pairs = {("none", i): deal(name, row_count, REFERENCE, seed, i + 1)[:2] for i in range(3)}
    for kind in SHIFTS:
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


def chi_square(old, new):
    "p-value of a category's change, a missing value being a category"
    from scipy.stats import chi2_contingency
    level = pd.factorize(pd.concat([old, new]), use_na_sentinel=False)[0]
    if not level.max(): return 1.0
    counts = [np.bincount(part, minlength=level.max() + 1) for part in (level[:len(old)], level[len(old):])]
    return chi2_contingency(counts, correction=False).pvalue


def ks_bonferroni(card, old, new, alpha):
    "Kolmogorov-Smirnov per number, chi-square per category, missing a category, Bonferroni"
    from scipy.stats import ks_2samp
    present = [name for name in card.numeric if new[name].notna().any()]
    p_values = [ks_2samp(old[name].dropna(), new[name].dropna()).pvalue for name in present]
    p_values += [chi_square(old[name], new[name]) for name in card.categorical]
    return min(p_values) < alpha / len(p_values)


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
        }
        same = dict(data=name, n=row_count, repeat=repeat, kind=kind, size=size)
        rows += [dict(same, detector=detector, alarm=alarm) for detector, alarm in alarms.items()]
    return rows


class Hard(NamedTuple):
    "Unfavourable windows"
    reference: int                # rows
    window: int                   # rows
    as_categories: tuple = ()     # numbers that are treated as categories


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
    "The same windows through NannyML in its own environment"
    python = python_of("nannyml")
    if not python: return []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        keys = write_windows(name, row_count, repeats, folder)
        command = [python, "-W", "ignore", HERE/"nannyml_worker.py", folder]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            print(f"NannyML: {result.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return []
        alerts = json.loads((folder/"alerts.json").read_text())
    same = dict(data=name, n=row_count, detector=f"NannyML {version_of('nannyml')}")
    return [
        dict(same, repeat=repeat, kind=kind, size=size, alarm=alerts[key])
        for key, (repeat, kind, size) in keys.items()
    ]


def run(repeats, peer_repeats, names, folder):
    python_of("nannyml")                                   # once, before the processes that use it
    sets = [(name, row_count) for name in names for row_count in SAMPLES]
    cases = [(what, repeat) for what in HARD for repeat in range(repeats * 2)]
    jobs = [(name, row_count, repeat) for repeat in range(repeats) for name, row_count in sets]
    rows, unkind, done = [], [], 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        peer_rows = pool.map(nannyml, *zip(*[(*one, peer_repeats) for one in sets], strict=True))
        for result in tqdm(peer_rows, total=len(sets), desc="NannyML"): rows += result
        for result in tqdm(pool.map(hard, cases), total=len(cases), desc="unkind nulls"): unkind += result
        try:
            for result in tqdm(pool.map(repetition, jobs), total=len(jobs), desc="windows"):
                rows += result
                done += 1
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)      # what is done is reported
    alarms, repeats = pd.DataFrame(rows), done // len(sets)
    report(alarms[alarms.repeat < repeats], pd.DataFrame(unkind), repeats, min(peer_repeats, repeats), folder)


# Report
def rate(hits, count):
    low, high = wilson(hits, count)
    return f"{hits / count:.1%} ({low:.1%}–{high:.1%})"


def false_alarms(alarms, detectors):
    "Table of the rates of false alarms, and which detectors hold 5%"
    quiet = alarms[alarms.kind == "none"]
    by_set = quiet.groupby(["data", "n", "detector"]).alarm.agg(["sum", "size"])
    total = quiet.groupby("detector").alarm.agg(["sum", "size"])
    sets = dict.fromkeys((name, row_count) for name, row_count, _ in by_set.index)
    def chance(counts): return binom.sf(counts["sum"] - 1, counts["size"], 0.05)
    holds, rows = {}, []
    for detector in detectors:
        each = by_set.xs(detector, level="detector")
        in_each = all(chance(counts) > 0.01 / len(each) for _, counts in each.iterrows())
        holds[detector] = in_each and chance(total.loc[detector]) > 0.01
        row = dict(detector=detector)
        for name, row_count in sets: row[f"{name}, {row_count:,} rows"] = rate(*by_set.loc[name, row_count, detector])
        row["all"] = rate(*total.loc[detector])
        row["holds 5%"] = "yes" if holds[detector] else "no"
        rows.append(row)
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
    power = shifted.groupby(["kind", "detector"]).alarm.mean().unstack()[detectors].loc[SHIFTS]
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


def peers_ahead(power, holds):
    "Kinds of shift of which a peer that holds its rate sees more than our full audit, with these peers"
    peers = [detector for detector in power if not detector.startswith("mlgov-nb") and holds[detector]]
    ahead = []
    for kind, shares in power.iterrows():
        better = [peer for peer in peers if shares[peer] > shares[OURS] + 1e-9]
        if better: ahead.append(f"{kind} ({', '.join(better)})")
    return ahead


def size_rows():
    "What the sizes of each kind of shift are"
    rows = []
    for kind in SHIFTS:
        small, medium, large = KINDS[kind]
        rows.append(dict(shift=kind, small=small, medium=medium, large=large, what=MEANING[kind]))
    return rows


def report(alarms, unkind, repeats, peer_repeats, folder):
    detectors = sorted(dict.fromkeys(alarms.detector), key=lambda name: name.startswith("NannyML"))
    alarm_rows, holds = false_alarms(alarms, detectors)
    harder, power, sizes = hard_rows(unkind), power_of(alarms, detectors), size_rows()
    by_kind = power_rows(power, holds)
    text = document(
        "# Quality of drift detection",
        f"`python bench/quality.py`: {summary(__doc__)} {repeats} repetitions of 11 kinds of shift × 3 sizes × "
        f"3 sample sizes on {' and '.join(dict.fromkeys(alarms.data))}, three times as many without a shift "
        f"(NannyML: {peer_repeats} repetitions). Peers run their drift defaults; checks for missing values and unknown "
        "categories that they sell apart are not in them. Ours with the defaults of `params.yaml`, "
        f"but {DRAWS} simulated windows and {SHUFFLES} shuffles.",
        "## False alarms, nothing changed (Wilson 95%)",
        "A detector holds its rate when so many alarms have a probability over 1% if its rate is 5%, in all windows "
        "together and (over 1% divided by their number) in each column of the table.",
        table(alarm_rows, list(alarm_rows[0])),
        "Ours without floors where windows are small or uneven or a category has hundreds of values, GSS, "
        "nothing changed:",
        table(harder, list(harder[0])),
        "## Power: share of changed windows with an alarm, all sizes and samples",
        "Bold: the highest among the detectors that hold their rate.",
        table(by_kind, list(by_kind[0])),
        "Where a peer that holds its rate beats our full audit: "
        f"{'; '.join(peers_ahead(power, holds)) or 'nowhere'}. By size and sample: `quality.json`.",
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
        peer_repeats=peer_repeats,
        unkind=harder,
        power=power.to_dict(),
        grid=grid.to_dict("records"),
    )
    write("quality", text, figures, folder)
    print(Path(folder)/"quality.md")


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--peer-repeats", type=int, default=20)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    if arguments.small: run(3, 1, ["gss_wages"], ROOT/".bench")
    else: run(arguments.repeats, min(arguments.peer_repeats, arguments.repeats), list(WHERE), HERE)
