"""Exact SHAP values of the gradient-boosting candidate: seconds beside shap.TreeExplainer on scikit-learn's model, same
rows, same run.

    python bench/explain.py            100,000 rows; half a minute
    python bench/explain.py --small    a smoke test, into .bench/
"""
import statistics
import time

import numpy as np
import shap
from report import HERE, document, machine, started, table, versions, write
from sklearn.ensemble import HistGradientBoostingClassifier

from mlgov_nb.data.card import card_path, load_card
from mlgov_nb.data.prepare import prepare
from mlgov_nb.data.read import read_rows
from mlgov_nb.data.split import split
from mlgov_nb.model.candidates import flatten_trees
from mlgov_nb.model.encoding import codes, fit_encoder
from mlgov_nb.model.shapley import _tree_rows, tree_shap, tree_tables
from mlgov_nb.settings import load_params

ROOT = HERE.parent


def timed(run, times=3):
    "Median seconds, and the last result"
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def trained(row_count):
    "Encoder and scikit-learn's model of GSS, and rows of its other parts as codes, drawn with replacement"
    params, card = load_params(ROOT/"params.yaml"), load_card(card_path(ROOT, "gss_wages"))
    rows = prepare(read_rows(ROOT/"data/raw"/card.path), card)[0]
    parts = split(rows, card, params.seed)
    encoder = fit_encoder(parts["train"], card)
    train = parts["train"].dropna(subset=card.target.name)
    model = HistGradientBoostingClassifier(
        **params.candidates["gradient_boosting"].params,
        early_stopping=True,
        n_iter_no_change=20,
        validation_fraction=0.1,
        scoring="loss",
        random_state=params.seed,
    )
    model.fit(codes(encoder, train), train[card.target.name])
    pool = np.concatenate([codes(encoder, part) for name, part in parts.items() if name != "train"])
    drawn = np.random.default_rng(0).integers(0, len(pool), row_count)
    return encoder, model, pool[drawn]


def main(small, folder):
    row_count = 3000 if small else 100_000
    encoder, model, Z = trained(row_count)
    arrays = flatten_trees(model)
    tree_shap(Z[:300], tree_tables(arrays))                     # compile
    preparing, tables = timed(lambda: tree_tables(arrays))
    all_cores, (base, values) = timed(lambda: tree_shap(Z, tables))
    scratch = np.zeros(Z.shape)
    single, _ = timed(lambda: _tree_rows(Z, scratch, tables["args"]))      # one thread
    explainer = shap.TreeExplainer(model)
    peer, peer_values = timed(lambda: explainer.shap_values(Z, check_additivity=False), 1)
    difference = float(np.abs(values - peer_values).max())
    additivity = float(np.abs(base + values.sum(axis=1) - model.decision_function(Z)).max())
    def contestant(name, seconds): return dict(explainer=name, seconds=f"{seconds:.2f}", ratio=f"{peer / seconds:.0f}")
    rows = [
        contestant("shap.TreeExplainer", peer),
        contestant("mlgov-nb, one thread", single + preparing),
        contestant("mlgov-nb, all cores", all_cores + preparing),
    ]
    text = document(
        "# Exact SHAP values of boosted trees",
        f"{row_count:,} rows of GSS (resampled, missing values included), {len(model._predictors)} trees, "
        f"{len(encoder.features)} features. Making the tables ({preparing:.3f} s) is counted. "
        "Ours: median of three runs; shap: one.",
        table(rows, ["explainer", "seconds", "ratio"]),
        f"Largest difference of a value to shap's: {difference:.1e}. "
        f"Largest distance of base value + contributions to the score: {additivity:.1e}.",
    )
    data = dict(
        machine=machine(),
        versions=versions("numpy", "scikit-learn", "shap", "numba"),
        rows=row_count,
        seconds=dict(shap=peer, one_thread=single, all_cores=all_cores, tables=preparing),
        largest_difference=difference,
        additivity=additivity,
    )
    write("explain", text, data, folder)
    print(text)


if __name__ == "__main__":
    started(main, __doc__)
