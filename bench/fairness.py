"""Intervals of group gaps: speed beside Fairlearn's MetricFrame, and whether 95% intervals cover what they should.

    python bench/fairness.py            some fifteen minutes
    python bench/fairness.py --small    a smoke test, into .bench/

Coverage: real rows with real labels and a model's real scores are the population, so the truth is known; samples are drawn
from it again and again, and the intervals of each are held against the truth. In the rows called 'equal', the groups
are shuffled among the rows of the population, and the truth is the (small) gap that is left.
"""
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
from report import HERE, machine, started, table, versions, write
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import accuracy_score

from mlgov_nb.data.card import card_path, load_card
from mlgov_nb.data.prepare import prepare
from mlgov_nb.data.read import read_rows
from mlgov_nb.fairness.rates import count_groups, fairness_measures, rates_between
from mlgov_nb.model.encoding import codes, fit_encoder
from mlgov_nb.stats.measures import wilson

ROOT = HERE.parent
SHOWN = ["selection_rate_difference", "selection_rate_ratio", "equal_opportunity_difference", "equal_opportunity_ratio", "equalized_odds_difference", "equalized_odds_ratio",
         "predictive_parity_difference", "accuracy_difference", "auc_difference", "calibration_gap_difference", "mae_ratio", "mean_error_difference", "rmse_difference"]

MANY = "gender and work"     # an intersection of many groups


def population(card, attribute, most=60_000):
    "Group, label, score of labelled rows; the score is out of sample"
    c = load_card(card_path(ROOT, card))
    rows = prepare(read_rows(ROOT/"data/raw"/c.path), c)[0].dropna(subset=c.target.name)
    rows = rows.iloc[np.random.default_rng(0).permutation(len(rows))[:most]].reset_index(drop=True)
    if attribute == MANY: rows[MANY] = rows.gender + ", " + rows.occrecode.fillna("no occupation")
    rows = rows[rows[attribute].map(rows[attribute].value_counts(normalize=True)) > (0.01 if attribute == MANY else 0.04)].reset_index(drop=True)     # groups that a sample can rate
    Z, y = codes(fit_encoder(rows, c), rows), rows[c.target.name].to_numpy()
    half, score = np.arange(len(y)) % 2 == 0, np.empty(len(y))
    for h in (half, ~half): score[~h] = HistGradientBoostingClassifier(max_iter=60, random_state=0).fit(Z[h], y[h]).predict_proba(Z[~h])[:, 1]
    return rows[[attribute]], y, score


def measured(df, y, score, draws, seed):
    "Binary measures of decisions and scores, and the score's own as a regression"
    at = [list(df.columns)]
    both = fairness_measures(df, at, "binary", y, score, 0.5, draws=draws, seed=seed) + fairness_measures(df, at, "regression", y, score, 0.5, draws=draws, seed=seed)
    return {m["name"]: m for m in both if m["subject"] == df.columns[0]}


def covered(case):
    "Of one case: measure -> covered, of how many"
    card, attribute, equal, n, times, draws = case
    df, y, score = population(card, attribute)
    rng = np.random.default_rng(sum(map(ord, f"{card}{attribute}{equal}{n}")))
    if equal: df = df.iloc[rng.permutation(len(df))].reset_index(drop=True)
    truth = {k: m["value"] for k, m in measured(df, y, score, 100, 0).items()}
    hits = {k: [] for k in SHOWN}
    for t in range(times):
        i = rng.integers(0, len(df), n)
        for k, m in measured(df.iloc[i].reset_index(drop=True), y[i], score[i], draws, t).items():
            if k in hits and m["value"] is not None and "note" not in m: hits[k].append(m["low"] <= truth[k] <= m["high"])
    return {k: (int(np.sum(v)), len(v)) for k, v in hits.items()}


def speed(times, boots):
    "Milliseconds per resample, MetricFrame's and ours"
    df, y, score = population("gss_wages", "gender")
    i = np.random.default_rng(0).integers(0, len(df), 38_000)
    g, y, d = df.gender.iloc[i].reset_index(drop=True), y[i].astype(int), (score[i] >= 0.5).astype(int)
    start = time.perf_counter()
    MetricFrame(metrics=dict(a=selection_rate, b=true_positive_rate, c=false_positive_rate, d=accuracy_score), y_true=y, y_pred=d, sensitive_features=g, n_boot=boots, ci_quantiles=[0.025, 0.975], random_state=0)
    theirs = (time.perf_counter() - start) / boots
    took = []
    for s in range(times):
        start = time.perf_counter()
        rates_between(count_groups("gender=" + g, y.astype(float), d), "gender", draws=10_000, seed=s)
        took.append(time.perf_counter() - start)
    return 1000 * theirs, 1000 * float(np.median(took)) / 10_000, 1000 * float(np.median(took))


def main(small, folder):
    times, draws, boots = (20, 300, 5) if small else (1000, 2000, 100)
    theirs, ours, whole = speed(5, boots)
    sets = [("gss_wages", "gender"), ("gss_wages", "age_band"), ("acs_employment", "sex"), ("acs_employment", "race"), ("gss_wages", MANY)]
    cases = [(c, a, e, n, times, draws) for c, a in sets for e in (False, True) for n in ((12_000,) if a == MANY else (1500, 6000))]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:   # a fork would inherit OpenMP's threads and hang
        got = list(pool.map(covered, cases))
    names = [f"{c}, {a}{', equal' if e else ''}, {n:,} rows" for c, a, e, n, *_ in cases]
    rows = [dict(measure=k.replace("_", " "), **{str(j + 1): f"{100 * h / m:.1f}" if m >= 0.9 * times else "" for j, (h, m) in enumerate(g[k] for g in got)}) for k in SHOWN]
    cells = [(h, m) for g in got for h, m in g.values() if m >= 0.9 * times]
    share = [h / m for h, m in cells]
    low, high = wilson(sum(h for h, _ in cells), sum(m for _, m in cells))
    text = f"""# Intervals of group gaps

## Speed

38,000 rows of GSS by gender. Fairlearn's MetricFrame, four metrics, {boots} bootstrap resamples: {theirs:.1f} ms per resample. Ours, five measures as differences and ratios, 10,000 resamples: {whole:.0f} ms in all, counting included: {1000 * ours:.2f} microseconds per resample, **{theirs / ours:,.0f} times faster** per resample.

## Coverage of the 95% intervals, in %

{times:,} samples a cell; a cell's own 95% interval is some ±{100 * 1.96 * np.sqrt(.05 * .95 / times):.1f} points. Empty: in more than a tenth of the samples a group had too few rows to be rated. Over all {len(cells)} cells: {100 * np.mean(share):.1f}% (95% {100 * low:.1f} to {100 * high:.1f}), lowest {100 * min(share):.1f}, highest {100 * max(share):.1f}; {sum(0.93 <= s <= 0.97 for s in share)} of {len(share)} within 93 to 97.

{table(rows, ['measure', *(str(j + 1) for j in range(len(names)))])}

{chr(10).join(f'{j + 1}. {n}' for j, n in enumerate(names))}

The last three measures take the score as the prediction of a regression."""
    write("fairness", text, dict(machine=machine(), versions=versions("numpy", "fairlearn", "scikit-learn"), milliseconds=dict(metricframe=theirs, ours=ours, ours_all=whole), coverage={n: {k: dict(covered=h, of=m) for k, (h, m) in g.items()} for n, g in zip(names, got)}), folder)
    print(text)


if __name__ == "__main__":
    started(main, __doc__)
