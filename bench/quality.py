"""False alarms and power of drift detection on real rows, side by side with the peers' defaults.

One repetition: the training period's rows are shuffled; 4,000 are the reference, the next n the current window, which is
then changed by a shift of one kind and size. Windows without a change have shuffles, and so references, of their own.
Every detector says whether the window raises an alarm.

    python bench/quality.py                 everything; over an hour on two cores; interrupted, it reports the repetitions that are done
    python bench/quality.py --small         a smoke test, into .bench/
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from peers import python_of, version_of  # noqa: E402
from report import HERE, machine, table, versions, write  # noqa: E402
from scipy.stats import binom  # noqa: E402
from tqdm import tqdm  # noqa: E402

from mlgov_nb.data.card import card_path, load_card
from mlgov_nb.data.prepare import prepare
from mlgov_nb.data.read import read_rows  # noqa: E402
from mlgov_nb.drift.columns import decide, drift_table  # noqa: E402
from mlgov_nb.drift.joint import combined  # noqa: E402
from mlgov_nb.profile.build import profile
from mlgov_nb.profile.source import kinds_of  # noqa: E402
from mlgov_nb.settings import load_params  # noqa: E402
from mlgov_nb.stats.measures import wilson  # noqa: E402

ROOT = HERE.parent
REFERENCE, SAMPLES, SIZES = 4_000, (250, 1_000, 2_500), ("small", "medium", "large")
DRAWS, SHUFFLES = 500, 100
# what is shifted on each data set: number, category column and its level, link to break, slice of about 20%, attribute, later windows
WHERE = dict(gss_wages=dict(number="age", column="educcat", level="Bachelor", link="educcat", slice=("maritalcat", ["Never Married", "Separated"]), attribute="gender", later=["1985-89", "1996-2000", "2014-18"]),
             acs_employment=dict(number="AGEP", column="MAR", level="3", link="MAR", slice=("SCHL", ["21"]), attribute="sex", later=None))
KINDS = {"none": ("", "", ""), "mean": (.1, .2, .4), "scale": (1.15, 1.3, 1.6), "one category's share": (.03, .06, .12), "missing values": (.01, .03, .1), "unit error": (.005, .01, .03),
         "new category": (.005, .01, .03), "correlation, equal marginals": (.25, .5, 1.0), "20% slice only": (.3, .6, 1.0), "10% of rows only": (.5, 1.0, 2.0), "resampled by an attribute": (1.25, 1.6, 2.5), "later years": (0, 1, 2)}
MEANING = {"mean": "a number plus so many reference deviations", "scale": "its distance from the median times", "one category's share": "so many rows get one category", "missing values": "so many rows of a number are missing",
           "unit error": "so many rows of a number times 12", "new category": "so many rows get a category that never was", "correlation, equal marginals": "so many rows' categories are shuffled among themselves",
           "20% slice only": "the number plus so many deviations in one slice", "10% of rows only": "plus so many deviations in a random tenth", "resampled by an attribute": "rows are redrawn with such odds for one sex, which is no feature",
           "later years": "GSS 1985-89, 1996-2000, 2014-18; ACS 2016, 2017, 2018 against 2015"}


@cache
def data(name):
    "Card, rows of the training period, and three later windows"
    card = load_card(card_path(ROOT, name))
    rows, _ = prepare(read_rows(ROOT/"data/raw"/card.path), card)
    t = rows[card.time]
    until = card.split.train_until if name == "gss_wages" else 2015
    later = [rows[t.between(*card.split.windows[w])] for w in WHERE[name]["later"]] if WHERE[name]["later"] else [rows[t == y] for y in (2016, 2017, 2018)]
    return card, rows[t <= until].reset_index(drop=True), [v.reset_index(drop=True) for v in later]


def shift(df, kind, size, name, pool, later, rng):
    "A window changed by one kind of shift"
    w, n, s = WHERE[name], len(df), KINDS[kind][size]
    df, x, sd = df.copy(), w["number"], pool[w["number"]].std()
    some = rng.random(n)
    if kind == "mean": df[x] += s * sd
    elif kind == "scale": df[x] = df[x].median() + (df[x] - df[x].median()) * s
    elif kind == "one category's share": df.loc[some < s, w["column"]] = w["level"]
    elif kind == "missing values": df.loc[some < s, x] = np.nan
    elif kind == "unit error": df.loc[some < s, x] *= 12
    elif kind == "new category": df.loc[some < s, w["column"]] = "recoded"
    elif kind == "correlation, equal marginals": i = np.flatnonzero(some < s); df.loc[i, w["link"]] = df[w["link"]].to_numpy()[rng.permutation(i)]
    elif kind == "20% slice only": df.loc[df[w["slice"][0]].isin(w["slice"][1]), x] += s * sd
    elif kind == "10% of rows only": df.loc[some < .1, x] += s * sd
    elif kind == "resampled by an attribute":
        a = pool[w["attribute"]]; p = np.where(a == a.value_counts().index[0], s, 1.0)
        df = pool.iloc[rng.choice(len(pool), n, replace=False, p=p / p.sum())].reset_index(drop=True)
    elif kind == "later years": df = later[size].iloc[rng.permutation(len(later[size]))[:n]].reset_index(drop=True)
    return df


def deal(name, n, reference, *seed):
    "Reference, current window, and all rows but the reference, from one shuffle"
    card, rows, _ = data(name)
    rng = np.random.default_rng([*seed, n, zlib.crc32(name.encode())])
    g = rng.permutation(len(rows))
    return rows.iloc[g[:reference]].reset_index(drop=True), rows.iloc[g[reference:reference + n]].reset_index(drop=True), rows.iloc[g[reference:]], rng


def windows(name, n, repeat):
    "Pairs of reference and current window of one repetition, by kind and size of the shift"
    card, _, later = data(name)
    old, new, pool, rng = deal(name, n, REFERENCE, repeat + 1_000)
    quiet = {("none", i): deal(name, n, REFERENCE, repeat + 1_000, i + 1)[:2] for i in range(3)}
    return card, quiet | {(k, i): (old, shift(new, k, i, name, pool, later, rng)) for k in KINDS for i in range(3) if k != "none"}


def ours(card, old, new, a, seed, ref=None):
    "Alarms of the columns alone and of the full audit, with the default effect floors and without"
    ref = ref or profile(old, kinds=kinds_of(old, card))
    t = drift_table(ref, profile(new, ref), a.min_n, DRAWS, seed)
    both = pd.concat([t, combined(card, old, new, a.min_n, seed, SHUFFLES, explain=False)[0]])
    def alarm(t, *floors): return bool((decide({"w": t}, a.alpha, *floors)["w"].drifted == True).any())  # noqa: E712
    return {f"mlgov-nb, {what}{label}": alarm(v, *floors) for label, floors in (("", (a.effect_floor, a.joint_floor)), (", no floor", (0.0, 0.0))) for what, v in (("columns", t), ("full audit", both))}


def ks_bonferroni(card, old, new, alpha):
    "Kolmogorov-Smirnov per number, chi-square per category, missing a category, Bonferroni"
    from scipy.stats import chi2_contingency, ks_2samp
    p = [ks_2samp(old[c].dropna(), new[c].dropna()).pvalue for c in card.numeric if new[c].notna().any()]
    for c in card.categorical:
        at = pd.factorize(pd.concat([old[c], new[c]]), use_na_sentinel=False)[0]
        counts = [np.bincount(v, minlength=at.max() + 1) for v in (at[:len(old)], at[len(old):])]
        p.append(chi2_contingency(counts, correction=False).pvalue if at.max() else 1.0)
    return min(p) < alpha / len(p)


def evidently(card, old, new):
    "Evidently's default statistics over 1,000 reference rows (both 0.1), called one by one: the share of drifted columns"
    from evidently.legacy.calculations.stattests import jensenshannon_stat_test, wasserstein_stat_test
    from evidently.legacy.core import ColumnType
    hit = [wasserstein_stat_test(old[c].dropna(), new[c].dropna(), ColumnType.Numerical, 0.1).drifted for c in card.numeric]
    hit += [jensenshannon_stat_test(old[c].dropna(), new[c].dropna(), ColumnType.Categorical, 0.1).drifted for c in card.categorical]
    return float(np.mean(hit))


def check_shortcut(card, old, new):
    "The statistics called one by one must decide as Evidently's report does"
    from evidently import Report
    from evidently.presets import DataDriftPreset
    got = Report([DataDriftPreset(columns=card.features)]).run(current_data=new[card.features], reference_data=old[card.features]).dict()["metrics"][0]["value"]["share"]
    assert abs(got - evidently(card, old, new)) < 1e-9, (got, evidently(card, old, new))


def repetition(job):
    "Every window of one repetition through every detector that runs here"
    import torch
    torch.set_num_threads(1)
    name, n, repeat = job
    card, pairs = windows(name, n, repeat)
    a = load_params(ROOT/"params.yaml").audit
    if repeat == 0: check_shortcut(card, *pairs["mean", 2])
    out, shared = [], profile(pairs["mean", 2][0], kinds=kinds_of(pairs["mean", 2][0], card))
    for (kind, size), (old, new) in pairs.items():
        share = evidently(card, old, new)
        said = ours(card, old, new, a, repeat, None if kind == "none" else shared) | {"Evidently, dataset drift": share >= 0.5, "Evidently, any column": share > 0, "KS and chi-square, Bonferroni": bool(ks_bonferroni(card, old, new, a.alpha))}
        out += [dict(data=name, n=n, repeat=repeat, kind=kind, size=size, detector=k, alarm=v) for k, v in said.items()]
    return out


HARD = {"100 and 100 rows": (100, 100, {}), "100 and 2,000 rows": (100, 2_000, {}), "500 and 5,000 rows": (500, 5_000, {}), "4,000 and 1,000 rows, occupation code as a category": (4_000, 1_000, {"categorical": ["occ10"]})}


def hard(job):
    "Alarms of ours, without floors, where nothing changed and the windows or categories are unfavourable"
    import torch
    torch.set_num_threads(1)
    what, repeat = job
    reference, n, columns = HARD[what]
    card, a = data("gss_wages")[0], load_params(ROOT/"params.yaml").audit
    if columns: card = card.model_copy(update={"numeric": [c for c in card.numeric if c not in columns["categorical"]], "categorical": [*card.categorical, *columns["categorical"]]})
    old, new = deal("gss_wages", n, reference, repeat + 5_000)[:2]
    return [dict(case=what, detector=k, alarm=v) for k, v in ours(card, old, new, a, repeat).items() if k.endswith("no floor")]


def nannyml(name, n, repeats):
    "The same windows through NannyML in its own environment"
    py = python_of("nannyml")
    if not py: return []
    def plain(d, card): return d[card.features].astype({c: "object" for c in card.categorical})
    with tempfile.TemporaryDirectory() as d:
        keys = {}
        for r in range(repeats):
            card, pairs = windows(name, n, r)
            for (kind, size), (old, new) in pairs.items():
                folder = Path(d)/f"{r:03}-{size if kind == 'none' else 'shifted'}"
                if not folder.exists(): folder.mkdir(); plain(old, card).to_parquet(folder/"reference.parquet")
                plain(new, card).to_parquet(folder/f"w{len(keys):06}.parquet")
                keys[f"{folder.name}/w{len(keys):06}"] = (r, kind, size)
        got = subprocess.run([py, "-W", "ignore", HERE/"nannyml_worker.py", d], capture_output=True, text=True)
        if got.returncode: print(f"NannyML: {got.stderr.strip().splitlines()[-1]}", file=sys.stderr); return []
        alerts = json.loads((Path(d)/"alerts.json").read_text())
    return [dict(data=name, n=n, repeat=r, kind=k, size=s, detector=f"NannyML {version_of('nannyml')}", alarm=alerts[key]) for key, (r, k, s) in keys.items()]


def run(repeats, peer_repeats, names, folder):
    python_of("nannyml")                                   # once, before the processes that use it
    cases, jobs = [(what, r) for what in HARD for r in range(repeats * 2)], [(name, n, r) for r in range(repeats) for name in names for n in SAMPLES]
    rows, unkind, done = [], [], 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for got in tqdm(pool.map(nannyml, *zip(*[(name, n, peer_repeats) for name in names for n in SAMPLES])), total=len(names) * len(SAMPLES), desc="NannyML"): rows += got
        for got in tqdm(pool.map(hard, cases), total=len(cases), desc="unkind nulls"): unkind += got
        try:
            for got in tqdm(pool.map(repetition, jobs), total=len(jobs), desc="windows"): rows += got; done += 1
        except KeyboardInterrupt: pool.shutdown(wait=False, cancel_futures=True)      # what is done is reported
    d, repeats = pd.DataFrame(rows), done // (len(names) * len(SAMPLES))
    report(d[d.repeat < repeats], pd.DataFrame(unkind), repeats, min(peer_repeats, repeats), folder)


def rate(k, n):
    low, high = wilson(k, n)
    return f"{k / n:.1%} ({low:.1%}–{high:.1%})"


def report(d, unkind, repeats, peer_repeats, folder):
    detectors = sorted(dict.fromkeys(d.detector), key=lambda k: k.startswith("NannyML"))
    null = d[d.kind == "none"].groupby(["data", "n", "detector"]).alarm.agg(["sum", "size"])
    total = d[d.kind == "none"].groupby("detector").alarm.agg(["sum", "size"])
    def beyond(v): return binom.sf(v["sum"] - 1, v["size"], 0.05)
    holds = {k: beyond(total.loc[k]) > 0.01 and all(beyond(v) > 0.01 / len(g) for _, v in g.iterrows()) for k in detectors for g in [null.xs(k, level="detector")]}
    alarms = [dict(detector=k, **{f"{a}, {n:,} rows": rate(*null.loc[a, n, k]) for a, n in dict.fromkeys((a, n) for a, n, _ in null.index)}, all=rate(*total.loc[k]), **{"holds 5%": "yes" if holds[k] else "no"}) for k in detectors]
    harder = [dict(windows=w, **{k: rate(int(g.alarm.sum()), len(g)) for k, g in c.groupby("detector")}) for w, c in unkind.groupby("case", sort=False)]
    power = d[d.kind != "none"].groupby(["kind", "detector"]).alarm.mean().unstack()[detectors].loc[[k for k in KINDS if k != "none"]]
    power.loc["total"] = d[d.kind != "none"].groupby("detector").alarm.mean()
    def cell(r, k): return f"**{power.loc[r, k]:.2f}**" if holds[k] and power.loc[r, k] >= power.loc[r, [x for x in detectors if holds[x]]].max() - 1e-9 else f"{power.loc[r, k]:.2f}"
    by = [dict(shift=r, **{k: cell(r, k) for k in detectors}) for r in power.index]
    peers = [k for k in detectors if not k.startswith("mlgov-nb")]
    wins = [f"{r} ({', '.join(k for k in peers if holds[k] and power.loc[r, k] > power.loc[r, OURS] + 1e-9)})" for r in power.index if any(holds[k] and k in peers and power.loc[r, k] > power.loc[r, OURS] + 1e-9 for k in detectors)]
    sizes = [dict(shift=k, small=v[0], medium=v[1], large=v[2], what=MEANING[k]) for k, v in KINDS.items() if k != "none"]
    text = f"""# Quality of drift detection

`python bench/quality.py`: {' '.join(__doc__.split('    python')[0].split())} {repeats} repetitions of 11 kinds of shift × 3 sizes × 3 sample sizes on {' and '.join(dict.fromkeys(d.data))}, three times as many without a shift (NannyML: {peer_repeats} repetitions). Peers run their drift defaults; checks for missing values and unknown categories that they sell apart are not in them. Ours with the defaults of `params.yaml`, but {DRAWS} simulated windows and {SHUFFLES} shuffles.

## False alarms, nothing changed (Wilson 95%)

A detector holds its rate when so many alarms have a probability over 1% if its rate is 5%, in all windows together and (over 1% divided by their number) in each column of the table.

{table(alarms, list(alarms[0]))}

Ours without floors where windows are small or uneven or a category has hundreds of values, GSS, nothing changed:

{table(harder, list(harder[0]))}

## Power: share of changed windows with an alarm, all sizes and samples

Bold: the highest among the detectors that hold their rate.

{table(by, list(by[0]))}

Where a peer that holds its rate beats our full audit: {'; '.join(wins) or 'nowhere'}. By size and sample: `quality.json`.

## What the sizes are

{table(sizes, list(sizes[0]))}"""
    grid = d.groupby(["data", "n", "kind", "size", "detector"]).alarm.agg(alarms="sum", windows="size").reset_index().rename(columns={"size": "shift_size"})
    v = versions("mlgov-nb", "evidently", "scipy", "scikit-learn", "torch") | {"nannyml": version_of("nannyml")}
    write("quality", text, dict(machine=machine(), versions=v, repeats=repeats, peer_repeats=peer_repeats, unkind=harder, power=power.to_dict(), grid=grid.to_dict("records")), folder)
    print(Path(folder)/"quality.md")


OURS = "mlgov-nb, full audit"

if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--repeats", type=int, default=100); p.add_argument("--peer-repeats", type=int, default=20); p.add_argument("--small", action="store_true")
    a = p.parse_args()
    if a.small: run(3, 1, ["gss_wages"], ROOT/".bench")
    else: run(a.repeats, min(a.peer_repeats, a.repeats), list(WHERE), HERE)
