"""Files of many rows: the same scores and the same log as single requests, in bounded memory, whatever breaks on the
way"""
import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from mlgov_nb.data.card import card_path, load_card
from mlgov_nb.data.prepare import prepare
from mlgov_nb.data.read import read_rows
from mlgov_nb.log.query import connect
from mlgov_nb.log.segment import Segment, segments
from mlgov_nb.model.artifact import add_document, load, parity_rows, save
from mlgov_nb.model.candidates import fit
from mlgov_nb.model.encoding import codes, fit_encoder
from mlgov_nb.model.outliers import fit_outliers, to_arrays
from mlgov_nb.pipeline.train import describe_features
from mlgov_nb.serve import batch_file
from mlgov_nb.serve.batch import open_scorer, score_file, stream
from mlgov_nb.serve.request import BadRequest
from mlgov_nb.settings import Candidate, MlgovError

N = 100_000


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    "The sample's model, that knows what an outlier is"
    folder = tmp_path_factory.mktemp("sample")/"model"
    shutil.copytree(ROOT/"data/sample/model", folder)
    encoder = load(folder).encoder
    reference = codes(encoder, read_rows(ROOT/"data/sample/reference.parquet"))
    add_document(folder, "outliers", to_arrays(fit_outliers(encoder, reference)))
    opened = open_scorer(folder, {})
    opened.secret = b"a key of the tests"
    return opened


@pytest.fixture(scope="module")
def rows():
    "Rows of the sample, 100,000 of them, and some as one meets them: values missing, never seen, far away"
    sample = read_rows(ROOT/"data/sample/2014-18.parquet").drop(columns=["high_income", "age_band"])
    frame = sample.sample(N, replace=True, random_state=1).reset_index(drop=True)
    frame["id"] = np.arange(N)
    rng = np.random.default_rng(2)
    for column in ("age", "occ10", "wrkstat", "educcat", "gender"):
        frame.loc[rng.random(N) < 0.02, column] = None
    frame.loc[rng.random(N) < 0.01, "educcat"] = "PhD"
    frame.loc[rng.random(N) < 0.01, "age"] = 130.0
    frame["subject"] = [f"person {row % 5000}" for row in range(N)]
    return frame


@pytest.fixture(scope="module")
def bad(rows):
    "Where a row cannot be scored, and the same rows with what is wrong in them"
    places = np.arange(500, N, 997)
    frame = rows.assign(age=rows.age.astype(object))
    frame.loc[places[::2], "age"] = "forty"
    frame.loc[places[1::2], "wrkstat"] = "x" * 201
    return places, frame


def read(file):
    if file.suffix == ".parquet":
        return pq.read_table(file).to_pandas()
    return pd.read_csv(file, float_precision="round_trip")


def log_of(scorer, folder): return Segment(folder, "predictions", clock=scorer.clock)


def row_count_of(log): return sum(pq.read_table(segment.file).num_rows for segment in segments(log))


def comparable(column): return column.fillna(-1).astype(object).tolist()


@pytest.mark.slow("100,000 rows, several times")
@pytest.mark.parametrize("given", ["rows.parquet", "rows.csv", "rows.csv.gz"])
@pytest.mark.parametrize("out", ["answer.csv", "answer.parquet"])
def test_a_file_has_the_scores_of_the_audits_and_is_in_the_log(tmp_path, scorer, rows, bad, given, out):
    if given == "rows.parquet":
        refused_rows = np.array([], int)
        rows.to_parquet(tmp_path/given, row_group_size=30_000)
    else:
        refused_rows, broken = bad
        broken.to_csv(tmp_path/given, index=False)
    summary = score_file(scorer, log_of(scorer, tmp_path/"log"), tmp_path/given, tmp_path/out)
    answer = read(tmp_path/out)
    ok = ~np.isin(np.arange(N), refused_rows)
    want, outliers = scorer.art.score(rows), scorer.release.outliers

    far = outliers.score(codes(outliers.encoder, rows)) > outliers.cut
    assert (answer.outlier[ok].astype(bool) == far[ok]).all()
    assert 0 < summary["outliers"] < N / 5
    assert (answer.id.astype(int) == np.arange(N)).all()
    assert (answer.score[ok] == want[ok]).all()
    assert (answer.error.notna() == ~ok).all()
    assert answer.loc[~ok, ["prediction_id", "score", "decision", "warnings"]].isna().all(axis=None)

    assert summary["rows"] == N
    assert summary["scored"] == N - len(refused_rows)
    assert summary["refused"] == len(refused_rows)
    assert summary["positive"] == int((want[ok] >= scorer.art.threshold).sum())
    assert summary["strange"] == {
        "age": int((rows.age[ok] > 100).sum()),
        "educcat": int((rows.educcat[ok] == "PhD").sum()),
    }

    predictions = connect(tmp_path/"log", scorer.release.card).sql("from predictions").df()
    logged = predictions.set_index("prediction_id").loc[answer.prediction_id[ok]]
    assert (logged.score.to_numpy() == want[ok]).all()
    assert logged.ts.is_monotonic_increasing
    assert logged.subject.nunique() == 5000
    for column in [*scorer.schema.names, "gender"]:
        assert comparable(logged[column]) == comparable(rows.loc[ok, column]), column
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_one_thread_or_many_give_the_same(tmp_path, scorer, rows, monkeypatch):
    monkeypatch.setattr(batch_file, "CHUNK", 3000)
    file = tmp_path/"rows.parquet"
    rows.to_parquet(file)

    def scores(workers):
        log = tmp_path/f"log{workers}"
        answer = b"".join(stream(scorer, log_of(scorer, log), file, "parquet", workers=workers))
        table = pq.read_table(pa.BufferReader(answer)).drop_columns(["prediction_id"])
        assert len(segments(log)) == 34
        return table
    assert scores(1).equals(scores(3))


def broken_text(rows, line):
    "The rows as CSV, with another line in place of the 70,000th row"
    lines = rows.to_csv(index=False).encode().split(b"\n")
    lines[70_000] = line(lines[70_000])
    return b"\n".join(lines)


def broken_letters(_tmp_path, rows):
    rows = rows.assign(subject=rows.subject.str.replace("person", "pérson"))       # so it is UTF-8, with one fault
    data = broken_text(rows, lambda line: line + b"\xff")
    return "rows.csv", data, 70_000, "row 70,001: `subject` is not UTF-8 text"


def broken_cells(_tmp_path, rows):
    data = broken_text(rows, lambda _line: b"1,2,3")
    return "rows.csv", data, 70_000, "row 70,001: 3 cells; expected"


def broken_packed(_tmp_path, rows):
    data = gzip.compress(rows.to_csv(index=False).encode())[:-100_000]
    whole = zlib.decompressobj(31).decompress(data).count(b"\n") - 1
    return "rows.csv.gz", data, whole, "cut short"


def broken_noise(_tmp_path, rows):
    data = bytearray(gzip.compress(rows.to_csv(index=False).encode()))
    data[-100_000:-99_900] = b"\xff" * 100
    return "rows.csv.gz", data, 90_000, "packed data is damaged"


def broken_pages(tmp_path, rows):
    file = tmp_path/"rows.parquet"
    rows.to_parquet(file, row_group_size=10_000)
    data = bytearray(file.read_bytes())
    start = pq.read_metadata(file).row_group(7).column(2).data_page_offset
    data[start:start + 200] = bytes(200)
    return "rows.parquet", data, 70_000, "damaged behind row"


# what makes a file that is broken in the middle: its name, its bytes, how many rows are whole, words of the message
BROKEN = dict(
    letters=broken_letters,
    cells=broken_cells,
    packed=broken_packed,
    noise=broken_noise,
    pages=broken_pages,
)


@pytest.mark.slow("100,000 rows, several times")
@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_broken_in_the_middle(tmp_path, scorer, rows, monkeypatch, kind):
    "There is no answer, and the log holds whole chunks of what came before"
    monkeypatch.setattr(batch_file, "CHUNK", 10_000)
    name, data, whole, words = BROKEN[kind](tmp_path, rows)
    file = tmp_path/name
    file.write_bytes(data)
    with pytest.raises(MlgovError, match=f"{name}: .*{words}"):
        score_file(scorer, log_of(scorer, tmp_path/"log"), file, tmp_path/"answer.csv")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "answer"))) == []
    row_count = row_count_of(tmp_path/"log")
    assert whole - 20_000 <= row_count <= whole
    with pytest.raises(BadRequest, match=words):
        for part in stream(scorer, log_of(scorer, tmp_path/"log2"), file, workers=1, packed=True):
            assert part
    assert row_count_of(tmp_path/"log2") == row_count, (
        "what is scored before a fault depends neither on luck nor on the number of processors"
    )


KILLED = r"""
import sys, time
from mlgov_nb.serve import batch, batch_file
from mlgov_nb.log.segment import Segment
model, folder = sys.argv[1:]
batch_file.CHUNK = 10_000
scorer = batch.open_scorer(model, {})
scorer.secret = b"a key of the tests"
log = Segment(folder + "/log", "predictions", clock=scorer.clock)
def slowly(chunk):
    print(chunk["rows"], flush=True)
    time.sleep(0.3)
batch.score_file(scorer, log, folder + "/rows.parquet", folder + "/answer.parquet", slowly)
"""


@pytest.mark.slow("kills runs, many times")
def test_a_killed_run_leaves_no_answer_and_a_whole_log(tmp_path, scorer, rows):
    given, out, log = tmp_path/"rows.parquet", tmp_path/"answer.parquet", tmp_path/"log"
    rows.to_parquet(given)
    command = [sys.executable, "-c", KILLED, str(ROOT/"data/sample/model"), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    reported = sum(int(process.stdout.readline()) for _ in range(4))
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert len(list(tmp_path.glob(".answer.parquet.*"))) == 1
    row_count = row_count_of(log)
    assert reported <= row_count <= reported + 10_000      # what was reported is there; one more chunk may be
    assert {segment.file.suffix for segment in segments(log)} == {".parquet"}

    score_file(scorer, log_of(scorer, log), given, out)
    assert (read(out).score == scorer.art.score(rows)).all()
    assert not list(tmp_path.glob(".answer*"))
    logged = connect(log, scorer.release.card)
    assert logged.sql("select count(*) from predictions").fetchall() == [(row_count + N,)]


def model_of(home, name, file, step):
    "A linear model of a card, and every so many of its rows"
    card = load_card(card_path(ROOT, name))
    target = card.target.name
    frame, _ = prepare(read_rows(ROOT/"data/raw"/file).iloc[::step], card, labelled=True)
    encoder = fit_encoder(frame, card)
    known = frame[frame[target].notna()]
    candidate = Candidate(estimator="linear")
    fitted = fit(candidate, card.task, encoder, codes(encoder, known), known[target].to_numpy(float), 7)
    about = dict(name="linear", task=card.task, card=card.name, threshold=0.5, features=describe_features(frame, card))
    save(home/"model", fitted, encoder, about, parity_rows(frame, card), dict(card=card.model_dump()))
    return home/"model", frame.drop(columns=[column for column in card.protected if column in frame])


@pytest.fixture(scope="module")
def census(tmp_path_factory):
    "A model whose categories are numbers in the file, and 7,000 of its rows"
    return model_of(tmp_path_factory.mktemp("census"), "acs_employment", "acs_employment.parquet", 40)


@pytest.mark.slow("100,000 rows, several times")
def test_numbers_as_categories_are_known_however_they_are_written(tmp_path, census):
    model, frame = census
    scorer, card = open_scorer(model, {}), load(model).encoder
    raw = read_rows(ROOT/"data/raw/acs_employment.parquet").set_index("id").loc[frame.id]
    coded = [*card.categorical, "SEX", "RAC1P"]
    plain = frame.assign(**{column: raw[column].astype("str").to_numpy() for column in coded})
    plain.loc[plain.index[::50], coded[0]] = None
    numbers = plain.assign(**{column: pd.to_numeric(plain[column]) for column in coded})
    forms = dict(
        text=plain,
        whole=numbers.astype(dict.fromkeys(coded, "Int16")),
        broken=numbers.astype(dict.fromkeys(coded, "float32")),
        dictionary=plain.astype(dict.fromkeys(coded, "category")),
    )
    files = []
    for name, form in forms.items():
        form.to_parquet(tmp_path/f"{name}.parquet")
        form.to_csv(tmp_path/f"{name}.csv", index=False)
        files += [tmp_path/f"{name}.parquet", tmp_path/f"{name}.csv"]
    want = scorer.art.score(plain)
    for file in files:
        folder, out = tmp_path/"log"/file.name, tmp_path/"answer.parquet"
        summary = score_file(scorer, Segment(folder, "predictions"), file, out)
        assert (read(out).score.to_numpy() == want).all(), file.name
        assert summary["strange"] == {}, file.name
        log = connect(folder, scorer.release.card)
        logged = log.sql("select prediction_id, RAC1P from predictions order by 1").df()
        assert logged.RAC1P.tolist() == plain.RAC1P.tolist(), file.name


def test_a_predicted_value_has_no_decision(tmp_path):
    model, frame = model_of(tmp_path, "gss_income", "gss_wages.parquet", 40)
    scorer = open_scorer(model, {})
    given, out, folder = tmp_path/"rows.parquet", tmp_path/"answer.csv", tmp_path/"log"
    frame.to_parquet(given)
    summary = score_file(scorer, Segment(folder, "predictions"), given, out)
    answer = read(out)
    assert (answer.score == scorer.art.score(frame)).all()
    assert list(answer.columns) == ["id", "prediction_id", "score", "outlier", "warnings", "error"]
    assert summary["positive"] == 0
    with connect(folder, scorer.release.card) as log:
        logged = log.sql("select count(*), count(decision) from predictions").fetchall()
    assert logged == [(len(frame), 0)]


MEMORY = r"""
import re, sys
from pathlib import Path
from mlgov_nb.serve import batch
from mlgov_nb.log.segment import Segment
model, folder, given, out = sys.argv[1:]
scorer = batch.open_scorer(model, {})
scorer.secret = b"a key of the tests"
def peak():
    "In MiB; not ru_maxrss, which begins with the parent's"
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
summary = batch.score_file(scorer, Segment(folder + "/log", "predictions"), given, folder + "/answer." + out)
print(summary["rows"], peak() - before)
"""


@pytest.mark.slow("a million rows")
@pytest.mark.parametrize("given,out", [("parquet", "csv"), ("csv", "parquet")])
def test_memory_depends_on_the_chunk_and_not_on_the_file(tmp_path, census, given, out):
    model, frame = census
    file = tmp_path/f"rows.{given}"
    used = {}
    for size in (300_000, 1_500_000):
        big = pd.concat([frame] * (size // len(frame)), ignore_index=True)
        big["id"] = np.arange(len(big))
        big["subject"] = [f"person {row}" for row in range(len(big))]     # each text once: no dictionary holds them all
        if given == "parquet":
            big.to_parquet(file, row_group_size=2**20)
        else:
            big.to_csv(file, index=False)
        start = time.monotonic()
        command = [sys.executable, "-c", MEMORY, str(model), str(tmp_path), str(file), out]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        row_count, used[size] = map(float, result.stdout.split())
        assert row_count == len(big)
        print(size, used[size], time.monotonic() - start)
    assert used[1_500_000] < used[300_000] + 100, used
    assert used[1_500_000] < 400, used
