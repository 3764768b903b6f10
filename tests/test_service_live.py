"""The service of the sample model over real HTTP with several workers: counts, tokens, limits, closed doors, swaps,
a clean stop."""
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

pytestmark = pytest.mark.slow("starts services")

SECRET = "a secret of the tests only"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    "A folder with a release of the sample model, its example row, and the environment of its services"
    folder = tmp_path_factory.mktemp("service")
    return folder, sample_release(folder/"served"), plain_env(folder)


@pytest.fixture(scope="module")
def live(base):
    "Three workers without tokens"
    folder, example, env = base
    settings = dict(MLGOV_SUBJECT_KEY=SECRET, MLGOV_MAX_BODY_MB=2, MLGOV_TIMEOUT_S=1.5)
    routes = dict(AIP_PREDICT_ROUTE="/vertex", AIP_HEALTH_ROUTE="/vertex-health")
    service = Service(folder, env, workers=3, log=folder/"log", **settings, **routes).start()
    service.example = example
    yield service
    service.stop()


def first_prediction(answer): return answer["predictions"][0]


def prediction_ids(answer): return [p["prediction_id"] for p in answer["predictions"]]


def csv_line(row): return ",".join(f'"{v}"' if isinstance(v, str) else str(v) for v in row.values())


def connect(service, timeout): return http.client.HTTPConnection("127.0.0.1", service.port, timeout=timeout)


def post(connection, path, body):
    "Send JSON over a connection that is kept: the status and the decoded answer"
    connection.request("POST", path, body, JSON)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def hammer(service, body, n, threads=8, path="/v1/predict"):
    "`n` requests over kept connections: the answers, and the answers whose status was not 200"
    answers, refusals = [], []
    def ask(count):
        connection = connect(service, timeout=20)
        for _ in range(count):
            status, answer = post(connection, path, body)
            (answers if status == 200 else refusals).append(answer)
        connection.close()
    with ThreadPoolExecutor(threads) as pool: list(pool.map(ask, [n // threads] * threads))
    return answers, refusals


def metric(service, name):
    "Sum of a counter over its labels"
    code, text = service.ask("/metrics")
    assert code == 200
    lines = [line for line in text.decode().splitlines() if line.startswith((name + "{", name + " "))]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_every_worker_logs_counts_and_takes_labels(live):
    counted_before, logged_before = metric(live, "mlgov_predictions_total"), len(live.records())
    answers, refusals = hammer(live, json.dumps({**live.example, "gender": "Female", "subject": "p-1"}).encode(), 800)
    assert not refusals and len(answers) == 800
    ids = [i for answer in answers for i in prediction_ids(answer)]
    records = {record["prediction_id"]: record for record in live.records()}
    assert len(set(ids)) == 800 and set(ids) <= set(records), "each answered row is in the log"
    assert len(records) == logged_before + 800, "each answered row is in the log once"
    assert len({s.file.name for s in segments(live.folder, "predictions")}) >= 2, "more than one worker answered"
    record = records[ids[0]]
    assert record["gender"] == "Female" and record["subject"] == subject_key(SECRET.encode(), "p-1")
    assert "p-1" not in json.dumps(record)

    def label_one(prediction_id): return live.ask("/v1/labels", dict(prediction_id=prediction_id, label=1))[0]
    with ThreadPoolExecutor(8) as pool: assert set(pool.map(label_one, ids[:200])) == {200}
    late = [dict(prediction_id=i, label=0, observed_at="2026-01-02T03:04:05+01:00") for i in ids[200:300]]
    assert live.ask("/v1/labels", dict(labels=late)) == (200, dict(kept=100))
    labels = live.records("labels")
    assert {label["prediction_id"] for label in labels} >= set(ids[:300])
    assert any(label["observed_at"] == "2026-01-02T02:04:05.000000Z" for label in labels)

    assert live.ask("/v1/predict", dict(rows=[live.example] * 7))[0] == 200
    time.sleep(1)                    # counts reach the files within a tenth of a second
    assert metric(live, "mlgov_predictions_total") == counted_before + 807
    assert metric(live, "mlgov_labels_total") >= 300
    output = live.output()
    assert live.env["MLGOV_SUBJECT_KEY"] not in output and "p-1" not in output


def test_the_routes_of_the_platforms(live):
    row = live.example
    score = first_prediction(live.ask("/v1/predict", row)[1])["score"]
    assert live.ask("/vertex", dict(instances=[row, row]))[1]["predictions"][1]["score"] == score
    split = dict(columns=list(row), data=[list(row.values())])
    assert first_prediction(live.ask("/invocations", dict(dataframe_split=split))[1])["score"] == score
    code, text = live.ask("/invocations", csv_line(row).encode(), Content_Type="text/csv")
    assert code == 200 and str(score) in text.decode()
    for path in ("/vertex-health", "/ping", "/health", "/v2/health/ready", "/v2/models/mlgov/ready"):
        assert live.ask(path)[0] == 200


READERS = ["/v1/predict", "/v1/explain", "/v1/labels", "/v1/batch", "/invocations", "/vertex",
           "/v2/models/mlgov/infer"]                 # the routes that read a body
NOT_READ = ["application/vnd.bentoml+pickle", "application/octet-stream", "application/x-pickle",
            "multipart/form-data; boundary=x"]
NOT_THERE = ["/schema.json", "/docs.json", "/static_content/index.html", "/assets/x", "/predict", "/Mlgov/begin",
             "/begin", "/end", "/is_ready", "/v1/../etc/passwd", "/docs/../../x", "/%2e%2e/x"]


def test_doors_that_do_not_exist(live):
    "BentoML's own routes, which take pickle or give away more than they should, are not there; a pickle is never read"
    class Bomb:
        def __reduce__(self): return os.mkdir, (str(live.root/"exploded"),)
    bomb = pickle.dumps(Bomb())
    for path in READERS:
        for kind in NOT_READ:
            assert live.ask(path, bomb, Content_Type=kind)[0] in (400, 415), (path, kind)
    for path in NOT_THERE:
        assert live.ask(path)[0] == 404, path
        assert live.ask(path, b"{}")[0] in (404, 405), path
    assert not (live.root/"exploded").exists()

    for path, method in (("/v1/log", "GET"), ("/v1/reload", "POST")):
        code = live.ask(path, method=method)[0]
        assert code == 401, "operating asks for a token, on the machine itself too"
    assert live.ask("/v1/predict", live.example, Origin="https://elsewhere.example")[0] == 401
    code = live.ask("/v1/predict", live.example, X_Forwarded_For="203.0.113.9")[0]
    assert code == 401, "a proxy that says for whom it asks"


def open_socket(service, timeout=None): return socket.create_connection(("127.0.0.1", service.port), timeout=timeout)


def send_raw(service, head, *parts, wait=5):
    "Send bytes as they are; what comes back"
    connection = open_socket(service, wait)
    connection.sendall(head)
    for part in parts:
        try: connection.sendall(part)
        except OSError: break
    answer = b""
    try:
        while b"}" not in answer and b"alive" not in answer and (received := connection.recv(65536)): answer += received
    except OSError: pass
    connection.close()
    return answer.decode(errors="replace")


def test_limits(live):
    head = b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    big_chunk = b"%x\r\n" % 2**20 + b" " * 2**20 + b"\r\n"
    assert " 413 " in send_raw(live, head + b"Transfer-Encoding: chunked\r\n\r\n", *[big_chunk] * 4)
    assert " 413 " in send_raw(live, head + b"Content-Length: 99999999\r\n\r\n", b"{")
    answer = send_raw(live, head + b"Content-Length: 10\r\n\r\n", b"{")
    assert " 408 " in answer and "did not arrive in time" in answer
    assert live.ask("/v1/predict", b"[" * 500_000)[0] == 400
    assert live.ask("/v1/predict", b'{"rows":' * 50_000)[0] == 400
    assert live.ask("/readyz")[0] == 200
    for body in ({**live.example, "age": "x" * 5000}, b"\xff"):
        code, answer = live.ask("/v1/predict", body)
        assert code in (400, 422)
        assert str(ROOT) not in json.dumps(answer) and "Traceback" not in json.dumps(answer)


def test_what_would_hold_a_worker_up(live):
    "Numbers that take a parser seconds, heads without an end, names that look like this machine"
    for number in (b"1e300", b"0.0000000001e-299", b"1" + b"0" * 105 + b"e199"):
        code, answer = live.ask("/v1/predict", b'{"rows":[[' + b",".join([number] * 2000) + b"]]}")
        assert code == 422 and "exponent of three digits" in answer["error"], number

    head = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    def header_line(length): return b"X-A: " + b"y" * length + b"\r\n"
    answer = send_raw(live, head, *[header_line(60_000)] * 4, b"\r\n")
    assert "alive" not in answer and " 200 " not in answer
    assert "alive" in send_raw(live, head, header_line(30_000), b"Connection: close\r\n\r\n")

    elsewhere = "127.0.0.1.elsewhere.example"
    assert live.ask("/v1/model", Host=elsewhere, Origin=f"http://{elsewhere}")[0] == 401
    assert live.ask("/v1/explain?top=0001" + "0" * 5000, live.example)[0] == 422


def send_and_never_read(service, request):
    "A connection with a small buffer, over which a request is sent and no answer read"
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", service.port))
    connection.sendall(request)
    return connection


def test_a_caller_who_does_not_read_keeps_nobody_waiting(live):
    line = csv_line(live.example) + "\n"
    body = (",".join(live.example) + "\n" + line * 150_000).encode()      # an answer that no buffer holds
    head = b"POST /v1/batch HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/csv\r\nContent-Length: %d\r\n\r\n"
    stuck = [send_and_never_read(live, head % len(body) + body) for _ in range(6)]      # enough for every worker
    end, code = time.monotonic() + 30, 429
    while code == 429 and time.monotonic() < end:
        code = live.ask("/v1/batch", body, Content_Type="text/csv")[0]
        time.sleep(.2)
    assert code == 200
    for connection in stuck: connection.close()


def test_the_folder_of_the_log_is_removed(base, tmp_path):
    "What is acknowledged afterwards is in the new folder"
    _, example, env = base
    service = Service(tmp_path, env, workers=1, log=tmp_path/"log").start()
    try:
        service.ask("/v1/predict", example)
        shutil.rmtree(tmp_path/"log")
        answers = [service.ask("/v1/predict", example) for _ in range(30)]
        acknowledged = [first_prediction(answer)["prediction_id"] for code, answer in answers if code == 200]
        assert {code for code, _ in answers} <= {200, 503}
        assert len(acknowledged) >= 25
        assert set(acknowledged) <= {record["prediction_id"] for record in service.records()}
    finally: service.stop()


def hold_places(service, count):
    "Connections that announce a body and do not send it"
    held = [open_socket(service) for _ in range(count)]
    head = b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n"
    for connection in held: connection.sendall(head)
    time.sleep(.3)
    return held


def test_too_many_at_once(base, tmp_path):
    _, example, env = base
    service = Service(tmp_path, env, workers=1, log=tmp_path/"log", MLGOV_MAX_CONCURRENCY=2).start()
    try:
        held = hold_places(service, 2)
        connection = connect(service, timeout=5)
        connection.request("POST", "/v1/predict", json.dumps(example), JSON)
        response = connection.getresponse()
        assert response.status == 429 and response.headers["Retry-After"] == "1" and b"too many" in response.read()
        assert service.ask("/readyz")[0] == 200, "health is answered all the same"
        for held_connection in held: held_connection.close()
        time.sleep(.3)
        assert service.ask("/v1/predict", example)[0] == 200
    finally: service.stop()


def test_callers_without_a_token_take_nobodys_place(base, tmp_path):
    _, example, env = base
    tokens = tmp_path/"tokens.json"
    shop = new_token(tokens, "shop", ["predict"])
    settings = dict(MLGOV_MAX_CONCURRENCY=2, MLGOV_TOKENS_FILE=tokens)
    service = Service(tmp_path, env, workers=1, log=tmp_path/"log", **settings).start()
    try:
        held = hold_places(service, 5)
        assert service.ask("/v1/predict", example, Authorization=f"Bearer {shop}")[0] == 200
        for connection in held: connection.close()
    finally: service.stop()


def test_tokens(base, tmp_path):
    _, example, env = base
    tokens = tmp_path/"tokens.json"
    shop, ops = new_token(tokens, "shop", ["predict", "label"]), new_token(tokens, "ops", ["operate"])
    service = Service(tmp_path, env, workers=2, log=tmp_path/"log", MLGOV_TOKENS_FILE=tokens)
    service.start()
    try:
        def code(path, token=None, body=None, method=None):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return service.ask(path, body, method, **headers)[0]
        assert [code("/v1/predict", token, example) for token in (None, "wrong", ops, shop)] == [401, 401, 403, 200]
        assert [code("/v1/log", token) for token in (None, shop, ops)] == [401, 403, 200]
        assert code("/v1/reload", ops, method="POST") == 200
        assert [code(p) for p in ("/readyz", "/livez", "/docs", "/ping", "/v2/health/ready")] == [200] * 5
        assert [code(p) for p in ("/v1/model", "/openapi.json", "/v2/models/mlgov")] == [401] * 3
        revoke_token(tokens, "shop")
        time.sleep(1.5)
        assert {code("/v1/predict", shop, example) for _ in range(8)} == {401}, "every worker has noticed"
        assert shop not in service.output() and shop not in tokens.read_text()
    finally: service.stop()


def lowest_value(feature): return feature["low"] if feature["kind"] == "numeric" else feature["categories"][0]


def release_of(folder, edit=None, **document):
    "The sample model under another version (a document more or less), perhaps spoilt"
    with atomic_dir(folder/"served") as draft:
        model = draft/"model"
        shutil.copytree(ROOT/"data/sample/model", model)
        metadata = json.loads((model/"metadata.json").read_text())
        write_json(model/"metadata.json", {**metadata, "note": {**metadata["note"], **document}}, digits=None)
        (model/"MANIFEST.json").unlink()
        write_json(model/"MANIFEST.json", _manifest(model))
        add_document(model, "importance", {})
        verify(model)
        artifact = load(model)
        release = dict(card="gss_wages", title="sample", use="tests",
                       model=dict(name=artifact.name, version=artifact.version),
                       example={f["name"]: lowest_value(f) for f in artifact.meta["features"]})
        (draft/"RELEASE.json").write_text(json.dumps(release))
        if edit: edit(draft)
    return artifact.version


def spoil_profile(draft):
    "A file that is not the manifest's"
    (draft/"model/profile.json").write_text("{}")


def unprotect_gender(draft):
    "A card that no longer takes a protected attribute, under a manifest that fits"
    model = draft/"model"
    card = json.loads((model/"card.json").read_text())
    protected = {name: groups for name, groups in card["protected"].items() if name != "gender"}
    write_json(model/"card.json", {**card, "protected": protected}, digits=None)
    write_json(model/"MANIFEST.json", _manifest(model))


def test_a_new_model_takes_over_under_load(base, tmp_path):
    _, example, env = base
    env = {**env, "MLGOV_SERVED": str(tmp_path/"served")}
    first = release_of(tmp_path, lot=1)
    service = Service(tmp_path, env, workers=2, log=tmp_path/"log").start()
    try:
        done, answered, refusals = threading.Event(), [], []      # answered: the time, the version and the id
        def keep_asking():
            connection = connect(service, timeout=20)
            while not done.is_set():
                status, answer = post(connection, "/v1/predict", json.dumps(example))
                if status != 200:
                    refusals.append(answer)
                    continue
                prediction = first_prediction(answer)
                answered.append((time.monotonic(), prediction["version"], prediction["prediction_id"]))
        def answering_versions(since=0): return {version for at, version, _ in answered if at > since}
        def why_refused(): return service.ask("/v1/model")[1]["refused"]

        pool = ThreadPoolExecutor(4)
        for _ in range(4): pool.submit(keep_asking)
        time.sleep(1)

        release_of(tmp_path, spoil_profile, lot=2)
        time.sleep(2)
        assert answering_versions() == {first} and "refused" in service.output(), "a changed file: the old model stays"
        assert "profile.json is changed" in json.dumps(why_refused()) and str(tmp_path) not in why_refused()

        release_of(tmp_path, unprotect_gender, lot=4)
        time.sleep(2)
        assert "no longer takes the protected gender" in why_refused(), "callers who send it would be refused"
        assert answering_versions() == {first}

        second = release_of(tmp_path, lot=3)
        time.sleep(3)
        switched = time.monotonic()
        time.sleep(1)
        done.set()
        pool.shutdown()
        assert not refusals, "no request failed"
        assert answering_versions(since=switched) == {second}, "all workers have switched"
        logged_version = {record["prediction_id"]: record["version"] for record in service.records()}
        assert all(logged_version[i] == version for _, version, i in answered), "the log says which model answered"
    finally: service.stop()


def test_a_stop_answers_what_it_took_and_seals_the_log(base, tmp_path):
    _, example, env = base
    service = Service(tmp_path, env, workers=2, log=tmp_path/"log").start()
    body, acknowledged = json.dumps(dict(rows=[example] * 2000)).encode(), []
    def ask_until_stopped():
        while True:
            try: code, answer = service.ask("/v1/predict", body)
            except (OSError, http.client.HTTPException): return      # not taken any more
            assert code == 200
            acknowledged.extend(prediction_ids(answer))
    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(ask_until_stopped) for _ in range(4)]
        while len(acknowledged) < 20_000: time.sleep(.01)
        service.process.terminate()
        for caller in callers: caller.result()
    service.process.wait(20)
    logged = [record["prediction_id"] for record in service.records()]
    assert sorted(logged) == sorted(acknowledged), "what was taken was answered, and the log holds just that"
    assert not list(service.folder.glob("*.open")), "sealed"


def test_two_services_on_one_log(base, tmp_path):
    _, example, env = base
    homes = [{"BENTOML_HOME": str(tmp_path/f"b{i}")} for i in range(2)]
    both = [Service(tmp_path, {**env, **home}, workers=1, log=tmp_path/"log") for home in homes]
    try:
        for service in both: service.start()
        answers = [service.ask("/v1/predict", example)[1] for service in both * 20]
        ids = [first_prediction(answer)["prediction_id"] for answer in answers]
        assert sorted(record["prediction_id"] for record in both[0].records()) == sorted(ids)
        time.sleep(.5)
        assert [metric(service, "mlgov_predictions_total") for service in both] == [20, 20], "each counts its own"
    finally:
        for service in both: service.stop()


CHECKS = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]


def test_no_server_error_whatever_is_sent(live):
    "Schemathesis over the OpenAPI description"
    program = str(Path(sys.executable).parent/"schemathesis")
    command = [program, "run", f"{live.url}/openapi.json", "--checks", ",".join(CHECKS), "--max-examples", "25",
               "--seed", "1", "--exclude-operation-id", "reload", "--no-color"]
    result = subprocess.run(command, cwd=live.root, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
