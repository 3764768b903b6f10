"""Exact SHAP values of the gradient-boosting candidate: seconds beside shap.TreeExplainer on scikit-learn's model, same rows, same run.

    python bench/explain.py            100,000 rows; half a minute
    python bench/explain.py --small    a smoke test, into .bench/
"""
import statistics
import time

import numpy as np
import shap
from report import HERE, machine, started, table, versions, write
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


def seconds(run, times=3):
    "Median seconds, and the last result"
    took = []
    for _ in range(times):
        start = time.perf_counter()
        got = run()
        took.append(time.perf_counter() - start)
    return statistics.median(took), got


def main(small, folder):
    rows = 3000 if small else 100_000
    params, card = load_params(ROOT/"params.yaml"), load_card(card_path(ROOT, "gss_wages"))
    parts = split(prepare(read_rows(ROOT/"data/raw"/card.path), card)[0], card, params.seed)
    enc, train = fit_encoder(parts["train"], card), parts["train"].dropna(subset=card.target.name)
    model = HistGradientBoostingClassifier(**params.candidates["gradient_boosting"].params, early_stopping=True, n_iter_no_change=20, validation_fraction=0.1, scoring="loss", random_state=params.seed)
    model.fit(codes(enc, train), train[card.target.name])
    pool = np.concatenate([codes(enc, v) for k, v in parts.items() if k != "train"])
    Z = pool[np.random.default_rng(0).integers(0, len(pool), rows)]
    arrays = flatten_trees(model)
    tree_shap(Z[:300], tree_tables(arrays))                     # compile
    prep, tables = seconds(lambda: tree_tables(arrays))
    ours, (base, values) = seconds(lambda: tree_shap(Z, tables))
    out = np.zeros(Z.shape)
    one, _ = seconds(lambda: _tree_rows(Z, out, tables["args"]))
    explainer = shap.TreeExplainer(model)
    theirs, want = seconds(lambda: explainer.shap_values(Z, check_additivity=False), 1)
    worst, add = float(np.abs(values - want).max()), float(np.abs(base + values.sum(axis=1) - model.decision_function(Z)).max())
    got = [dict(explainer="shap.TreeExplainer", seconds=f"{theirs:.2f}", ratio="1"), dict(explainer="mlgov-nb, one thread", seconds=f"{one + prep:.2f}", ratio=f"{theirs / (one + prep):.0f}"), dict(explainer="mlgov-nb, all cores", seconds=f"{ours + prep:.2f}", ratio=f"{theirs / (ours + prep):.0f}")]
    text = f"""# Exact SHAP values of boosted trees

{rows:,} rows of GSS (resampled, missing values included), {len(model._predictors)} trees, {len(enc.features)} features. Making the tables ({prep:.3f} s) is counted. Ours: median of three runs; shap: one.

{table(got, ['explainer', 'seconds', 'ratio'])}

Largest difference of a value to shap's: {worst:.1e}. Largest distance of base value + contributions to the score: {add:.1e}."""
    write("explain", text, dict(machine=machine(), versions=versions("numpy", "scikit-learn", "shap", "numba"), rows=rows, seconds=dict(shap=theirs, one_thread=one, all_cores=ours, tables=prep), largest_difference=worst, additivity=add), folder)
    print(text)


if __name__ == "__main__":
    started(main, __doc__)
