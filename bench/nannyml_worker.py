"""Runs in NannyML's own environment: does its default drift calculator raise an alert for each window of a folder?

    python nannyml_worker.py FOLDER     FOLDER/reference.parquet and window files; writes FOLDER/alerts.json
"""
import json
import sys
import warnings
from pathlib import Path

import nannyml
import pandas as pd

warnings.filterwarnings("ignore")
folder = Path(sys.argv[1])
out = {}
for ref in sorted(folder.glob("*/reference.parquet")):
    old = pd.read_parquet(ref)
    windows = {f.stem: pd.read_parquet(f) for f in sorted(ref.parent.glob("w*.parquet"))}
    n = len(next(iter(windows.values())))
    calc = nannyml.UnivariateDriftCalculator(column_names=list(old), chunk_size=n).fit(old)
    for k, v in windows.items():
        got = calc.calculate(v).to_df()
        alert = [c for c in got.columns if c[-1] == "alert"]
        at = got[("chunk", "chunk", "period")] == "analysis"
        out[f"{ref.parent.name}/{k}"] = bool(got.loc[at, alert].to_numpy().any())
(folder/"alerts.json").write_text(json.dumps(out))
