"The released model over real HTTP, started as `make serve` starts it"
import json
import re
import signal
import subprocess
import urllib.error
import urllib.request

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, free_port, wait_ready

from mlgov_nb.artifact import load


@pytest.fixture(scope="module")
def url(clone):
    port = free_port()
    command = clone.run("make -n -o .venv/.ready serve").stdout.strip().splitlines()[-1]
    assert command.startswith("bentoml serve") and "--host 127.0.0.1 --port 3000" in command
    p = subprocess.Popen(command.replace("--port 3000", f"--port {port}").split(), cwd=clone.root, env=clone.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        wait_ready(f"http://127.0.0.1:{port}/readyz", p)
        yield f"http://127.0.0.1:{port}"
    finally:
        p.send_signal(signal.SIGTERM)
        try: p.wait(20)
        except subprocess.TimeoutExpired: p.kill()


def post(url, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/predict", data, {"Content-Type": "application/json"}), timeout=20) as r: return r.status, json.load(r)
    except urllib.error.HTTPError as e: return e.code, json.load(e)


@pytest.fixture(scope="module")
def rows(clone):
    df = pd.read_parquet(clone.root/"data/split/windows/2014-18.parquet").head(300)
    art = load(clone.root/"release/served/model")
    recs = df[art.encoder.features].astype(object).where(df[art.encoder.features].notna(), None).to_dict("records")
    return [{k: float(v) if isinstance(v, (float, np.floating)) else v for k, v in r.items()} for r in recs], art.score(df)


def test_one_row_and_many_score_like_the_audit(url, rows):
    recs, want = rows
    code, got = post(url, dict(rows=recs))
    assert code == 200 and [p["score"] for p in got["predictions"]] == want.tolist(), "bit-equal to the audited evaluator"
    code, one = post(url, recs[7])
    assert code == 200 and one["predictions"] == [got["predictions"][7]]
    assert one["model"]["name"] == "boosting_reduced" and one["predictions"][0]["decision"] == int(want[7] >= 0.5)


def test_the_readme_curl(url):
    line = next(x for x in (ROOT/"README.md").read_text().splitlines() if x.startswith("curl "))
    got = subprocess.run(line.replace("http://127.0.0.1:3000", url), shell=True, capture_output=True, text=True, check=True)
    assert 0 <= json.loads(got.stdout)["predictions"][0]["score"] <= 1


def test_openapi_example_works(url):
    with urllib.request.urlopen(f"{url}/openapi.json") as r: spec = json.load(r)
    for e in spec["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["examples"].values(): assert post(url, e["value"])[0] == 200


@pytest.mark.parametrize("change, code, text", [
    (lambda r: {k: v for k, v in r.items() if k != "age"}, 422, "`age`"), (lambda r: {**r, "agee": 1}, 422, "`agee`"), (lambda r: {**r, "age": "41"}, 422, "$.age"), (lambda r: {**r, "age": True}, 422, "$.age"),
    (lambda r: {**r, "educcat": 3}, 422, "$.educcat"), (lambda r: dict(rows=[]), 422, "$.rows"), (lambda r: dict(rows=[r, {**r, "age": "x"}]), 422, "$.rows[1].age"), (lambda r: dict(rows=[r] * 10_001), 422, "$.rows"),
    (lambda r: [r], 422, "found a list"), (lambda r: b"{broken", 400, "not a JSON object"), (lambda r: b"", 400, "not a JSON object"), (lambda r: json.dumps({**r, "age": float("nan")}).encode(), 400, "JSON"),
    (lambda r: re.sub(r'"age": [\d.]+', '"age": 1e999', json.dumps(r)).encode(), 422, "$.age"), (lambda r: b" " * (9 * 2**20), 413, "larger than")])
def test_what_cannot_be_understood_is_refused_by_name(url, rows, change, code, text):
    base = {**rows[0][0], "age": 41.0}
    got = post(url, change(base))
    assert got[0] == code and text in got[1]["error"], got
    assert "Traceback" not in json.dumps(got[1]) and "/" not in got[1]["error"].replace("http", "").split(" - ")[0]


def test_never_seen_is_missing_and_said(url, rows):
    base = rows[0][0]
    _, odd = post(url, {**base, "educcat": "PhD"})
    _, none = post(url, {**base, "educcat": None})
    assert odd["predictions"][0]["unseen"] == ["educcat"] and odd["predictions"][0]["score"] == none["predictions"][0]["score"]


def test_a_built_bento_serves_too(clone, rows):
    tag = f"mlgov:{load(clone.root/'release/served/model').version}"
    port = free_port()
    env = {k: v for k, v in clone.env.items() if k != "PYTHONPATH"}
    p = subprocess.Popen(["bentoml", "serve", tag, "--host", "127.0.0.1", "--port", str(port)], cwd="/", env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        wait_ready(f"http://127.0.0.1:{port}/readyz", p)
        assert post(f"http://127.0.0.1:{port}", rows[0][0])[1]["predictions"][0]["score"] == rows[1][0]
    finally:
        p.send_signal(signal.SIGTERM)
        try: p.wait(20)
        except subprocess.TimeoutExpired: p.kill()
