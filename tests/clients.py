"""Calls a running service with a platform's own Python client, and prints what it answered as one JSON object.

    python clients.py kserve|mlflow URL MODEL ROWS.json

Run by test_protocols.py with a Python that has these clients, because they cannot live beside this project's packages.
"""
import asyncio
import json
import sys
from pathlib import Path
from urllib.parse import urlsplit


async def kserve(url, model, rows):
    import numpy as np
    from httpx import HTTPStatusError
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

    def inputs(binary):
        "One tensor a column"
        tensors = []
        for column in rows[0]:
            values = [row[column] for row in rows]
            if any(isinstance(value, str) for value in values):
                datatype, array = "BYTES", np.array([value or "" for value in values], object)
            else:
                datatype, array = "FP64", np.array(values, np.float64)
            tensor = InferInput(column, list(array.shape), datatype)
            tensor.set_data_from_numpy(array, binary_data=binary)
            tensors.append(tensor)
        return tensors

    def outputs(response):
        tensors = {output.name: output.as_numpy().tolist() for output in response.outputs}
        return {name: values for name, values in tensors.items() if name in ("score", "decision")}

    answers = {}
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        answers["health"] = [
            await client.is_server_live(url),
            await client.is_server_ready(url),
            await client.is_model_ready(url, model),
        ]
        for way, binary, parameters in [("json", False, None), ("binary", True, dict(binary_data_output=True))]:
            request = InferRequest(model, inputs(binary), request_id=way, parameters=parameters)
            response = await client.infer(url, request, model_name=model)
            answers[way] = dict(id=response.id, **outputs(response))
        try:
            await client.infer(url, InferRequest(model, inputs(True)[1:]), model_name=model)
        except HTTPStatusError as error:
            answers["refused"] = str(error)
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        response = await client.infer(url, dict(instances=rows), model_name=model)
        answers["v1"] = [prediction["score"] for prediction in response["predictions"]]
    return answers


def mlflow(url, _model, rows):
    import pandas as pd
    import requests
    from mlflow.deployments import PredictionsResponse
    from mlflow.models import convert_input_example_to_serving_input
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    frame = pd.DataFrame(rows)
    client = ScoringServerClient(urlsplit(url).hostname, urlsplit(url).port)
    client.wait_server_ready(timeout=5)

    def scores(response): return response.get_predictions()["score"].tolist()

    def posted(body, kind):
        response = requests.post(f"{url}/invocations", body, headers={"Content-Type": kind}, timeout=30)
        return scores(PredictionsResponse.from_json(response.text))

    def example(value):
        "Scores of what MLflow makes of an input example"
        return posted(convert_input_example_to_serving_input(value), "application/json")

    answers = dict(
        frame=scores(client.invoke(frame)),
        params=scores(client.invoke(frame, params=dict(a=1))),
        shuffled=scores(client.invoke(frame[sorted(frame)])),
        version=client.get_version(),
        example=example(frame),
        records=example(rows),
        columns=example({column: [row[column] for row in rows] for column in frame}),
        one=example(rows[0]),
        csv=posted(frame.to_csv(index=False), "text/csv"),
    )
    try:
        client.invoke(frame.rename(columns={"age": "aeg"}))
    except Exception as error:
        answers["refused"] = str(error)
    return answers


def main(platform, url, model, file):
    rows = json.loads(Path(file).read_text())
    call = dict(kserve=lambda *args: asyncio.run(kserve(*args)), mlflow=mlflow)[platform]
    print(json.dumps(call(url, model, rows)))


if __name__ == "__main__":
    main(*sys.argv[1:])
