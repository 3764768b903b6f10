"""Performance without labels: error and coverage of the estimates on real windows whose labels are then looked at,
beside NannyML's.

One repetition: the training period's labelled rows are shuffled; 40% train the models, 30% are the reference, 30% a
pool. Windows are drawn from the pool and from later years, as they are or with odds by one real attribute. Every
estimator says what AUC and accuracy (RMSE and MAE) each model has in the window; then the window's labels say what they
were. Some further windows of the pool are broken on purpose.

    python bench/estimate.py            everything; some half an hour on two cores; interrupted, it goes on where it was
    python bench/estimate.py --small    a smoke test, into .bench/
"""
import hashlib
import inspect
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from functools import cache
from typing import NamedTuple

# NannyML would report its use over the network
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", NML_DISABLE_USAGE_LOGGING="1")

import numpy as np
import pandas as pd
from peers import python_of, version_of
from report import HERE, document, machine, started, summary, table, versions, write
from scipy.special import expit, stdtrit
from tqdm import tqdm

from data import HELD_OUT, SHA256, card_and_rows
from mlgov_nb.files import atomic_dir
from mlgov_nb.model.candidates import fit
from mlgov_nb.model.encoding import codes, fit_encoder
from mlgov_nb.performance.estimate import estimate, learn
from mlgov_nb.performance.expected import binary_expected, bins_of
from mlgov_nb.settings import load_params
from mlgov_nb.stats.measures import Z95
from mlgov_nb.stats.quality import delong

ROOT = HERE.parent
WEAK, WEAK_ROWS = "gradient_boosting, 600 rows", 600
BINARY_MODELS = ["gradient_boosting", "linear", "mlp", WEAK, "boosting_reduced"]
FEWER_MODELS = ["gradient_boosting", "linear", "mlp"]
MODELS = dict(
    gss_wages=BINARY_MODELS,
    acs_employment=BINARY_MODELS,
    gss_income=["gradient_boosting", "linear"],
    flights=FEWER_MODELS,
    adult=FEWER_MODELS,
    credit=FEWER_MODELS,
)
BINARY = ("gss_wages", "acs_employment", *HELD_OUT)
SHORT = dict(gss_wages="GSS", acs_employment="ACS", gss_income="GSS", flights="flights", adult="adult", credit="credit")
KINDS = ("no shift", "covariate shift", "later", "later, shifted")
BROKEN = "broken"
NUMBER = dict(      # the number that is broken on purpose, one that the models depend on
    gss_wages="prestg10",
    acs_employment="AGEP",
    flights="hour",
    adult="education-num",
    credit="PAY_0",
)
MEASURES = dict(binary=("auc", "accuracy"), regression=("rmse", "mae"))
OURS = dict(binary="mcbpe", regression="dle_weighted")
THEIRS = dict(binary="NannyML CBPE", regression="NannyML DLE")
# most: rows of a repetition; window: rows of a window; quiet, shifts, later: windows of each kind; long: rows of the
# speed test
FULL = dict(repeats=3, most=24_000, window=2_000, quiet=2, shifts=3, later=3, long=1_000_000)
SMALL = dict(repeats=2, most=2_000, window=500, quiet=1, shifts=2, later=1, long=20_000)
SOURCES = [        # kept repetitions are of these files
    "mlgov_nb/performance/estimate.py",
    "mlgov_nb/performance/expected.py",
    "mlgov_nb/performance/outcome_models.py",
    "mlgov_nb/model/candidates.py",
    "mlgov_nb/model/encoding.py",
    "mlgov_nb/stats/quality.py",
    "mlgov_nb/stats/measures.py",
    "params.yaml",
    "bench/nannyml_estimate_worker.py",
    "bench/data.py",
]


# Windows
@cache
def data(name):
    "Card, labelled rows of the training period, and, where there is a time, an early, a middle and the last window"
    card, rows = card_and_rows(name)
    rows = rows.dropna(subset=card.target.name)
    if not card.time: return card, rows, {}
    time, names = rows[card.time], list(card.split.windows)
    chosen = (names[0], names[len(names) // 2], names[-1])
    later = {window: rows[time.between(*card.split.windows[window])] for window in chosen}
    return card, rows[time <= card.split.train_until], later


def odds_by(column, rng):
    "Odds of each row: exp(±u z) of a number, u from 0.5 to 1.5, or exp(normal(0, 1.2)) of each category"
    if pd.api.types.is_numeric_dtype(column):
        z = ((column - column.mean()) / column.std()).fillna(0.0)
        return np.exp(rng.choice([-1, 1]) * rng.uniform(0.5, 1.5) * z.to_numpy())
    level = pd.factorize(column, use_na_sentinel=False)[0]
    return np.exp(rng.normal(0, 1.2, level.max() + 1))[level]


def draw(rows, most, rng, by=None):
    "Different rows, at most half of those that there are; with odds by the column `by`"
    odds = np.ones(len(rows)) if by is None else odds_by(rows[by], rng)
    drawn = rng.choice(len(rows), min(most, len(rows) // 2), replace=False, p=odds / odds.sum())
    return rows.iloc[drawn].reset_index(drop=True)


def attributes_of(card):
    "Columns that windows are drawn by, in the order of their turns"
    protected = [name for name, rule in card.protected.items() if name not in card.features and not rule.bands]
    return [str(name) for name in np.random.default_rng(0).permutation([*card.features, *protected])]


def windows(card, pool, later, size, repeat, rng):
    "Kind, attribute or years, and rows of each window; the attributes take turns over the repetitions"
    columns, shifts, row_count = attributes_of(card), size["shifts"], size["window"]
    def turn(first): return [columns[(repeat * shifts + i + first) % len(columns)] for i in range(shifts)]
    years = [*later][-size["later"]:]
    drawn = [("no shift", "", draw(pool, row_count, rng)) for _ in range(size["quiet"])]
    for column in turn(0):
        drawn.append(("covariate shift", column, draw(pool, row_count, rng, column)))
    for year in years:
        drawn.append(("later", year, draw(later[year], row_count, rng)))
    for i, column in enumerate(turn(len(columns) // 2) if years else []):
        rows = later[years[(repeat + i) % len(years)]]
        drawn.append(("later, shifted", column, draw(rows, row_count, rng, column)))
    if card.task != "binary": return drawn
    return drawn + [(BROKEN, what, broken(what, card, pool, draw(pool, row_count, rng), rng)) for what in CASES]


CASES = {      # what is broken, and in which share of the rows
    "half of a number shuffled, as by a wrong join": 0.5,
    "30% of a number missing": 0.3,
    "a number plus one deviation": 1.0,
    "30% of the rows beyond the reference": 0.3,
    "all rows beyond the reference": 1.0,
    "15% of the labels flipped": 0.15,
}


def broken(what, card, pool, window, rng):
    "A window in which something was broken on purpose"
    number, target = NUMBER[card.name], card.target.name
    seen, some = pool[number], np.flatnonzero(rng.random(len(window)) < CASES[what])
    window = window.copy()
    if "labels" in what:
        window.loc[some, target] = 1 - window.loc[some, target]
    elif "missing" in what:
        window.loc[some, number] = np.nan
    elif "shuffled" in what:
        window.loc[some, number] = window[number].to_numpy()[rng.permutation(some)]
    else:
        more = seen.std() if "deviation" in what else 1 + seen.max() - seen.min()
        window.loc[some, number] += np.round(more)
    return window


# One repetition
def trained(names, card, train, seed):
    "Name and score of each model; a parity constraint may leave nothing but a constant, and then there is no model"
    params, encoder = load_params(ROOT/"params.yaml"), fit_encoder(train, card)
    y, Z = train[card.target.name].to_numpy(float), codes(encoder, train)
    groups = [train[attribute].to_numpy(str) for attribute in card.parity]
    link = expit if card.task == "binary" else np.asarray
    for name in names:
        row_count = WEAK_ROWS if name == WEAK else len(y)
        recipe = params.candidates["gradient_boosting" if name == WEAK else name]
        used_groups = [group[:row_count] for group in groups] if recipe.mitigation else []
        try:
            fitted = fit(recipe, card.task, encoder, Z[:row_count], y[:row_count], seed, used_groups)
        except ValueError as error:
            print(f"{card.name}, repetition {seed}: {name}: {error}", file=sys.stderr)
            continue
        yield name, lambda rows, fitted=fitted: link(fitted.raw(codes(encoder, rows)))


def realised(task, y, score):
    "What labels show"
    if task == "binary":
        return dict(auc=float(delong(y, score)[0]), accuracy=float(((score >= 0.5) == y).mean()))
    return dict(rmse=float(np.sqrt(((score - y) ** 2).mean())), mae=float(np.abs(score - y).mean()))


def naive(task, known, score):
    "Estimators that learn nothing: the reference's own figures, and raw scores as if they were probabilities"
    figures = {"nothing changed": known}
    if task == "binary":
        bins = bins_of(score, 0.5, len(score))
        positives, row_counts = bins.sums(score)[0], bins.sums(np.ones(len(score)))[0]
        figures["confidence average"] = binary_expected(positives, row_counts - positives, bins)
    return {
        estimator: {measure: (float(values[measure]), np.nan) for measure in MEASURES[task]}
        for estimator, values in figures.items()
    }


def estimated(same, task, learned, known, window, score, truth):
    "A row for each estimator and measure of one window"
    results = estimate(learned, window, score)
    values = {result.name: result.values for result in results} | naive(task, known, score)
    doubted = {result.name for result in results if result.why}
    rows = []
    for estimator, figures in values.items():
        for measure in MEASURES[task]:
            value, error = figures.get(measure, (np.nan, np.nan))
            rows.append(dict(
                same,
                rows=len(window),
                estimator=estimator,
                measure=measure,
                value=value,
                se=error,
                low=value - Z95 * error,
                high=value + Z95 * error,
                truth=truth[measure],
                doubted=estimator in doubted,
            ))
    return rows


def inputs_for_nannyml(card):
    "What DLE is given; CBPE asks for scores alone"
    if card.task != "regression": return []
    return [*card.features, *(name for name in card.protected if name not in card.features)]


def repetition(job):
    "Our estimates of every window of one repetition as rows.parquet, and a folder per model for NannyML"
    name, repeat, size, folder = job
    if folder.exists(): return
    import torch
    torch.set_num_threads(1)
    card, rows, later = data(name)
    rng, target, task = np.random.default_rng([repeat, zlib.crc32(name.encode())]), card.target.name, card.task
    rows = rows.iloc[rng.permutation(len(rows))[:size["most"]]]
    def part(begin, end): return rows.iloc[int(begin * len(rows)):int(end * len(rows))].reset_index(drop=True)
    train, reference, pool = part(0, .4), part(.4, .7), part(.7, 1)
    drawn = windows(card, pool, later, size, repeat, rng)
    y, inputs = reference[target].to_numpy(float), inputs_for_nannyml(card)
    found = []
    with atomic_dir(folder) as unfinished:
        for model, score_of in trained(MODELS[name], card, train, repeat):
            reference_score = score_of(reference)
            learned = learn(reference, card, reference_score, y, task, seed=repeat)
            known, frames = realised(task, y, reference_score), []
            for number, (kind, what, window) in enumerate(drawn):
                score = score_of(window)
                truth = realised(task, window[target].to_numpy(float), score)
                same = dict(data=name, repeat=repeat, model=model, window=number, kind=kind, what=what)
                found += estimated(same, task, learned, known, window, score, truth)
                frames.append(window[inputs].assign(score=score, window=number))
            place = unfinished/model
            place.mkdir()
            reference[inputs].assign(score=reference_score, y=y).to_parquet(place/"reference.parquet")
            pd.concat(frames).to_parquet(place/"windows.parquet")
        pd.DataFrame(found).to_parquet(unfinished/"rows.parquet")


# NannyML
def nannyml(folders, processes=2):
    "Run NannyML over folders; False where it does not run, with the reason printed"
    python = python_of("nannyml")
    todo = [folder for folder in folders if not (folder/"nannyml.json").exists()]
    if not python: return False
    errors = None if os.environ.get("BENCH_DEBUG") else subprocess.DEVNULL
    def run(part, bar):
        command = [python, HERE/"nannyml_estimate_worker.py", *part]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            for line in process.stdout: bar.update(line.startswith(str(ROOT)))      # LightGBM speaks too
        return process.returncode
    parts = [todo[i::processes] for i in range(min(processes, len(todo)))]
    with tqdm(total=len(todo), desc="NannyML") as bar, ThreadPoolExecutor(processes) as pool:
        failed = any(list(pool.map(lambda part: run(part, bar), parts)))
    if failed: print("NannyML: failed; BENCH_DEBUG=1 shows why", file=sys.stderr)
    return not failed


def nannyml_rows(folder):
    "NannyML's estimates of one repetition"
    name, repeat = folder.name.rsplit("-", 1)
    rows = []
    for place in folder.iterdir():
        if not place.is_dir(): continue
        for window, measures in json.loads((place/"nannyml.json").read_text())["windows"].items():
            same = dict(data=name, repeat=int(repeat), model=place.name, window=int(window))
            for measure, (value, low, high, error) in measures.items():
                rows.append(dict(same, measure=measure, value=value, low=low, high=high, se=error))
    return rows


def warnings_of(done):
    "Warnings of NannyML and its libraries, and how often each was given"
    said = Counter()
    for folder in done:
        for file in folder.glob("*/nannyml.json"): said.update(json.loads(file.read_text())["warnings"])
    return said


def joined(done, peer):
    "All estimates of these repetitions"
    rows = pd.concat([pd.read_parquet(folder/"rows.parquet") for folder in done], ignore_index=True)
    peer_rows = [row for folder in done for row in nannyml_rows(folder)] if peer else []
    if peer_rows:
        once = rows.drop_duplicates(["data", "repeat", "model", "window", "measure"])
        theirs = once.drop(columns=["value", "se", "low", "high"]).merge(pd.DataFrame(peer_rows))
        estimator = np.where(theirs.data.isin(BINARY), *THEIRS.values())
        rows = pd.concat([rows, theirs.assign(estimator=estimator, doubted=False)], ignore_index=True)
    bias, has_interval = rows.value - rows.truth, rows.se.notna()
    in_band = (rows.low <= rows.truth) & (rows.truth <= rows.high)
    def known(hits): return hits.where(has_interval).astype(float)
    return rows.assign(error=bias.abs(), bias=bias, band=known(in_band))


# Speed
def long(row_count, folder):
    """Our seconds for a long window of ACS by a linear model, what makes them up, and the folders for NannyML: a short
    one to warm up, then the long one"""
    card, rows, later = data("acs_employment")
    rows, new = rows.sample(frac=1, random_state=0), pd.concat(later.values())
    score_of = next(trained(["linear"], card, rows.head(10_000), 0))[1]
    for name, reference_rows, window_rows in (("warm", 2_000, 2_000), ("long", 20_000, row_count)):
        reference = rows.iloc[10_000:10_000 + reference_rows].reset_index(drop=True)
        window = new.sample(window_rows, replace=True, random_state=1).reset_index(drop=True)
        reference_score, score = score_of(reference), score_of(window)
        y = reference[card.target.name].to_numpy(float)
        place = folder/name
        place.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(dict(score=reference_score, y=y)).to_parquet(place/"reference.parquet")
        pd.DataFrame(dict(score=score, window=0)).to_parquet(place/"windows.parquet")
        marks = [time.perf_counter()]
        learned = learn(reference, card, reference_score, y)
        marks.append(time.perf_counter())
        estimate(learned, window, score)
        marks.append(time.perf_counter())
        estimate(learned, window, score, names=["cbpe"])
        marks.append(time.perf_counter())
    learning, three, cbpe = np.diff(marks)
    return dict(learn=learning, three=three, cbpe=cbpe)


def workplace(size, small):
    "Where done repetitions are kept; new code or choices get a new place, and the old one goes"
    choices = {name: value for name, value in size.items() if name != "repeats"}
    content = hashlib.sha256(repr(choices).encode())
    for source in SOURCES: content.update((ROOT/source).read_bytes())
    drawing = (data, odds_by, draw, attributes_of, windows, broken)
    for function in (*drawing, trained, realised, naive, estimated, inputs_for_nannyml, repetition):
        content.update(inspect.getsource(function).encode())
    folder, name = ROOT/".bench"/("estimate-small" if small else "estimate-full"), content.hexdigest()[:12]
    for old in folder.glob("*"):
        if old.name != name: shutil.rmtree(old)
    return folder/name


# Tables
class Contest(NamedTuple):
    "Who is compared"
    names: list          # estimators, in the order of the tables
    ours: str
    theirs: str          # NannyML's; it may be missing among the names

    def has_peer(self): return self.theirs in self.names

    def gap(self): return f"{self.ours} minus {self.theirs}"


def clustered(values):
    "Mean of a series by data and repetition, and half of its 95% interval; data sets count alike"
    by_data = values.groupby(level=["data", "repeat"]).mean().groupby("data")
    repeats = by_data.size()
    freedom = int((repeats - 1).sum())
    mean = float(by_data.mean().mean())
    if not freedom: return mean, np.nan
    return mean, float(stdtrit(freedom, 0.975) * np.sqrt((by_data.var() / repeats).sum()) / len(repeats))


def by_estimator(rows, measure, column="error"):
    "One row per repetition, model and window, one column per estimator"
    index = ["data", "repeat", "kind", "what", "model", "window"]
    return rows[rows.measure == measure].pivot(index=index, columns="estimator", values=column)


def thousandths(mean, half, sign=""):
    "A mean, and half of its interval where there is one"
    return f"{1000 * mean:{sign}.1f}" + ("" if np.isnan(half) else f" ± {1000 * half:.1f}")


def compared(error, band, contest, spread=False):
    """Mean error of each estimator, the lowest in bold, and in brackets how many intervals held the truth; ours minus
    theirs; and that difference again where theirs is lower"""
    means = {name: clustered(error[name].dropna()) for name in contest.names}
    shown = {name: thousandths(mean, half if spread else np.nan) for name, (mean, half) in means.items()}
    best = min(means, key=lambda name: means[name][0])
    shown[best] = f"**{shown[best]}**"
    for name in contest.names:
        if band[name].notna().any(): shown[name] += f" ({band[name].mean():.0%})"
    if not contest.has_peer(): return shown, ""
    mean, half = clustered((error[contest.ours] - error[contest.theirs]).dropna())
    gap = thousandths(mean, half, "+")
    shown[contest.gap()] = gap
    if not mean > 0: return shown, ""
    return shown, gap + (", beyond chance" if mean > half else "")


def parts(rows, measure, contest, cells, spread=False):
    "`compared` of each cell (name: a function that says which rows), and where ours loses"
    error = by_estimator(rows, measure).reset_index()
    band = by_estimator(rows, measure, "band").reset_index()
    def pick(frame, chosen): return frame[chosen(frame)].set_index(["data", "repeat"])[contest.names]
    shown, lost = {}, []
    for name, chosen in cells.items():
        shown[name], gap = compared(pick(error, chosen), pick(band, chosen), contest, spread)
        if gap: lost.append(f"{name} ({gap})")
    return shown, lost


def every_row(frame): return frame.data != ""


def with_losses(text, lost, contest, what):
    "A table, and under it where ours loses"
    if not contest.has_peer(): return text
    places = "; ".join(lost) or "nowhere"
    return document(text, f"Where {contest.theirs}'s mean error is lower than ours {what}: {places}.")


def error_table(rows, measure, contest):
    "Rows are estimators, columns kinds of windows; and the line on where ours loses"
    cells = {}
    for name in dict.fromkeys(rows.data):
        for kind in [kind for kind in KINDS if ((rows.data == name) & (rows.kind == kind)).any()]:
            cells[f"{SHORT[name]}, {kind}"] = lambda t, name=name, kind=kind: (t.data == name) & (t.kind == kind)
    shown, lost = parts(rows, measure, contest, cells)
    shown |= parts(rows, measure, contest, {"all": every_row}, spread=True)[0]
    lines = [*contest.names, *([contest.gap()] if contest.has_peer() else [])]
    table_rows = [dict(estimator=line) | {cell: values[line] for cell, values in shown.items()} for line in lines]
    text = table(table_rows, ["estimator", *shown])
    return with_losses(text, lost, contest, "by data and kind of window")


def coverage_row(measure, interval, chosen):
    "How often an interval held the truth, and how wide it was"
    hits = chosen.band
    share, spread = clustered(hits.dropna())
    def of_kinds(kinds):
        found = hits[chosen.kind.isin(kinds)].dropna()
        return f"{clustered(found)[0]:.1%}" if len(found) else ""
    return {
        "measure": measure if measure == "accuracy" else measure.upper(),
        "interval": interval,
        "held the truth": f"{share:.1%}" + ("" if np.isnan(spread) else f" ± {100 * spread:.1f}"),
        "no shift and covariate shift": of_kinds(KINDS[:2]),
        "later years": of_kinds(KINDS[2:]),
        "mean half-width, thousandths": f"{1000 * ((chosen.high - chosen.low) / 2).mean():.1f}",
    }


def coverage_lines(rows, measures, contest):
    "Coverage and mean half-width over all windows"
    table_rows = []
    for measure in measures:
        for name in contest.names:
            if name in ("nothing changed", "confidence average"): continue
            chosen = rows[(rows.measure == measure) & (rows.estimator == name)].set_index(["data", "repeat"])
            interval = f"{name}, its band" if name == contest.theirs else f"{name}, 95%"
            table_rows.append(coverage_row(measure, interval, chosen))
    return table(table_rows, list(table_rows[0]))


def by_models(rows, measures, contest):
    "Rows are models, columns estimators"
    table_rows, lost = [], []
    cells = {model: lambda t, model=model: t.model == model for model in dict.fromkeys(rows.model)}
    for measure in measures:
        shown, losses = parts(rows, measure, contest, cells)
        table_rows += [dict(measure=measure, model=model) | values for model, values in shown.items()]
        lost += [f"{measure}, {loss}" for loss in losses]
    gap = [contest.gap()] if contest.has_peer() else []
    text = table(table_rows, ["measure", "model", *contest.names, *gap])
    return with_losses(text, lost, contest, "by model")


def gap_in_words(error, ours, other):
    "How our mean error compares with another's"
    our_mean, other_mean = (clustered(error[name].dropna())[0] for name in (ours, other))
    mean, half = clustered((error[ours] - error[other]).dropna())
    verdict = "" if abs(mean) > half else ", not beyond chance"
    return f"{1000 * other_mean:.1f} by {other} (ours {our_mean / other_mean - 1:+.0%}; difference " \
           f"{thousandths(mean, half, '+')}{verdict})"


def headline(rows, measure, contest):
    "Mean errors in a sentence"
    error = by_estimator(rows, measure)
    others = [name for name in (contest.theirs, "pape", "cbpe", "nothing changed") if name in contest.names]
    gaps = ", ".join(gap_in_words(error, contest.ours, name) for name in others)
    ours = 1000 * clustered(error[contest.ours].dropna())[0]
    return f"{measure if measure == 'accuracy' else measure.upper()} {ours:.1f} thousandths by {contest.ours}, {gaps}"


def doubts(rows, ours):
    "Of how many windows our estimator itself said that it cannot tell"
    mine = rows[rows.estimator == ours].drop_duplicates(["data", "repeat", "model", "window"])
    without = f"Without a number: {int(mine.value.isna().sum()):,} of {len(mine):,} estimates. "
    by_kind = mine.groupby("kind").doubted.mean()
    shares = ", ".join(f"{kind} {by_kind[kind]:.1%}" for kind in KINDS if kind in by_kind)
    return (without + f"{ours} said that it cannot tell, or should not be believed, of {int(mine.doubted.sum()):,} of "
            f"{len(mine):,} windows and models ({shares}); they count in all figures.")


def broken_table(rows, measure, contest):
    "What was broken: errors, intervals that held the truth, and how often our estimator said that it cannot tell"
    lines = []
    for what in CASES:
        chosen = rows[(rows.what == what) & (rows.measure == measure)]
        of = {name: found.set_index(["data", "repeat"]) for name, found in chosen.groupby("estimator")}
        ours = of[contest.ours]
        told = ours[~ours.doubted]
        line = {"broken": what, "cannot tell": f"{clustered(ours.doubted.astype(float))[0]:.0%}"}
        line[f"{contest.ours}, of those told"] = (
            f"{1000 * told.error.mean():.1f} ({told.band.mean():.0%})" if len(told) else "none told")
        for name in contest.names:
            held = f" ({of[name].band.mean():.0%})" if of[name].band.notna().any() else ""
            line[name] = f"{1000 * clustered(of[name].error.dropna())[0]:.1f}{held}"
        lines.append(line)
    return table(lines, list(lines[0]))


def speed_verdict(full, short, theirs):
    "Who is faster, in a sentence; nothing where ours is faster in all"
    if not theirs or full <= theirs: return ""
    cbpe = (f" and {short / theirs:.1f} times as fast as our cbpe alone." if short > theirs
            else f"; our cbpe alone is {theirs / short:.1f} times as fast as NannyML.")
    return f"NannyML is {full / theirs:.0f} times as fast as our three together" + cbpe


def speed_text(ours, theirs, row_count):
    "A table of seconds"
    full, short = ours["learn"] + ours["three"], ours["learn"] + ours["cbpe"]
    all_measures = "AUC, accuracy, precision, recall, F1, Brier score, log loss; intervals"
    contestants = [("mlgov-nb, mcbpe, pape and cbpe", full, all_measures), ("mlgov-nb, cbpe alone", short, "the same")]
    if theirs: contestants.append(("NannyML CBPE", theirs, "AUC, accuracy; confidence bands"))
    rows = []
    for name, seconds, gives in contestants:
        row = dict(contestant=name, seconds=f"{seconds:.1f}", gives=gives)
        if theirs: row["NannyML = 1"] = f"{seconds / theirs:.1f}"
        rows.append(row)
    about = (f"{row_count:,} rows of ACS (drawn with replacement), 20,000 reference rows, the linear model's scores; "
             "learning or fitting on the reference is counted, reading and imports are not; one thread, same run. "
             f"Of ours, learning takes {ours['learn']:.1f} s.")
    return document(about, table(rows, list(rows[0])), speed_verdict(full, short, theirs)).rstrip()


def grid(rows):
    "Figures for the JSON file"
    def sums(by):
        figures = rows.groupby(by).agg(
            estimates=("error", "count"),
            mean_error=("error", "mean"),
            bias=("bias", "mean"),
            band=("band", "mean"),
            se=("se", "mean"),
        )
        return figures.reset_index().replace({np.nan: None}).to_dict("records")
    return dict(
        by_kind_and_model=sums(["data", "kind", "model", "estimator", "measure"]),
        by_attribute=sums(["data", "kind", "what", "estimator", "measure"]),
    )


# Report
GIVEN = """What each estimator is given of the reference and of a window:

| estimator | of the reference | of the window |
| --- | --- | --- |
| mcbpe | features, protected attributes, scores, labels | features, protected attributes, scores |
| pape | the same; features and attributes only for the density ratio | the same |
| cbpe | scores, labels | scores |
| NannyML CBPE | scores, decisions, labels | scores, decisions |
| nothing changed | the model's figure on it | nothing |
| confidence average | nothing | scores |

So a lead of mcbpe over CBPE is in part a lead of features over none. pape is our implementation of the published idea
(CBPE on a reference weighted by the density ratio); NannyML's open-source library has no PAPE to compare with."""
GROUPS = {
    "data that choices were made on": ("gss_wages", "acs_employment"),
    "held-out data": tuple(HELD_OUT),
}


def contest_of(rows, task, candidates):
    "The estimators of a task that there are"
    present = set(rows.estimator)
    return Contest([name for name in candidates if name in present], OURS[task], THEIRS[task])


def introduction(repeats):
    names = " and ".join(f"{' and '.join(names)} ({group})" for group, names in GROUPS.items())
    return (f"`python bench/estimate.py`: {summary(__doc__)} {repeats} repetitions on {names}. No threshold and no "
            f"rule was chosen on the held-out data, which come from the packages {' and '.join(SHA256)}. Models: "
            f"{', '.join(BINARY_MODELS)} (the weak one is overconfident; the scores of boosting_reduced, made for "
            f"parity, are no probabilities); on held-out data only {', '.join(FEWER_MODELS)}.")


def about_windows(rows, size):
    counts = {SHORT[name]: sorted(set(rows[rows.data == name].rows)) for name in BINARY}
    row_counts = "; ".join(f"{name}: " + " or ".join(f"{count:,}" for count in found) for name, found in counts.items())
    return ("Windows: 'no shift' is drawn from the pool, 'covariate shift' from the pool with odds by one attribute "
            "(a number: exp(±u z), u from 0.5 to 1.5; a category: exp(normal(0, 1.2)) for each level), 'later' from "
            "an early, a middle and the last window of the card, 'later, shifted' from these with such odds; adult "
            "and credit have no time, and so no later windows. "
            f"A window has {size['window']:,} rows, but at most half of the rows that it is drawn from, so that no "
            f"row is in it twice ({row_counts}). NannyML is given the same scores and decisions of the same "
            "reference, its defaults, one chunk per window; the number of chunks in its reference sets its alert "
            "thresholds, which are not compared here. 'Nothing changed' is the reference's own figure, "
            "'confidence average' takes the raw scores as probabilities.")


def group_text(group, rows, contest):
    "The chapter on the binary models of some data sets"
    measures = MEASURES["binary"]
    title = f"{group[0].upper()}{group[1:]}"
    return document(
        f"## {title}: error of the estimated AUC",
        "Mean absolute error in thousandths, the lowest of a column in bold; in brackets how many of the intervals "
        "held the window's own figure, its labels' chance included.",
        error_table(rows, "auc", contest),
        f"## {title}: error of the estimated accuracy",
        error_table(rows, "accuracy", contest),
        f"## {title}: intervals",
        coverage_lines(rows, measures, contest),
        doubts(rows, contest.ours),
        f"## {title}: by model",
        "Mean absolute error in thousandths, all windows.",
        by_models(rows, measures, contest),
    )


ABOUT_INTERVALS = (
    "Ours claim 95%. NannyML makes no such claim for its confidence band, which is ± 3 sampling errors: what a chunk "
    "of this size varies by; it is shown beside ours because it is drawn around the estimate. A change of the outcome "
    "given the inputs, as later years may bring, cannot be seen without labels, and no interval here allows for it.")


def broken_text(rows, contest):
    "The chapter on windows that were broken on purpose"
    tables = []
    for group, names in GROUPS.items():
        chosen = rows[rows.data.isin(names)]
        for measure in MEASURES["binary"]:
            tables += [f"{group[0].upper()}{group[1:]}, {measure}:", broken_table(chosen, measure, contest)]
    numbers = ", ".join(f"{SHORT[name]}: {number}" for name, number in NUMBER.items())
    return document(
        "## Broken windows",
        "Windows of the pool in which one thing was broken; labels say how good the model then was. Mean absolute "
        "error in thousandths over all windows and models, in brackets the share of intervals that held the truth; "
        "'cannot tell': how often mcbpe itself said that it is not to be believed, and then a verdict cannot be "
        "determined. The number that is broken is one that the models depend on "
        f"({numbers}); 'beyond the reference' adds its whole range. Flipped labels change nothing that an estimator is "
        "given: no estimator can see them.",
        *tables,
    )


def regression_text(rows, contest):
    "The chapter on models that predict a number"
    return document(
        "## Regression",
        f"gss_income (log income), models {' and '.join(MODELS['gss_income'])}, the same kinds of windows. "
        "NannyML's DLE is given the features and protected attributes, as ours. Choices were made on these data, and "
        "there is no held-out set.",
        "RMSE:",
        error_table(rows, "rmse", contest),
        "MAE:",
        error_table(rows, "mae", contest),
        coverage_lines(rows, MEASURES["regression"], contest),
        doubts(rows, contest.ours),
    )


def warnings_text(said):
    "What NannyML warned of"
    if not said: return "NannyML gave no warnings."
    lines = [f"- {count:,} ×: {words}" for words, count in said.most_common()]
    return document("Warnings that NannyML and its libraries gave, and how often:", "\n".join(lines))


def report(rows, size, seconds, said, folder):
    regression, repeats = rows[~rows.data.isin(BINARY)], int(rows.repeat.max()) + 1
    binary, damaged = (rows[rows.data.isin(BINARY) & ((rows.kind == BROKEN) == is_broken)] for is_broken in (0, 1))
    cbpe = contest_of(binary, "binary",
                      ("mcbpe", "pape", "cbpe", THEIRS["binary"], "nothing changed", "confidence average"))
    dle = contest_of(regression, "regression", ("dle_weighted", "dle", THEIRS["regression"], "nothing changed"))
    of_group = {group: binary[binary.data.isin(names)] for group, names in GROUPS.items()}
    headlines = [
        f"- {group}: {'; '.join(headline(found, measure, cbpe) for measure in MEASURES['binary'])}."
        for group, found in of_group.items()
    ]
    text = document(
        "# Performance without labels",
        introduction(repeats),
        "Mean errors over all windows that were not broken; where a difference is not beyond chance, no lead is "
        "established:",
        "\n".join(headlines),
        GIVEN,
        about_windows(binary, size),
        "Intervals of means (±) are 95%, by repetition. They are about the draw of models and rows; the later years "
        "are the same in each repetition.",
        ABOUT_INTERVALS,
        *(group_text(group, found, cbpe) for group, found in of_group.items()),
        broken_text(damaged, cbpe),
        regression_text(regression, dle),
        "## Speed",
        speed_text(*seconds, size["long"]),
        warnings_text(said) if cbpe.has_peer() else "NannyML did not run.",
    )
    used = versions("mlgov-nb", "numpy", "scikit-learn", "scipy", "torch")
    if cbpe.has_peer(): used["nannyml"] = version_of("nannyml")
    ours, theirs = seconds
    figures = dict(
        machine=machine(),
        versions=used,
        repeats=repeats,
        seconds=dict(ours=ours, nannyml=theirs),
        warnings=dict(said),
        **grid(rows),
    )
    write("estimate", text, figures, folder)
    print(text)


def repeat_all(pool, jobs):
    "All repetitions; what is done stays for the next run when this one is interrupted"
    try:
        running = as_completed([pool.submit(repetition, job) for job in jobs])
        for finished in tqdm(running, total=len(jobs), desc="repetitions"): finished.result()
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def model_folders(done):
    "The folders of all models of these repetitions"
    return [place for folder in done for place in sorted(folder.iterdir()) if place.is_dir()]


def main(small, folder):
    size = SMALL if small else FULL
    place = workplace(size, small)
    names = (*BINARY, "gss_income")
    jobs = [(name, repeat, size, place/f"{name}-{repeat}") for repeat in range(size["repeats"]) for name in names]
    done = [job[-1] for job in jobs]
    python_of("nannyml")
    spawn = multiprocessing.get_context("spawn")      # a fork would inherit OpenMP's threads and hang
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        repeat_all(pool, jobs)
        peer = nannyml(model_folders(done))
        ours = pool.submit(long, size["long"], place/"speed").result()
    speed_folders, theirs = [place/"speed"/name for name in ("warm", "long")], None
    for speed_folder in speed_folders: (speed_folder/"nannyml.json").unlink(missing_ok=True)
    if peer and nannyml(speed_folders, 1):
        theirs = json.loads((speed_folders[-1]/"nannyml.json").read_text())["seconds"]
    report(joined(done, peer), size, (ours, theirs), warnings_of(done), folder)


if __name__ == "__main__":
    started(main, __doc__)
