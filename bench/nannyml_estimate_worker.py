"""Runs in NannyML's own environment: its estimates of the quality of windows without labels, by CBPE or, where the reference has features, by DLE.

    python nannyml_estimate_worker.py FOLDER ...    each with reference.parquet (score, y, features) and windows.parquet
    (the same and a column `window`); writes FOLDER/nannyml.json and prints the folder when it is done
"""
import json
import sys
import time
import warnings
from pathlib import Path

import nannyml
import pandas as pd

warnings.filterwarnings("ignore")
pd.set_option("future.infer_string", False)      # DLE's encoders want strings as objects
NAMES = dict(roc_auc="auc", accuracy="accuracy", rmse="rmse", mae="mae")


def estimator(features, size):
    "CBPE, or DLE where there are features; one chunk is a window"
    if features: return nannyml.DLE(feature_column_names=features, y_pred="score", y_true="y", metrics=["rmse", "mae"], chunk_size=size)
    return nannyml.CBPE(y_pred_proba="score", y_pred="decision", y_true="y", problem_type="classification_binary", metrics=["roc_auc", "accuracy"], chunk_size=size)


def estimates(got):
    "Measure: value, ends of its confidence band, sampling error"
    d = got.filter(period="analysis").to_df()
    assert len(d) == 1, f"{len(d)} chunks"
    return {NAMES[m.column_name]: [float(d[m.column_name, k].iloc[0]) for k in ("value", "lower_confidence_boundary", "upper_confidence_boundary", "sampling_error")] for m in got.metrics}


def run(folder):
    "Estimates of each window of a folder, and the seconds of fits and estimates"
    old, new = (pd.read_parquet(folder/f"{k}.parquet") for k in ("reference", "windows"))
    features = [c for c in old if c not in ("score", "y")]
    for d in (old, new): d["decision"] = (d.score >= 0.5).astype(int)
    out, fitted, took = {}, {}, 0.0
    for k, w in new.groupby("window"):
        w = w.drop(columns=["window", "y"], errors="ignore").reset_index(drop=True)
        start = time.perf_counter()
        if len(w) not in fitted: fitted[len(w)] = estimator(features, len(w)).fit(old)
        got = fitted[len(w)].estimate(w)
        took += time.perf_counter() - start
        out[str(k)] = estimates(got)
    return dict(windows=out, seconds=took)


for f in map(Path, sys.argv[1:]):
    (f/"nannyml.json").write_text(json.dumps(run(f)))
    print(f, flush=True)
