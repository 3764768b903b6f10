"""Runs in NannyML's own environment: does its default drift calculator raise an alert for each window of a folder?

    python nannyml_worker.py FOLDER     FOLDER/*/reference.parquet and window files; writes FOLDER/alerts.json: the
                                        alerts, and how often NannyML and its libraries gave which warning
"""
import json
import re
import sys
import warnings
from collections import Counter
from pathlib import Path

import nannyml
import pandas as pd


def has_alert(calculator, window):
    "Is there an alert for any column of the window?"
    result = calculator.calculate(window).to_df()
    alert_columns = [column for column in result.columns if column[-1] == "alert"]
    in_window = result[("chunk", "chunk", "period")] == "analysis"
    return bool(result.loc[in_window, alert_columns].to_numpy().any())


def warned(step, run):
    "What a step returns; its warnings are counted, without their numbers"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run()
    for warning in caught:
        words = " ".join(re.sub(r"\d+", "N", str(warning.message)).split())[:200]
        said[f"{step}, {warning.category.__name__}: {words}"] += 1
    return result


def alerts_of(reference_file):
    "Alert of each window that lies beside a reference"
    reference, folder = pd.read_parquet(reference_file), reference_file.parent
    windows = {file.stem: pd.read_parquet(file) for file in sorted(folder.glob("w*.parquet"))}
    row_count = len(next(iter(windows.values())))
    calculator = nannyml.UnivariateDriftCalculator(column_names=list(reference), chunk_size=row_count)
    fitted = warned("fit on the reference", lambda: calculator.fit(reference))
    return {
        f"{folder.name}/{name}": warned("calculate on one window", lambda window=window: has_alert(fitted, window))
        for name, window in windows.items()
    }


said, alerts, folder = Counter(), {}, Path(sys.argv[1])
for file in sorted(folder.glob("*/reference.parquet")): alerts |= alerts_of(file)
(folder/"alerts.json").write_text(json.dumps(dict(alerts=alerts, warnings=said)))
