"""The peers' servers of `serving.py`, in environments of their own: one pipeline, trained in each by scikit-learn on
the same rows.

    python serving_peers.py save FORMAT    train, check the scores, write FOLDER/<format>
    python serving_peers.py batch IN OUT   score a CSV or Parquet file in process; prints seconds without imports and
                                           training
    bentoml serve serving_peers:Sklearn    and Onnx
    uvicorn --factory serving_peers:fastapi_sklearn    and fastapi_onnx

BENCH_SERVING=FOLDER names the folder that `serving.py` prepared.
"""
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(os.environ.get("BENCH_SERVING", "."))
SPEC = json.loads((HERE/"spec.json").read_text())
FEATURES = [feature["name"] for feature in SPEC["features"]]
CATEGORIES = {
    feature["name"]: feature["categories"]
    for feature in SPEC["features"]
    if feature["kind"] == "categorical"
}
NUMERIC = [name for name in FEATURES if name not in CATEGORIES]
CODES = {name: {level: float(code) for code, level in enumerate(levels)} for name, levels in CATEGORIES.items()}


# The model in each format
def largest_difference(scores, check):
    "To the artifact's scores"
    return np.abs(scores - check["score"]).max()


def pipeline():
    "The pipeline; its trees must be the artifact's, so its scores are, on rows with missing and never-seen values too"
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder
    train, check = (pd.read_parquet(HERE/f"{name}.parquet") for name in ("train", "check"))
    encode = OrdinalEncoder(
        categories=list(CATEGORIES.values()),
        handle_unknown="use_encoded_value",
        unknown_value=np.nan,
    )
    transform = make_column_transformer(("passthrough", NUMERIC), (encode, list(CATEGORIES)))
    model = make_pipeline(transform, HistGradientBoostingClassifier(**SPEC["params"]))
    model.fit(train[FEATURES], train["target"])
    difference = largest_difference(model.predict_proba(check[FEATURES])[:, 1], check)
    assert difference < 1e-12, f"the pipeline's scores are not the artifact's: {difference}"
    return model, check


def without_booleans(value):
    "A list with numbers in place of Booleans; anything else as it is"
    if not isinstance(value, list): return value
    return [int(item) if isinstance(item, bool | np.bool_) else item for item in value]


def save_onnx(model, check):
    "The trees alone: categories are looked up in Python. float32 inside, so the scores are nearly the same"
    import skl2onnx
    from skl2onnx.common import _container as container
    from skl2onnx.common.data_types import FloatTensorType
    make_node = container.make_node
    def make_integer_node(*args, **kwargs):          # skl2onnx 1.20 gives Booleans where onnx 1.23 takes integers
        return make_node(*args, **{name: without_booleans(value) for name, value in kwargs.items()})
    container.make_node = make_integer_node
    trees = model[-1]
    onnx_model = skl2onnx.to_onnx(
        trees,
        initial_types=[("codes", FloatTensorType([None, len(FEATURES)]))],
        options={id(trees): {"zipmap": False}},
    )
    (HERE/"onnx").write_bytes(onnx_model.SerializeToString())
    rows = check.astype(object).where(check.notna(), None).to_dict("records")
    difference = largest_difference(run_onnx(load_onnx(), rows), check)
    assert difference < 1e-5, f"ONNX Runtime's scores are off by {difference}"


def save_mlserver(model, check):  # noqa: ARG001 - every format is saved by the same call
    "MLServer reads nothing but pickles; this one is made and read by the same environment"
    import joblib
    folder = HERE/"mlserver"
    folder.mkdir(exist_ok=True)
    joblib.dump(model, folder/"model.joblib")
    # one worker; its default of one more process does not start with uvloop 0.23
    (folder/"settings.json").write_text(json.dumps(dict(parallel_workers=0)))
    settings = dict(
        name="gss",
        implementation="mlserver_sklearn.SKLearnModel",
        parameters=dict(uri="./model.joblib", content_type="pd"),
    )
    (folder/"model-settings.json").write_text(json.dumps(settings))


def save_mlflow(model, check):
    import mlflow
    mlflow.sklearn.save_model(
        model,
        HERE/"mlflow",
        pyfunc_predict_fn="predict_proba",
        signature=mlflow.models.infer_signature(check[FEATURES]),
        skops_trusted_types=["sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"],
    )


def load_onnx():
    import onnxruntime as ort
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(HERE/"onnx", options)


# Scores of rows
def run_sklearn(model, rows): return model.predict_proba(pd.DataFrame(rows, columns=FEATURES))[:, 1]


def code_of(name, value):
    "What the trees see of a value; a missing value and a category that was never seen are NaN"
    if value is None: return np.nan
    return CODES[name].get(value, np.nan) if name in CODES else value


def run_onnx(session, rows):
    codes = np.array([[code_of(name, row[name]) for name in FEATURES] for row in rows], np.float32)
    return session.run(["probabilities"], {"codes": codes})[0][:, 1]


def row_type():
    "The pydantic model of a row, in which every feature may be missing"
    from pydantic import create_model
    fields = {name: (str | None if name in CATEGORIES else float | None, None) for name in FEATURES}
    return create_model("Row", **fields)


def one(run, model, row): return {"score": float(run(model, [row.model_dump()])[0])}


def many(run, model, rows): return {"scores": run(model, [row.model_dump() for row in rows]).tolist()}


# Servers
def fastapi(model, run):
    "`async def`, which is faster on one core than FastAPI's threads"
    from fastapi import FastAPI
    app, Row = FastAPI(), row_type()

    @app.post("/predict")
    async def predict(row: Row) -> dict: return one(run, model, row)

    @app.post("/predict_many")
    async def predict_many(rows: list[Row]) -> dict: return many(run, model, rows)

    return app


def fastapi_sklearn(): return fastapi(pipeline()[0], run_sklearn)


def fastapi_onnx(): return fastapi(load_onnx(), run_onnx)


def bento_sklearn():
    "BentoML by its documentation, all defaults"
    import bentoml
    Row = row_type()

    @bentoml.service
    class Sklearn:
        def __init__(self): self.model = pipeline()[0]

        @bentoml.api
        def predict(self, row: Row) -> dict: return one(run_sklearn, self.model, row)

        @bentoml.api
        def predict_many(self, rows: list[Row]) -> dict: return many(run_sklearn, self.model, rows)

    return Sklearn


def bento_onnx():
    "The same with ONNX Runtime, quick enough to be `async`"
    import bentoml
    Row = row_type()

    @bentoml.service
    class Onnx:
        def __init__(self): self.model = load_onnx()

        @bentoml.api
        async def predict(self, row: Row) -> dict: return one(run_onnx, self.model, row)

        @bentoml.api
        async def predict_many(self, rows: list[Row]) -> dict: return many(run_onnx, self.model, rows)

    return Onnx


# Commands
def save(kind):
    "Train, and write the model in one format"
    save_format = dict(onnx=save_onnx, mlserver=save_mlserver, mlflow=save_mlflow)[kind]
    save_format(*pipeline())


def batch(source, out):
    "Score the rows of a file; prints seconds without imports and training"
    model, _ = pipeline()
    start = time.perf_counter()
    rows = pd.read_parquet(source) if source.endswith("parquet") else pd.read_csv(source)
    rows["score"] = model.predict_proba(rows[FEATURES])[:, 1]
    if out.endswith("parquet"): rows.to_parquet(out, index=False)
    else: rows.to_csv(out, index=False)
    print(time.perf_counter() - start)


def __getattr__(name):
    "A BentoML service is made when it is asked for, so that the other environments need no BentoML"
    services = dict(Sklearn=bento_sklearn, Onnx=bento_onnx)
    if name not in services: raise AttributeError(name)
    globals()[name] = services[name]()
    return globals()[name]


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    dict(save=save, batch=batch)[command](*arguments)
