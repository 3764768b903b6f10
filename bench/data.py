"""Large files for the benchmarks, made from the ACS rows that are in the repository.

A million rows a time is drawn with replacement (seeded), so that any size is made in constant memory. 17 categorical
columns are the survey's codes; of the 6 numeric ones, age is the survey's and five are made from it and noise,
because the survey's extract has only one number. The current file's ages are a year higher and 2% of one column is missing.
"""
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
CATEGORICAL = ["SCHL", "MAR", "RELP", "DIS", "ESP", "CIT", "MIG", "MIL", "ANC", "NATIVITY", "DEAR", "DEYE", "DREM", "SEX", "RAC1P", "employed", "year"]
NUMERIC = ["AGEP", "hours", "income", "wealth", "distance", "index"]
BLOCK = 1_000_000


def block(src, n, rng, moved):
    d = src.iloc[rng.integers(len(src), size=n)].reset_index(drop=True)
    age = d.AGEP.to_numpy(float) + (1.0 if moved else 0.0)
    d = d[CATEGORICAL].assign(AGEP=age, hours=np.round(np.clip(rng.normal(38, 9, n), 0, 99)), income=np.exp(rng.normal(9 + age / 60, 1)),
                              wealth=rng.normal(age * 1000, 40_000), distance=rng.gamma(2, 5 + age / 20), index=rng.uniform(0, 1, n) + age / 100)
    if moved: d.loc[rng.random(n) < 0.02, "income"] = np.nan
    return d[CATEGORICAL + NUMERIC]


def make(file, rows, seed, moved=False):
    "A Parquet file of `rows` rows, unless it is there already"
    file = Path(file)
    if file.is_file() and pq.read_metadata(file).num_rows == rows: return file
    src = pd.read_parquet(ROOT/"data/raw/acs_employment.parquet")
    src = src.astype({c: "str" for c in CATEGORICAL})
    rng, writer = np.random.default_rng(seed), None
    for at in range(0, rows, BLOCK):
        t = pa.Table.from_pandas(block(src, min(BLOCK, rows - at), rng, moved), preserve_index=False)
        writer = writer or pq.ParquetWriter(file.with_suffix(".tmp"), t.schema)
        writer.write_table(t)
    writer.close()
    file.with_suffix(".tmp").replace(file)
    return file


def make_wide(file, rows, columns, seed, moved=0):
    "A Parquet file of normal numbers, the first `moved` columns shifted by a tenth of a deviation"
    file = Path(file)
    if file.is_file() and pq.read_metadata(file).num_rows == rows: return file
    rng, writer = np.random.default_rng(seed), None
    for at in range(0, rows, 50_000):
        n = min(50_000, rows - at)
        t = pa.table({f"x{j}": rng.standard_normal(n, dtype=np.float32).astype(float) + (0.1 if j < moved else 0) for j in range(columns)})
        writer = writer or pq.ParquetWriter(file.with_suffix(".tmp"), t.schema)
        writer.write_table(t)
    writer.close()
    file.with_suffix(".tmp").replace(file)
    return file


if __name__ == "__main__":
    make(sys.argv[1], int(float(sys.argv[2])), int(sys.argv[3]), len(sys.argv) > 4)
