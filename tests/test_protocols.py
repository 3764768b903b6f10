"""The open protocols: any bytes end in rows or a refusal, every way of sending a row is the same row, and the
platforms' own clients get the audited scores"""
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
NUMERIC = Schema([feature for feature in FEATURES if feature["kind"] == "numeric"], CARD, max_rows=50)
HEADS = {"/json": "application/json", "/lines": "application/jsonlines", "/csv": "text/csv"}
NONE = type(None)
quick = settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


# ways to send rows ---------------------------------------------------------------------------------------------------

def to_json(**fields): return json.dumps(fields).encode()


def to_lines(objects): return "\n".join(map(json.dumps, objects)).encode()


def lists_of(rows, columns): return [[row[column] for column in columns] for row in rows]


def columns_of(rows): return {column: [row[column] for row in rows] for column in rows[0]}


def with_features(lists): return [dict(features=values) for values in lists]


def kinds_of(schema): return dict(zip(schema.names, schema.kinds, strict=True))


def elements(values):
    "Texts as the elements of a binary tensor: each with its length before it"
    texts = [(value or "").encode() for value in values]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def v2(rows, names, kinds, binary=False):
    "A V2 body of rows, and the length of its JSON part when tensors are binary"
    inputs, tail = [], b""
    for column in [*names, *(name for name in rows[0] if name not in names)]:
        values = [row[column] for row in rows]
        text = kinds.get(column) != "numeric"
        tensor = dict(name=column, shape=[len(rows), 1], datatype="BYTES" if text else "FP64")
        if binary:
            raw = elements(values) if text else np.array(values, float).tobytes()
            tensor["parameters"] = dict(binary_data_size=len(raw))
            tail += raw
        else:
            tensor["data"] = values
        inputs.append(tensor)
    head = to_json(id="7", inputs=inputs)
    return head + tail, len(head) if binary else None


def table(rows, names=None):
    "Rows as CSV, with a header when there are names"
    text = io.StringIO()
    out = csv.writer(text)
    if names is not None:
        out.writerow(names)
    out.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue().encode()


def ways(schema, rows):
    "Every way to send rows by name: what sends them, and a function that reads them"
    backwards = list(rows[0])[::-1]
    cells = lists_of(rows, backwards)
    split = dict(columns=backwards, index=list(range(len(rows))), data=cells)

    def v2_rows(binary): return read_v2(schema, *v2(rows, schema.names, kinds_of(schema), binary))[0]
    def invoked(kind, body): return read_invocations(schema, kind, body)[0]
    def mlflow(**fields): return invoked("application/json", to_json(**fields))
    return {
        "V2 JSON": lambda: v2_rows(binary=False),
        "V2 binary": lambda: v2_rows(binary=True),
        "MLflow dataframe_split": lambda: mlflow(dataframe_split=split),
        "MLflow dataframe_records": lambda: mlflow(dataframe_records=rows),
        "MLflow inputs": lambda: mlflow(inputs=columns_of(rows)),
        "MLflow instances": lambda: mlflow(instances=rows),
        "lines": lambda: invoked("application/jsonlines", to_lines(rows)),
        "Vertex": lambda: read_vertex(schema, to_json(instances=rows)),
        "CSV": lambda: invoked("text/csv", table(cells, backwards)),
    }


def by_place(schema, rows):
    "Every way to send features in the model's order"
    lists = lists_of(rows, schema.names)

    def invoked(kind, body): return read_invocations(schema, kind, body)[0]
    by_list = {
        "SageMaker": lambda: invoked("application/json", to_json(instances=with_features(lists))),
        "lists": lambda: read_vertex(schema, to_json(instances=lists)),
        "lines": lambda: invoked("application/jsonlines", to_lines(with_features(lists))),
        "CSV": lambda: invoked("text/csv", table(lists)),
    }
    if "categorical" in schema.kinds:
        return by_list
    block = np.array(lists, float)
    tensor = dict(name="x", shape=list(block.shape), datatype="FP64")
    body = to_json(inputs=[dict(tensor, data=lists)])
    head = to_json(inputs=[dict(tensor, parameters=dict(binary_data_size=block.nbytes))])
    return by_list | {
        "V2 block": lambda: read_v2(schema, body)[0],
        "V2 binary block": lambda: read_v2(schema, head + block.tobytes(), len(head))[0],
    }


def plain(request): return [list(column) for column in request.columns]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
numbers = st.none() | st.floats(-1e300, 1e300, allow_nan=False) | st.integers(-2**40, 2**40).map(float)


def rows_of(schema):
    "Rows with every feature, a protected text that is no number, and a subject"
    features = {name: numbers if kind == "numeric" else st.none() | texts for name, kind in kinds_of(schema).items()}
    gender = st.sampled_from(["Female", "Männlich, ja", None])
    row = st.fixed_dictionaries({**features, "gender": gender, "subject": texts})
    return st.lists(row, min_size=1, max_size=6)


@pytest.mark.parametrize("schema", [MIXED, NUMERIC], ids=["mixed", "numeric"])
def test_a_row_is_the_same_row_however_it_comes(schema):
    @quick
    @given(rows_of(schema))
    def run(rows):
        want = plain(read_native(schema, to_json(rows=rows)))
        feature_count = len(schema.names)
        for way, read in ways(schema, rows).items():
            assert plain(read()) == want, way
        for way, read in by_place(schema, rows).items():
            assert plain(read())[:feature_count] == want[:feature_count], way
    run()


# any bytes -----------------------------------------------------------------------------------------------------------

def readers(schema):
    "Every reader, as a function of a body and a header's number"
    def invocations(kind): return lambda body, _header: read_invocations(schema, kind, body)[0]
    return {
        "native": lambda body, _header: read_native(schema, body),
        "/v2": lambda body, header: read_v2(schema, body, header)[0],
        "/vertex": lambda body, _header: read_vertex(schema, body),
        **{path: invocations(kind) for path, kind in HEADS.items()},
    }


FIT = dict(
    numeric=(float, NONE),
    categorical=(str, NONE),
    protected=(float, str, NONE, UnsetType),
    subject=(str, UnsetType),
)


def is_checked(value, role):
    "Whether a value has a type of its role, and is finite or short enough"
    if type(value) not in FIT[role]:
        return False
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is not str or len(value) <= MAX_TEXT


def survives(schema, read, body, header=None):
    "Only BadRequest may come out, fit to be sent; what is let through is checked rows"
    try:
        request = read(body, header)
    except BadRequest as refusal:
        assert refusal.status in (400, 413, 422) and refusal.error and len(refusal.error) < 5000, refusal.error
        msgspec.json.encode(refusal.body)
        return False
    assert 0 < request.n <= schema.max_rows
    assert len(request.columns) == len(schema.columns)
    assert all(len(column) == request.n for column in request.columns)
    roles = [*schema.kinds, *["protected"] * len(schema.protected), "subject"]
    for name, role, column in zip(schema.columns, roles, request.columns, strict=True):
        assert all(is_checked(value, role) for value in column), (name, column)
    return True


any_body = st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
any_header = st.none() | st.integers(-5, 400) | st.text(max_size=8)


@pytest.mark.parametrize("name", readers(MIXED))
def test_any_bytes_end_in_rows_or_a_refusal(name):
    @quick
    @given(any_body, any_header)
    def run(body, header): survives(MIXED, readers(MIXED)[name], body, header)
    run()


odd_values = st.sampled_from([
    10**400, -10**400, 10**4000, 1e308, [], {}, "NaN", "BYTES", "INT8", "BOOL", "age", "gender", "subject", "x" * 201,
    "\ud800", -1, 0, 2**31, 2**63,
])
odd_leaves = (
    st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | st.text(max_size=5) | odd_values
)
odd_keys = st.text(max_size=5) | st.sampled_from(["age", "subject", "features", "values", "data"])
odd = st.recursive(
    odd_leaves,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(odd_keys, children, max_size=3),
    max_leaves=4,
)


def seeds(schema):
    "Valid bodies of every protocol, in the form in which they are mutated: reader, tree, what follows the JSON, bytes"
    kinds = kinds_of(schema)
    features = {name: 3.0 if kind == "numeric" else "Married" for name, kind in kinds.items()}
    rows = [features | dict(gender="Female", subject="s")] * 2
    columns = list(rows[0])
    cells, lists = lists_of(rows, columns), lists_of(rows, schema.names)
    json_body, _ = v2(rows, schema.names, kinds)
    binary_body, head_size = v2(rows, schema.names, kinds, True)
    asks_binary = dict(
        outputs=[dict(name="score", parameters=dict(binary_data=True))],
        parameters=dict(binary_data_output=False),
    )
    trees = [
        ("native", dict(rows=rows), b""),
        ("native", rows[0], b""),
        ("/v2", json.loads(json_body), b""),
        ("/v2", json.loads(binary_body[:head_size]) | asks_binary, binary_body[head_size:]),
        ("/json", dict(dataframe_split=dict(columns=columns, data=cells)), b""),
        ("/json", dict(dataframe_records=rows), b""),
        ("/json", dict(inputs=columns_of(rows)), b""),
        ("/json", dict(instances=with_features(lists)), b""),
        ("/vertex", dict(instances=lists), b""),
    ]
    if "categorical" not in schema.kinds:
        size = 8 * len(schema.names)
        tensor = dict(name="x", shape=[2, len(schema.names)], datatype="FP32", parameters=dict(binary_data_size=size))
        trees.append(("/v2", dict(inputs=[tensor]), bytes(size)))
    return [
        *((name, tree, tail, None) for name, tree, tail in trees),
        ("/csv", None, b"", table(cells, columns)),
        ("/csv", None, b"", table(lists)),
        ("/lines", None, b"", to_lines(rows)),
    ]


ODD_BYTES = [b"NaN", b"Infinity", b'"', b"\xff", b",", b"\0", b"[" * 2000, b"1e999", b"\n", b'\\ud800']


def mutate_tree(draw, tree):
    "Replace, remove or double one node of a tree, or leave it"
    node, key = tree, draw(st.sampled_from(list(tree)))
    while isinstance(node[key], (dict, list)) and node[key] and draw(st.integers(0, 4)):
        node = node[key]
        key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
    how = draw(st.sampled_from(["replace", "remove", "double", "leave"]))
    if how == "replace":
        node[key] = draw(odd)
    elif how == "remove":
        del node[key]
    elif how == "double" and isinstance(node, list):
        node.insert(key, node[key])
    elif how == "double":
        node[draw(st.text(max_size=4))] = node[key]


def mutate_bytes(draw, body):
    "Replace some bytes of a body, or put some in"
    start, end = sorted(draw(st.lists(st.integers(0, len(body)), min_size=2, max_size=2)))
    new = draw(st.binary(max_size=6) | st.sampled_from(ODD_BYTES))
    return body[:start] + new + body[end if draw(st.booleans()) else start:]


@st.composite
def mutated(draw, schema):
    "A valid body with one node of its JSON replaced, removed or doubled, or some of its bytes changed"
    name, tree, tail, body = draw(st.sampled_from(seeds(schema)))
    header = None
    if tail and draw(st.booleans()):
        start = draw(st.integers(0, len(tail) - 4))
        tail = tail[:start] + draw(st.binary(min_size=4, max_size=4)) + tail[start + 4:]
    if body is None:
        tree = json.loads(json.dumps(tree))
        mutate_tree(draw, tree)
        body = json.dumps(tree).encode()
        if tail or draw(st.booleans()):
            size = len(body)
            header = draw(st.sampled_from([size] * 6 + [size - 1, size + 1, 0, None, "x", -1, 10**20]))
        body += tail
    if draw(st.integers(0, 2)) == 0:
        body = mutate_bytes(draw, body)
    return name, body, header


@pytest.mark.slow("thousands of bodies")
@pytest.mark.parametrize("schema", [MIXED, NUMERIC], ids=["mixed", "numeric"])
def test_a_mutated_body_ends_in_rows_or_a_refusal(schema):
    for name, tree, tail, body in seeds(schema):
        head = json.dumps(tree).encode() if body is None else body
        header = len(head) if tail else None
        assert survives(schema, readers(schema)[name], head + tail, header), "the seeds are valid"

    @settings(quick, max_examples=1500)
    @given(mutated(schema))
    def run(mutant):
        name, body, header = mutant
        survives(schema, readers(schema)[name], body, header)
    run()


def v2_everywhere(value):
    "A V2 body with some JSON in every place that has no certain type"
    return b"".join([
        b'{"inputs": [{"name": "age", "shape": [1], "datatype": "FP64", "data": ', value,
        b', "parameters": {"binary_data_size": ', value,
        b'}}], "id": ', value, b"}",
    ])


@pytest.mark.parametrize("body", [
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b'{"inputs":' + b"[" * 200_000,
    b'{"instances":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    b'{"a": NaN, "b": ' + b"[" * 200_000,
    b'{"instances": [' + b"9" * 100_000 + b"]}",
    b'"' + b"x" * 10**6,
    b"," * 10**6,
    b"\n" * 10**6,
    b"{}\n" * 10**5,
    v2_everywhere(b"[" * 700 + b"]" * 700),
    v2_everywhere(b'{"a":' * 700 + b"1" + b"}" * 700),
], ids=lambda body: repr(body[:12]))
def test_what_is_made_to_hurt_is_refused(body):
    for name, read in readers(MIXED).items():
        assert not survives(MIXED, read, body), name


# what comes back -----------------------------------------------------------------------------------------------------

def scored(n, task="binary", outliers=True):
    "The answer to a request of n rows"
    rng = np.random.default_rng(n)
    return SimpleNamespace(
        n=n,
        ids=[f"id-{'ü' * (row % 3)}{row}" for row in range(n)],
        score=rng.random(n),
        decision=rng.integers(0, 2, n) if task == "binary" else None,
        outlier=rng.random(n) < 0.5 if outliers else None,
        warnings=[["age: 200 is outside"] * (row % 2) for row in range(n)],
    )


def read_elements(raw):
    "The texts of a binary tensor"
    found, start = [], 0
    while start < len(raw):
        size = struct.unpack_from("<I", raw, start)[0]
        found.append(raw[start + 4:start + 4 + size].decode())
        start += 4 + size
    return found


def read_outputs(body, headers):
    "The tensors of a V2 answer, as a client reads them"
    end = int(headers.get("Inference-Header-Content-Length", len(body)))
    answer, tensors = json.loads(body[:end]), {}
    dtypes = {"FP64": "<f8", "INT64": "<i8", "BOOL": "?"}
    for output in answer["outputs"]:
        name, datatype = output["name"], output["datatype"]
        if "data" in output:
            tensors[name] = output["data"]
            continue
        start, end = end, end + output["parameters"]["binary_data_size"]
        raw = body[start:end]
        tensors[name] = read_elements(raw) if datatype == "BYTES" else np.frombuffer(raw, dtypes[datatype]).tolist()
    assert end == len(body)
    return tensors


def values_of(answer):
    "What is expected of each output that a model has"
    arrays = dict(
        score=answer.score,
        decision=answer.decision,
        prediction_id=np.array(answer.ids),
        outlier=answer.outlier,
    )
    return {name: array.tolist() for name, array in arrays.items() if array is not None}


def without_warnings(row): return {name: value for name, value in row.items() if name != "warnings"}


def asking(request, flags, outputs):
    "A V2 body that asks for some outputs, the score in binary"
    request = request | dict(parameters=flags)
    if outputs is not None:
        binary = dict(binary_data=True)
        request["outputs"] = [dict(name=name, parameters=binary if name == "score" else None) for name in outputs]
    return json.dumps(request).encode()


@pytest.mark.parametrize("task, outliers", [("binary", True), ("regression", True), ("regression", False)])
@pytest.mark.parametrize("n", [1, 7])
def test_an_answer_holds_what_was_scored_in_every_form(task, outliers, n):
    answer, offers = scored(n, task, outliers), v2_outputs(task, outliers)
    want = values_of(answer)
    request = json.loads(v2([dict.fromkeys(NUMERIC.names)] * n, NUMERIC.names, kinds_of(NUMERIC))[0])
    for wanted in (None, offers[::-1], offers[:1]):
        for flags in ({}, dict(binary_data_output=True)):
            call = read_v2(NUMERIC, asking(request, flags, wanted), None, offers)[1]
            body, headers = write_v2(call, "m", "1", answer)
            tensors = read_outputs(body, headers)
            assert tensors == {name: want[name] for name in wanted or offers}
            assert list(tensors) == list(wanted or offers)
            assert bool(headers) == (bool(flags) or wanted is not None)

    rows = [dict(zip(want, values, strict=True)) for values in zip(*want.values(), strict=True)]
    for body in (write_invocations("application/json", None, answer)[0], write_vertex(answer, "m", "1")):
        assert [without_warnings(row) for row in json.loads(body)["predictions"]] == rows

    lines = write_invocations("application/jsonlines", None, answer)[0].splitlines()
    assert [json.loads(line)["warnings"] for line in lines] == answer.warnings

    cells = list(csv.reader(io.StringIO(write_invocations("text/csv", None, answer)[0].decode())))
    decisions = [""] * n if task == "regression" else [str(decision) for decision in answer.decision]
    assert [float(score) for score, _, _ in cells] == answer.score.tolist()
    assert [name for _, _, name in cells] == answer.ids
    assert [decision for _, decision, _ in cells] == decisions


# the platforms' own clients, against the running service --------------------------------------------------------------

NAME = "mlgov"


@pytest.fixture(scope="module")
def vertex(service, tmp_path_factory):
    "The same service as Vertex AI starts it, with a route of Vertex AI's choice; this one is KServe's V1 route"
    tmp = tmp_path_factory.mktemp("vertex")
    more = dict(BENTOML_HOME=tmp/"bentoml", AIP_PREDICT_ROUTE=f"/v1/models/{NAME}:predict")
    server = Service(service.root, service.env, 1, tmp/"log", **more).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def model(service):
    "Real rows with missing values, and the scores that the audit gives them"
    artifact = load(service.root/"release/served/model")
    features = artifact.encoder.features
    frame = pd.read_parquet(service.root/"data/split/windows/2014-18.parquet").head(200)[features]
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    assert any(value is None for row in rows for value in row.values() if features)
    score = artifact.score(frame)
    decision = [int(value >= artifact.threshold) for value in score]
    return SimpleNamespace(version=artifact.version, rows=rows, score=score, decision=decision)


def post(url, body, kind="application/json", **headers):
    "Status, content type and body of the answer"
    request = urllib.request.Request(url, body, {"Content-Type": kind, **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.headers["Content-Type"], response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def scores_in(body): return [prediction["score"] for prediction in json.loads(body)["predictions"]]


@pytest.fixture(scope="module")
def client(service):
    with http.InferenceServerClient(service.url.removeprefix("http://")) as triton:
        yield triton


def is_text(values): return any(isinstance(value, str) for value in values)


def same_in_four_bytes(row):
    return all(not isinstance(value, float) or float(np.float32(value)) == value for value in row.values())


def input_tensor(name, shape, datatype, values=None):
    "A tensor of Triton's client, without data when there are no values"
    made = http.InferInput(name, shape, datatype)
    return made if values is None else made.set_data_from_numpy(values)


class TestTriton:
    "NVIDIA's client for Triton: V2, with binary tensors both ways unless told otherwise"

    def inputs(self, rows, binary=True, floats=np.float64):
        "One tensor a column"
        tensors = []
        for column in rows[0]:
            values = [row[column] for row in rows]
            if is_text(values):
                array = np.array([value or "" for value in values], object).reshape(-1, 1)
            else:
                array = np.array(values, floats).reshape(-1, 1)
            tensors.append(http.InferInput(column, list(array.shape), np_to_triton_dtype(array.dtype)))
            tensors[-1].set_data_from_numpy(array, binary_data=binary)
        return tensors

    def test_health_and_metadata(self, client, model):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(NAME)
        assert client.is_model_ready(NAME, model.version)
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        about = client.get_model_metadata(NAME)
        columns = columns_of(model.rows)
        want = {name: "BYTES" if is_text(values) else "FP64" for name, values in columns.items()}
        assert {tensor["name"]: tensor["datatype"] for tensor in about["inputs"]} == want
        assert about["versions"] == [model.version]
        assert about["outputs"][0] == dict(name="score", datatype="FP64", shape=[-1])

    def test_binary_both_ways(self, client, model):
        result = client.infer(NAME, self.inputs(model.rows), request_id="r-1")
        assert result.as_numpy("score").tolist() == model.score.tolist(), "bit-equal to the audited evaluator"
        assert result.as_numpy("decision").tolist() == model.decision
        assert result.as_numpy("outlier").dtype == bool
        assert len(set(result.as_numpy("prediction_id").tolist())) == len(model.rows)
        response = result.get_response()
        assert [response[key] for key in ("id", "model_name", "model_version")] == ["r-1", NAME, model.version]

    def test_outputs_that_were_asked_for(self, client, model):
        wanted = [
            http.InferRequestedOutput("prediction_id", binary_data=False),
            http.InferRequestedOutput("score", binary_data=True),
        ]
        result = client.infer(NAME, self.inputs(model.rows[:5]), outputs=wanted, model_version=model.version)
        outputs = result.get_response()["outputs"]
        assert [(output["name"], "data" in output) for output in outputs] == [("prediction_id", True), ("score", False)]
        assert result.as_numpy("score").tolist() == model.score[:5].tolist()
        assert result.as_numpy("decision") is None

    def test_json_both_ways(self, client, model):
        # the client cannot write a missing number in JSON
        whole = [index for index, row in enumerate(model.rows) if None not in row.values()][:20]
        rows = [model.rows[index] for index in whole]
        wanted = [http.InferRequestedOutput("score", binary_data=False)]
        result = client.infer(NAME, self.inputs(rows, binary=False), outputs=wanted)
        assert result.as_numpy("score").tolist() == model.score[whole].tolist()

    def test_floats_of_four_bytes(self, client, model):
        scores = client.infer(NAME, self.inputs(model.rows, floats=np.float32)).as_numpy("score").tolist()
        exact = [index for index, row in enumerate(model.rows) if same_in_four_bytes(row)]
        assert len(exact) > 50
        assert [scores[index] for index in exact] == model.score[exact].tolist()

    @pytest.mark.parametrize("change, status, words", [
        (lambda inputs: inputs[1:], "422", "missing tensor `age`"),
        (lambda inputs: [*inputs, inputs[0]], "422", "tensor `age` came twice"),
        (lambda inputs: [input_tensor("age", [1, 1], "FP64"), *inputs[1:]], "400", "neither `data` nor"),
        (lambda inputs: [*inputs, input_tensor("gendre", [1], "BYTES", np.array(["x"], object))],
         "422", "tensor `gendre` is unknown"),
        (lambda inputs: [input_tensor("age", [1], "BOOL", np.array([True])), *inputs[1:]], "422", "datatype BOOL"),
    ])
    def test_a_refusal_reaches_the_caller(self, client, model, change, status, words):
        with pytest.raises(InferenceServerException, match=words) as refusal:
            client.infer(NAME, change(self.inputs(model.rows[:1])))
        assert refusal.value.status() == status

    def test_an_unknown_output_or_model_is_refused(self, client, model):
        inputs = self.inputs(model.rows[:1])
        with pytest.raises(InferenceServerException, match="output `shap` is unknown"):
            client.infer(NAME, inputs, outputs=[http.InferRequestedOutput("shap")])
        with pytest.raises(InferenceServerException, match="classification"):
            client.infer(NAME, inputs, outputs=[http.InferRequestedOutput("score", class_count=2)])
        with pytest.raises(InferenceServerException, match="nobody"):
            client.infer("nobody", inputs)


NO_INDEX = "NewConnectionError|NameResolutionError|ConnectTimeoutError|ProxyError"


def install_clients(home, lock):
    "Make the environment of KServe's and MLflow's clients; skip where the package index cannot be reached"
    shutil.rmtree(home, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True, capture_output=True)
    pip = [sys.executable, "-m", "pip", "--python", home/"bin/python", "--disable-pip-version-check"]
    install = ["install", "-q", "--no-deps", "--no-compile", "--retries", "1", "-r", lock]
    result = subprocess.run([*pip, *install], capture_output=True, text=True, timeout=900)
    if result.returncode and re.search(NO_INDEX, result.stderr):
        pytest.skip("the clients of KServe and MLflow are not installed yet, and the package index cannot be reached")
    assert result.returncode == 0, result.stderr[-2000:]
    (home/"ready").touch()


def clean_environment():
    "An environment that does not lead to this project's packages, without telemetry"
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return inherited | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


@pytest.fixture(scope="session")
def clients():
    """A Python with KServe's and MLflow's clients, which cannot live beside this project's packages: made once per
    machine, in the user's cache"""
    lock = ROOT/"tests/clients.lock"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home()/".cache")
    home = cache/"mlgov-nb"/f"clients-{hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()[:12]}"
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{home}.lock"):
        if not (home/"ready").exists():
            install_clients(home, lock)

    def call(client, service, rows, tmp):
        file = tmp/"rows.json"
        file.write_text(json.dumps(rows))
        command = [home/"bin/python", ROOT/"tests/clients.py", client, service.url, NAME, file]
        env = clean_environment()
        result = subprocess.run(command, cwd=tmp, env=env, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout.splitlines()[-1])
    return call


def test_kserve(clients, vertex, model, tmp_path):
    answers = clients("kserve", vertex, model.rows, tmp_path)
    assert answers["health"] == [True, True, True]
    for way in ("json", "binary"):
        assert answers[way] == dict(id=way, score=model.score.tolist(), decision=model.decision), way
    assert "missing tensor `age`" in answers["refused"]
    assert "422" in answers["refused"]
    assert answers["v1"] == model.score.tolist()


def test_mlflow(clients, service, model, tmp_path):
    answers = clients("mlflow", service, model.rows, tmp_path)
    for way in ("frame", "params", "shuffled", "example", "records", "columns", "csv"):
        assert answers[way] == model.score.tolist(), way
    assert answers["one"] == model.score[:1].tolist()
    assert answers["version"]
    assert "missing required field `age`" in answers["refused"]
    assert "422" in answers["refused"]


def test_sagemaker(service, model):
    url, want = f"{service.url}/invocations", model.score.tolist()
    lists = [list(row.values()) for row in model.rows]

    code, kind, body = post(url, table(lists), "text/csv")
    assert (code, kind) == (200, "text/csv")
    assert [float(line.split(b",")[0]) for line in body.splitlines()] == want

    code, kind, body = post(url, to_json(instances=with_features(lists)))
    assert (code, kind) == (200, "application/json")
    assert scores_in(body) == want
    assert {"prediction_id", "decision", "outlier", "warnings"} <= set(json.loads(body)["predictions"][0])

    code, kind, body = post(url, to_lines(with_features(lists)), "application/jsonlines")
    assert (code, kind) == (200, "application/jsonlines")
    assert [json.loads(line)["score"] for line in body.splitlines()] == want

    code, kind, body = post(url, table(lists), "text/csv", Accept="application/jsonlines")
    assert (code, kind, len(body.splitlines())) == (200, "application/jsonlines", len(want))

    for refused in ("application/x-npy", "application/octet-stream", "application/x-recordio-protobuf"):
        code, kind, body = post(url, b"\x80\x04N.", refused)
        assert (code, kind) == (415, "application/json")
        assert "expected application/json" in json.loads(body)["error"]

    code, _, body = post(url, table(lists), "text/csv", Accept="application/x-recordio-protobuf")
    assert code == 406
    assert "answers in" in json.loads(body)["error"]

    with urllib.request.urlopen(f"{service.url}/ping") as response:
        assert response.status == 200


def test_vertex(vertex, model):
    body = to_json(instances=model.rows, parameters=None)
    code, kind, body = post(f"{vertex.url}/v1/models/{NAME}:predict", body)
    assert (code, kind) == (200, "application/json")
    assert scores_in(body) == model.score.tolist()
    assert json.loads(body)["metadata"]["version"] == model.version
