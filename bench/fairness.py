"""Intervals of group gaps: speed beside Fairlearn's MetricFrame, and whether 95% intervals cover what they should.

    python bench/fairness.py            some ten minutes
    python bench/fairness.py --small    a smoke test, into .bench/

Coverage: real rows with real labels and a model's real scores are the population, so the truth is known; samples are
drawn from it again and again, and the intervals of each are held against the truth. In the populations called 'equal',
the groups are shuffled among the rows, and the truth is the (small) gap that is left.
"""
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
from report import document, machine, started, table, versions, write
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import accuracy_score

from data import HELD_OUT, card_and_rows
from mlgov_nb.fairness.rates import count_groups, fairness_measures, rates_between
from mlgov_nb.model.encoding import codes, fit_encoder
from mlgov_nb.stats.measures import wilson

SHOWN = [
    "selection_rate_difference", "selection_rate_ratio",
    "equal_opportunity_difference", "equal_opportunity_ratio",
    "equalized_odds_difference", "equalized_odds_ratio",
    "predictive_parity_difference", "accuracy_difference", "auc_difference", "calibration_gap_difference",
    "mae_ratio", "mean_error_difference", "rmse_difference",
]
MANY = "gender and work"     # an intersection of many groups
POPULATIONS = [
    ("gss_wages", "gender"),
    ("gss_wages", "age_band"),
    ("acs_employment", "sex"),
    ("acs_employment", "race"),
    ("gss_wages", MANY),
    ("adult", "sex"),
    ("adult", "race"),
    ("credit", "sex"),
]
DRAWS = 10_000               # resamples of the speed test


class Case(NamedTuple):
    "One population, and how it is sampled"
    card: str
    attribute: str
    equal: bool              # groups are shuffled
    size: int                # rows of a sample
    times: int               # samples
    draws: int               # behind each interval

    def title(self):
        return f"{self.card}, {self.attribute}{', equal' if self.equal else ''}, {self.size:,} rows"


def scores_out_of_sample(Z, y):
    "Each half is scored by a model of the other half"
    score = np.empty(len(y))
    even = np.arange(len(y)) % 2 == 0
    for half in (even, ~even):
        model = HistGradientBoostingClassifier(max_iter=60, random_state=0).fit(Z[half], y[half])
        score[~half] = model.predict_proba(Z[~half])[:, 1]
    return score


@cache
def population(card_name, attribute, most=60_000):
    "Group, label, score of labelled rows; the score is out of sample"
    card, rows = card_and_rows(card_name)
    target = card.target.name
    rows = rows.dropna(subset=target)
    rows = rows.iloc[np.random.default_rng(0).permutation(len(rows))[:most]].reset_index(drop=True)
    if attribute == MANY: rows[MANY] = rows.gender + ", " + rows.occrecode.fillna("no occupation")
    share = rows[attribute].map(rows[attribute].value_counts(normalize=True))
    least = 0.01 if attribute == MANY else 0.04          # groups that a sample can rate
    rows = rows[share > least].reset_index(drop=True)
    Z, y = codes(fit_encoder(rows, card), rows), rows[target].to_numpy()
    return rows[[attribute]], y, scores_out_of_sample(Z, y)


def measured(groups, y, score, draws, seed):
    "Binary measures of decisions and scores, and the score's own as a regression"
    attribute = groups.columns[0]
    measures = []
    for task in ("binary", "regression"):
        measures += fairness_measures(groups, [list(groups.columns)], task, y, score, 0.5, draws=draws, seed=seed)
    return {measure.name: measure for measure in measures if measure.subject == attribute}


def is_rated(measure):
    "Were all groups large enough?"
    return measure.value is not None and "too few" not in measure.note


def covered(case):
    "Of one case: measure -> covered, of how many"
    groups, y, score = population(case.card, case.attribute)
    rng = np.random.default_rng(sum(map(ord, f"{case.card}{case.attribute}{case.equal}{case.size}")))
    if case.equal: groups = groups.iloc[rng.permutation(len(groups))].reset_index(drop=True)
    truth = {name: measure.value for name, measure in measured(groups, y, score, 100, 0).items()}
    hits = {name: [] for name in SHOWN}
    for seed in range(case.times):
        sample = rng.integers(0, len(groups), case.size)
        sampled = groups.iloc[sample].reset_index(drop=True)
        for name, measure in measured(sampled, y[sample], score[sample], case.draws, seed).items():
            if name in hits and is_rated(measure):
                hits[name].append(measure.low <= truth[name] <= measure.high)
    return {name: (int(np.sum(found)), len(found)) for name, found in hits.items()}


def speed(times, resamples):
    "Milliseconds per resample, MetricFrame's and ours, and of all of ours"
    groups, y, score = population("gss_wages", "gender")
    sample = np.random.default_rng(0).integers(0, len(groups), 38_000)
    gender = groups.gender.iloc[sample].reset_index(drop=True)
    label, decision = y[sample].astype(int), (score[sample] >= 0.5).astype(int)
    start = time.perf_counter()
    MetricFrame(
        metrics=dict(a=selection_rate, b=true_positive_rate, c=false_positive_rate, d=accuracy_score),
        y_true=label,
        y_pred=decision,
        sensitive_features=gender,
        n_boot=resamples,
        ci_quantiles=[0.025, 0.975],
        random_state=0,
    )
    peer = (time.perf_counter() - start) / resamples
    seconds = []
    for seed in range(times):
        start = time.perf_counter()
        counts = count_groups("gender=" + gender, label.astype(float), decision)
        rates_between(counts, "gender", draws=DRAWS, seed=seed)
        seconds.append(time.perf_counter() - start)
    ours = float(np.median(seconds))
    return 1000 * peer, 1000 * ours / DRAWS, 1000 * ours


def coverage_cases(times, draws):
    "Each population with its groups as they are and shuffled, in samples of each size"
    return [
        Case(card, attribute, equal, size, times, draws)
        for card, attribute in POPULATIONS
        for equal in (False, True)
        for size in ((12_000,) if attribute == MANY else (1500, 6000))
    ]


def coverage_summary(shares, counts):
    "Coverage over some cells, in a sentence; `counts` are hits and samples"
    hits, samples = np.sum(counts, axis=0)
    low, high = wilson(hits, samples)
    within, below = (sum(0.93 <= one <= 0.97 for one in shares), sum(one < 0.93 for one in shares))
    return (f"{len(shares)} cells, {100 * np.mean(shares):.1f}% (95% {100 * low:.1f} to {100 * high:.1f}), "
            f"lowest {100 * min(shares):.1f}, highest {100 * max(shares):.1f}; {within} within 93 to 97, "
            f"{below} below")


def coverage_text(coverage, cases):
    "Table of the coverage of each measure in each case, and a summary"
    times, titles = cases[0].times, [case.title() for case in cases]
    least = 0.9 * times
    def cell(hits, samples): return f"{100 * hits / samples:.1f}" if samples >= least else ""
    numbers = [str(number + 1) for number in range(len(titles))]
    rows = []
    for name in SHOWN:
        shown = {number: cell(*case[name]) for number, case in zip(numbers, coverage, strict=True)}
        rows.append(dict(measure=name.replace("_", " "), **shown))
    sentences = []
    for group, is_held_out in (("Data that choices were made on", False), ("Held-out data", True)):
        chosen = [found for found, case in zip(coverage, cases, strict=True) if (case.card in HELD_OUT) == is_held_out]
        counts = [pair for found in chosen for pair in found.values() if pair[1] >= least]
        sentences.append(f"- {group}: {coverage_summary([hits / samples for hits, samples in counts], counts)}.")
    return document(
        f"{times:,} samples a cell, {cases[0].draws:,} redraws behind an interval; a cell's own 95% interval is some "
        f"±{100 * 1.96 * np.sqrt(.05 * .95 / times):.1f} points. "
        "Empty: in more than a tenth of the samples a group had too few rows to be rated. "
        "The intervals of a largest difference are made to be too wide rather than too narrow where groups are nearly "
        "tied.",
        "\n".join(sentences),
        table(rows, ["measure", *numbers]),
        "\n".join(f"{number}. {title}" for number, title in zip(numbers, titles, strict=True)),
        "The last three measures take the score as the prediction of a regression.",
    )


def main(small, folder):
    times, draws, resamples = (20, 300, 5) if small else (120, 2000, 20)
    peer, ours, whole = speed(5, resamples)
    cases = coverage_cases(times, draws)
    spawn = multiprocessing.get_context("spawn")      # a fork would inherit OpenMP's threads and hang
    with ProcessPoolExecutor(2, mp_context=spawn) as pool: coverage = list(pool.map(covered, cases))
    titles = [case.title() for case in cases]
    text = document(
        "# Intervals of group gaps",
        "## Speed",
        f"38,000 rows of GSS by gender. Fairlearn's MetricFrame, four metrics, {resamples} bootstrap resamples: "
        f"{peer:.1f} ms per resample. Ours, five measures as differences and ratios, {DRAWS:,} resamples: "
        f"{whole:.0f} ms in all, counting included: {1000 * ours:.2f} microseconds per resample, "
        f"**{peer / ours:,.0f} times faster** per resample. The two do not do the same work: MetricFrame takes any "
        "metric and so calls it again on each resample's rows; ours resamples the counts of four outcomes per group, "
        "which is the same distribution for measures that are made of these counts, and only for such measures.",
        "## Coverage of the 95% intervals, in %",
        coverage_text(coverage, cases),
    )
    data = dict(
        machine=machine(),
        versions=versions("numpy", "fairlearn", "scikit-learn"),
        milliseconds=dict(metricframe=peer, ours=ours, ours_all=whole),
        coverage={
            title: {name: dict(covered=hits, of=samples) for name, (hits, samples) in case.items()}
            for title, case in zip(titles, coverage, strict=True)
        },
    )
    write("fairness", text, data, folder)
    print(text)


if __name__ == "__main__":
    started(main, __doc__)
