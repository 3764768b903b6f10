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

PARQUET = "application/vnd.apache.parquet"


def served_model(clone): return load(clone.root/"release/served/model")


def without_pythonpath(clone): return {name: value for name, value in clone.env.items() if name != "PYTHONPATH"}


def as_json_value(value): return float(value) if isinstance(value, (float, np.floating)) else value


@pytest.fixture(scope="module")
def rows(clone):
    "Rows as a caller sends them, and the scores that the audited evaluator gives them"
    df = pd.read_parquet(clone.root/"data/split/windows/2014-18.parquet").head(300)
    model = served_model(clone)
    features = df[model.encoder.features]
    records = features.astype(object).where(features.notna(), None).to_dict("records")
    return [{name: as_json_value(value) for name, value in record.items()} for record in records], model.score(df)


def test_make_serve_listens_here_only(clone):
    command = clone.run("make -n -o .venv/.ready serve").stdout.strip().splitlines()[-1]
    assert command.startswith("bentoml serve mlgov_nb.service:Mlgov")
    assert "--host 127.0.0.1 --port 3000" in command


def test_one_row_and_many_score_like_the_audit(service, clone, rows):
    records, expected = rows
    code, answer = service.ask("/v1/predict", dict(rows=records))
    assert code == 200
    predictions = answer["predictions"]
    assert [p["score"] for p in predictions] == expected.tolist(), "bit-equal to the audited evaluator"

    code, answer = service.ask("/v1/predict", records[7])
    alone, among_many = answer["predictions"][0], predictions[7]
    assert {**alone, "prediction_id": None} == {**among_many, "prediction_id": None}
    assert alone["model"] == "boosting_reduced" and alone["arm"] == "champion"
    assert alone["decision"] == int(expected[7] >= 0.5) and alone["outlier"] in (True, False)

    model = served_model(clone)
    outliers = stored_outliers(model)
    is_outlier = outliers.score(codes_of(model.encoder, records)) > outliers.cut
    assert [p["outlier"] for p in predictions] == is_outlier.tolist(), "the flag of the audits"


def test_the_readme_commands(service):
    commands = [line for line in (ROOT/"README.md").read_text().splitlines() if line.startswith("curl ")]
    assert len(commands) >= 2
    for command in commands:
        here = command.replace("http://127.0.0.1:3000", service.url)
        result = subprocess.run(here, shell=True, capture_output=True, text=True, check=True, cwd=service.root)
        assert "error" not in json.loads(result.stdout), result.stdout


def described_examples(spec):
    "Path, method and example of every JSON body that the OpenAPI description shows"
    for path, operations in spec["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for example in content.get("examples", {}).values(): yield path, method.upper(), example


def test_the_described_examples_work(service):
    spec = service.ask("/openapi.json")[1]
    for path, method, example in described_examples(spec):
        assert service.ask(path, example["value"], method)[0] == 200, (path, example)


REFUSED = [    # a body made of a good row, the status, a part of the message
    (lambda row: {k: row[k] for k in row if k != "age"},   422, "`age`"),
    (lambda row: {**row, "agee": 1},                       422, "`agee`"),
    (lambda row: {**row, "age": "41"},                     422, "`age` is the text '41'; expected a number or null"),
    (lambda row: {**row, "age": True},                     422, "`age` is true"),
    (lambda row: {**row, "educcat": 3},                    422, "`educcat` is the number 3"),
    (lambda _: dict(rows=[]),                              422, "at least one"),
    (lambda row: dict(rows=[row, {**row, "age": "x"}]),    422, "row 1: `age`"),
    (lambda row: dict(rows=[row] * 10_001),                413, "too many"),
    (lambda row: [row],                                    422, "found a list"),
    (lambda _: b"{broken",                                 400, "not valid JSON"),
    (lambda _: b"",                                        400, "the body is empty"),
    (lambda row: json.dumps({**row, "age": float("nan")}).encode(), 400, "JSON"),
    (lambda row: re.sub(r'"age": [\d.]+', '"age": 1e999', json.dumps(row)).encode(), 422, "age"),
    (lambda _: b" " * (9 * 2**20),                         413, "larger than"),
]


@pytest.mark.parametrize("change, code, text", REFUSED)
def test_what_cannot_be_understood_is_refused_by_name(service, rows, change, code, text):
    good_row = {**rows[0][0], "age": 41.0}
    status, answer = service.ask("/v1/predict", change(good_row))
    assert status == code and text in answer["error"], (status, answer)
    assert "Traceback" not in json.dumps(answer)
    assert str(service.root) not in answer["error"]


def predict_one(service, row): return service.ask("/v1/predict", row)[1]["predictions"][0]


def test_what_training_never_saw_is_said(service, rows):
    row = rows[0][0]
    unseen = predict_one(service, {**row, "educcat": "PhD", "age": 130})
    missing = predict_one(service, {**row, "educcat": None, "age": 130})
    assert len(unseen["warnings"]) == 2
    assert "'PhD' was never seen in training; scored as missing" in unseen["warnings"][1]
    assert unseen["score"] == missing["score"] and unseen["outlier"]

    empty = predict_one(service, dict.fromkeys(row))
    assert empty["warnings"] == ["every feature is missing: the score describes no particular person"]


def test_reasons_are_those_of_the_command_line(service, clone):
    command = "mlgov explain release/served/model data/sample/2014-18.parquet --row 53950 --changes --json"
    explained = json.loads(clone.run(command).stdout)

    row = pd.read_parquet(clone.root/"data/sample/2014-18.parquet").set_index("id").loc[53950]
    encoder = served_model(clone).encoder
    def sent(feature):
        if pd.isna(row[feature]): return None
        return float(row[feature]) if feature in encoder.numeric else row[feature]
    code, answer = service.ask("/v1/explain?counterfactuals=true", {f: sent(f) for f in encoder.features})

    assert code == 200
    prediction = answer["predictions"][0]
    for key in ("score", "base", "contributions", "reasons"): assert prediction[key] == explained[key], key
    assert prediction["counterfactuals"] == json.loads(json.dumps(explained["counterfactuals"]))


def post_batch(service, body, kind):
    "Send a file of a kind to be scored; the file of the same kind that comes back"
    request = urllib.request.Request(f"{service.url}/v1/batch", body, {"Content-Type": kind, "Accept": kind})
    with urllib.request.urlopen(request, timeout=120) as response: return response.read()


def test_a_file_is_scored(service, clone):
    file = clone.root/"data/split/windows/2014-18.parquet"
    df, model = pd.read_parquet(file), served_model(clone)
    expected = model.score(df).tolist()

    sealed_before = len(list(service.folder.glob("*.parquet")))
    out = clone.root/"out.parquet"
    out.write_bytes(post_batch(service, file.read_bytes(), PARQUET))
    scored = pq.read_table(out).to_pandas()
    assert scored.score.tolist() == expected and scored.id.tolist() == df.id.tolist()
    assert scored.prediction_id.is_unique
    assert len(list(service.folder.glob("*.parquet"))) > sealed_before, "in the log"

    first_rows = df[["id", *model.encoder.features]].head(50).to_csv(index=False).encode()
    assert len(post_batch(service, first_rows, "text/csv").decode().splitlines()) == 51
    out.unlink()

    result = clone.run(f"MLGOV_LOG_DIR={service.folder} mlgov predict release/champion {file} -o out.csv")
    out = clone.root/"out.csv"
    scored = pd.read_csv(out, float_precision="round_trip")
    assert scored.score.tolist() == pytest.approx(expected, abs=0)
    assert "rows" in result.stdout + result.stderr
    out.unlink()


def test_the_model_says_what_it_is(service, clone):
    code, answer = service.ask("/v1/model")
    assert code == 200
    assert answer["card"]["title"] and answer["card"]["limits"]
    assert answer["limits"]["max_rows"] == 10_000 and answer["protected"] == ["gender"]
    assert answer["strange"] == dict(unseen="warn", out_of_range="warn")
    assert {f["name"] for f in answer["features"]} >= {"age", "educcat"}
    assert answer["model"]["version"] == served_model(clone).version


def test_a_built_bento_serves_too(clone, rows, tmp_path):
    records, expected = rows
    bento = Service(tmp_path, without_pythonpath(clone), workers=1, log=tmp_path/"log")
    try:
        bento.start(f"mlgov:{served_model(clone).version}")
        assert predict_one(bento, records[0])["score"] == expected[0]
        assert bento.ask("/docs")[0] == 200
        assert len(bento.records()) == 1
    finally: bento.stop()


def test_a_bento_wants_to_know_where_its_log_is(clone, tmp_path):
    command = ["bentoml", "serve", f"mlgov:{served_model(clone).version}", "--port", "0"]
    result = subprocess.run(command, cwd=tmp_path, env=without_pythonpath(clone), capture_output=True, text=True,
                            timeout=60)
    assert result.returncode
    assert "MLGOV_LOG_DIR is not set" in result.stdout + result.stderr
