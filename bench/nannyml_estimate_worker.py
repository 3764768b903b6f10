"""Runs in NannyML's own environment: its estimates of the quality of windows without labels, by CBPE or, where the
reference has features, by DLE.

    python nannyml_estimate_worker.py FOLDER ...    each with reference.parquet (score, y, features) and windows.parquet
    (the same and a column `window`); writes FOLDER/nannyml.json and prints the folder when it is done
"""
import json
import re
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import nannyml
import pandas as pd

pd.set_option("future.infer_string", False)      # DLE's encoders want strings as objects
NAMES = dict(roc_auc="auc", accuracy="accuracy", rmse="rmse", mae="mae")
FIELDS = ("value", "lower_confidence_boundary", "upper_confidence_boundary", "sampling_error")


def estimator(features, size):
    "CBPE, or DLE where there are features; one chunk is a window"
    if features:
        return nannyml.DLE(
            feature_column_names=features,
            y_pred="score",
            y_true="y",
            metrics=["rmse", "mae"],
            chunk_size=size,
        )
    return nannyml.CBPE(
        y_pred_proba="score",
        y_pred="decision",
        y_true="y",
        problem_type="classification_binary",
        metrics=["roc_auc", "accuracy"],
        chunk_size=size,
    )


def estimates(result):
    "Measure: value, ends of its confidence band, sampling error"
    chunks = result.filter(period="analysis").to_df()
    assert len(chunks) == 1, f"{len(chunks)} chunks"
    def figures(column): return [float(chunks[column, field].iloc[0]) for field in FIELDS]
    return {NAMES[metric.column_name]: figures(metric.column_name) for metric in result.metrics}


def run(folder):
    "Estimates of each window of a folder, and the seconds of fits and estimates"
    reference, windows = (pd.read_parquet(folder/f"{name}.parquet") for name in ("reference", "windows"))
    features = [column for column in reference if column not in ("score", "y")]
    for rows in (reference, windows): rows["decision"] = (rows.score >= 0.5).astype(int)
    figures, fitted, seconds = {}, {}, 0.0
    for number, window in windows.groupby("window"):
        window = window.drop(columns=["window", "y"], errors="ignore").reset_index(drop=True)
        size = len(window)
        start = time.perf_counter()
        if size not in fitted: fitted[size] = estimator(features, size).fit(reference)
        result = fitted[size].estimate(window)
        seconds += time.perf_counter() - start
        figures[str(number)] = estimates(result)
    return dict(windows=figures, seconds=seconds)


def words(warning):
    "A warning without its numbers"
    text = " ".join(re.sub(r"\d+", "N", str(warning.message)).split())[:200]
    return f"{warning.category.__name__}: {text}"


for folder in map(Path, sys.argv[1:]):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = run(folder)
    found["warnings"] = Counter(map(words, caught))
    (folder/"nannyml.json").write_text(json.dumps(found))
    print(folder, flush=True)
