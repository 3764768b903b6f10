"Files of many rows: the same scores and the same log as single requests, in bounded memory, whatever breaks on the way"
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
    enc = load(folder).encoder
    add_document(folder, "outliers", to_arrays(fit_outliers(enc, codes(enc, read_rows(ROOT/"data/sample/reference.parquet")))))
    s = open_scorer(folder, {})
    s.secret = b"a key of the tests"
    return s


@pytest.fixture(scope="module")
def rows():
    "Rows of the sample, 100,000 of them, and some as one meets them: values missing, never seen, far away"
    df = read_rows(ROOT/"data/sample/2014-18.parquet").drop(columns=["high_income", "age_band"]).sample(N, replace=True, random_state=1).reset_index(drop=True)
    df["id"] = np.arange(N)
    rng = np.random.default_rng(2)
    for c in ("age", "occ10", "wrkstat", "educcat", "gender"): df.loc[rng.random(N) < 0.02, c] = None
    df.loc[rng.random(N) < 0.01, "educcat"] = "PhD"
    df.loc[rng.random(N) < 0.01, "age"] = 130.0
    df["subject"] = [f"person {i % 5000}" for i in range(N)]
    return df


@pytest.fixture(scope="module")
def bad(rows):
    "Where a row cannot be scored, and the same rows with what is wrong in them"
    at = np.arange(500, N, 997)
    df = rows.assign(age=rows.age.astype(object))
    df.loc[at[::2], "age"], df.loc[at[1::2], "wrkstat"] = "forty", "x" * 201
    return at, df


def read(file): return pq.read_table(file).to_pandas() if file.suffix == ".parquet" else pd.read_csv(file, float_precision="round_trip")


@pytest.mark.parametrize("given", ["rows.parquet", "rows.csv", "rows.csv.gz"])
@pytest.mark.parametrize("out", ["answer.csv", "answer.parquet"])
def test_a_file_has_the_scores_of_the_audits_and_is_in_the_log(tmp_path, scorer, rows, bad, given, out):
    at = bad[0] if "csv" in given else np.array([], int)
    if given == "rows.parquet": rows.to_parquet(tmp_path/given, row_group_size=30_000)
    else: bad[1].to_csv(tmp_path/given, index=False)
    told = score_file(scorer, Segment(tmp_path/"log", "predictions", clock=scorer.clock), tmp_path/given, tmp_path/out)
    got, ok = read(tmp_path/out), ~np.isin(np.arange(N), at)
    want, o = scorer.art.score(rows), scorer.release.outliers
    assert (got.outlier[ok].astype(bool) == (o.score(codes(o.encoder, rows)) > o.cut)[ok]).all() and 0 < told["outliers"] < N / 5
    assert (got.id.astype(int) == np.arange(N)).all() and (got.score[ok] == want[ok]).all()
    assert (got.error.notna() == ~ok).all() and got.loc[~ok, ["prediction_id", "score", "decision", "warnings"]].isna().all(axis=None)
    assert (told["rows"], told["scored"], told["refused"], told["positive"]) == (N, N - len(at), len(at), int((want[ok] >= scorer.art.threshold).sum()))
    assert told["strange"] == {"age": int((rows.age[ok] > 100).sum()), "educcat": int((rows.educcat[ok] == "PhD").sum())}
    logged = connect(tmp_path/"log", scorer.release.card).sql("from predictions").df().set_index("prediction_id").loc[got.prediction_id[ok]]
    assert (logged.score.to_numpy() == want[ok]).all() and logged.ts.is_monotonic_increasing and logged.subject.nunique() == 5000
    for c in [*scorer.schema.names, "gender"]: assert logged[c].fillna(-1).astype(object).tolist() == rows.loc[ok, c].fillna(-1).astype(object).tolist(), c
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_one_thread_or_many_give_the_same(tmp_path, scorer, rows, monkeypatch):
    monkeypatch.setattr(batch_file, "CHUNK", 3000)
    rows.to_parquet(tmp_path/"rows.parquet")
    def scores(n):
        answer = b"".join(stream(scorer, Segment(tmp_path/f"log{n}", "predictions", clock=scorer.clock), tmp_path/"rows.parquet", "parquet", workers=n))
        t = pq.read_table(pa.BufferReader(answer)).drop_columns(["prediction_id"])
        assert len(segments(tmp_path/f"log{n}")) == 34
        return t
    assert scores(1).equals(scores(3))


@pytest.mark.parametrize("kind", ["letters", "cells", "packed", "noise", "pages"])
def test_a_file_that_is_broken_in_the_middle(tmp_path, scorer, rows, monkeypatch, kind):
    "There is no answer, and the log holds whole chunks of what came before"
    monkeypatch.setattr(batch_file, "CHUNK", 10_000)
    lines, name, whole = rows.to_csv(index=False).encode().split(b"\n"), "rows.csv", 70_000
    if kind == "letters": lines[70_000], word = lines[70_000] + b"\xff", "row 70,001: `subject` is not UTF-8 text"
    if kind == "cells": lines[70_000], word = b"1,2,3", "row 70,001: 3 cells; expected"
    data = b"\n".join(lines)
    if kind == "packed":
        data, name, word = gzip.compress(data)[:-100_000], "rows.csv.gz", "cut short"
        whole = zlib.decompressobj(31).decompress(data).count(b"\n") - 1
    if kind == "noise":
        data, name, word = bytearray(gzip.compress(data)), "rows.csv.gz", "packed data is damaged"
        data[-100_000:-99_900] = b"\xff" * 100
        whole = 90_000
    if kind == "pages":
        rows.to_parquet(tmp_path/"rows.parquet", row_group_size=10_000)
        data, name, word = bytearray((tmp_path/"rows.parquet").read_bytes()), "rows.parquet", "damaged behind row"
        at = pq.read_metadata(tmp_path/"rows.parquet").row_group(7).column(2).data_page_offset
        data[at:at + 200] = bytes(200)
    (tmp_path/name).write_bytes(data)
    with pytest.raises(MlgovError, match=f"{name}: .*{word}"): score_file(scorer, Segment(tmp_path/"log", "predictions", clock=scorer.clock), tmp_path/name, tmp_path/"answer.csv")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith((".", "answer"))) == []
    def logged(log): return sum(pq.read_table(s.file).num_rows for s in segments(log))
    n = logged(tmp_path/"log")
    assert whole - 20_000 <= n <= whole
    with pytest.raises(BadRequest, match=word):
        for part in stream(scorer, Segment(tmp_path/"log2", "predictions", clock=scorer.clock), tmp_path/name, workers=1, packed=True): assert part
    assert logged(tmp_path/"log2") == n, "what is scored before a fault is no matter of luck, nor of the number of processors"


KILLED = r"""
import sys, time
from mlgov_nb.serve import batch, batch_file
from mlgov_nb.log.segment import Segment
batch_file.CHUNK = 10_000
scorer = batch.open_scorer(sys.argv[1], {})
scorer.secret = b"a key of the tests"
def slowly(c): print(c["rows"], flush=True); time.sleep(0.3)
batch.score_file(scorer, Segment(sys.argv[2] + "/log", "predictions", clock=scorer.clock), sys.argv[2] + "/rows.parquet", sys.argv[2] + "/answer.parquet", slowly)
"""


def test_a_killed_run_leaves_no_answer_and_a_whole_log(tmp_path, scorer, rows):
    rows.to_parquet(tmp_path/"rows.parquet")
    p = subprocess.Popen([sys.executable, "-c", KILLED, str(ROOT/"data/sample/model"), str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
    told = sum(int(p.stdout.readline()) for _ in range(4))
    os.kill(p.pid, signal.SIGKILL)
    assert p.wait() == -signal.SIGKILL
    assert not (tmp_path/"answer.parquet").exists() and len(list(tmp_path.glob(".answer.parquet.*"))) == 1
    left = [s.file for s in segments(tmp_path/"log")]
    n = sum(pq.read_table(f).num_rows for f in left)
    assert told <= n <= told + 10_000 and {f.suffix for f in left} == {".parquet"}      # what was told is there; one more chunk may be
    score_file(scorer, Segment(tmp_path/"log", "predictions", clock=scorer.clock), tmp_path/"rows.parquet", tmp_path/"answer.parquet")
    got = read(tmp_path/"answer.parquet")
    assert (got.score == scorer.art.score(rows)).all() and not list(tmp_path.glob(".answer*"))
    con = connect(tmp_path/"log", scorer.release.card)
    assert con.sql("select count(*) from predictions").fetchall() == [(n + N,)]


def model_of(home, name, file, step):
    "A linear model of a card, and every so many of its rows"
    card = load_card(card_path(ROOT, name))
    df, _ = prepare(read_rows(ROOT/"data/raw"/file).iloc[::step], card, labelled=True)
    enc, known = fit_encoder(df, card), df[df[card.target.name].notna()]
    fitted = fit(Candidate(estimator="linear"), card.task, enc, codes(enc, known), known[card.target.name].to_numpy(float), 7)
    meta = dict(name="linear", task=card.task, card=card.name, threshold=0.5, features=describe_features(df, card))
    save(home/"model", fitted, enc, meta, parity_rows(df, card), dict(card=card.model_dump()))
    return home/"model", df.drop(columns=[k for k in card.protected if k in df])


@pytest.fixture(scope="module")
def census(tmp_path_factory):
    "A model whose categories are numbers in the file, and 7,000 of its rows"
    return model_of(tmp_path_factory.mktemp("census"), "acs_employment", "acs_employment.parquet", 40)


def test_numbers_as_categories_are_known_however_they_are_written(tmp_path, census):
    model, df = census
    scorer, card = open_scorer(model, {}), load(model).encoder
    raw = read_rows(ROOT/"data/raw/acs_employment.parquet").set_index("id").loc[df.id]
    coded = [*card.categorical, "SEX", "RAC1P"]
    plain = df.assign(**{c: raw[c].astype("str").to_numpy() for c in coded})
    plain.loc[plain.index[::50], coded[0]] = None
    numbers = plain.assign(**{c: pd.to_numeric(plain[c]) for c in coded})
    forms = dict(text=plain, whole=numbers.astype({c: "Int16" for c in coded}), broken=numbers.astype({c: "float32" for c in coded}), dictionary=plain.astype({c: "category" for c in coded}))
    files = {}
    for k, f in forms.items():
        f.to_parquet(tmp_path/f"{k}.parquet")
        f.to_csv(tmp_path/f"{k}.csv", index=False)
        files |= {tmp_path/f"{k}.parquet": k, tmp_path/f"{k}.csv": k}
    want = scorer.art.score(plain)
    for f in files:
        got = score_file(scorer, Segment(tmp_path/"log"/f.name, "predictions"), f, tmp_path/"answer.parquet")
        assert (read(tmp_path/"answer.parquet").score.to_numpy() == want).all() and got["strange"] == {}, f.name
        log = connect(tmp_path/"log"/f.name, scorer.release.card).sql("select prediction_id, RAC1P from predictions order by 1").df()
        assert log.RAC1P.tolist() == plain.RAC1P.tolist(), f.name


def test_a_predicted_value_has_no_decision(tmp_path):
    model, df = model_of(tmp_path, "gss_income", "gss_wages.parquet", 40)
    scorer = open_scorer(model, {})
    df.to_parquet(tmp_path/"rows.parquet")
    told = score_file(scorer, Segment(tmp_path/"log", "predictions"), tmp_path/"rows.parquet", tmp_path/"answer.csv")
    got = read(tmp_path/"answer.csv")
    assert (got.score == scorer.art.score(df)).all() and list(got.columns) == ["id", "prediction_id", "score", "outlier", "warnings", "error"] and told["positive"] == 0
    assert connect(tmp_path/"log", scorer.release.card).sql("select count(*), count(decision) from predictions").fetchall() == [(len(df), 0)]


MEMORY = r"""
import re, sys
from pathlib import Path
from mlgov_nb.serve import batch, batch_file
from mlgov_nb.log.segment import Segment
scorer = batch.open_scorer(sys.argv[1], {})
scorer.secret = b"a key of the tests"
def peak(): return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024     # not ru_maxrss, which begins with the parent's
before = peak()
got = batch.score_file(scorer, Segment(sys.argv[2] + "/log", "predictions"), sys.argv[3], sys.argv[2] + "/answer." + sys.argv[4])
print(got["rows"], peak() - before)
"""


@pytest.mark.parametrize("given,out", [("parquet", "csv"), ("csv", "parquet")])
def test_memory_depends_on_the_chunk_and_not_on_the_file(tmp_path, census, given, out):
    model, df = census
    used = {}
    for n in (300_000, 1_500_000):
        big = pd.concat([df] * (n // len(df)), ignore_index=True)
        big["id"], big["subject"] = np.arange(len(big)), [f"person {i}" for i in range(len(big))]      # each text once: no dictionary holds them all
        big.to_parquet(tmp_path/"rows.parquet", row_group_size=2**20) if given == "parquet" else big.to_csv(tmp_path/"rows.csv", index=False)
        t = time.monotonic()
        got = subprocess.run([sys.executable, "-c", MEMORY, str(model), str(tmp_path), str(tmp_path/f"rows.{given}"), out], cwd=ROOT, capture_output=True, text=True)
        assert got.returncode == 0, got.stderr
        rows, used[n] = map(float, got.stdout.split())
        assert rows == len(big)
        print(n, used[n], time.monotonic() - t)
    assert used[1_500_000] < used[300_000] + 100 and used[1_500_000] < 400, used
