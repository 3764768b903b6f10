"""Calls a running service with a platform's own Python client, and prints what it gave as one JSON object.

    python clients.py kserve|mlflow URL MODEL ROWS.json

Run by test_protocols.py with a Python that has these clients, because they cannot live beside this project's packages.
"""
import asyncio
import json
import sys
from urllib.parse import urlsplit


async def kserve(url, model, rows):
    import numpy as np
    from httpx import HTTPStatusError
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

    def inputs(binary):
        out = []
        for c in rows[0]:
            values = [r[c] for r in rows]
            text = any(isinstance(v, str) for v in values)
            a = np.array([v or "" for v in values] if text else values, object if text else np.float64)
            out.append(InferInput(c, list(a.shape), "BYTES" if text else "FP64"))
            out[-1].set_data_from_numpy(a, binary_data=binary)
        return out

    def tensors(got): return {o.name: o.as_numpy().tolist() for o in got.outputs}
    said = {}
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as c:
        said["health"] = [await c.is_server_live(url), await c.is_server_ready(url), await c.is_model_ready(url, model)]
        for name, binary, parameters in [("json", False, None), ("binary", True, dict(binary_data_output=True))]:
            got = await c.infer(url, InferRequest(model, inputs(binary), request_id=name, parameters=parameters), model_name=model)
            said[name] = dict(id=got.id, **{k: v for k, v in tensors(got).items() if k in ("score", "decision")})
        try: await c.infer(url, InferRequest(model, inputs(True)[1:]), model_name=model)
        except HTTPStatusError as e: said["refused"] = str(e)
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as c: said["v1"] = [p["score"] for p in (await c.infer(url, dict(instances=rows), model_name=model))["predictions"]]
    return said


def mlflow(url, model, rows):
    import pandas as pd
    import requests
    from mlflow.deployments import PredictionsResponse
    from mlflow.models import convert_input_example_to_serving_input
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient
    frame = pd.DataFrame(rows)
    c = ScoringServerClient(urlsplit(url).hostname, urlsplit(url).port)
    c.wait_server_ready(timeout=5)
    def scores(got): return got.get_predictions()["score"].tolist()
    def example(x):
        "Scores of what MLflow makes of an input example"
        got = requests.post(f"{url}/invocations", convert_input_example_to_serving_input(x), headers={"Content-Type": "application/json"}, timeout=30)
        return scores(PredictionsResponse.from_json(got.text))
    said = dict(frame=scores(c.invoke(frame)), params=scores(c.invoke(frame, params=dict(a=1))), shuffled=scores(c.invoke(frame[sorted(frame)])), version=c.get_version())
    said |= dict(example=example(frame), records=example(rows), columns=example({k: [r[k] for r in rows] for k in frame}), one=example(rows[0]))
    got = requests.post(f"{url}/invocations", frame.to_csv(index=False), headers={"Content-Type": "text/csv"}, timeout=30)
    said["csv"] = scores(PredictionsResponse.from_json(got.text))
    try: c.invoke(frame.rename(columns={"age": "aeg"}))
    except Exception as e: said["refused"] = str(e)
    return said


if __name__ == "__main__":
    client, url, model, rows = sys.argv[1:]
    with open(rows) as f: rows = json.load(f)
    got = dict(kserve=lambda *a: asyncio.run(kserve(*a)), mlflow=mlflow)[client](url, model, rows)
    print(json.dumps(got))
