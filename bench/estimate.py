"""Performance without labels: error and coverage of the estimates on real windows whose labels are then looked at, beside NannyML's.

One repetition: the training period's labelled rows are shuffled; 40% train the models, 30% are the reference, 30% a pool.
Windows are drawn from the pool and from later years, as they are or with odds by one real attribute. Every estimator says
what AUC and accuracy (RMSE and MAE) each model has in the window; then the window's labels say what they were.

    python bench/estimate.py            everything; some twenty-five minutes on two cores; interrupted, it goes on where it was
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

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", NML_DISABLE_USAGE_LOGGING="1")      # NannyML would report its use over the network

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from peers import python_of, version_of  # noqa: E402
from report import HERE, machine, started, table, versions, write  # noqa: E402
from scipy.special import expit, stdtrit  # noqa: E402
from tqdm import tqdm  # noqa: E402

from mlgov_nb.data.card import card_path, load_card
from mlgov_nb.data.prepare import prepare
from mlgov_nb.data.read import read_rows  # noqa: E402
from mlgov_nb.files import atomic_dir  # noqa: E402
from mlgov_nb.model.candidates import fit  # noqa: E402
from mlgov_nb.model.encoding import codes, fit_encoder  # noqa: E402
from mlgov_nb.performance.estimate import estimate, learn
from mlgov_nb.performance.expected import binary_expected, bins_of  # noqa: E402
from mlgov_nb.settings import load_params  # noqa: E402
from mlgov_nb.stats.measures import Z95
from mlgov_nb.stats.quality import delong  # noqa: E402

ROOT = HERE.parent
WEAK = "gradient_boosting, 600 rows"
MODELS = dict(gss_wages=["gradient_boosting", "linear", "mlp", WEAK, "boosting_reduced"], acs_employment=["gradient_boosting", "linear", "mlp", WEAK, "boosting_reduced"], gss_income=["gradient_boosting", "linear"])
BINARY, KINDS, MEASURES = ("gss_wages", "acs_employment"), ("no shift", "covariate shift", "later", "later, shifted"), dict(binary=("auc", "accuracy"), regression=("rmse", "mae"))
OURS, THEIRS = dict(binary="mcbpe", regression="dle_weighted"), dict(binary="NannyML CBPE", regression="NannyML DLE")
FULL = dict(repeats=30, most=24_000, window=2_000, quiet=2, shifts=3, later=3, long=1_000_000)      # rows at most, rows of a window, windows of each kind, rows of the speed test
SMALL = dict(repeats=2, most=2_000, window=500, quiet=1, shifts=2, later=1, long=20_000)


@cache
def data(name):
    "Card, labelled rows of the training period, and an early, a middle and the last later window"
    card = load_card(card_path(ROOT, name))
    rows = prepare(read_rows(ROOT/"data/raw"/card.path), card)[0].dropna(subset=card.target.name)
    later = list(card.split.windows)
    return card, rows[rows[card.time] <= card.split.train_until], {k: rows[rows[card.time].between(*card.split.windows[k])] for k in (later[0], later[len(later) // 2], later[-1])}


def draw(rows, most, rng, by=None):
    "Different rows, at most half of those that there are; with odds by the column `by`: exp(±u z) of a number, u from 0.5 to 1.5, or exp(normal(0, 1.2)) of each category"
    odds = np.ones(len(rows))
    if by is not None and pd.api.types.is_numeric_dtype(rows[by]):
        z = ((rows[by] - rows[by].mean()) / rows[by].std()).fillna(0.0)
        odds = np.exp(rng.choice([-1, 1]) * rng.uniform(0.5, 1.5) * z.to_numpy())
    elif by is not None:
        at = pd.factorize(rows[by], use_na_sentinel=False)[0]
        odds = np.exp(rng.normal(0, 1.2, at.max() + 1))[at]
    return rows.iloc[rng.choice(len(rows), min(most, len(rows) // 2), replace=False, p=odds / odds.sum())].reset_index(drop=True)


def windows(card, pool, later, size, repeat, rng):
    "Kind, attribute or years, and rows of each window; the attributes take turns over the repetitions"
    columns = [*card.features, *(k for k, p in card.protected.items() if k not in card.features and not p.bands)]
    columns = [str(c) for c in np.random.default_rng(0).permutation(columns)]
    turn = [[columns[(repeat * size["shifts"] + i + j) % len(columns)] for i in range(size["shifts"])] for j in (0, len(columns) // 2)]
    years = [*later][-size["later"]:]
    out = [("no shift", "", draw(pool, size["window"], rng)) for _ in range(size["quiet"])]
    out += [("covariate shift", c, draw(pool, size["window"], rng, c)) for c in turn[0]]
    out += [("later", k, draw(later[k], size["window"], rng)) for k in years]
    return out + [("later, shifted", c, draw(later[years[(repeat + i) % len(years)]], size["window"], rng, c)) for i, c in enumerate(turn[1])]


def trained(names, card, train, seed):
    "Name and score of each model; a parity constraint may leave nothing but a constant, and then there is no model"
    params, enc, y = load_params(ROOT/"params.yaml"), fit_encoder(train, card), train[card.target.name].to_numpy(float)
    Z, groups, link = codes(enc, train), [train[a].to_numpy(str) for a in card.parity], expit if card.task == "binary" else np.asarray
    for m in names:
        k, recipe = (600, params.candidates["gradient_boosting"]) if m == WEAK else (len(y), params.candidates[m])
        try: got = fit(recipe, card.task, enc, Z[:k], y[:k], seed, [g[:k] for g in groups] if recipe.mitigation else [])
        except ValueError as e: print(f"{card.name}, repetition {seed}: {m}: {e}", file=sys.stderr); continue
        yield m, lambda df, got=got: link(got.raw(codes(enc, df)))


def realised(task, y, score):
    "What labels show"
    if task == "binary": return dict(auc=float(delong(y, score)[0]), accuracy=float(((score >= 0.5) == y).mean()))
    return dict(rmse=float(np.sqrt(((score - y) ** 2).mean())), mae=float(np.abs(score - y).mean()))


def naive(task, known, score):
    "Estimators that learn nothing: the reference's own figures, and raw scores as if they were probabilities"
    out = {"nothing changed": known}
    if task == "binary":
        bins = bins_of(score, 0.5, len(score))
        p, n = bins.sums(score)[0], bins.sums(np.ones(len(score)))[0]
        out["confidence average"] = binary_expected(p, n - p, bins)
    return {k: {m: (float(v[m]), np.nan) for m in MEASURES[task]} for k, v in out.items()}


def repetition(job):
    "Our estimates of every window of one repetition as rows.parquet, and a folder per model for NannyML"
    name, repeat, size, folder = job
    if folder.exists(): return
    import torch
    torch.set_num_threads(1)
    card, rows, later = data(name)
    rng, t, measures, out = np.random.default_rng([repeat, zlib.crc32(name.encode())]), card.target.name, MEASURES[card.task], []
    rows = rows.iloc[rng.permutation(len(rows))[:size["most"]]]
    train, ref, pool = (rows.iloc[int(a * len(rows)):int(b * len(rows))].reset_index(drop=True) for a, b in ((0, .4), (.4, .7), (.7, 1)))
    wins, y, inputs = windows(card, pool, later, size, repeat, rng), ref[t].to_numpy(float), []
    if card.task == "regression": inputs = [*card.features, *(k for k in card.protected if k not in card.features)]      # what DLE is given; CBPE asks for scores alone
    with atomic_dir(folder) as d:
        for model, score in trained(MODELS[name], card, train, repeat):
            s = score(ref)
            learned, known, frames = learn(ref, card, s, y, card.task, seed=repeat), realised(card.task, y, s), []
            for i, (kind, what, w) in enumerate(wins):
                sw = score(w)
                truth, got = realised(card.task, w[t].to_numpy(float), sw), estimate(learned, w, sw)
                said, doubted = {e.name: e.values for e in got} | naive(card.task, known, sw), {e.name for e in got if e.why}
                out += [dict(data=name, repeat=repeat, model=model, window=i, kind=kind, what=what, rows=len(w), estimator=k, measure=m, value=v, se=se, low=v - Z95 * se, high=v + Z95 * se, truth=truth[m], doubted=k in doubted)
                        for k, x in said.items() for m in measures for v, se in [x.get(m, (np.nan, np.nan))]]
                frames.append(w[inputs].assign(score=sw, window=i))
            (d/model).mkdir()
            ref[inputs].assign(score=s, y=y).to_parquet(d/model/"reference.parquet")
            pd.concat(frames).to_parquet(d/model/"windows.parquet")
        pd.DataFrame(out).to_parquet(d/"rows.parquet")


def nannyml(folders, processes=2):
    "Run NannyML over folders; False, with the reason printed, where it does not run"
    py, todo = python_of("nannyml"), [f for f in folders if not (f/"nannyml.json").exists()]
    if not py: return False
    def run(part):
        with subprocess.Popen([py, "-W", "ignore", HERE/"nannyml_estimate_worker.py", *part], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL if not os.environ.get("BENCH_DEBUG") else None, text=True) as p:
            for line in p.stdout: bar.update(line.startswith(str(ROOT)))      # LightGBM speaks too
        return p.returncode
    with tqdm(total=len(todo), desc="NannyML") as bar, ThreadPoolExecutor(processes) as pool: bad = [c for c in pool.map(run, [todo[i::processes] for i in range(min(processes, len(todo)))]) if c]
    if bad: print("NannyML: failed; BENCH_DEBUG=1 shows why", file=sys.stderr)
    return not bad


def joined(done, peer):
    "All estimates of these repetitions"
    rows = pd.concat([pd.read_parquet(f/"rows.parquet") for f in done], ignore_index=True)
    once, said = rows.drop_duplicates(["data", "repeat", "model", "window", "measure"]).drop(columns=["value", "se", "low", "high"]), []
    for f in done if peer else []:
        name, repeat = f.name.rsplit("-", 1)
        for m in (m for m in f.iterdir() if m.is_dir()):
            for window, measures in json.loads((m/"nannyml.json").read_text())["windows"].items():
                said += [dict(data=name, repeat=int(repeat), model=m.name, window=int(window), measure=k, value=v, low=low, high=high, se=error) for k, (v, low, high, error) in measures.items()]
    if said: rows = pd.concat([rows, once.merge(pd.DataFrame(said)).assign(estimator=lambda r: np.where(r.data.isin(BINARY), *THEIRS.values()), doubted=False)], ignore_index=True)
    e = rows.value - rows.truth
    return rows.assign(error=e.abs(), bias=e, covered=(e.abs() <= Z95 * rows.se).where(rows.se.notna()).astype(float), band=((rows.low <= rows.truth) & (rows.truth <= rows.high)).where(rows.se.notna()).astype(float))


def long(n, folder):
    "Our seconds for a long window of ACS by a linear model, what makes them up, and the folders for NannyML: a short one to warm up, then the long one"
    card, rows, later = data("acs_employment")
    rows, new, t = rows.sample(frac=1, random_state=0), pd.concat(later.values()), card.target.name
    score = next(trained(["linear"], card, rows.head(10_000), 0))[1]
    for name, k, m in (("warm", 2_000, 2_000), ("long", 20_000, n)):
        ref, w = rows.iloc[10_000:10_000 + k].reset_index(drop=True), new.sample(m, replace=True, random_state=1).reset_index(drop=True)
        s, sw, y = score(ref), score(w), ref[t].to_numpy(float)
        (folder/name).mkdir(parents=True, exist_ok=True)
        pd.DataFrame(dict(score=s, y=y)).to_parquet(folder/name/"reference.parquet"); pd.DataFrame(dict(score=sw, window=0)).to_parquet(folder/name/"windows.parquet")
        marks = [time.perf_counter()]
        learned = learn(ref, card, s, y); marks.append(time.perf_counter())
        estimate(learned, w, sw); marks.append(time.perf_counter())
        estimate(learned, w, sw, names=["cbpe"]); marks.append(time.perf_counter())
    a, b, c = np.diff(marks)
    return dict(learn=a, three=b, cbpe=c)


def workplace(size, small):
    "Where done repetitions are kept; new code or choices get a new place, and the old one goes"
    h = hashlib.sha256(repr({k: v for k, v in size.items() if k != "repeats"}).encode())
    for f in [*(ROOT/"mlgov_nb"/f"{m}.py" for m in ("estimate", "candidates", "features", "metrics")), ROOT/"params.yaml", HERE/"nannyml_estimate_worker.py"]: h.update(f.read_bytes())
    for f in (draw, windows, trained, realised, naive, repetition): h.update(inspect.getsource(f).encode())
    top = ROOT/".bench"/("estimate-small" if small else "estimate-full")
    for old in top.glob("*"):
        if old.name != h.hexdigest()[:12]: shutil.rmtree(old)
    return top/h.hexdigest()[:12]


def clustered(x):
    "Mean of a series by data and repetition, and half of its 95% interval; data sets count alike"
    g = x.groupby(level=["data", "repeat"]).mean().groupby("data")
    n, df = g.size(), int((g.size() - 1).sum())
    return float(g.mean().mean()), float(stdtrit(df, 0.975) * np.sqrt((g.var() / n).sum()) / len(n)) if df else np.nan


def by_estimator(d, measure, column="error"):
    "One row per repetition, model and window, one column per estimator"
    return d[d.measure == measure].pivot(index=["data", "repeat", "kind", "what", "model", "window"], columns="estimator", values=column)



def thousandths(mean, half, sign=""): return f"{1000 * mean:{sign}.1f}" + (f" ± {1000 * half:.1f}" if half == half else "")


def compared(error, band, names, ours, theirs, spread=False):
    "Mean error of each estimator, the lowest in bold, and in brackets how many intervals held the truth; ours minus theirs; is that above nought?"
    mean = {k: clustered(error[k].dropna()) for k in names}
    out = {k: thousandths(m, half if spread else np.nan) for k, (m, half) in mean.items()}
    best = min(mean, key=lambda k: mean[k][0])
    out[best] = f"**{out[best]}**"
    if band is not None: out |= {k: f"{out[k]} ({band[k].mean():.0%})" for k in names if band[k].notna().any()}
    if theirs not in names: return out, ""
    m, half = clustered((error[ours] - error[theirs]).dropna())
    out[f"{ours} minus {theirs}"] = gap = thousandths(m, half, "+")
    return out, gap + (", beyond chance" if m > half else "") if m > 0 else ""


def parts(d, measure, names, ours, theirs, cells, **more):
    "`compared` of each cell (name: a function that says which rows), and where ours loses"
    error, band = by_estimator(d, measure).reset_index(), by_estimator(d, measure, "band").reset_index()
    def pick(t, at): return t[at(t)].set_index(["data", "repeat"])[names]
    got = {k: compared(pick(error, at), pick(band, at), names, ours, theirs, **more) for k, at in cells.items()}
    return {k: v for k, (v, _) in got.items()}, [f"{k} ({v})" for k, (_, v) in got.items() if v]


def losing(lost, theirs, what): return f"Where {theirs}'s mean error is lower than ours {what}: {'; '.join(lost) or 'nowhere'}."


def error_table(d, measure, names, ours, theirs):
    "Rows are estimators, columns kinds of windows; and the line on where ours loses"
    cells = {f"{SHORT[a]}, {k}": lambda t, a=a, k=k: (t.data == a) & (t.kind == k) for a in dict.fromkeys(d.data) for k in KINDS}
    got, lost = parts(d, measure, names, ours, theirs, cells)
    got["all"] = parts(d, measure, names, ours, theirs, {"all": lambda t: t.data != ""}, spread=True)[0]["all"]
    rows = [dict(estimator=k) | {c: v[k] for c, v in got.items()} for k in names]
    if theirs in names: rows.append(dict(estimator=f"{ours} minus {theirs}") | {c: v[f"{ours} minus {theirs}"] for c, v in got.items()})
    return table(rows, ["estimator", *got]) + ("\n\n" + losing(lost, theirs, "by data and kind of window") if theirs in names else "")


def coverage_lines(d, measures, names, theirs):
    "Coverage and mean half-width over all windows"
    rows = []
    for m in measures:
        for k in (k for k in names if k not in ("nothing changed", "confidence average")):
            x = d[(d.measure == m) & (d.estimator == k)].set_index(["data", "repeat"])
            for what, hit, half in [("as given" if k == theirs else "95%", x.band, (x.high - x.low) / 2)] + ([("± 1.96 of its sampling errors", x.covered, Z95 * x.se)] if k == theirs else []):
                share, spread = clustered(hit.dropna())
                rows.append(dict(measure=m.upper() if m != "accuracy" else m, interval=f"{k}, {what}", **{"held the truth": f"{share:.1%}" + (f" ± {100 * spread:.1f}" if spread == spread else ""), "no shift and covariate shift": f"{clustered(hit[x.kind.isin(KINDS[:2])].dropna())[0]:.1%}",
                            "later years": f"{clustered(hit[x.kind.isin(KINDS[2:])].dropna())[0]:.1%}", "mean half-width, thousandths": f"{1000 * half.mean():.1f}"}))
    return table(rows, list(rows[0]))


def by_models(d, measures, names, ours, theirs):
    "Rows are models, columns estimators"
    rows, lost = [], []
    for m in measures:
        got, less = parts(d, m, names, ours, theirs, {k: lambda t, k=k: t.model == k for k in dict.fromkeys(d.model)})
        rows += [dict(measure=m, model=k) | v for k, v in got.items()]
        lost += [f"{m}, {x}" for x in less]
    return table(rows, ["measure", "model", *names, *([f"{ours} minus {theirs}"] if theirs in names else [])]) + ("\n\n" + losing(lost, theirs, "by model") if theirs in names else "")


def by_attributes(d, ours, theirs):
    "Rows are attributes that windows were drawn by, columns our and NannyML's errors"
    names, rows, lost = [k for k in (ours, theirs, "nothing changed") if k in set(d.estimator)], [], []
    d = d[d.kind.isin(["covariate shift", "later, shifted"])]
    for a, c in sorted({*zip(d.data, d.what)}, key=lambda x: (list(SHORT).index(x[0]), x[1].lower())):
        x = d[(d.data == a) & (d.what == c)]
        row = {"drawn by": f"{SHORT[a]}, {described(a, c)}", "windows": x.groupby(["repeat", "window"]).ngroups}
        for m in MEASURES["binary"]:
            got, less = parts(x, m, names, ours, theirs, {f"{SHORT[a]}, {described(a, c)}, {m}": lambda t: t.data != ""})
            row |= {f"{m}: {k}": v for k, v in next(iter(got.values())).items()}
            lost += less
        rows.append(row)
    return table(rows, list(rows[0])) + ("\n\n" + losing(lost, theirs, "by attribute") if theirs in names else "")


def described(name, column):
    "A column with its description, short"
    card = data(name)[0]
    about = card.columns.get(column, "").split(" (")[0].split(",")[0].lower()
    return f"{column} ({about})" if column.isupper() and not about[:1].isdigit() else column


def headline(d, measure, ours, theirs):
    "Mean errors in a sentence"
    e = by_estimator(d, measure)
    m, t, gap = clustered(e[ours].dropna()), clustered(e[theirs].dropna()), clustered((e[ours] - e[theirs]).dropna())
    return f"{measure if measure == 'accuracy' else measure.upper()} {1000 * m[0]:.1f} thousandths by {ours}, {1000 * t[0]:.1f} by {theirs} ({m[0] / t[0] - 1:+.0%}; difference {thousandths(*gap, '+')}), {1000 * clustered(e['nothing changed'])[0]:.1f} by 'nothing changed'"


def doubts(d, ours):
    "What our estimator itself said is not to be believed"
    x = d[d.estimator == ours]
    none = f"Without a number: {int(x.value.isna().sum()):,} of {len(x):,} estimates. "
    y = x[x.doubted]
    return none + (f"{ours} itself doubted {y.groupby(['data', 'repeat', 'model', 'window']).ngroups:,} of {x.groupby(['data', 'repeat', 'model', 'window']).ngroups:,} windows, too unlike the reference ({', '.join(f'{m} error {1000 * e:.1f}' for m, e in y.groupby('measure').error.mean().items())}); they count in all figures." if len(y) else f"{ours} doubted none of the windows.")


SHORT = dict(gss_wages="GSS", acs_employment="ACS", gss_income="GSS")


def speed_text(ours, theirs, n):
    "A table of seconds"
    full, short = ours["learn"] + ours["three"], ours["learn"] + ours["cbpe"]
    rows = [("mlgov-nb, mcbpe, pape and cbpe", full, "AUC, accuracy, precision, recall, F1, Brier score, log loss; intervals"), ("mlgov-nb, cbpe alone", short, "the same")] + ([("NannyML CBPE", theirs, "AUC, accuracy; confidence bands")] if theirs else [])
    rows = [dict(contestant=k, seconds=f"{s:.1f}", gives=what, **({"NannyML = 1": f"{s / theirs:.1f}"} if theirs else {})) for k, s, what in rows]
    verdict = f"NannyML is {full / theirs:.0f} times as fast as our three together" + (f" and {short / theirs:.1f} times as fast as our cbpe alone." if short > theirs else f"; our cbpe alone is {theirs / short:.1f} times as fast as NannyML.") if theirs and full > theirs else ""
    return f"{n:,} rows of ACS (drawn with replacement), 20,000 reference rows, the linear model's scores; learning or fitting on the reference is counted, reading and imports are not; one thread, same run. Of ours, learning takes {ours['learn']:.1f} s.\n\n{table(rows, list(rows[0]))}\n\n{verdict}".rstrip()


def grid(d):
    "Figures for the JSON file"
    keys = ["data", "kind", "model", "estimator", "measure"]
    def sums(by): return d.groupby(by).agg(estimates=("error", "count"), mean_error=("error", "mean"), bias=("bias", "mean"), covered=("covered", "mean"), band=("band", "mean"), se=("se", "mean")).reset_index().replace({np.nan: None}).to_dict("records")
    return dict(by_kind_and_model=sums(keys), by_attribute=sums(["data", "kind", "what", "estimator", "measure"]))


def report(d, size, seconds, peer, folder):
    b, r = d[d.data.isin(BINARY)], d[~d.data.isin(BINARY)]
    ours, theirs, repeats = OURS["binary"], THEIRS["binary"], int(d.repeat.max()) + 1
    names = [k for k in ("mcbpe", "pape", "cbpe", theirs, "nothing changed", "confidence average") if k in set(b.estimator)]
    dle = [k for k in ("dle_weighted", "dle", THEIRS["regression"], "nothing changed") if k in set(r.estimator)]
    n = {SHORT[a]: sorted(set(b[b.data == a].rows)) for a in BINARY}
    first = f"Mean errors over all windows: {'; '.join(headline(b, m, ours, theirs) for m in MEASURES['binary'])}." if peer else "NannyML did not run."
    text = f"""# Performance without labels

`python bench/estimate.py`: {' '.join(__doc__.split('    python')[0].split())} {repeats} repetitions on {' and '.join(BINARY)}; models: {', '.join(MODELS['gss_wages'])} (the weak one is overconfident; the scores of boosting_reduced, made for parity, are no probabilities). {first}

Windows: 'no shift' is drawn from the pool, 'covariate shift' from the pool with odds by one attribute (a number: exp(±u z), u from 0.5 to 1.5; a category: exp(normal(0, 1.2)) for each level), 'later' from an early, a middle and the last window of the card, 'later, shifted' from these with such odds. A window has {size['window']:,} rows, but at most half of the rows that it is drawn from, so that no row is in it twice ({'; '.join(f'{k}: ' + ' or '.join(f'{x:,}' for x in v) for k, v in n.items())}). NannyML is given the same scores and decisions of the same reference, its defaults, one chunk per window. 'Nothing changed' is the reference's own figure, 'confidence average' takes the raw scores as probabilities.

Intervals of means (±) are 95%, by repetition. They are about the draw of models and rows; the later years are the same in each repetition.

## Error of the estimated AUC

Mean absolute error in thousandths, the lowest of a column in bold; in brackets how many of the intervals held the window's own figure, its labels' chance included.

{error_table(b, 'auc', names, ours, theirs)}

## Error of the estimated accuracy

{error_table(b, 'accuracy', names, ours, theirs)}

## Coverage of the intervals

NannyML's confidence band is ± 3 sampling errors, so wider than 95% where its sampling error is right; the same with 1.96 of them is added. A change of the outcome given the inputs, as later years bring, cannot be seen without labels, and no interval here allows for it.

{coverage_lines(b, MEASURES['binary'], names, theirs)}

{doubts(b, ours)}

## By model

Mean absolute error in thousandths, all windows.

{by_models(b, MEASURES['binary'], names, ours, theirs)}

## By attribute of the shift

Mean absolute error in thousandths, covariate shift and later, shifted.

{by_attributes(b, ours, theirs)}

## Regression

gss_income (log income), models {' and '.join(MODELS['gss_income'])}, the same kinds of windows. NannyML's DLE is given the features and protected attributes, as ours.

RMSE:

{error_table(r, 'rmse', dle, OURS['regression'], THEIRS['regression'])}

MAE:

{error_table(r, 'mae', dle, OURS['regression'], THEIRS['regression'])}

{coverage_lines(r, MEASURES['regression'], dle, THEIRS['regression'])}

{doubts(r, OURS['regression'])}

## Speed

{speed_text(*seconds, size['long'])}"""
    v = versions("mlgov-nb", "numpy", "scikit-learn", "scipy", "torch") | ({"nannyml": version_of("nannyml")} if peer else {})
    write("estimate", text, dict(machine=machine(), versions=v, repeats=repeats, seconds=dict(ours=seconds[0], nannyml=seconds[1]), **grid(d)), folder)
    print(text)


def main(small, folder):
    size = SMALL if small else FULL
    place = workplace(size, small)
    jobs = [(name, r, size, place/f"{name}-{r}") for r in range(size["repeats"]) for name in ("acs_employment", "gss_wages", "gss_income")]
    python_of("nannyml")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:       # a fork would inherit OpenMP's threads and hang
        try:
            for f in tqdm(as_completed([pool.submit(repetition, j) for j in jobs]), total=len(jobs), desc="repetitions"): f.result()
        except BaseException: pool.shutdown(cancel_futures=True); raise           # what is done stays for the next run
        peer = nannyml([m for *_, f in jobs for m in sorted(f.iterdir()) if m.is_dir()])
        ours = pool.submit(long, size["long"], place/"speed").result()
    files = [place/"speed"/k for k in ("warm", "long")]
    for f in files: (f/"nannyml.json").unlink(missing_ok=True)
    theirs = json.loads((files[1]/"nannyml.json").read_text())["seconds"] if peer and nannyml(files, 1) else None
    report(joined([f for *_, f in jobs], peer), size, (ours, theirs), peer, folder)


if __name__ == "__main__":
    started(main, __doc__)
