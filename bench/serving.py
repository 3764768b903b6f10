"""The released model over HTTP beside peers that serve the same trees: same machine, a core each for server and client,
one worker.

Every server answers the same real rows, missing values among them, and is first held to the artifact's own scores. The
servers take turns in each round, so that a slow minute of the machine meets all of them. Ours checks the schema,
counts, and has each row in its log before the answer leaves; what the log holds is compared with what was answered.

    python bench/serving.py              everything; some half an hour
    python bench/serving.py --soak 60    ours alone, 60 minutes at half of saturation: latency and memory; the log grows
                                         by some GB
    python bench/serving.py --small      a smoke test, into .bench/, without MLServer and mlflow
"""
import contextlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import psutil
from peers import PINS, python_of
from report import HERE, command_line, document, machine, summary, table, versions, write

from mlgov_nb.data.read import read_rows
from mlgov_nb.files import atomic_dir, write_json
from mlgov_nb.log.segment import segments
from mlgov_nb.model.artifact import add_document, load
from mlgov_nb.model.encoding import codes
from mlgov_nb.model.outliers import fit_outliers, to_arrays

ROOT = HERE.parent
WORK, BIN = ROOT/".bench/serving", Path(sys.executable).parent
PIN = hasattr(os, "sched_setaffinity") and os.cpu_count() > 1
WRK = shutil.which("wrk")
WEB = httpx.Client(timeout=600)
MODEL, BASE, OURS = "gradient_boosting", "BentoML, scikit-learn", "mlgov-nb"
LEVELS = (1, 16, 64)             # connections
MANY = 10_000                    # rows of a large request
ENV = {
    **os.environ,
    "BENCH_SERVING": str(WORK),
    "OMP_NUM_THREADS": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
FULL, SMALL = dict(rounds=3, seconds=4, rows=1_000_000), dict(rounds=1, seconds=1, rows=50_000)
NUMERIC = set()                  # features that are numbers, from `prepare`


def progress(message): print(message, file=sys.stderr, flush=True)


def texts(command): return [str(part) for part in command]


# Who is asked, and how
@dataclass
class Route:
    path: str
    body: Callable                  # rows -> what is sent as JSON
    scores: Callable                # what is answered -> scores


@dataclass
class Server:
    name: str
    command: list                   # {port}, {second} and {third} are free ports
    ready: str                      # answers 200 when the model is loaded
    one: Route
    many: list = field(default_factory=list)
    env: dict = field(default_factory=dict)
    cwd: Path = HERE
    close: float = 1e-12            # how near its scores must be to the artifact's

    def log_folder(self):
        "Of ours; of others a folder that is not there"
        return self.env.get("MLGOV_LOG_DIR", WORK/"none")


def v2_tensor(name, values):
    return dict(name=name, shape=[len(values)], datatype="FP64" if name in NUMERIC else "BYTES", data=values)


def v2_scores(answer):
    output = answer["outputs"][0]
    return output["data"][1::2] if output["name"] == "predict_proba" else output["data"]


def v2(model, **more):
    "Open Inference Protocol: a tensor per column"
    def body(rows):
        inputs = [v2_tensor(name, [row[name] for row in rows]) for name in rows[0]]
        return dict(inputs=inputs, **more)
    return Route(f"/v2/models/{model}/infer", body, v2_scores)


def bentoml_command(program, service, *more):
    return (program, "serve", service, *more, "--host", "127.0.0.1", "--port", "{port}")


def ours(name=OURS, command=bentoml_command(BIN/"bentoml", "mlgov_nb.service:Mlgov"), **env):
    "Our service, with a log folder of its own"
    folder = slug(name)
    env = dict(
        MLGOV_WORKERS="1",
        MLGOV_SERVED=WORK/"release",
        MLGOV_LOG_DIR=WORK/"log"/folder,
        MLGOV_FSYNC="interval",
        BENTOML_HOME=WORK/"home"/folder,
    ) | env
    def body(rows): return rows[0] if len(rows) == 1 else {"rows": rows}
    def scores(answer): return [prediction["score"] for prediction in answer["predictions"]]
    plain = Route("/v1/predict", body, scores)
    return Server(name, command, "/readyz", plain, [plain, v2(MODEL)], env, ROOT)


BARE = """
import sys, uvicorn, uvloop
from mlgov_nb.serve.app import App
async def main():
    app = App()
    await app.start()
    port = int(sys.argv[1])
    config = uvicorn.Config(app, port=port, access_log=False, log_level="warning", lifespan="off")
    await uvicorn.Server(config).serve()
    await app.stop()
uvloop.run(main())
"""
UNLOGGED = """
from mlgov_nb.serve.worker import Worker
Worker.keep = lambda worker, scorer, scored: worker.counters.count_scored(scorer, scored)
"""
WITHOUT_LOG = "without BentoML and without the log (only here: the service has no such switch)"
VARIANTS = {
    "everything; the disk is made to keep the log each 100 ms": {},
    "the disk is made to keep the log before each answer": dict(MLGOV_FSYNC="always"),
    "the disk keeps the log when it likes": dict(MLGOV_FSYNC="never"),
    "through BentoML's own middlewares": dict(
        command=bentoml_command(BIN/"bentoml", "serving_inner:Mlgov", "--working-dir", HERE)),
    "without BentoML: the same application in uvicorn": dict(command=(sys.executable, "-c", BARE, "{port}")),
    WITHOUT_LOG: dict(command=(sys.executable, "-c", UNLOGGED + BARE, "{port}")),
}


def one_score(answer): return [answer["score"]]


def many_scores(answer): return answer["scores"]


def bento_server(programs, name, service, **more):
    one = Route("/predict", lambda rows: {"row": rows[0]}, one_score)
    many = Route("/predict_many", lambda rows: {"rows": rows}, many_scores)
    command = bentoml_command(programs/"bentoml", f"serving_peers:{service}")
    return Server(name, command, "/readyz", one, [many], dict(BENTOML_HOME=WORK/"home"/service), **more)


def fastapi_server(programs, name, app, **more):
    one = Route("/predict", lambda rows: rows[0], one_score)
    many = Route("/predict_many", lambda rows: rows, many_scores)
    command = [programs/"uvicorn", "--factory", f"serving_peers:{app}", "--no-access-log", "--port", "{port}"]
    return Server(name, command, "/openapi.json", one, [many], **more)


def mlserver_server(programs, name):
    infer = v2("gss", outputs=[{"name": "predict_proba"}])
    ports = dict(MLSERVER_HTTP_PORT="{port}", MLSERVER_GRPC_PORT="{second}", MLSERVER_METRICS_PORT="{third}")
    command = [programs/"mlserver", "start", WORK/"mlserver"]
    return Server(name, command, "/v2/models/gss/ready", infer, [infer], ports)


def mlflow_server(programs, name):
    def body(rows):
        return {"dataframe_split": dict(columns=list(rows[0]), data=[list(row.values()) for row in rows])}
    def scores(answer): return [probabilities[1] for probabilities in answer["predictions"]]
    invocations = Route("/invocations", body, scores)
    command = [programs/"mlflow", "models", "serve", "-m", WORK/"mlflow", "--env-manager", "local",
               "--workers", "1", "--port", "{port}"]
    path = f"{programs}:{os.environ['PATH']}"
    return Server(name, command, "/ping", invocations, [invocations], dict(PATH=path))


def peers(small):
    "Servers of the same trees; one whose environment cannot be made is left out, with a message"
    programs = {}
    for name in ("fastapi", *([] if small else ["mlserver", "mlflow"])):
        python = python_of(name)
        if python: programs[name] = python.parent
    if "fastapi" in programs:
        place = programs["fastapi"]
        yield bento_server(place, BASE, "Sklearn")
        yield bento_server(place, "BentoML, ONNX Runtime", "Onnx", close=1e-5)
        yield fastapi_server(place, "FastAPI, scikit-learn", "fastapi_sklearn")
        yield fastapi_server(place, "FastAPI, ONNX Runtime", "fastapi_onnx", close=1e-5)
    if "mlserver" in programs: yield mlserver_server(programs["mlserver"], "MLServer, scikit-learn")
    if "mlflow" in programs: yield mlflow_server(programs["mlflow"], "mlflow, scikit-learn")


# What is served, and what is sent
def slug(name): return re.sub(r"\W+", "-", name.lower())[:40]


def records(rows): return rows.astype(object).where(rows.notna(), None).to_dict("records")


def lines(name, bodies):
    "A file of bodies, one a line"
    file = WORK/f"{slug(name)}.jsonl"
    file.write_text("".join(json.dumps(body, separators=(",", ":")) + "\n" for body in bodies))
    return file


def prepare_peers(art, features, small):
    "What the peers train and are checked with; then their models"
    split, target = ROOT/"data/split", art.meta["target"]["name"]
    train = read_rows(split/"train.parquet").dropna(subset=[target])
    train[features].assign(target=train[target]).to_parquet(WORK/"train.parquet")
    check = read_rows(art.folder/"parity.parquet")[features]
    check.assign(score=art.score(check)).to_parquet(WORK/"check.parquet")
    params = dict(
        art.meta["recipe"]["params"],
        early_stopping=True,
        n_iter_no_change=20,
        validation_fraction=0.1,
        scoring="loss",
        random_state=art.meta["seed"],
    )
    write_json(WORK/"spec.json", dict(features=art.meta["features"], params=params), digits=None)
    environments = dict(onnx="fastapi") if small else dict(onnx="fastapi", mlserver="mlserver", mlflow="mlflow")
    for kind, environment in environments.items():
        python = python_of(environment)
        if not python: continue
        command = [python, "-W", "ignore", HERE/"serving_peers.py", "save", kind]
        subprocess.run(command, env=ENV, check=True, stdout=subprocess.DEVNULL)


def prepare_release(art, reference):
    "The artifact as a released model"
    outliers = to_arrays(fit_outliers(art.encoder, codes(art.encoder, reference)))
    about = dict(
        card=art.meta["card"],
        title="Benchmark",
        use="Benchmark",
        selection="",
        model=dict(name=art.name, version=art.version),
        example=records(reference[art.encoder.features].dropna().head(1))[0],
    )
    with atomic_dir(WORK/"release") as folder:
        shutil.copytree(art.folder, folder/"model")
        add_document(folder/"model", "outliers", outliers)
        write_json(folder/"RELEASE.json", about)


def prepare(small):
    "The peers' and our form of one model; the artifact, and the rows of all windows"
    split, model = ROOT/"data/split", ROOT/"models"/MODEL
    if not (split/"split.json").is_file() or not model.is_dir():
        raise SystemExit(f"models/{MODEL} or data/split is not there; `make run` makes them")
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    art = load(model)
    features = art.encoder.features
    NUMERIC.update(art.encoder.numeric)
    prepare_peers(art, features, small)
    prepare_release(art, read_rows(split/"reference.parquet"))
    windows = [read_rows(file)[features] for file in sorted((split/"windows").glob("*.parquet"))]
    return art, pd.concat(windows, ignore_index=True)


# A server that runs
class Running:
    "A started server, and how many rows it has answered"
    def __init__(self, server, process, url):
        self.server, self.process, self.url = server, process, url
        self.rows = self.loads = 0

    def memory(self, key="VmHWM"):
        "MiB of the largest process, at its peak or now (VmRSS)"
        children = psutil.Process(self.process.pid).children(recursive=True)
        statuses = [Path(f"/proc/{pid}/status").read_text()
                    for pid in (self.process.pid, *(child.pid for child in children))]
        return max(int(re.search(rf"{key}:\s+(\d+)", status)[1]) for status in statuses) / 1024

    def done(self, result, rows=1):
        "Count what was answered; an answer that is no success ends the benchmark"
        assert result["n"] and not result["bad"], f"{self.server.name}: {result}"
        self.rows += result["n"] * rows
        self.loads += 1
        return result | dict(rate=result["n"] / result["seconds"])

    def load(self, path, file, connections, seconds, rate=None, rows=1):
        "As fast as answers come, by wrk; many rows in a request, or a constant rate, by our client"
        url = self.url + path
        if WRK and not rate and rows == 1: command = wrk_command(url, file, connections, seconds)
        else: command = client_command(url, file, connections, seconds, rate)
        result = subprocess.run(texts(command), capture_output=True, text=True)
        ended = " has ended" if self.process.poll() is not None else ""
        assert not result.returncode, f"{self.server.name}{ended}: {result.stderr[-1000:]}"
        return self.done(json.loads(result.stdout.strip().splitlines()[-1]), rows)

    def ask(self, route, rows):
        "The answer to rows by one request"
        response = WEB.post(self.url + route.path, json=route.body(rows))
        assert response.status_code == 200, \
            f"{self.server.name} {route.path}: {response.status_code} {response.text[:500]}"
        self.done(dict(n=1, bad=0, seconds=1), len(rows))
        return response.json()


def wrk_command(url, file, connections, seconds):
    duration = max(1, round(seconds))
    return [WRK, "-t1", f"-c{connections}", f"-d{duration}s", "--timeout", "60s", "-s", HERE/"serving.lua",
            url, "--", file]


def client_command(url, file, connections, seconds, rate=None, *more):
    command = [sys.executable, HERE/"serving_client.py", url, file, "--connections", connections, "--seconds", seconds]
    if rate: command += ["--rate", rate]
    return [*command, *more]


def pinned(core): return (lambda: os.sched_setaffinity(0, {core})) if PIN else None


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def start(server, ports, output):
    "The server's process, with its free ports filled in"
    with output.open("w") as out:
        return subprocess.Popen(
            [str(part).format(**ports) for part in server.command],
            cwd=server.cwd,
            env=ENV | {name: str(value).format(**ports) for name, value in server.env.items()},
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=pinned(0),
        )


def is_ready(url):
    try: return WEB.get(url).status_code == 200
    except httpx.HTTPError: return False


def stop(process):
    "End a process with all that it started, at last by force"
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError): os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired): process.wait(20)


@contextlib.contextmanager
def running(server, patience=120):
    "Start a server on core 0, wait until it is ready, in the end stop it with all its processes"
    ports = dict(zip(("port", "second", "third"), free_ports(3), strict=True))
    shutil.rmtree(server.log_folder(), ignore_errors=True)
    output = WORK/f"{slug(server.name)}.out"
    process = start(server, ports, output)
    url, end = f"http://127.0.0.1:{ports['port']}", time.monotonic() + patience
    try:
        while not is_ready(url + server.ready):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{server.name} did not start; {output}:\n{output.read_text()[-2000:]}")
            time.sleep(0.2)
        yield Running(server, process, url)
    finally:
        stop(process)
        shutil.rmtree(server.log_folder(), ignore_errors=True)      # some GB


# What is held to be right
def check_scores(run, rows, art):
    "Row by row, and all at once by each route"
    server = run.server
    expected = art.score(pd.DataFrame(rows, columns=art.encoder.features))
    scores = {"rows": [server.one.scores(run.ask(server.one, [row]))[0] for row in rows]}
    for route in server.many: scores[route.path] = route.scores(run.ask(route, rows))
    for way, answered in scores.items():
        difference = np.abs(np.array(answered, float) - expected).max()
        assert difference <= server.close, f"{server.name} {way}: scores are off by {difference}"


def prediction_ids(file):
    "The ids in a file of the log"
    if file.suffix == ".parquet":
        return pd.read_parquet(file, columns=["prediction_id"]).prediction_id.to_numpy("S36")
    return np.array(re.findall(rb'"prediction_id":"([^"]{36})"', file.read_bytes()), "S36")


def logged(run): return segments(run.server.env["MLGOV_LOG_DIR"], "predictions")


def check_log(run):
    "Every answered row is in the log, once; at the end of a load, at most its connections are logged but not heard of"
    ids = np.concatenate([prediction_ids(segment.file) for segment in logged(run)])
    count, different = len(ids), len(np.unique(ids))
    assert count == different and run.rows <= count <= run.rows + 64 * run.loads, \
        f"{run.rows:,} rows were answered, {count:,} are in the log, {count - different:,} of them twice"
    return dict(answered=run.rows, logged=count)


# Measurements: each gives rows of a table
def rounds(jobs, size, levels=LEVELS):
    "Medians of {name: (server, path, file)} at each number of connections; the servers take turns"
    results = {}
    for run, path, file in jobs.values(): run.load(path, file, 16, 1)
    for _, (name, (run, path, file)), connections in itertools.product(range(size["rounds"]), jobs.items(), levels):
        time.sleep(0.3)
        result = run.load(path, file, connections, size["seconds"])
        results.setdefault((name, connections), []).append(result)
        progress(f"{name}, {connections} connections: {result['rate']:,.0f} req/s, p99 {result['p99']:.1f} ms")
    def medians(of): return {key: statistics.median(result[key] for result in of) for key in ("rate", "p50", "p99")}
    return {key: medians(of) for key, of in results.items()}


def one_row(runs, rows, size):
    "One row in a request"
    jobs = {}
    for run in runs:
        route = run.server.one
        jobs[run.server.name] = (run, route.path, lines(run.server.name, [route.body([row]) for row in rows]))
    results, table_rows = rounds(jobs, size), []
    for name, (run, path, file) in jobs.items():
        rate = results[name, 16]["rate"]
        half = run.load(path, file, 64, size["seconds"], rate=max(1, rate / 2))
        row = {"server": name}
        for connections in LEVELS: row[f"req/s, {connections}"] = results[name, connections]["rate"]
        for connections in (1, 16): row[f"p50 ms, {connections}"] = results[name, connections]["p50"]
        for connections in LEVELS: row[f"p99 ms, {connections}"] = results[name, connections]["p99"]
        row["p99 ms at half"] = half["p99"]
        row[f"times {BASE}"] = rate / results[BASE, 16]["rate"]
        row["peak MiB"] = run.memory()
        table_rows.append(row)
    return table_rows


def many_rows(runs, pool, size):
    "Many rows in a request"
    chunks, table_rows = [records(pool.sample(MANY, random_state=i)) for i in range(3)], []
    for run in runs:
        for route in run.server.many:
            file = lines(f"many {run.server.name}", map(route.body, chunks))
            def load(run=run, route=route, file=file): return run.load(route.path, file, 1, size["seconds"], rows=MANY)
            rate = statistics.median(load()["rate"] for _ in range(size["rounds"]))
            table_rows.append({
                "server": run.server.name,
                "route": route.path,
                "MiB a request": file.stat().st_size / 3 / 2**20,
                "rows/s": MANY * rate,
                "peak MiB": run.memory(),
            })
            progress(table_rows[-1])
    base = next(row["rows/s"] for row in table_rows if row["server"] == BASE)
    return [row | {f"times {BASE}": row["rows/s"] / base} for row in table_rows]


def check_contributions(prediction):
    "The contributions must add up to the score"
    raw = prediction["base"] + sum(one["contribution"] for one in prediction["contributions"])
    assert abs(1 / (1 + np.exp(-raw)) - prediction["score"]) < 1e-9, f"contributions do not add up: {prediction}"


def explained(run, rows, size):
    "A score with its reasons"
    path = "/v1/explain"
    answer = run.ask(Route(path, lambda rows: {"rows": rows}, None), rows)
    for prediction in answer["predictions"]: check_contributions(prediction)
    results = rounds({path: (run, path, lines("explain", rows))}, size)
    return [
        {"connections": connections, "req/s": result["rate"], "p50 ms": result["p50"], "p99 ms": result["p99"]}
        for (_, connections), result in results.items()
    ]


def whole(*command):
    "Seconds and peak MiB of a process on core 0, and the last line that it printed"
    begin = time.perf_counter()
    process = subprocess.Popen(
        texts(command), env=ENV, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=pinned(0))
    text = process.stdout.read()
    _, status, resources = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert not process.returncode, f"{command[:4]} ended with exit code {process.returncode}"
    last = (text.strip().splitlines() or [""])[-1]
    return time.perf_counter() - begin, resources.ru_maxrss / 1024, last


READ = dict(parquet=pd.read_parquet, csv=pd.read_csv)
CONTENT_TYPES = dict(parquet="application/vnd.apache.parquet", csv="text/csv")


def post_batch(file, kind):
    "Seconds, peak MiB and scored rows of a file that is sent to our service"
    with running(ours(f"batch {kind}")) as run:
        begin = time.perf_counter()
        headers = {"Content-Type": CONTENT_TYPES[kind]}
        response = WEB.post(run.url + "/v1/batch", content=file.read_bytes(), headers=headers)
        assert response.status_code == 200, f"/v1/batch: {response.status_code} {response.text[:300]}"
        return time.perf_counter() - begin, run.memory(), READ[kind](io.BytesIO(response.content))


def batch(best, rows, art):
    "Rows of a file"
    table_rows, expected = [], art.score(rows)
    def add(way, seconds, peak, scored):
        assert scored is None or np.abs(scored["score"] - expected).max() < 1e-9, way
        table_rows.append({"way": way, "seconds": seconds, "rows/s": len(rows) / seconds, "peak MiB": peak})
    for kind in ("parquet", "csv"):
        file, scored_file = WORK/f"batch.{kind}", WORK/f"scored.{kind}"
        if kind == "parquet": rows.to_parquet(file, index=False)
        else: rows.to_csv(file, index=False)
        add(f"mlgov-nb, POST /v1/batch, {kind}", *post_batch(file, kind))
        seconds, peak, _ = whole(BIN/"mlgov", "predict", art.folder, file, "-o", scored_file)
        add(f"mlgov predict, {kind}, the whole process", seconds, peak, READ[kind](scored_file))
        script = (sys.executable, "-W", "ignore", HERE/"serving_peers.py", "batch", file, scored_file)
        _, peak, printed = whole(*script)
        way = f"pandas and scikit-learn, {kind}, without their imports"
        add(way, float(printed), peak, READ[kind](scored_file))
    add(f"{best['server']}, in requests of 10,000 rows", len(rows) / best["rows/s"], best["peak MiB"], None)
    return table_rows


def costs(rows, size):
    "Our service with parts left out or added; what keeps a log must have kept it, and what keeps none must not"
    file = lines("costs", rows)
    with contextlib.ExitStack() as stack:
        runs = {name: stack.enter_context(running(ours(name, **more))) for name, more in VARIANTS.items()}
        results = rounds({name: (run, "/v1/predict", file) for name, run in runs.items()}, size, (16,))
        for name, run in runs.items():
            if name == WITHOUT_LOG: assert not segments(run.server.env["MLGOV_LOG_DIR"])
            else: check_log(run)
    first = 1e6 / next(iter(results.values()))["rate"]
    table_rows = []
    for (name, _), result in results.items():
        microseconds = 1e6 / result["rate"]
        table_rows.append({
            "our service": name,
            "req/s": result["rate"],
            "µs a request": microseconds,
            "more, µs": microseconds - first,
            "p99 ms": result["p99"],
        })
    return table_rows


STEPS = """
import json, sys, timeit
from itertools import cycle
import msgspec, numpy as np
from mlgov_nb.log.segment import Segment
from mlgov_nb.serve.request import read_native
from mlgov_nb.serve.scoring import Answer, Scorer, _code, load_release, predictions
release, bodies_file, log_folder = sys.argv[1:4]
scorer = Scorer(load_release(release))
bodies = cycle(open(bodies_file, "rb").read().splitlines())
log = Segment(log_folder, "predictions", "never")
request = read_native(scorer.schema, next(bodies))
row, scored = [column[0] for column in request.columns], scorer.score(request)
art, outliers, encode = scorer.art, scorer.release.outliers, scorer.encoder.encode
def line():
    time_us = scorer.clock.now()
    prediction_id = scorer.names.one(time_us)
    return encode(scorer.record(prediction_id, "", art.name, art.version, scorer.arm, 0.5, 1, 0.1, *row))
steps = {
    "decode and check": lambda: read_native(scorer.schema, next(bodies)),
    "encode": lambda: np.array([_code(scorer, row, [], {})]),
    "score": lambda: art.score_codes(scored.codes),
    "outlier flag": lambda: outliers.score(scored.codes) > outliers.cut,
    "log line, with its id": line,
    "write": lambda: log.append(scored.lines),
    "answer": lambda: encode(Answer(predictions(scorer, scored))),
}
print(json.dumps({name: min(timeit.repeat(step, number=5000, repeat=5)) / 5000 * 1e6 for name, step in steps.items()}))
"""


def steps(rows):
    "Microseconds of each step of a request"
    printed = whole(sys.executable, "-c", STEPS, WORK/"release", lines("steps", rows), WORK/"log/steps")[2]
    return [{"step": name, "µs": microseconds} for name, microseconds in json.loads(printed).items()]


def soak(minutes, rows):
    "Ours at half of saturation, a sample each ten seconds"
    file, samples = lines("soak", rows), []
    with running(ours()) as run:
        path = run.server.one.path
        run.load(path, file, 16, 2)
        rate = run.load(path, file, 16, 5)["rate"] / 2
        command = client_command(run.url + path, file, 64, 60 * minutes, rate, "--every", 10)
        client = subprocess.Popen(texts(command), stdout=subprocess.PIPE, text=True)
        for result in map(json.loads, client.stdout):
            if not result["n"]: continue
            samples.append(dict(minute=(len(samples) + 1) / 6, mib=run.memory("VmRSS"), **run.done(result)))
            progress(samples[-1])
        assert client.wait() == 0
        return dict(rate=rate, samples=samples, log=check_log(run))


# Tables
TITLES = dict(
    one="One row in a request",
    many="10,000 rows in one request, one connection",
    explain="A score with its reasons: `/v1/explain`",
    batch="The rows of a file",
    costs="What the parts cost, 16 connections",
    steps="The steps of one request in process",
)


def shown(value):
    "A cell: text as it is, a number with at least three digits that count"
    if isinstance(value, str): return value
    if abs(value) >= 100 or isinstance(value, int): return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def markdown(rows):
    cells = [{column: shown(value) for column, value in row.items()} for row in rows]
    return table(cells, list(rows[0]))


def everything(arguments, size):
    "Measure"
    art, pool = prepare(arguments.small)
    if PIN: os.sched_setaffinity(0, {1})
    rows = records(pool.sample(200, random_state=1))
    odd = records(pd.read_parquet(WORK/"check.parquet")[art.encoder.features].tail(120))
    if arguments.soak: return art, soak(arguments.soak, rows)
    with contextlib.ExitStack() as stack:
        runs = []
        for server in (ours(), *peers(arguments.small)):
            if not arguments.only or server.name in arguments.only: runs.append(stack.enter_context(running(server)))
        for run in runs: check_scores(run, rows[:40] + odd, art)
        measured = dict(one=one_row(runs, rows, size), many=many_rows(runs, pool, size))
        mine = next((run for run in runs if run.server.name == OURS), None)
        if mine: measured |= dict(log=check_log(mine), explain=explained(mine, rows, size))
    best = max((row for row in measured["many"] if row["server"] != OURS), key=lambda row: row["rows/s"])
    if mine:
        measured |= dict(steps=steps(rows), costs=costs(rows, size))
        measured["batch"] = batch(best, pool.sample(size["rows"], replace=True, random_state=0), art)
    return art, measured


def soak_row(name, samples):
    return {
        "minute": name,
        "req/s": samples.rate.mean(),
        "p50 ms": samples.p50.mean(),
        "p99 ms": samples.p99.mean(),
        "worst ms": samples.worst.max(),
        "worker's MiB": f"{samples.mib.mean():,.1f}",
    }


def soak_text(minutes, measured, setting, log):
    samples = pd.DataFrame(measured["samples"])
    slope = ""
    if len(samples) > 12:
        a_minute = np.polyfit(samples.minute[6:], samples.mib[6:], 1)[0]
        slope = f"After the first minute the worker's memory changes by {a_minute:+.3f} MiB a minute. "
    return document(
        f"# {minutes:g} minutes at half of saturation",
        f"`python bench/serving.py --soak {minutes:g}`: {measured['rate']:,.0f} requests a second at a constant rate "
        f"from 64 connections, a sample each ten seconds. {setting}",
        markdown([soak_row("first", samples[:6]), soak_row("last", samples[-6:])]),
        slope + log,
    )


def text_of(measured, size, setting, log):
    mine = next((row for row in measured["one"] if row["server"] == OURS), None)
    bar = ""
    if mine:
        times, half = shown(mine[f"times {BASE}"]), shown(mine["p99 ms at half"])
        bar = (f"The bar is 40 times {BASE} at 16 connections: {times} times; "
               f"and p99 under 10 ms at half of saturation: {half} ms.")
    client = "by serving_client.py, for wrk is not installed"
    if WRK: client = "wrk, one thread (it allows for coordinated omission, so one stall weighs much in its p99)"
    medians = (f"Medians of {size['rounds']} rounds of {size['seconds']} s, {client}. 'At half': a constant rate of "
               "half of what 16 connections reached, latency from when a request was due.")
    chapters = [f"## {title}\n\n{markdown(measured[part])}" for part, title in TITLES.items() if part in measured]
    return document(
        "# The service beside its peers",
        f"`python bench/serving.py`: {summary(__doc__)} {setting} {medians}",
        f"{bar} {log}",
        *chapters,
    )


def peer_versions():
    "As they are pinned"
    pins = [pin for name in ("fastapi", "mlserver", "mlflow") for pin in PINS[name] if "==" in pin]
    return dict(pin.split("==") for pin in pins)


def main(arguments):
    size, folder = (SMALL, ROOT/".bench") if arguments.small else (FULL, HERE)
    art, measured = everything(arguments, size)
    pinning = "Server on core 0, load on core 1" if PIN else "Nothing is pinned"
    setting = (f"The model: {art.meta['note']['trees']} trees, {len(art.encoder.features)} features, GSS. {pinning}; "
               "one worker, OMP_NUM_THREADS=1.")
    log = ""
    if "log" in measured:
        counts = measured["log"]
        log = f"The log: {counts['answered']:,} rows answered, {counts['logged']:,} logged, none twice."
    if arguments.soak: name, text = "soak", soak_text(arguments.soak, measured, setting, log)
    else: name, text = "serving", text_of(measured, size, setting, log)
    used = peer_versions() | versions(
        "mlgov-nb", "bentoml", "uvicorn", "msgspec", "numba", "scikit-learn", "pandas")
    figures = dict(machine=machine(), versions=used, size=size, wrk=bool(WRK), pinned=PIN, **measured)
    write(name, text, figures, folder)
    print(text)


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--soak", type=float, help="minutes")
    parser.add_argument("--only", nargs="*", help="servers")
    main(parser.parse_args())
