"The open protocols: any bytes end in rows or a refusal, every way of sending a row is the same row, and the platforms' own clients get the audited scores"
import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pandas as pd
import pytest
import tritonclient.http as http
from conftest import ROOT, Service
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UnsetType
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from mlgov_nb.data.card import load_card
from mlgov_nb.model.artifact import load
from mlgov_nb.serve.invocations import read_invocations, read_vertex, write_invocations, write_vertex
from mlgov_nb.serve.request import MAX_TEXT, BadRequest, Schema, read_native
from mlgov_nb.serve.v2 import read_v2, v2_outputs, write_v2

CARD = load_card(ROOT/"data/raw/gss_wages.yaml")
FEATURES = json.loads((ROOT/"data/sample/model/metadata.json").read_text())["features"]
MIXED = Schema(FEATURES, CARD, max_rows=50)
NUMERIC = Schema([f for f in FEATURES if f["kind"] == "numeric"], CARD, max_rows=50)
HEADS = {"/json": "application/json", "/lines": "application/jsonlines", "/csv": "text/csv"}
NONE = type(None)
quick = settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


# ways to send rows ---------------------------------------------------------------------------------------------------

def elements(values): return b"".join(struct.pack("<I", len(b)) + b for b in ((v or "").encode() for v in values))


def v2(rows, names, kinds, binary=False):
    "A V2 body of rows, and the length of its JSON part when tensors are binary"
    inputs, tail = [], b""
    for c in [*names, *(c for c in rows[0] if c not in names)]:
        values = [r[c] for r in rows]
        text = kinds.get(c) != "numeric"
        one = dict(name=c, shape=[len(rows), 1], datatype="BYTES" if text else "FP64")
        if binary:
            raw = elements(values) if text else np.array(values, float).tobytes()
            one["parameters"], tail = dict(binary_data_size=len(raw)), tail + raw
        else: one["data"] = values
        inputs.append(one)
    head = json.dumps(dict(id="7", inputs=inputs)).encode()
    return head + tail, len(head) if binary else None


def table(rows, names=None):
    text = io.StringIO()
    out = csv.writer(text)
    if names is not None: out.writerow(names)
    out.writerows(["" if v is None else v for v in r] for r in rows)
    return text.getvalue().encode()


def ways(schema, rows):
    "Every way to send rows by name: what sends them, and a function that reads them"
    kinds, cols, js = dict(zip(schema.names, schema.kinds)), list(rows[0]), "application/json"
    split = dict(columns=cols[::-1], index=list(range(len(rows))), data=[[r[c] for c in cols[::-1]] for r in rows])
    by = {c: [r[c] for r in rows] for c in cols}
    def body(**more): return json.dumps(more).encode()
    return {"V2 JSON": lambda: read_v2(schema, *v2(rows, schema.names, kinds))[0], "V2 binary": lambda: read_v2(schema, *v2(rows, schema.names, kinds, True))[0],
            **{f"MLflow {k}": lambda k=k, v=v: read_invocations(schema, js, body(**{k: v}))[0] for k, v in dict(dataframe_split=split, dataframe_records=rows, inputs=by, instances=rows).items()},
            "lines": lambda: read_invocations(schema, "application/jsonlines", "\n".join(map(json.dumps, rows)).encode())[0], "Vertex": lambda: read_vertex(schema, body(instances=rows)),
            "CSV": lambda: read_invocations(schema, "text/csv", table(split["data"], split["columns"]))[0]}


def by_place(schema, rows):
    "Every way to send features in the model's order"
    lists, js = [[r[c] for c in schema.names] for r in rows], "application/json"
    out = {"SageMaker": lambda: read_invocations(schema, js, json.dumps(dict(instances=[dict(features=x) for x in lists])).encode())[0], "lists": lambda: read_vertex(schema, json.dumps(dict(instances=lists)).encode()),
           "lines": lambda: read_invocations(schema, "application/jsonlines", "\n".join(json.dumps(dict(features=x)) for x in lists).encode())[0], "CSV": lambda: read_invocations(schema, "text/csv", table(lists))[0]}
    if "categorical" in schema.kinds: return out
    flat = np.array(lists, float)
    head = json.dumps(dict(inputs=[dict(name="x", shape=list(flat.shape), datatype="FP64", parameters=dict(binary_data_size=flat.nbytes))])).encode()
    return out | {"V2 block": lambda: read_v2(schema, json.dumps(dict(inputs=[dict(name="x", shape=list(flat.shape), datatype="FP64", data=lists)])).encode())[0], "V2 binary block": lambda: read_v2(schema, head + flat.tobytes(), len(head))[0]}


def plain(asked): return [list(c) for c in asked.columns]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
numbers = st.none() | st.floats(-1e300, 1e300, allow_nan=False) | st.integers(-2**40, 2**40).map(float)


def rows_of(schema):
    "Rows with every feature, a protected text that is no number, and a subject"
    parts = {n: numbers if k == "numeric" else st.none() | texts for n, k in zip(schema.names, schema.kinds)}
    return st.lists(st.fixed_dictionaries({**parts, "gender": st.sampled_from(["Female", "Männlich, ja", None]), "subject": texts}), min_size=1, max_size=6)


@pytest.mark.parametrize("schema", [MIXED, NUMERIC], ids=["mixed", "numeric"])
def test_a_row_is_the_same_row_however_it_comes(schema):
    @quick
    @given(rows_of(schema))
    def run(rows):
        want = plain(read_native(schema, json.dumps(dict(rows=rows)).encode()))
        for way, read in ways(schema, rows).items(): assert plain(read()) == want, way
        for way, read in by_place(schema, rows).items(): assert plain(read())[:len(schema.names)] == want[:len(schema.names)], way
    run()


# any bytes -----------------------------------------------------------------------------------------------------------

def readers(schema):
    "Every reader, as a function of a body and a header's number"
    return {"native": lambda b, h: read_native(schema, b), "/v2": lambda b, h: read_v2(schema, b, h)[0], "/vertex": lambda b, h: read_vertex(schema, b), **{k: lambda b, h, kind=kind: read_invocations(schema, kind, b)[0] for k, kind in HEADS.items()}}


def survives(schema, read, body, header=None):
    "Only BadRequest may come out, fit to be sent; what is let through is checked rows"
    try: got = read(body, header)
    except BadRequest as e:
        assert e.status in (400, 413, 422) and e.error and len(e.error) < 5000, e.error
        msgspec.json.encode(e.body)
        return False
    assert 0 < got.n <= schema.max_rows and len(got.columns) == len(schema.columns) and all(len(c) == got.n for c in got.columns)
    roles = [*schema.kinds, *["protected"] * len(schema.protected), "subject"]
    fit = dict(numeric=(float, NONE), categorical=(str, NONE), protected=(float, str, NONE, UnsetType), subject=(str, UnsetType))
    for name, role, col in zip(schema.columns, roles, got.columns): assert all(type(v) in fit[role] and (type(v) is not float or math.isfinite(v)) and (type(v) is not str or len(v) <= MAX_TEXT) for v in col), (name, col)
    return True


@pytest.mark.parametrize("name", readers(MIXED))
def test_any_bytes_end_in_rows_or_a_refusal(name):
    @quick
    @given(st.binary(max_size=300) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass")), st.none() | st.integers(-5, 400) | st.text(max_size=8))
    def run(body, header): survives(MIXED, readers(MIXED)[name], body, header)
    run()


odd = st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=5) | st.sampled_from([10**400, -10**400, 10**4000, 1e308, [], {}, "NaN", "BYTES", "INT8", "BOOL", "age", "gender", "subject", "x" * 201, "\ud800", -1, 0, 2**31, 2**63]), lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=5) | st.sampled_from(["age", "subject", "features", "values", "data"]), s, max_size=3), max_leaves=4)


def seeds(schema):
    "Valid bodies of every protocol, in the form in which they are mutated: reader, tree or bytes, what follows the JSON"
    rows = [{n: 3.0 if k == "numeric" else "Married" for n, k in zip(schema.names, schema.kinds)} | dict(gender="Female", subject="s")] * 2
    kinds, lists = dict(zip(schema.names, schema.kinds)), [[r[c] for c in schema.names] for r in rows]
    body, at = v2(rows, schema.names, kinds, True)
    out = [("native", dict(rows=rows), b""), ("native", rows[0], b""), ("/v2", json.loads(v2(rows, schema.names, kinds)[0]), b""), ("/v2", json.loads(body[:at]) | dict(outputs=[dict(name="score", parameters=dict(binary_data=True))], parameters=dict(binary_data_output=False)), body[at:]),
           ("/json", dict(dataframe_split=dict(columns=list(rows[0]), data=[list(r.values()) for r in rows])), b""), ("/json", dict(dataframe_records=rows), b""), ("/json", dict(inputs={c: [r[c] for r in rows] for c in rows[0]}), b""), ("/json", dict(instances=[dict(features=x) for x in lists]), b""), ("/vertex", dict(instances=lists), b"")]
    if "categorical" not in schema.kinds: out.append(("/v2", dict(inputs=[dict(name="x", shape=[2, len(schema.names)], datatype="FP32", parameters=dict(binary_data_size=8 * len(schema.names)))]), bytes(8 * len(schema.names))))
    return [(*o, None) for o in out] + [("/csv", None, b"", table([list(r.values()) for r in rows], list(rows[0]))), ("/csv", None, b"", table(lists)), ("/lines", None, b"", "\n".join(map(json.dumps, rows)).encode())]


@st.composite
def mutated(draw, schema):
    "A valid body with one node of its JSON replaced, removed or doubled, or some of its bytes changed"
    name, tree, tail, body = draw(st.sampled_from(seeds(schema)))
    header = None
    if tail and draw(st.booleans()):
        i = draw(st.integers(0, len(tail) - 4))
        tail = tail[:i] + draw(st.binary(min_size=4, max_size=4)) + tail[i + 4:]
    if body is None:
        tree = json.loads(json.dumps(tree))
        node, key = tree, draw(st.sampled_from(list(tree)))
        while isinstance(node[key], (dict, list)) and node[key] and draw(st.integers(0, 4)):
            node = node[key]
            key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        how = draw(st.sampled_from(["replace", "remove", "double", "leave"]))
        if how == "replace": node[key] = draw(odd)
        elif how == "remove": del node[key]
        elif how == "double" and isinstance(node, list): node.insert(key, node[key])
        elif how == "double": node[draw(st.text(max_size=4))] = node[key]
        body = json.dumps(tree).encode()
        if tail or draw(st.booleans()): header = draw(st.sampled_from([len(body)] * 6 + [len(body) - 1, len(body) + 1, 0, None, "x", -1, 10**20]))
        body += tail
    if draw(st.integers(0, 2)) == 0:
        a, b = sorted(draw(st.lists(st.integers(0, len(body)), min_size=2, max_size=2)))
        body = body[:a] + draw(st.binary(max_size=6) | st.sampled_from([b"NaN", b"Infinity", b'"', b"\xff", b",", b"\0", b"[" * 2000, b"1e999", b"\n", b'\\ud800'])) + body[b if draw(st.booleans()) else a:]
    return name, body, header


@pytest.mark.parametrize("schema", [MIXED, NUMERIC], ids=["mixed", "numeric"])
def test_a_mutated_body_ends_in_rows_or_a_refusal(schema):
    for name, tree, tail, body in seeds(schema):
        head = json.dumps(tree).encode() if body is None else body
        assert survives(schema, readers(schema)[name], head + tail, len(head) if tail else None), "the seeds are valid"
    @settings(quick, max_examples=1500)
    @given(mutated(schema))
    def run(m): survives(schema, readers(schema)[m[0]], m[1], m[2])
    run()


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"a":' * 200_000, b'{"inputs":' + b"[" * 200_000, b'{"instances":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b'{"a": NaN, "b": ' + b"[" * 200_000, b'{"instances": [' + b"9" * 100_000 + b"]}", b'"' + b"x" * 10**6, b"," * 10**6, b"\n" * 10**6, b"{}\n" * 10**5, *(b'{"inputs": [{"name": "age", "shape": [1], "datatype": "FP64", "data": ' + x + b', "parameters": {"binary_data_size": ' + x + b'}}], "id": ' + x + b"}" for x in (b"[" * 700 + b"]" * 700, b'{"a":' * 700 + b"1" + b"}" * 700))], ids=lambda b: repr(b[:12]))
def test_what_is_made_to_hurt_is_refused(body):
    for name, read in readers(MIXED).items(): assert not survives(MIXED, read, body), name


# what comes back -----------------------------------------------------------------------------------------------------

def scored(n, task="binary", outliers=True):
    rng = np.random.default_rng(n)
    return SimpleNamespace(n=n, ids=[f"id-{'ü' * (i % 3)}{i}" for i in range(n)], score=rng.random(n), decision=rng.integers(0, 2, n) if task == "binary" else None, outlier=rng.random(n) < 0.5 if outliers else None, warnings=[["age: 200 is outside"] * (i % 2) for i in range(n)])


def read_outputs(body, headers):
    "The tensors of a V2 answer, as a client reads them"
    at = int(headers.get("Inference-Header-Content-Length", len(body)))
    got, out = json.loads(body[:at]), {}
    for o in got["outputs"]:
        if "data" in o: out[o["name"]] = o["data"]; continue
        raw, at = body[at:at + o["parameters"]["binary_data_size"]], at + o["parameters"]["binary_data_size"]
        if o["datatype"] != "BYTES": out[o["name"]] = np.frombuffer(raw, {"FP64": "<f8", "INT64": "<i8", "BOOL": "?"}[o["datatype"]]).tolist(); continue
        out[o["name"]], p = [], 0
        while p < len(raw): n = struct.unpack_from("<I", raw, p)[0]; out[o["name"]].append(raw[p + 4:p + 4 + n].decode()); p += 4 + n
    assert at == len(body)
    return out


@pytest.mark.parametrize("task, outliers", [("binary", True), ("regression", True), ("regression", False)])
@pytest.mark.parametrize("n", [1, 7])
def test_an_answer_holds_what_was_scored_in_every_form(task, outliers, n):
    s, offers = scored(n, task, outliers), v2_outputs(task, outliers)
    want = {k: v for k, v in dict(score=s.score.tolist(), decision=None if s.decision is None else s.decision.tolist(), prediction_id=s.ids, outlier=None if s.outlier is None else s.outlier.tolist()).items() if v is not None}
    request = json.loads(v2([{c: None for c in NUMERIC.names}] * n, NUMERIC.names, dict(zip(NUMERIC.names, NUMERIC.kinds)))[0])
    for asked in (None, offers[::-1], offers[:1]):
        for flags in ({}, dict(binary_data_output=True)):
            body = json.dumps(request | dict(parameters=flags) | ({} if asked is None else dict(outputs=[dict(name=o, parameters=dict(binary_data=True) if o == "score" else None) for o in asked]))).encode()
            call = read_v2(NUMERIC, body, None, offers)[1]
            out, headers = write_v2(call, "m", "1", s)
            assert read_outputs(out, headers) == {o: want[o] for o in asked or offers} and list(read_outputs(out, headers)) == list(asked or offers)
            assert bool(headers) == (bool(flags) or asked is not None)
    rows = [dict(zip(want, r)) for r in zip(*want.values())]
    for body in (write_invocations("application/json", None, s)[0], write_vertex(s, "m", "1")): assert [{k: v for k, v in r.items() if k != "warnings"} for r in json.loads(body)["predictions"]] == rows
    assert [json.loads(x)["warnings"] for x in write_invocations("application/jsonlines", None, s)[0].splitlines()] == s.warnings
    cells = list(csv.reader(io.StringIO(write_invocations("text/csv", None, s)[0].decode())))
    assert [(float(a), c) for a, _, c in cells] == list(zip(s.score.tolist(), s.ids)) and [b for _, b, _ in cells] == (["" for _ in range(n)] if task == "regression" else [str(d) for d in s.decision])


# the platforms' own clients, against the running service --------------------------------------------------------------

NAME = "mlgov"


@pytest.fixture(scope="module")
def vertex(service, tmp_path_factory):
    "The same service as Vertex AI starts it, with a route of Vertex AI's choice; this one is KServe's V1 route"
    tmp = tmp_path_factory.mktemp("vertex")
    s = Service(service.root, service.env, 1, tmp/"log", BENTOML_HOME=tmp/"bentoml", AIP_PREDICT_ROUTE=f"/v1/models/{NAME}:predict").start()
    yield s
    s.stop()


@pytest.fixture(scope="module")
def model(service):
    "Real rows with missing values, and the scores that the audit gives them"
    art = load(service.root/"release/served/model")
    frame = pd.read_parquet(service.root/"data/split/windows/2014-18.parquet").head(200)[art.encoder.features]
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    assert any(v is None for r in rows for v in r.values() if art.encoder.features)
    return SimpleNamespace(version=art.version, rows=rows, score=art.score(frame), decision=[int(s >= art.threshold) for s in art.score(frame)])


def post(url, body, kind="application/json", **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": kind, **headers}), timeout=30) as r: return r.status, r.headers["Content-Type"], r.read()
    except urllib.error.HTTPError as e: return e.code, e.headers["Content-Type"], e.read()


@pytest.fixture(scope="module")
def client(service):
    with http.InferenceServerClient(service.url.removeprefix("http://")) as c: yield c


class TestTriton:
    "NVIDIA's client for Triton: V2, with binary tensors both ways unless told otherwise"

    def inputs(self, rows, binary=True, floats=np.float64):
        out = []
        for c in rows[0]:
            values = [r[c] for r in rows]
            text = any(isinstance(v, str) for v in values)
            a = np.array([v or "" for v in values] if text else values, object if text else floats).reshape(-1, 1)
            out.append(http.InferInput(c, list(a.shape), np_to_triton_dtype(a.dtype)))
            out[-1].set_data_from_numpy(a, binary_data=binary)
        return out

    def test_health_and_metadata(self, client, model):
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(NAME) and client.is_model_ready(NAME, model.version)
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        about = client.get_model_metadata(NAME)
        assert {i["name"]: i["datatype"] for i in about["inputs"]} == {c: "BYTES" if any(isinstance(r[c], str) for r in model.rows) else "FP64" for c in model.rows[0]}
        assert about["versions"] == [model.version] and about["outputs"][0] == dict(name="score", datatype="FP64", shape=[-1])

    def test_binary_both_ways(self, client, model):
        got = client.infer(NAME, self.inputs(model.rows), request_id="r-1")
        assert got.as_numpy("score").tolist() == model.score.tolist(), "bit-equal to the audited evaluator"
        assert got.as_numpy("decision").tolist() == model.decision and got.as_numpy("outlier").dtype == bool and len(set(got.as_numpy("prediction_id").tolist())) == len(model.rows)
        assert [got.get_response()[k] for k in ("id", "model_name", "model_version")] == ["r-1", NAME, model.version]

    def test_outputs_that_were_asked_for(self, client, model):
        wanted = [http.InferRequestedOutput("prediction_id", binary_data=False), http.InferRequestedOutput("score", binary_data=True)]
        got = client.infer(NAME, self.inputs(model.rows[:5]), outputs=wanted, model_version=model.version)
        assert [(o["name"], "data" in o) for o in got.get_response()["outputs"]] == [("prediction_id", True), ("score", False)]
        assert got.as_numpy("score").tolist() == model.score[:5].tolist() and got.as_numpy("decision") is None

    def test_json_both_ways(self, client, model):
        whole = [r for r in model.rows if None not in r.values()][:20]     # the client cannot write a missing number in JSON
        got = client.infer(NAME, self.inputs(whole, binary=False), outputs=[http.InferRequestedOutput("score", binary_data=False)])
        assert got.as_numpy("score").tolist() == [s for s, r in zip(model.score.tolist(), model.rows) if None not in r.values()][:20]

    def test_floats_of_four_bytes(self, client, model):
        got = client.infer(NAME, self.inputs(model.rows, floats=np.float32)).as_numpy("score").tolist()
        exact = [i for i, r in enumerate(model.rows) if all(not isinstance(v, float) or float(np.float32(v)) == v for v in r.values())]
        assert len(exact) > 50 and [got[i] for i in exact] == model.score[exact].tolist()

    @pytest.mark.parametrize("change, status, words", [
        (lambda xs: xs[1:], "422", "missing tensor `age`"), (lambda xs: [*xs, xs[0]], "422", "tensor `age` came twice"), (lambda xs: [http.InferInput("age", [1, 1], "FP64"), *xs[1:]], "400", "neither `data` nor"),
        (lambda xs: [*xs, http.InferInput("gendre", [1], "BYTES").set_data_from_numpy(np.array(["x"], object))], "422", "tensor `gendre` is unknown"), (lambda xs: [http.InferInput("age", [1], "BOOL").set_data_from_numpy(np.array([True])), *xs[1:]], "422", "datatype BOOL")])
    def test_a_refusal_reaches_the_caller(self, client, model, change, status, words):
        with pytest.raises(InferenceServerException, match=words) as e: client.infer(NAME, change(self.inputs(model.rows[:1])))
        assert e.value.status() == status

    def test_an_unknown_output_or_model_is_refused(self, client, model):
        with pytest.raises(InferenceServerException, match="output `shap` is unknown"): client.infer(NAME, self.inputs(model.rows[:1]), outputs=[http.InferRequestedOutput("shap")])
        with pytest.raises(InferenceServerException, match="classification"): client.infer(NAME, self.inputs(model.rows[:1]), outputs=[http.InferRequestedOutput("score", class_count=2)])
        with pytest.raises(InferenceServerException, match="nobody"): client.infer("nobody", self.inputs(model.rows[:1]))


@pytest.fixture(scope="session")
def clients():
    "A Python with KServe's and MLflow's clients, which cannot live beside this project's packages: made once per machine, in the user's cache"
    lock = ROOT/"tests/clients.lock"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home()/".cache")/"mlgov-nb"/f"clients-{hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()[:12]}"
    home.parent.mkdir(parents=True, exist_ok=True)
    python = home/"bin/python"
    with FileLock(f"{home}.lock"):
        if not (home/"ready").exists():
            shutil.rmtree(home, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True, capture_output=True)
            got = subprocess.run([sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "-q", "--no-deps", "--no-compile", "--retries", "1", "-r", lock], capture_output=True, text=True, timeout=900)
            if got.returncode and re.search("NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError", got.stderr): pytest.skip("the clients of KServe and MLflow are not installed yet, and the package index cannot be reached")
            assert got.returncode == 0, got.stderr[-2000:]
            (home/"ready").touch()
    def call(client, service, rows, tmp):
        (tmp/"rows.json").write_text(json.dumps(rows))
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        got = subprocess.run([python, ROOT/"tests/clients.py", client, service.url, NAME, tmp/"rows.json"], cwd=tmp, env=env, capture_output=True, text=True, timeout=120)
        assert got.returncode == 0, got.stderr[-3000:]
        return json.loads(got.stdout.splitlines()[-1])
    return call


def test_kserve(clients, vertex, model, tmp_path):
    got = clients("kserve", vertex, model.rows, tmp_path)
    assert got["health"] == [True, True, True]
    for way in ("json", "binary"): assert got[way] == dict(id=way, score=model.score.tolist(), decision=model.decision), way
    assert "missing tensor `age`" in got["refused"] and "422" in got["refused"]
    assert got["v1"] == model.score.tolist()


def test_mlflow(clients, service, model, tmp_path):
    got = clients("mlflow", service, model.rows, tmp_path)
    for way in ("frame", "params", "shuffled", "example", "records", "columns", "csv"): assert got[way] == model.score.tolist(), way
    assert got["one"] == model.score[:1].tolist()
    assert got["version"] and "missing required field `age`" in got["refused"] and "422" in got["refused"]


def test_sagemaker(service, model):
    url, want, lists = f"{service.url}/invocations", model.score.tolist(), [list(r.values()) for r in model.rows]
    code, kind, body = post(url, table(lists), "text/csv")
    assert (code, kind) == (200, "text/csv") and [float(x.split(b",")[0]) for x in body.splitlines()] == want
    code, kind, body = post(url, json.dumps(dict(instances=[dict(features=x) for x in lists])).encode())
    assert (code, kind) == (200, "application/json") and [p["score"] for p in json.loads(body)["predictions"]] == want and {"prediction_id", "decision", "outlier", "warnings"} <= set(json.loads(body)["predictions"][0])
    code, kind, body = post(url, "\n".join(json.dumps(dict(features=x)) for x in lists).encode(), "application/jsonlines")
    assert (code, kind) == (200, "application/jsonlines") and [json.loads(x)["score"] for x in body.splitlines()] == want
    code, kind, body = post(url, table(lists), "text/csv", Accept="application/jsonlines")
    assert (code, kind, len(body.splitlines())) == (200, "application/jsonlines", len(want))
    for refused in ("application/x-npy", "application/octet-stream", "application/x-recordio-protobuf"):
        code, kind, body = post(url, b"\x80\x04N.", refused)
        assert (code, kind) == (415, "application/json") and "expected application/json" in json.loads(body)["error"]
    code, _, body = post(url, table(lists), "text/csv", Accept="application/x-recordio-protobuf")
    assert code == 406 and "answers in" in json.loads(body)["error"]
    with urllib.request.urlopen(f"{service.url}/ping") as r: assert r.status == 200


def test_vertex(vertex, model):
    code, kind, body = post(f"{vertex.url}/v1/models/{NAME}:predict", json.dumps(dict(instances=model.rows, parameters=None)).encode())
    assert (code, kind) == (200, "application/json") and [p["score"] for p in json.loads(body)["predictions"]] == model.score.tolist()
    assert json.loads(body)["metadata"]["version"] == model.version
