"The service of the sample model over real HTTP with several workers: counts, tokens, limits, closed doors, swaps, a clean stop"
import http.client
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, Service, plain_env, sample_release

from mlgov_nb.files import atomic_dir, write_json
from mlgov_nb.log.segment import segments
from mlgov_nb.log.subject import subject_key
from mlgov_nb.model.artifact import _manifest, add_document, load, verify
from mlgov_nb.serve.tokens import new_token, revoke_token

SECRET = "a secret of the tests only"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    d = tmp_path_factory.mktemp("service")
    return d, sample_release(d/"served"), plain_env(d)


@pytest.fixture(scope="module")
def live(base):
    "Three workers without tokens"
    d, example, env = base
    s = Service(d, env, workers=3, log=d/"log", MLGOV_SUBJECT_KEY=SECRET, MLGOV_MAX_BODY_MB=2, MLGOV_TIMEOUT_S=1.5, AIP_PREDICT_ROUTE="/vertex", AIP_HEALTH_ROUTE="/vertex-health").start()
    s.example = example
    yield s
    s.stop()


def hammer(s, body, n, threads=8, path="/v1/predict"):
    "`n` requests over kept connections: the decoded answers, and the statuses that were not 200"
    got, bad = [], []
    def run(k):
        c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=20)
        for _ in range(k):
            c.request("POST", path, body, {"Content-Type": "application/json"})
            r = c.getresponse()
            data = r.read()
            (got if r.status == 200 else bad).append(json.loads(data))
        c.close()
    with ThreadPoolExecutor(threads) as pool: list(pool.map(run, [n // threads] * threads))
    return got, bad


def metric(s, name):
    "Sum of a counter over its labels"
    code, text = s.ask("/metrics")
    assert code == 200
    return sum(float(x.rpartition(" ")[2]) for x in text.decode().splitlines() if x.startswith(name + "{") or x.startswith(name + " "))


def test_every_worker_logs_counts_and_takes_labels(live):
    before, had = metric(live, "mlgov_predictions_total"), len(live.records())
    got, bad = hammer(live, json.dumps({**live.example, "gender": "Female", "subject": "p-1"}).encode(), 800)
    assert not bad and len(got) == 800
    ids = [p["prediction_id"] for g in got for p in g["predictions"]]
    recs = {r["prediction_id"]: r for r in live.records()}
    assert len(set(ids)) == 800 and set(ids) <= set(recs) and len(recs) == had + 800, "each answered row is in the log, once"
    assert len({s.file.name for s in segments(live.folder, "predictions")}) >= 2, "more than one worker answered"
    rec = recs[ids[0]]
    assert rec["gender"] == "Female" and rec["subject"] == subject_key(SECRET.encode(), "p-1") and "p-1" not in json.dumps(rec)
    with ThreadPoolExecutor(8) as pool: assert {c for c, _ in pool.map(lambda i: live.ask("/v1/labels", dict(prediction_id=i, label=1)), ids[:200])} == {200}
    assert live.ask("/v1/labels", dict(labels=[dict(prediction_id=i, label=0, observed_at="2026-01-02T03:04:05+01:00") for i in ids[200:300]])) == (200, dict(kept=100))
    labels = live.records("labels")
    assert {x["prediction_id"] for x in labels} >= set(ids[:300]) and any(x["observed_at"] == "2026-01-02T02:04:05.000000Z" for x in labels)
    assert live.ask("/v1/predict", dict(rows=[live.example] * 7))[0] == 200
    time.sleep(1)                    # counts reach the files within a tenth of a second
    assert metric(live, "mlgov_predictions_total") == before + 807 and metric(live, "mlgov_labels_total") >= 300
    assert live.env["MLGOV_SUBJECT_KEY"] not in live.said() and "p-1" not in live.said()


def test_the_routes_of_the_platforms(live):
    one = live.example
    score = live.ask("/v1/predict", one)[1]["predictions"][0]["score"]
    assert live.ask("/vertex", dict(instances=[one, one]))[1]["predictions"][1]["score"] == score
    assert live.ask("/invocations", dict(dataframe_split=dict(columns=list(one), data=[list(one.values())])))[1]["predictions"][0]["score"] == score
    line = ",".join(f'"{v}"' if isinstance(v, str) else str(v) for v in one.values()).encode()
    code, text = live.ask("/invocations", line, Content_Type="text/csv")
    assert code == 200 and str(score) in text.decode()
    for path in ("/vertex-health", "/ping", "/health", "/v2/health/ready", "/v2/models/mlgov/ready"): assert live.ask(path)[0] == 200


def test_doors_that_do_not_exist(live):
    "BentoML's own routes, which take pickle or give away more than they should, are not there; a pickle is never read"
    class Bomb:
        def __reduce__(self): return os.mkdir, (str(live.root/"exploded"),)
    bomb = pickle.dumps(Bomb())
    for path in ("/v1/predict", "/v1/explain", "/v1/labels", "/v1/batch", "/invocations", "/vertex", "/v2/models/mlgov/infer"):
        for kind in ("application/vnd.bentoml+pickle", "application/octet-stream", "application/x-pickle", "multipart/form-data; boundary=x"):
            assert live.ask(path, bomb, Content_Type=kind)[0] in (400, 415), (path, kind)
    for path in ("/schema.json", "/docs.json", "/static_content/index.html", "/assets/x", "/predict", "/Mlgov/begin", "/begin", "/end", "/is_ready", "/v1/../etc/passwd", "/docs/../../x", "/%2e%2e/x"):
        assert live.ask(path)[0] == 404 and live.ask(path, b"{}")[0] in (404, 405), path
    assert not (live.root/"exploded").exists()
    for path in ("/v1/log", "/v1/reload"): assert live.ask(path, method="GET" if path == "/v1/log" else "POST")[0] == 401, "operating asks for a token, on the machine itself too"
    assert live.ask("/v1/predict", live.example, Origin="https://elsewhere.example")[0] == 401
    assert live.ask("/v1/predict", live.example, X_Forwarded_For="203.0.113.9")[0] == 401, "a proxy that says for whom it asks"


def raw(s, head, *parts, wait=5):
    "Send bytes as they are; what comes back"
    c = socket.create_connection(("127.0.0.1", s.port), timeout=wait)
    c.sendall(head)
    for p in parts:
        try: c.sendall(p)
        except OSError: break
    out = b""
    try:
        while b"}" not in out and b"alive" not in out and (x := c.recv(65536)): out += x
    except OSError: pass
    c.close()
    return out.decode(errors="replace")


def test_limits(live):
    head = b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    big = b"%x\r\n" % 2**20 + b" " * 2**20 + b"\r\n"
    assert " 413 " in raw(live, head + b"Transfer-Encoding: chunked\r\n\r\n", *[big] * 4)
    assert " 413 " in raw(live, head + b"Content-Length: 99999999\r\n\r\n", b"{")
    got = raw(live, head + b"Content-Length: 10\r\n\r\n", b"{")
    assert " 408 " in got and "did not arrive in time" in got
    assert live.ask("/v1/predict", b"[" * 500_000)[0] == 400
    assert live.ask("/v1/predict", b'{"rows":' * 50_000)[0] == 400
    assert live.ask("/readyz")[0] == 200
    for code, got in (live.ask("/v1/predict", {**live.example, "age": "x" * 5000}), live.ask("/v1/predict", b"\xff")): assert code in (400, 422) and str(ROOT) not in json.dumps(got) and "Traceback" not in json.dumps(got)


def test_what_would_hold_a_worker_up(live):
    "Numbers that take a parser seconds, heads without an end, names that look like this machine"
    for number in (b"1e300", b"0.0000000001e-299", b"1" + b"0" * 105 + b"e199"):
        code, got = live.ask("/v1/predict", b'{"rows":[[' + b",".join([number] * 2000) + b"]]}")
        assert code == 422 and "exponent of three digits" in got["error"], number
    got = raw(live, b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n", *[b"X-A: " + b"y" * 60_000 + b"\r\n"] * 4, b"\r\n")
    assert "alive" not in got and " 200 " not in got
    assert "alive" in raw(live, b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"X-A: " + b"y" * 30_000 + b"\r\n", b"Connection: close\r\n\r\n")
    assert live.ask("/v1/model", Host="127.0.0.1.elsewhere.example", Origin="http://127.0.0.1.elsewhere.example")[0] == 401
    assert live.ask("/v1/explain?top=0001" + "0" * 5000, live.example)[0] == 422


def test_a_caller_who_does_not_read_keeps_nobody_waiting(live):
    line = ",".join(f'"{v}"' if isinstance(v, str) else str(v) for v in live.example.values()) + "\n"
    body = (",".join(live.example) + "\n" + line * 150_000).encode()      # an answer that no buffer holds
    stuck = []
    for _ in range(6):                     # enough for every worker
        c = socket.socket()
        c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        c.connect(("127.0.0.1", live.port))
        c.sendall(b"POST /v1/batch HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/csv\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        stuck.append(c)
    end, code = time.monotonic() + 30, 429
    while code == 429 and time.monotonic() < end:
        code = live.ask("/v1/batch", body, Content_Type="text/csv")[0]
        time.sleep(.2)
    assert code == 200
    for c in stuck: c.close()


def test_the_folder_of_the_log_is_removed(base, tmp_path):
    "What is acknowledged afterwards is in the new folder"
    d, example, env = base
    s = Service(tmp_path, env, workers=1, log=tmp_path/"log").start()
    try:
        s.ask("/v1/predict", example)
        shutil.rmtree(tmp_path/"log")
        answers = [s.ask("/v1/predict", example) for _ in range(30)]
        acked = [g["predictions"][0]["prediction_id"] for c, g in answers if c == 200]
        assert {c for c, _ in answers} <= {200, 503} and len(acked) >= 25
        assert set(acked) <= {r["prediction_id"] for r in s.records()}
    finally: s.stop()


def test_too_many_at_once(base, tmp_path):
    d, example, env = base
    s = Service(tmp_path, env, workers=1, log=tmp_path/"log", MLGOV_MAX_CONCURRENCY=2).start()
    try:
        held = [socket.create_connection(("127.0.0.1", s.port)) for _ in range(2)]
        for c in held: c.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n")
        time.sleep(.3)
        c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=5)
        c.request("POST", "/v1/predict", json.dumps(example), {"Content-Type": "application/json"})
        r = c.getresponse()
        assert r.status == 429 and r.headers["Retry-After"] == "1" and b"too many" in r.read()
        assert s.ask("/readyz")[0] == 200, "health is answered all the same"
        for c in held: c.close()
        time.sleep(.3)
        assert s.ask("/v1/predict", example)[0] == 200
    finally: s.stop()


def test_callers_without_a_token_take_nobodys_place(base, tmp_path):
    d, example, env = base
    shop = new_token(tmp_path/"tokens.json", "shop", ["predict"])
    s = Service(tmp_path, env, workers=1, log=tmp_path/"log", MLGOV_MAX_CONCURRENCY=2, MLGOV_TOKENS_FILE=tmp_path/"tokens.json").start()
    try:
        held = [socket.create_connection(("127.0.0.1", s.port)) for _ in range(5)]
        for c in held: c.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n")
        time.sleep(.3)
        assert s.ask("/v1/predict", example, Authorization=f"Bearer {shop}")[0] == 200
        for c in held: c.close()
    finally: s.stop()


def test_tokens(base, tmp_path):
    d, example, env = base
    file = tmp_path/"tokens.json"
    both, ops = new_token(file, "shop", ["predict", "label"]), new_token(file, "ops", ["operate"])
    s = Service(tmp_path, env, workers=2, log=tmp_path/"log", MLGOV_TOKENS_FILE=file)
    s.start()
    try:
        def code(path, token=None, body=None, method=None): return s.ask(path, body, method, **({"Authorization": f"Bearer {token}"} if token else {}))[0]
        assert [code("/v1/predict", t, example) for t in (None, "wrong", ops, both)] == [401, 401, 403, 200]
        assert [code("/v1/log", t) for t in (None, both, ops)] == [401, 403, 200] and code("/v1/reload", ops, method="POST") == 200
        assert [code(p) for p in ("/readyz", "/livez", "/docs", "/ping", "/v2/health/ready")] == [200] * 5 and [code(p) for p in ("/v1/model", "/openapi.json", "/v2/models/mlgov")] == [401] * 3
        revoke_token(file, "shop")
        time.sleep(1.5)
        assert {code("/v1/predict", both, example) for _ in range(8)} == {401}, "every worker has noticed"
        assert both not in s.said() and both not in file.read_text()
    finally: s.stop()


def release_of(d, edit=None, **document):
    "The sample model under another version (a document more or less), perhaps spoilt"
    with atomic_dir(d/"served") as t:
        shutil.copytree(ROOT/"data/sample/model", t/"model")
        meta = json.loads((t/"model/metadata.json").read_text())
        write_json(t/"model/metadata.json", {**meta, "note": {**meta["note"], **document}}, digits=None)
        (t/"model/MANIFEST.json").unlink()
        write_json(t/"model/MANIFEST.json", _manifest(t/"model"))
        add_document(t/"model", "importance", {})
        verify(t/"model")
        art = load(t/"model")
        example = {f["name"]: (f["low"] if f["kind"] == "numeric" else f["categories"][0]) for f in art.meta["features"]}
        (t/"RELEASE.json").write_text(json.dumps(dict(card="gss_wages", title="sample", use="tests", model=dict(name=art.name, version=art.version), example=example)))
        if edit: edit(t)
    return art.version


def test_a_new_model_takes_over_under_load(base, tmp_path):
    d, example, env = base
    env = {**env, "MLGOV_SERVED": str(tmp_path/"served")}
    first = release_of(tmp_path, lot=1)
    s = Service(tmp_path, env, workers=2, log=tmp_path/"log").start()
    try:
        done, seen, bad = threading.Event(), [], []
        def ask():
            c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=20)
            while not done.is_set():
                c.request("POST", "/v1/predict", json.dumps(example), {"Content-Type": "application/json"})
                r = c.getresponse()
                got = json.loads(r.read())
                if r.status == 200: seen.append((time.monotonic(), got["predictions"][0]["version"], got["predictions"][0]["prediction_id"]))
                else: bad.append(got)
        pool = ThreadPoolExecutor(4)
        for _ in range(4): pool.submit(ask)
        time.sleep(1)
        def spoil(t): (t/"model/profile.json").write_text("{}")
        release_of(tmp_path, spoil, lot=2)
        time.sleep(2)
        assert {v for _, v, _ in seen} == {first} and "refused" in s.said(), "a changed file: the old model stays"
        assert "profile.json is changed" in json.dumps(s.ask("/v1/model")[1]["refused"]) and str(tmp_path) not in s.ask("/v1/model")[1]["refused"]
        def other(t):
            card = json.loads((t/"model/card.json").read_text())
            write_json(t/"model/card.json", {**card, "protected": {k: v for k, v in card["protected"].items() if k != "gender"}}, digits=None)
            write_json(t/"model/MANIFEST.json", _manifest(t/"model"))
        release_of(tmp_path, other, lot=4)
        time.sleep(2)
        assert "no longer takes the protected gender" in s.ask("/v1/model")[1]["refused"] and {v for _, v, _ in seen} == {first}, "callers who send it would be refused"
        second = release_of(tmp_path, lot=3)
        time.sleep(3)
        switched = time.monotonic()
        time.sleep(1)
        done.set()
        pool.shutdown()
        assert not bad and {v for t, v, _ in seen if t > switched} == {second}, "all workers have switched, no request failed"
        version = {r["prediction_id"]: r["version"] for r in s.records()}
        assert all(version[i] == v for _, v, i in seen), "the log says which model answered"
    finally: s.stop()


def test_a_stop_answers_what_it_took_and_seals_the_log(base, tmp_path):
    d, example, env = base
    s = Service(tmp_path, env, workers=2, log=tmp_path/"log").start()
    body, acked = json.dumps(dict(rows=[example] * 2000)).encode(), []
    def ask():
        while True:
            try: code, got = s.ask("/v1/predict", body)
            except (OSError, http.client.HTTPException): return      # not taken any more
            assert code == 200
            acked.extend(p["prediction_id"] for p in got["predictions"])
    with ThreadPoolExecutor(4) as pool:
        todo = [pool.submit(ask) for _ in range(4)]
        while len(acked) < 20_000: time.sleep(.01)
        s.process.terminate()
        for t in todo: t.result()
    s.process.wait(20)
    logged = [r["prediction_id"] for r in s.records()]
    assert sorted(logged) == sorted(acked), "what was taken was answered: nothing is in the log that nobody heard of, nothing was answered that is not"
    assert not list(s.folder.glob("*.open")), "sealed"


def test_two_services_on_one_log(base, tmp_path):
    d, example, env = base
    both = [Service(tmp_path, {**env, "BENTOML_HOME": str(tmp_path/f"b{i}")}, workers=1, log=tmp_path/"log") for i in range(2)]
    try:
        for s in both: s.start()
        ids = [s.ask("/v1/predict", example)[1]["predictions"][0]["prediction_id"] for s in both * 20]
        assert sorted(r["prediction_id"] for r in both[0].records()) == sorted(ids)
        time.sleep(.5)
        assert [metric(s, "mlgov_predictions_total") for s in both] == [20, 20], "each counts its own"
    finally:
        for s in both: s.stop()


def test_no_server_error_whatever_is_sent(live):
    "Schemathesis over the OpenAPI description"
    got = subprocess.run([str(Path(sys.executable).parent/"schemathesis"), "run", f"{live.url}/openapi.json", "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance", "--max-examples", "25", "--seed", "1", "--exclude-operation-id", "reload", "--no-color"],
                         cwd=live.root, capture_output=True, text=True, timeout=300)
    assert got.returncode == 0, got.stdout[-6000:] + got.stderr[-2000:]
