"The released champion over real HTTP, started as `make serve` starts it, and as a Bento"
import json
import re
import subprocess
import urllib.request

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, Service

from mlgov_nb.model.artifact import load
from mlgov_nb.model.encoding import codes_of
from mlgov_nb.serve.scoring import stored_outliers


@pytest.fixture(scope="module")
def rows(clone):
    df = pd.read_parquet(clone.root/"data/split/windows/2014-18.parquet").head(300)
    art = load(clone.root/"release/served/model")
    recs = df[art.encoder.features].astype(object).where(df[art.encoder.features].notna(), None).to_dict("records")
    return [{k: float(v) if isinstance(v, (float, np.floating)) else v for k, v in r.items()} for r in recs], art.score(df)


def test_make_serve_listens_here_only(clone):
    command = clone.run("make -n -o .venv/.ready serve").stdout.strip().splitlines()[-1]
    assert command.startswith("bentoml serve mlgov_nb.service:Mlgov") and "--host 127.0.0.1 --port 3000" in command


def test_one_row_and_many_score_like_the_audit(service, clone, rows):
    recs, want = rows
    code, got = service.ask("/v1/predict", dict(rows=recs))
    assert code == 200 and [p["score"] for p in got["predictions"]] == want.tolist(), "bit-equal to the audited evaluator"
    code, one = service.ask("/v1/predict", recs[7])
    mine, other = one["predictions"][0], got["predictions"][7]
    assert {k: v for k, v in mine.items() if k != "prediction_id"} == {k: v for k, v in other.items() if k != "prediction_id"}
    assert mine["model"] == "boosting_reduced" and mine["arm"] == "champion" and mine["decision"] == int(want[7] >= 0.5) and mine["outlier"] in (True, False)
    art = load(clone.root/"release/served/model")
    o = stored_outliers(art)
    assert [p["outlier"] for p in got["predictions"]] == (o.score(codes_of(art.encoder, recs)) > o.cut).tolist(), "the flag of the audits"


def test_the_readme_commands(service):
    lines = [x for x in (ROOT/"README.md").read_text().splitlines() if x.startswith("curl ")]
    assert len(lines) >= 2
    for line in lines:
        got = subprocess.run(line.replace("http://127.0.0.1:3000", service.url), shell=True, capture_output=True, text=True, check=True, cwd=service.root)
        assert "error" not in json.loads(got.stdout), got.stdout


def test_the_described_examples_work(service):
    spec = service.ask("/openapi.json")[1]
    for path, ops in spec["paths"].items():
        for method, op in ops.items():
            for e in op.get("requestBody", {}).get("content", {}).get("application/json", {}).get("examples", {}).values():
                assert service.ask(path, e["value"], method.upper())[0] == 200, (path, e)


@pytest.mark.parametrize("change, code, text", [
    (lambda r: {k: v for k, v in r.items() if k != "age"}, 422, "`age`"), (lambda r: {**r, "agee": 1}, 422, "`agee`"), (lambda r: {**r, "age": "41"}, 422, "`age` is the text '41'; expected a number or null"), (lambda r: {**r, "age": True}, 422, "`age` is true"),
    (lambda r: {**r, "educcat": 3}, 422, "`educcat` is the number 3"), (lambda r: dict(rows=[]), 422, "at least one"), (lambda r: dict(rows=[r, {**r, "age": "x"}]), 422, "row 1: `age`"), (lambda r: dict(rows=[r] * 10_001), 413, "too many"),
    (lambda r: [r], 422, "found a list"), (lambda r: b"{broken", 400, "not valid JSON"), (lambda r: b"", 400, "the body is empty"), (lambda r: json.dumps({**r, "age": float("nan")}).encode(), 400, "JSON"),
    (lambda r: re.sub(r'"age": [\d.]+', '"age": 1e999', json.dumps(r)).encode(), 422, "age"), (lambda r: b" " * (9 * 2**20), 413, "larger than")])
def test_what_cannot_be_understood_is_refused_by_name(service, rows, change, code, text):
    base = {**rows[0][0], "age": 41.0}
    got = service.ask("/v1/predict", change(base))
    assert got[0] == code and text in got[1]["error"], got
    assert "Traceback" not in json.dumps(got[1]) and str(service.root) not in got[1]["error"]


def test_what_training_never_saw_is_said(service, rows):
    base = rows[0][0]
    odd = service.ask("/v1/predict", {**base, "educcat": "PhD", "age": 130})[1]["predictions"][0]
    none = service.ask("/v1/predict", {**base, "educcat": None, "age": 130})[1]["predictions"][0]
    assert len(odd["warnings"]) == 2 and "'PhD' is never seen in training; scored as missing" in odd["warnings"][1] and odd["score"] == none["score"] and odd["outlier"]
    empty = service.ask("/v1/predict", dict.fromkeys(base))[1]["predictions"][0]
    assert empty["warnings"] == ["every feature is missing: the score describes no particular person"]


def test_reasons_are_those_of_the_command_line(service, clone):
    told = json.loads(clone.run("mlgov explain release/served/model data/sample/2014-18.parquet --row 53950 --json").stdout)
    row = pd.read_parquet(clone.root/"data/sample/2014-18.parquet").set_index("id").loc[53950]
    art = load(clone.root/"release/served/model")
    body = {k: None if pd.isna(row[k]) else float(row[k]) if k in art.encoder.numeric else row[k] for k in art.encoder.features}
    code, got = service.ask("/v1/explain?counterfactuals=true", body)
    p = got["predictions"][0]
    assert code == 200 and p["score"] == told["score"] and p["base"] == told["base"] and p["contributions"] == told["contributions"] and p["reasons"] == told["reasons"]
    assert p["counterfactuals"] == json.loads(json.dumps(told["counterfactuals"]))


def test_a_file_is_scored(service, clone):
    file = clone.root/"data/split/windows/2014-18.parquet"
    df, art = pd.read_parquet(file), load(clone.root/"release/served/model")
    before = len(list(service.folder.glob("*.parquet")))
    def post(body, kind, accept):
        with urllib.request.urlopen(urllib.request.Request(f"{service.url}/v1/batch", body, {"Content-Type": kind, "Accept": accept}), timeout=120) as r: return r.read()
    (clone.root/"out.parquet").write_bytes(post(file.read_bytes(), "application/vnd.apache.parquet", "application/vnd.apache.parquet"))
    got = pq.read_table(clone.root/"out.parquet").to_pandas()
    assert got.score.tolist() == art.score(df).tolist() and got.id.tolist() == df.id.tolist() and got.prediction_id.is_unique
    assert len(list(service.folder.glob("*.parquet"))) > before, "in the log"
    text = post(df[["id", *art.encoder.features]].head(50).to_csv(index=False).encode(), "text/csv", "text/csv").decode()
    assert len(text.splitlines()) == 51
    (clone.root/"out.parquet").unlink()
    said = clone.run(f"MLGOV_LOG_DIR={service.folder} mlgov predict release/champion {file} -o out.csv")
    assert pd.read_csv(clone.root/"out.csv", float_precision="round_trip").score.tolist() == pytest.approx(art.score(df).tolist(), abs=0) and "rows" in said.stdout + said.stderr
    (clone.root/"out.csv").unlink()


def test_the_model_says_what_it_is(service, clone):
    code, m = service.ask("/v1/model")
    assert code == 200 and m["card"]["title"] and m["card"]["limits"] and m["limits"]["max_rows"] == 10_000 and m["protected"] == ["gender"] and m["strange"] == dict(unseen="warn", out_of_range="warn")
    assert {f["name"] for f in m["features"]} >= {"age", "educcat"} and m["model"]["version"] == load(clone.root/"release/served/model").version


def test_a_built_bento_serves_too(clone, rows, tmp_path):
    s = Service(tmp_path, {k: v for k, v in clone.env.items() if k != "PYTHONPATH"}, workers=1, log=tmp_path/"log")
    try:
        s.start(f"mlgov:{load(clone.root/'release/served/model').version}")
        assert s.ask("/v1/predict", rows[0][0])[1]["predictions"][0]["score"] == rows[1][0]
        assert s.ask("/docs")[0] == 200 and len(s.records()) == 1
    finally: s.stop()


def test_a_bento_wants_to_know_where_its_log_is(clone, tmp_path):
    got = subprocess.run(["bentoml", "serve", f"mlgov:{load(clone.root/'release/served/model').version}", "--port", "0"], cwd=tmp_path, env={k: v for k, v in clone.env.items() if k != "PYTHONPATH"}, capture_output=True, text=True, timeout=60)
    assert got.returncode and "MLGOV_LOG_DIR is not set" in got.stdout + got.stderr
