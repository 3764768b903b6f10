"""Large files for the benchmarks, made from the ACS rows that are in the repository.

A million rows a time is drawn with replacement (seeded), so that any size is made in constant memory. 17 categorical
columns are the survey's codes; of the 6 numeric ones, age is the survey's and five are made from it and noise,
because the survey's extract has only one number. The current file's ages are a year higher and 2% of one column is
missing.
"""
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
CATEGORICAL = [
    "SCHL", "MAR", "RELP", "DIS", "ESP", "CIT", "MIG", "MIL", "ANC",
    "NATIVITY", "DEAR", "DEYE", "DREM", "SEX", "RAC1P", "employed", "year",
]
NUMERIC = ["AGEP", "hours", "income", "wealth", "distance", "index"]
BLOCK = 1_000_000
WIDE_BLOCK = 50_000


def block(source, count, rng, moved):
    "Rows drawn from the survey's, with further numbers; `moved`: older by a year, and some incomes are missing"
    drawn = source.iloc[rng.integers(len(source), size=count)].reset_index(drop=True)
    age = drawn.AGEP.to_numpy(float) + (1.0 if moved else 0.0)
    rows = drawn[CATEGORICAL].assign(
        AGEP=age,
        hours=np.round(np.clip(rng.normal(38, 9, count), 0, 99)),
        income=np.exp(rng.normal(9 + age / 60, 1)),
        wealth=rng.normal(age * 1000, 40_000),
        distance=rng.gamma(2, 5 + age / 20),
        index=rng.uniform(0, 1, count) + age / 100,
    )
    if moved: rows.loc[rng.random(count) < 0.02, "income"] = np.nan
    return rows[CATEGORICAL + NUMERIC]


def is_made(file, rows):
    "Is the file there already, with so many rows?"
    return file.is_file() and pq.read_metadata(file).num_rows == rows


def write_blocks(file, blocks):
    "A Parquet file of Arrow tables, whole or not at all"
    unfinished, writer = file.with_suffix(".tmp"), None
    for arrow_table in blocks:
        writer = writer or pq.ParquetWriter(unfinished, arrow_table.schema)
        writer.write_table(arrow_table)
    writer.close()
    unfinished.replace(file)
    return file


def make(file, rows, seed, moved=False):
    "A Parquet file of `rows` rows, unless it is there already"
    file = Path(file)
    if is_made(file, rows): return file
    source = pd.read_parquet(ROOT/"data/raw/acs_employment.parquet").astype(dict.fromkeys(CATEGORICAL, "str"))
    rng = np.random.default_rng(seed)
    def blocks():
        for first in range(0, rows, BLOCK):
            frame = block(source, min(BLOCK, rows - first), rng, moved)
            yield pa.Table.from_pandas(frame, preserve_index=False)
    return write_blocks(file, blocks())


def normal_numbers(count, rng, shift):
    "A column of normal numbers"
    return rng.standard_normal(count, dtype=np.float32).astype(float) + shift


def make_wide(file, rows, columns, seed, moved=0):
    "A Parquet file of normal numbers, the first `moved` columns shifted by a tenth of a deviation"
    file = Path(file)
    if is_made(file, rows): return file
    rng = np.random.default_rng(seed)
    def blocks():
        for first in range(0, rows, WIDE_BLOCK):
            count = min(WIDE_BLOCK, rows - first)
            yield pa.table({f"x{j}": normal_numbers(count, rng, 0.1 if j < moved else 0) for j in range(columns)})
    return write_blocks(file, blocks())


if __name__ == "__main__":
    make(sys.argv[1], int(float(sys.argv[2])), int(sys.argv[3]), len(sys.argv) > 4)
