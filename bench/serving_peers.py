"""The peers' servers of `serving.py`, in environments of their own: one pipeline, trained in each by scikit-learn on the same rows.

    python serving_peers.py save FORMAT    with BENCH_SERVING=FOLDER: train, check the scores, write FOLDER/<format>
    python serving_peers.py batch IN OUT   score a CSV or Parquet file in process; prints seconds without imports and training
    bentoml serve serving_peers:Sklearn    and Onnx; uvicorn --factory serving_peers:fastapi_sklearn and fastapi_onnx
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
FEATURES = [f["name"] for f in SPEC["features"]]
CATEGORIES = {f["name"]: f["categories"] for f in SPEC["features"] if f["kind"] == "categorical"}
NUMERIC = [c for c in FEATURES if c not in CATEGORIES]
AT = {c: {v: float(i) for i, v in enumerate(levels)} for c, levels in CATEGORIES.items()}


def pipeline():
    "The pipeline; its trees must be the artifact's, so its scores are, on rows with missing and never-seen values too"
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder
    train, check = (pd.read_parquet(HERE/f"{k}.parquet") for k in ("train", "check"))
    encode = OrdinalEncoder(categories=list(CATEGORIES.values()), handle_unknown="use_encoded_value", unknown_value=np.nan)
    model = make_pipeline(make_column_transformer(("passthrough", NUMERIC), (encode, list(CATEGORIES))), HistGradientBoostingClassifier(**SPEC["params"]))
    model.fit(train[FEATURES], train["target"])
    away = np.abs(model.predict_proba(check[FEATURES])[:, 1] - check["score"]).max()
    assert away < 1e-12, f"the pipeline's scores are not the artifact's: {away}"
    return model, check


def save_onnx(model, check):
    "The trees alone: categories are looked up in Python. float32 inside, so the scores are nearly the same"
    import skl2onnx
    from skl2onnx.common import _container as c
    from skl2onnx.common.data_types import FloatTensorType
    node = c.make_node
    def whole(v): return [int(x) if isinstance(x, bool | np.bool_) else x for x in v] if isinstance(v, list) else v
    c.make_node = lambda *args, **kw: node(*args, **{k: whole(v) for k, v in kw.items()})            # skl2onnx 1.20 gives Booleans where onnx 1.23 takes integers
    onx = skl2onnx.to_onnx(model[-1], initial_types=[("codes", FloatTensorType([None, len(FEATURES)]))], options={id(model[-1]): {"zipmap": False}})
    (HERE/"onnx").write_bytes(onx.SerializeToString())
    away = np.abs(run_onnx(load_onnx(), check.astype(object).where(check.notna(), None).to_dict("records")) - check["score"]).max()
    assert away < 1e-5, f"ONNX Runtime's scores are off by {away}"


def save_mlserver(model, check):
    "MLServer reads nothing but pickles; this one is made and read by the same environment"
    import joblib
    (HERE/"mlserver").mkdir(exist_ok=True)
    joblib.dump(model, HERE/"mlserver/model.joblib")
    (HERE/"mlserver/settings.json").write_text(json.dumps(dict(parallel_workers=0)))          # one worker; its default of one more process does not start with uvloop 0.23
    (HERE/"mlserver/model-settings.json").write_text(json.dumps(dict(name="gss", implementation="mlserver_sklearn.SKLearnModel", parameters=dict(uri="./model.joblib", content_type="pd"))))


def save_mlflow(model, check):
    import mlflow
    mlflow.sklearn.save_model(model, HERE/"mlflow", pyfunc_predict_fn="predict_proba", signature=mlflow.models.infer_signature(check[FEATURES]),
                              skops_trusted_types=["sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"])


def load_onnx():
    import onnxruntime as ort
    opt = ort.SessionOptions()
    opt.intra_op_num_threads = 1
    return ort.InferenceSession(HERE/"onnx", opt)


def run_sklearn(model, rows): return model.predict_proba(pd.DataFrame(rows, columns=FEATURES))[:, 1]


def run_onnx(session, rows):
    def code(c, v): return np.nan if v is None else AT[c].get(v, np.nan) if c in AT else v
    return session.run(["probabilities"], {"codes": np.array([[code(c, r[c]) for c in FEATURES] for r in rows], np.float32)})[0][:, 1]


def row_type():
    from pydantic import create_model
    return create_model("Row", **{c: (str | None if c in CATEGORIES else float | None, None) for c in FEATURES})


def one(run, model, row): return {"score": float(run(model, [row.model_dump()])[0])}


def many(run, model, rows): return {"scores": run(model, [r.model_dump() for r in rows]).tolist()}


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


def save(kind): globals()[f"save_{kind}"](*pipeline())


def batch(source, out):
    model, _ = pipeline()
    start = time.perf_counter()
    df = pd.read_parquet(source) if source.endswith("parquet") else pd.read_csv(source)
    df["score"] = model.predict_proba(df[FEATURES])[:, 1]
    if out.endswith("parquet"): df.to_parquet(out, index=False)
    else: df.to_csv(out, index=False)
    print(time.perf_counter() - start)


def __getattr__(name):
    "A BentoML service is made when it is asked for, so that the other environments need no BentoML"
    if name not in ("Sklearn", "Onnx"): raise AttributeError(name)
    globals()[name] = bento_sklearn() if name == "Sklearn" else bento_onnx()
    return globals()[name]


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
