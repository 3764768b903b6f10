"""Performance without labels: error and coverage of the estimates on real windows whose labels are then looked at,
beside NannyML's.

One repetition: the training period's labelled rows are shuffled; 40% train the models, 30% are the reference, 30% a
pool. Windows are drawn from the pool and from later years, as they are or with odds by one real attribute. Every
estimator says what AUC and accuracy (RMSE and MAE) each model has in the window; then the window's labels say what they
were.

    python bench/estimate.py            everything; some twenty-five minutes on two cores; interrupted, it goes on where
                                        it was
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

from mlgov_nb.data.card import card_path, load_card
from mlgov_nb.data.prepare import prepare
from mlgov_nb.data.read import read_rows
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
MODELS = dict(gss_wages=BINARY_MODELS, acs_employment=BINARY_MODELS, gss_income=["gradient_boosting", "linear"])
BINARY = ("gss_wages", "acs_employment")
SHORT = dict(gss_wages="GSS", acs_employment="ACS", gss_income="GSS")
KINDS = ("no shift", "covariate shift", "later", "later, shifted")
MEASURES = dict(binary=("auc", "accuracy"), regression=("rmse", "mae"))
OURS = dict(binary="mcbpe", regression="dle_weighted")
THEIRS = dict(binary="NannyML CBPE", regression="NannyML DLE")
# most: rows of a repetition; window: rows of a window; quiet, shifts, later: windows of each kind; long: rows of the
# speed test
FULL = dict(repeats=30, most=24_000, window=2_000, quiet=2, shifts=3, later=3, long=1_000_000)
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
]


# Windows
@cache
def data(name):
    "Card, labelled rows of the training period, and an early, a middle and the last later window"
    card = load_card(card_path(ROOT, name))
    rows = prepare(read_rows(ROOT/"data/raw"/card.path), card)[0].dropna(subset=card.target.name)
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
    for i, column in enumerate(turn(len(columns) // 2)):
        rows = later[years[(repeat + i) % len(years)]]
        drawn.append(("later, shifted", column, draw(rows, row_count, rng, column)))
    return drawn


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
        command = [python, "-W", "ignore", HERE/"nannyml_estimate_worker.py", *part]
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
    within = bias.abs() <= Z95 * rows.se
    in_band = (rows.low <= rows.truth) & (rows.truth <= rows.high)
    def known(hits): return hits.where(has_interval).astype(float)
    return rows.assign(error=bias.abs(), bias=bias, covered=known(within), band=known(in_band))


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
    used = (data, odds_by, draw, attributes_of, windows, trained, realised, naive, estimated, inputs_for_nannyml)
    for function in (*used, repetition): content.update(inspect.getsource(function).encode())
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
        for kind in KINDS:
            cells[f"{SHORT[name]}, {kind}"] = lambda t, name=name, kind=kind: (t.data == name) & (t.kind == kind)
    shown, lost = parts(rows, measure, contest, cells)
    shown |= parts(rows, measure, contest, {"all": every_row}, spread=True)[0]
    lines = [*contest.names, *([contest.gap()] if contest.has_peer() else [])]
    table_rows = [dict(estimator=line) | {cell: values[line] for cell, values in shown.items()} for line in lines]
    text = table(table_rows, ["estimator", *shown])
    return with_losses(text, lost, contest, "by data and kind of window")


def coverage_row(measure, interval, hits, half_widths, kinds):
    "How often an interval held the truth, and how wide it was"
    share, spread = clustered(hits.dropna())
    def of_kinds(chosen): return f"{clustered(hits[kinds.isin(chosen)].dropna())[0]:.1%}"
    return {
        "measure": measure if measure == "accuracy" else measure.upper(),
        "interval": interval,
        "held the truth": f"{share:.1%}" + ("" if np.isnan(spread) else f" ± {100 * spread:.1f}"),
        "no shift and covariate shift": of_kinds(KINDS[:2]),
        "later years": of_kinds(KINDS[2:]),
        "mean half-width, thousandths": f"{1000 * half_widths.mean():.1f}",
    }


def coverage_lines(rows, measures, contest):
    "Coverage and mean half-width over all windows"
    table_rows = []
    for measure in measures:
        for name in contest.names:
            if name in ("nothing changed", "confidence average"): continue
            chosen = rows[(rows.measure == measure) & (rows.estimator == name)].set_index(["data", "repeat"])
            is_peer = name == contest.theirs
            given = f"{name}, {'as given' if is_peer else '95%'}"
            half_widths = (chosen.high - chosen.low) / 2
            table_rows.append(coverage_row(measure, given, chosen.band, half_widths, chosen.kind))
            if is_peer:
                narrower, half_widths = f"{name}, ± 1.96 of its sampling errors", Z95 * chosen.se
                table_rows.append(coverage_row(measure, narrower, chosen.covered, half_widths, chosen.kind))
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


def by_attributes(rows, ours, theirs):
    "Rows are attributes that windows were drawn by, columns our and NannyML's errors"
    contest = Contest([name for name in (ours, theirs, "nothing changed") if name in set(rows.estimator)], ours, theirs)
    rows = rows[rows.kind.isin(["covariate shift", "later, shifted"])]
    def order(pair): return list(SHORT).index(pair[0]), pair[1].lower()
    table_rows, lost = [], []
    for name, column in sorted({*zip(rows.data, rows.what, strict=True)}, key=order):
        chosen = rows[(rows.data == name) & (rows.what == column)]
        title = f"{SHORT[name]}, {described(name, column)}"
        row = {"drawn by": title, "windows": chosen.groupby(["repeat", "window"]).ngroups}
        for measure in MEASURES["binary"]:
            cell = f"{title}, {measure}"
            shown, losses = parts(chosen, measure, contest, {cell: every_row})
            row |= {f"{measure}: {estimator}": value for estimator, value in shown[cell].items()}
            lost += losses
        table_rows.append(row)
    return with_losses(table(table_rows, list(table_rows[0])), lost, contest, "by attribute")


def described(name, column):
    "A column with its description, short"
    card = data(name)[0]
    about = card.columns.get(column, "").split(" (")[0].split(",")[0].lower()
    return f"{column} ({about})" if column.isupper() and not about[:1].isdigit() else column


def headline(rows, measure, contest):
    "Mean errors in a sentence"
    error = by_estimator(rows, measure)
    ours, theirs = error[contest.ours], error[contest.theirs]
    our_mean, their_mean = clustered(ours.dropna())[0], clustered(theirs.dropna())[0]
    difference = thousandths(*clustered((ours - theirs).dropna()), "+")
    unchanged = clustered(error["nothing changed"])[0]
    return (f"{measure if measure == 'accuracy' else measure.upper()} {1000 * our_mean:.1f} thousandths by "
            f"{contest.ours}, {1000 * their_mean:.1f} by {contest.theirs} ({our_mean / their_mean - 1:+.0%}; "
            f"difference {difference}), {1000 * unchanged:.1f} by 'nothing changed'")


def doubts(rows, ours):
    "What our estimator itself said is not to be believed"
    mine = rows[rows.estimator == ours]
    without = f"Without a number: {int(mine.value.isna().sum()):,} of {len(mine):,} estimates. "
    doubted = mine[mine.doubted]
    if not len(doubted): return without + f"{ours} doubted none of the windows."
    def window_count(frame): return f"{frame.groupby(['data', 'repeat', 'model', 'window']).ngroups:,}"
    means = doubted.groupby("measure").error.mean()
    errors = ", ".join(f"{measure} error {1000 * error:.1f}" for measure, error in means.items())
    return (without + f"{ours} itself doubted {window_count(doubted)} of {window_count(mine)} windows, "
            f"too unlike the reference ({errors}); they count in all figures.")


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
            covered=("covered", "mean"),
            band=("band", "mean"),
            se=("se", "mean"),
        )
        return figures.reset_index().replace({np.nan: None}).to_dict("records")
    return dict(
        by_kind_and_model=sums(["data", "kind", "model", "estimator", "measure"]),
        by_attribute=sums(["data", "kind", "what", "estimator", "measure"]),
    )


# Report
def contest_of(rows, task, candidates):
    "The estimators of a task that there are"
    present = set(rows.estimator)
    return Contest([name for name in candidates if name in present], OURS[task], THEIRS[task])


def introduction(repeats, headlines):
    return (f"`python bench/estimate.py`: {summary(__doc__)} {repeats} repetitions on {' and '.join(BINARY)}; "
            f"models: {', '.join(MODELS['gss_wages'])} (the weak one is overconfident; the scores of "
            f"boosting_reduced, made for parity, are no probabilities). {headlines}")


def about_windows(rows, size):
    counts = {SHORT[name]: sorted(set(rows[rows.data == name].rows)) for name in BINARY}
    row_counts = "; ".join(f"{name}: " + " or ".join(f"{count:,}" for count in found) for name, found in counts.items())
    return ("Windows: 'no shift' is drawn from the pool, 'covariate shift' from the pool with odds by one attribute "
            "(a number: exp(±u z), u from 0.5 to 1.5; a category: exp(normal(0, 1.2)) for each level), 'later' from "
            "an early, a middle and the last window of the card, 'later, shifted' from these with such odds. "
            f"A window has {size['window']:,} rows, but at most half of the rows that it is drawn from, so that no "
            f"row is in it twice ({row_counts}). NannyML is given the same scores and decisions of the same "
            "reference, its defaults, one chunk per window. 'Nothing changed' is the reference's own figure, "
            "'confidence average' takes the raw scores as probabilities.")


def binary_text(rows, contest):
    "The chapters on models that decide"
    measures = MEASURES["binary"]
    return document(
        "## Error of the estimated AUC",
        "Mean absolute error in thousandths, the lowest of a column in bold; in brackets how many of the intervals "
        "held the window's own figure, its labels' chance included.",
        error_table(rows, "auc", contest),
        "## Error of the estimated accuracy",
        error_table(rows, "accuracy", contest),
        "## Coverage of the intervals",
        "NannyML's confidence band is ± 3 sampling errors, so wider than 95% where its sampling error is right; "
        "the same with 1.96 of them is added. A change of the outcome given the inputs, as later years bring, cannot "
        "be seen without labels, and no interval here allows for it.",
        coverage_lines(rows, measures, contest),
        doubts(rows, contest.ours),
        "## By model",
        "Mean absolute error in thousandths, all windows.",
        by_models(rows, measures, contest),
        "## By attribute of the shift",
        "Mean absolute error in thousandths, covariate shift and later, shifted.",
        by_attributes(rows, contest.ours, contest.theirs),
    )


def regression_text(rows, contest):
    "The chapter on models that predict a number"
    return document(
        "## Regression",
        f"gss_income (log income), models {' and '.join(MODELS['gss_income'])}, the same kinds of windows. "
        "NannyML's DLE is given the features and protected attributes, as ours.",
        "RMSE:",
        error_table(rows, "rmse", contest),
        "MAE:",
        error_table(rows, "mae", contest),
        coverage_lines(rows, MEASURES["regression"], contest),
        doubts(rows, contest.ours),
    )


def report(rows, size, seconds, peer, folder):
    is_binary, repeats = rows.data.isin(BINARY), int(rows.repeat.max()) + 1
    binary, regression = rows[is_binary], rows[~is_binary]
    cbpe = contest_of(binary, "binary",
                      ("mcbpe", "pape", "cbpe", THEIRS["binary"], "nothing changed", "confidence average"))
    dle = contest_of(regression, "regression", ("dle_weighted", "dle", THEIRS["regression"], "nothing changed"))
    headlines = "NannyML did not run."
    if peer:
        errors = "; ".join(headline(binary, measure, cbpe) for measure in MEASURES["binary"])
        headlines = f"Mean errors over all windows: {errors}."
    text = document(
        "# Performance without labels",
        introduction(repeats, headlines),
        about_windows(binary, size),
        "Intervals of means (±) are 95%, by repetition. They are about the draw of models and rows; the later years "
        "are the same in each repetition.",
        binary_text(binary, cbpe),
        regression_text(regression, dle),
        "## Speed",
        speed_text(*seconds, size["long"]),
    )
    used = versions("mlgov-nb", "numpy", "scikit-learn", "scipy", "torch")
    if peer: used["nannyml"] = version_of("nannyml")
    ours, theirs = seconds
    figures = dict(
        machine=machine(),
        versions=used,
        repeats=repeats,
        seconds=dict(ours=ours, nannyml=theirs),
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
    names = ("acs_employment", "gss_wages", "gss_income")
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
    report(joined(done, peer), size, (ours, theirs), peer, folder)


if __name__ == "__main__":
    started(main, __doc__)
