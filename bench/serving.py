"""The released model over HTTP beside peers that serve the same trees: same machine, a core each for server and client, one worker.

Every server answers the same real rows, missing values among them, and is first held to the artifact's own scores. The
servers take turns in each round, so that a slow minute of the machine meets all of them. Ours checks the schema, counts, and
has each row in its log before the answer leaves; what the log holds is compared with what was answered.

    python bench/serving.py              everything; some half an hour
    python bench/serving.py --soak 60    ours alone, 60 minutes at half of saturation: latency and memory; the log grows by some GB
    python bench/serving.py --small      a smoke test, into .bench/, without MLServer and mlflow
"""
import argparse
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
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import psutil
from peers import PINS, python_of
from report import HERE, machine, table, versions, write

from mlgov_nb.data.read import read_rows
from mlgov_nb.files import atomic_dir, write_json
from mlgov_nb.log.segment import segments
from mlgov_nb.model.artifact import add_document, load
from mlgov_nb.model.encoding import codes
from mlgov_nb.model.outliers import fit_outliers, to_arrays

ROOT = HERE.parent
WORK, BIN, PIN, WRK, WEB = ROOT/".bench/serving", Path(sys.executable).parent, hasattr(os, "sched_setaffinity") and os.cpu_count() > 1, shutil.which("wrk"), httpx.Client(timeout=600)
MODEL, BASE, OURS, LEVELS = "gradient_boosting", "BentoML, scikit-learn", "mlgov-nb", (1, 16, 64)
ENV = {**os.environ, "BENCH_SERVING": str(WORK), "OMP_NUM_THREADS": "1", "BENTOML_DO_NOT_TRACK": "True", "MLFLOW_DISABLE_TELEMETRY": "true"}
FULL, SMALL = dict(rounds=3, seconds=4, rows=1_000_000), dict(rounds=1, seconds=1, rows=50_000)


# Who is asked, and how
@dataclass
class Route:
    path: str
    body: callable                  # rows -> what is sent as JSON
    scores: callable                # what is answered -> scores


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


def v2(model, **more):
    "Open Inference Protocol: a tensor per column"
    def tensor(c, v): return dict(name=c, shape=[len(v)], datatype="FP64" if c in NUMERIC else "BYTES", data=v)
    def scores(a): out = a["outputs"][0]; return out["data"][1::2] if out["name"] == "predict_proba" else out["data"]
    return Route(f"/v2/models/{model}/infer", lambda rows: dict(inputs=[tensor(c, [r[c] for r in rows]) for c in rows[0]], **more), scores)


def ours(name=OURS, command=(BIN/"bentoml", "serve", "mlgov_nb.service:Mlgov", "--host", "127.0.0.1", "--port", "{port}"), **env):
    "Our service, with a log folder of its own"
    env = dict(MLGOV_WORKERS="1", MLGOV_SERVED=WORK/"release", MLGOV_LOG_DIR=WORK/"log"/slug(name), MLGOV_FSYNC="interval", BENTOML_HOME=WORK/"home"/slug(name)) | env
    plain = Route("/v1/predict", lambda rows: rows[0] if len(rows) == 1 else {"rows": rows}, lambda a: [p["score"] for p in a["predictions"]])
    return Server(name, command, "/readyz", plain, [plain, v2(MODEL)], env, ROOT)


BARE = """
import sys, uvicorn, uvloop
from mlgov_nb.serve.app import App
async def main():
    app = App()
    await app.start()
    await uvicorn.Server(uvicorn.Config(app, port=int(sys.argv[1]), access_log=False, log_level="warning", lifespan="off")).serve()
    await app.stop()
uvloop.run(main())
"""
UNLOGGED = """
import mlgov_nb.app
mlgov_nb.app.keep = lambda live, scorer, got: mlgov_nb.live.count_scored(live.counters, scorer, got)
"""
VARIANTS = {"everything; the disk is made to keep the log each 100 ms": {}, "the disk is made to keep the log before each answer": dict(MLGOV_FSYNC="always"), "the disk keeps the log when it likes": dict(MLGOV_FSYNC="never"),
            "through BentoML's own middlewares": dict(command=(BIN/"bentoml", "serve", "serving_inner:Mlgov", "--working-dir", HERE, "--host", "127.0.0.1", "--port", "{port}")), "without BentoML: the same application in uvicorn": dict(command=(sys.executable, "-c", BARE, "{port}")), "without BentoML and without the log (only here: the service has no such switch)": dict(command=(sys.executable, "-c", UNLOGGED + BARE, "{port}"))}


def peers(small):
    "Servers of the same trees; one whose environment cannot be made is left out, and said so"
    at = {k: py.parent for k in ("fastapi", *([] if small else ["mlserver", "mlflow"])) if (py := python_of(k))}
    plain, many = (lambda a: [a["score"]]), (lambda a: a["scores"])
    def bento(name, service, **kw): return Server(name, [at["fastapi"]/"bentoml", "serve", f"serving_peers:{service}", "--host", "127.0.0.1", "--port", "{port}"], "/readyz", Route("/predict", lambda r: {"row": r[0]}, plain), [Route("/predict_many", lambda r: {"rows": r}, many)], dict(BENTOML_HOME=WORK/"home"/service), **kw)
    def fast(name, app, **kw): return Server(name, [at["fastapi"]/"uvicorn", "--factory", f"serving_peers:{app}", "--no-access-log", "--port", "{port}"], "/openapi.json", Route("/predict", lambda r: r[0], plain), [Route("/predict_many", lambda r: r, many)], **kw)
    infer, split = v2("gss", outputs=[{"name": "predict_proba"}]), Route("/invocations", lambda r: {"dataframe_split": dict(columns=list(r[0]), data=[list(x.values()) for x in r])}, lambda a: [p[1] for p in a["predictions"]])
    if "fastapi" in at: yield from (bento(BASE, "Sklearn"), bento("BentoML, ONNX Runtime", "Onnx", close=1e-5), fast("FastAPI, scikit-learn", "fastapi_sklearn"), fast("FastAPI, ONNX Runtime", "fastapi_onnx", close=1e-5))
    if "mlserver" in at: yield Server("MLServer, scikit-learn", [at["mlserver"]/"mlserver", "start", WORK/"mlserver"], "/v2/models/gss/ready", infer, [infer], dict(MLSERVER_HTTP_PORT="{port}", MLSERVER_GRPC_PORT="{second}", MLSERVER_METRICS_PORT="{third}"))
    if "mlflow" in at: yield Server("mlflow, scikit-learn", [at["mlflow"]/"mlflow", "models", "serve", "-m", WORK/"mlflow", "--env-manager", "local", "--workers", "1", "--port", "{port}"], "/ping", split, [split], dict(PATH=f"{at['mlflow']}:{os.environ['PATH']}"))


# What is served, and what is sent
NUMERIC = set()


def slug(x): return re.sub(r"\W+", "-", x.lower())[:40]


def records(df): return df.astype(object).where(df.notna(), None).to_dict("records")


def lines(name, values):
    "A file of bodies, one a line"
    (f := WORK/f"{slug(name)}.jsonl").write_text("".join(json.dumps(v, separators=(",", ":")) + "\n" for v in values))
    return f


def prepare(small):
    "The peers' and our form of one model; the artifact, and the rows of all windows"
    if not (ROOT/"data/split/split.json").is_file() or not (ROOT/"models"/MODEL).is_dir(): raise SystemExit(f"models/{MODEL} or data/split is not there; `make run` makes them")
    shutil.rmtree(WORK, ignore_errors=True); WORK.mkdir(parents=True)
    art, split = load(ROOT/"models"/MODEL), ROOT/"data/split"
    features, target = art.encoder.features, art.meta["target"]["name"]
    NUMERIC.update(art.encoder.numeric)
    train, check, ref = read_rows(split/"train.parquet").dropna(subset=[target]), read_rows(art.folder/"parity.parquet")[features], read_rows(split/"reference.parquet")
    train[features].assign(target=train[target]).to_parquet(WORK/"train.parquet")
    check.assign(score=art.score(check)).to_parquet(WORK/"check.parquet")
    write_json(WORK/"spec.json", dict(features=art.meta["features"], params=dict(art.meta["recipe"]["params"], early_stopping=True, n_iter_no_change=20, validation_fraction=0.1, scoring="loss", random_state=art.meta["seed"])), digits=None)
    for kind, env in (("onnx", "fastapi"), *(() if small else (("mlserver",) * 2, ("mlflow",) * 2))):
        if py := python_of(env): subprocess.run([py, "-W", "ignore", HERE/"serving_peers.py", "save", kind], env=ENV, check=True, stdout=subprocess.DEVNULL)
    with atomic_dir(WORK/"release") as d:
        shutil.copytree(art.folder, d/"model")
        add_document(d/"model", "outliers", to_arrays(fit_outliers(art.encoder, codes(art.encoder, ref))))
        write_json(d/"RELEASE.json", dict(card=art.meta["card"], title="Benchmark", use="Benchmark", selection="", model=dict(name=art.name, version=art.version), example=records(ref[features].dropna().head(1))[0]))
    return art, pd.concat([read_rows(f)[features] for f in sorted((split/"windows").glob("*.parquet"))], ignore_index=True)


# A server that runs
class Running:
    "A started server, and how many rows it has answered"
    def __init__(self, server, process, url): self.server, self.process, self.url, self.rows, self.loads = server, process, url, 0, 0

    def memory(self, key="VmHWM"):
        "MiB of the largest process, at its peak or now (VmRSS)"
        tree = [self.process.pid, *(p.pid for p in psutil.Process(self.process.pid).children(recursive=True))]
        return max(int(re.search(rf"{key}:\s+(\d+)", Path(f"/proc/{p}/status").read_text())[1]) for p in tree) / 1024

    def done(self, got, rows=1):
        "Count what was answered; an answer that is no success ends the benchmark"
        assert got["n"] and not got["bad"], f"{self.server.name}: {got}"
        self.rows, self.loads = self.rows + got["n"] * rows, self.loads + 1
        return got | dict(rate=got["n"] / got["seconds"])

    def load(self, path, file, connections, seconds, rate=None, rows=1):
        "As fast as answers come, by wrk; many rows in a request, or a constant rate, by our client"
        wrk = [WRK, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "60s", "-s", HERE/"serving.lua", self.url + path, "--", file]
        got = subprocess.run(list(map(str, wrk if WRK and not rate and rows == 1 else client(self.url + path, file, connections, seconds, rate))), capture_output=True, text=True)
        assert not got.returncode, f"{self.server.name}{' has ended' if self.process.poll() is not None else ''}: {got.stderr[-1000:]}"
        return self.done(json.loads(got.stdout.strip().splitlines()[-1]), rows)

    def ask(self, route, rows):
        "The answer to rows by one request"
        got = WEB.post(self.url + route.path, json=route.body(rows))
        assert got.status_code == 200, f"{self.server.name} {route.path}: {got.status_code} {got.text[:500]}"
        self.done(dict(n=1, bad=0, seconds=1), len(rows))
        return got.json()


def client(url, file, connections, seconds, rate=None, *more): return [sys.executable, HERE/"serving_client.py", url, file, "--connections", connections, "--seconds", seconds, *(("--rate", rate) if rate else ()), *more]


def pinned(core): return (lambda: os.sched_setaffinity(0, {core})) if PIN else None


def free_ports(n):
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(n)]
        return [s.getsockname()[1] for s in socks]


@contextlib.contextmanager
def running(server, patience=120):
    "Start a server on core 0, wait until it is ready, in the end stop it with all its processes"
    ports = dict(zip(("port", "second", "third"), free_ports(3)))
    shutil.rmtree(server.env.get("MLGOV_LOG_DIR", WORK/"none"), ignore_errors=True)
    with (said := WORK/f"{slug(server.name)}.out").open("w") as out:
        p = subprocess.Popen([str(x).format(**ports) for x in server.command], cwd=server.cwd, env=ENV | {k: str(v).format(**ports) for k, v in server.env.items()}, stdout=out, stderr=out, start_new_session=True, preexec_fn=pinned(0))
    r, end = Running(server, p, f"http://127.0.0.1:{ports['port']}"), time.monotonic() + patience
    def ready():
        with contextlib.suppress(httpx.HTTPError): return WEB.get(r.url + server.ready).status_code == 200
    try:
        while not ready():
            if p.poll() is not None or time.monotonic() > end: raise SystemExit(f"{server.name} did not start; {said}:\n{said.read_text()[-2000:]}")
            time.sleep(0.2)
        yield r
    finally:
        for sig in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError): os.killpg(p.pid, sig)
            with contextlib.suppress(subprocess.TimeoutExpired): p.wait(20)
        shutil.rmtree(server.env.get("MLGOV_LOG_DIR", WORK/"none"), ignore_errors=True)      # some GB


# What is held to be right
def check_scores(r, rows, art):
    "Row by row, and all at once by each route"
    want = art.score(pd.DataFrame(rows, columns=art.encoder.features))
    got = {"rows": [r.server.one.scores(r.ask(r.server.one, [x]))[0] for x in rows]} | {route.path: route.scores(r.ask(route, rows)) for route in r.server.many}
    for k, v in got.items(): assert (away := np.abs(np.array(v, float) - want).max()) <= r.server.close, f"{r.server.name} {k}: scores are off by {away}"


def check_log(r):
    "Every answered row is in the log, once; at the end of a load, at most its connections are logged but not heard of"
    def ids(f): return pd.read_parquet(f, columns=["prediction_id"]).prediction_id.to_numpy("S36") if f.suffix == ".parquet" else np.array(re.findall(rb'"prediction_id":"([^"]{36})"', f.read_bytes()), "S36")
    every = np.concatenate([ids(s.file) for s in segments(r.server.env["MLGOV_LOG_DIR"], "predictions")])
    n, different = len(every), len(np.unique(every))
    assert n == different and r.rows <= n <= r.rows + 64 * r.loads, f"{r.rows:,} rows were answered, {n:,} are in the log, {n - different:,} of them twice"
    return dict(answered=r.rows, logged=n)


# Measurements: each gives rows of a table
def rounds(jobs, size, levels=LEVELS):
    "Medians of {name: (server, path, file)} at each number of connections; the servers take turns"
    got = {}
    for r, path, f in jobs.values(): r.load(path, f, 16, 1)
    for _, (name, (r, path, f)), c in itertools.product(range(size["rounds"]), jobs.items(), levels):
        time.sleep(0.3)
        got.setdefault((name, c), []).append(x := r.load(path, f, c, size["seconds"]))
        print(f"{name}, {c} connections: {x['rate']:,.0f} req/s, p99 {x['p99']:.1f} ms", file=sys.stderr, flush=True)
    return {k: {m: statistics.median(x[m] for x in v) for m in ("rate", "p50", "p99")} for k, v in got.items()}


def one_row(runs, rows, size):
    jobs = {r.server.name: (r, r.server.one.path, lines(r.server.name, [r.server.one.body([x]) for x in rows])) for r in runs}
    got, out = rounds(jobs, size), []
    for name, (r, path, f) in jobs.items():
        half = r.load(path, f, 64, size["seconds"], rate=max(1, got[name, 16]["rate"] / 2))
        out.append({"server": name, **{f"req/s, {c}": got[name, c]["rate"] for c in LEVELS}, **{f"p50 ms, {c}": got[name, c]["p50"] for c in (1, 16)}, **{f"p99 ms, {c}": got[name, c]["p99"] for c in LEVELS}, "p99 ms at half": half["p99"], f"times {BASE}": got[name, 16]["rate"] / got[BASE, 16]["rate"], "peak MiB": r.memory()})
    return out


def many_rows(runs, pool, size):
    chunks, out = [records(pool.sample(10_000, random_state=i)) for i in range(3)], []
    for r, route in [(x, y) for x in runs for y in x.server.many]:
        f = lines(f"many {r.server.name}", map(route.body, chunks))
        rate = statistics.median(r.load(route.path, f, 1, size["seconds"], rows=10_000)["rate"] for _ in range(size["rounds"]))
        out.append({"server": r.server.name, "route": route.path, "MiB a request": f.stat().st_size / 3 / 2**20, "rows/s": 10_000 * rate, "peak MiB": r.memory()})
        print(out[-1], file=sys.stderr, flush=True)
    base = next(x["rows/s"] for x in out if x["server"] == BASE)
    return [x | {f"times {BASE}": x["rows/s"] / base} for x in out]


def explained(r, rows, size):
    got = r.ask(Route("/v1/explain", lambda rows: {"rows": rows}, None), rows)["predictions"]
    for p in got: assert abs(1 / (1 + np.exp(-p["base"] - sum(c["contribution"] for c in p["contributions"]))) - p["score"]) < 1e-9, f"contributions do not add up: {p}"
    return [{"connections": c, "req/s": v["rate"], "p50 ms": v["p50"], "p99 ms": v["p99"]} for (_, c), v in rounds({"/v1/explain": (r, "/v1/explain", lines("explain", rows))}, size).items()]


def whole(*command):
    "Seconds and peak MiB of a process on core 0, and what it said last"
    t, p = time.perf_counter(), subprocess.Popen(list(map(str, command)), env=ENV, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=pinned(0))
    text, (_, status, use) = p.stdout.read(), os.wait4(p.pid, 0)
    p.returncode = os.waitstatus_to_exitcode(status)
    assert not p.returncode, f"{command[:4]} ended with exit code {p.returncode}"
    return time.perf_counter() - t, use.ru_maxrss / 1024, (text.strip().splitlines() or [""])[-1]


def batch(best, df, art):
    "Rows of a file"
    out, want, read = [], art.score(df), dict(parquet=pd.read_parquet, csv=pd.read_csv)
    def add(way, seconds, peak, got): assert got is None or np.abs(got["score"] - want).max() < 1e-9, way; out.append({"way": way, "seconds": seconds, "rows/s": len(df) / seconds, "peak MiB": peak})
    for k, kind in (("parquet", "application/vnd.apache.parquet"), ("csv", "text/csv")):
        f, to = WORK/f"batch.{k}", WORK/f"scored.{k}"
        df.to_parquet(f, index=False) if k == "parquet" else df.to_csv(f, index=False)
        with running(ours(f"batch {k}")) as r:
            t = time.perf_counter()
            got = WEB.post(r.url + "/v1/batch", content=f.read_bytes(), headers={"Content-Type": kind})
            assert got.status_code == 200, f"/v1/batch: {got.status_code} {got.text[:300]}"
            add(f"mlgov-nb, POST /v1/batch, {k}", time.perf_counter() - t, r.memory(), read[k](io.BytesIO(got.content)))
        s, peak, _ = whole(BIN/"mlgov", "predict", art.folder, f, "-o", to)
        add(f"mlgov predict, {k}, the whole process", s, peak, read[k](to))
        _, peak, s = whole(sys.executable, "-W", "ignore", HERE/"serving_peers.py", "batch", f, to)
        add(f"pandas and scikit-learn, {k}, without their imports", float(s), peak, read[k](to))
    add(f"{best['server']}, in requests of 10,000 rows", len(df) / best["rows/s"], best["peak MiB"], None)
    return out


def costs(rows, size):
    "Our service with parts left out or added; what keeps a log must have kept it, and what keeps none must not"
    with contextlib.ExitStack() as stack:
        f, runs = lines("costs", rows), {name: stack.enter_context(running(ours(name, **kw))) for name, kw in VARIANTS.items()}
        got = rounds({name: (r, "/v1/predict", f) for name, r in runs.items()}, size, (16,))
        for name, r in runs.items():
            if "without the log" not in name: check_log(r)
            else: assert not segments(r.server.env["MLGOV_LOG_DIR"])
    first = 1e6 / next(iter(got.values()))["rate"]
    return [{"our service": name, "req/s": v["rate"], "µs a request": 1e6 / v["rate"], "more, µs": 1e6 / v["rate"] - first, "p99 ms": v["p99"]} for (name, _), v in got.items()]


STEPS = """
import json, sys, timeit
from itertools import cycle
import msgspec, numpy as np
from mlgov_nb.log.segment import Segment
from mlgov_nb.serve.request import read_native
from mlgov_nb.serve.scoring import Answer, Scorer, _code, load_release, predictions
s, bodies, log = Scorer(load_release(sys.argv[1])), cycle(open(sys.argv[2], "rb").read().splitlines()), Segment(sys.argv[3], "predictions", "never")
asked = read_native(s.schema, next(bodies))
row, got, odd = [c[0] for c in asked.columns], s.score(asked), s.release.outliers
def line():
    us = s.clock.now()
    return s.encoder.encode(s.record(s.names.one(us), "", s.art.name, s.art.version, s.arm, 0.5, 1, 0.1, *row))
steps = {"decode and check": lambda: read_native(s.schema, next(bodies)), "encode": lambda: np.array([_code(s, row, [], {})]), "score": lambda: s.art.score_codes(got.codes), "outlier flag": lambda: odd.score(got.codes) > odd.cut,
         "log line, with its id": line, "write": lambda: log.append(got.lines), "answer": lambda: s.encoder.encode(Answer(predictions(s, got)))}
print(json.dumps({k: min(timeit.repeat(f, number=5000, repeat=5)) / 5000 * 1e6 for k, f in steps.items()}))
"""


def steps(rows): return [{"step": k, "µs": v} for k, v in json.loads(whole(sys.executable, "-c", STEPS, WORK/"release", lines("steps", rows), WORK/"log/steps")[2]).items()]


def soak(minutes, rows):
    "Ours at half of saturation, a sample each ten seconds"
    f, out = lines("soak", rows), []
    with running(ours()) as r:
        r.load(path := r.server.one.path, f, 16, 2)
        rate = r.load(path, f, 16, 5)["rate"] / 2
        p = subprocess.Popen(list(map(str, client(r.url + path, f, 64, 60 * minutes, rate, "--every", 10))), stdout=subprocess.PIPE, text=True)
        for got in map(json.loads, p.stdout):
            if got["n"]: out.append(dict(minute=(len(out) + 1) / 6, mib=r.memory("VmRSS"), **r.done(got))); print(out[-1], file=sys.stderr, flush=True)
        assert p.wait() == 0
        return dict(rate=rate, samples=out, log=check_log(r))


# Tables
TITLES = dict(one="One row in a request", many="10,000 rows in one request, one connection", explain="A score with its reasons: `/v1/explain`", batch="The rows of a file", costs="What the parts cost, 16 connections", steps="The steps of one request in process")


def shown(x): return x if isinstance(x, str) else f"{x:,.0f}" if abs(x) >= 100 or isinstance(x, int) else f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}"


def markdown(rows): return table([{k: shown(v) for k, v in x.items()} for x in rows], list(rows[0]))


def everything(a, size):
    "Measure"
    art, pool = prepare(a.small)
    if PIN: os.sched_setaffinity(0, {1})
    rows, odd = records(pool.sample(200, random_state=1)), records(pd.read_parquet(WORK/"check.parquet")[art.encoder.features].tail(120))
    if a.soak: return art, soak(a.soak, rows)
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(running(s)) for s in (ours(), *peers(a.small)) if not a.only or s.name in a.only]
        for r in runs: check_scores(r, rows[:40] + odd, art)
        got, mine = dict(one=one_row(runs, rows, size), many=many_rows(runs, pool, size)), next((r for r in runs if r.server.name == OURS), None)
        if mine: got |= dict(log=check_log(mine), explain=explained(mine, rows, size))
    best = max((x for x in got["many"] if x["server"] != OURS), key=lambda x: x["rows/s"])
    if mine: got |= dict(steps=steps(rows), costs=costs(rows, size), batch=batch(best, pool.sample(size["rows"], replace=True, random_state=0), art))
    return art, got


def soak_text(a, got, how, log):
    s = pd.DataFrame(got["samples"])
    part = [{"minute": k, "req/s": x.rate.mean(), "p50 ms": x.p50.mean(), "p99 ms": x.p99.mean(), "worst ms": x.worst.max(), "worker's MiB": f"{x.mib.mean():,.1f}"} for k, x in (("first", s[:6]), ("last", s[-6:]))]
    slope = f"After the first minute the worker's memory changes by {np.polyfit(s.minute[6:], s.mib[6:], 1)[0]:+.3f} MiB a minute. " if len(s) > 12 else ""
    return f"# {a.soak:g} minutes at half of saturation\n\n`python bench/serving.py --soak {a.soak:g}`: {got['rate']:,.0f} requests a second at a constant rate from 64 connections, a sample each ten seconds. {how}\n\n{markdown(part)}\n\n{slope}{log}"


def text_of(a, got, size, how, log):
    me = next((x for x in got["one"] if x["server"] == OURS), None)
    bar = f"The bar is 40 times {BASE} at 16 connections: {shown(me[f'times {BASE}'])} times; and p99 under 10 ms at half of saturation: {shown(me['p99 ms at half'])} ms." if me else ""
    rounds = f"Medians of {size['rounds']} rounds of {size['seconds']} s, {'wrk, one thread (it allows for coordinated omission, so one stall weighs much in its p99)' if WRK else 'by serving_client.py, for wrk is not installed'}. 'At half': a constant rate of half of what 16 connections reached, latency from when a request was due."
    parts = "\n\n".join(f"## {TITLES[k]}\n\n{markdown(got[k])}" for k in TITLES if k in got)
    return f"# The service beside its peers\n\n`python bench/serving.py`: {' '.join(__doc__.split('    python')[0].split())} {how} {rounds}\n\n{bar} {log}\n\n{parts}"


def main(a):
    size, folder = (SMALL, ROOT/".bench") if a.small else (FULL, HERE)
    art, got = everything(a, size)
    how = f"The model: {art.meta['note']['trees']} trees, {len(art.encoder.features)} features, GSS. {'Server on core 0, load on core 1' if PIN else 'Nothing is pinned'}; one worker, OMP_NUM_THREADS=1."
    log = "The log: {answered:,} rows answered, {logged:,} logged, none twice.".format(**got["log"]) if "log" in got else ""
    text = soak_text(a, got, how, log) if a.soak else text_of(a, got, size, how, log)
    v = dict(x.split("==") for k in ("fastapi", "mlserver", "mlflow") for x in PINS[k] if "==" in x) | versions("mlgov-nb", "bentoml", "uvicorn", "msgspec", "numba", "scikit-learn", "pandas")
    write("soak" if a.soak else "serving", text, dict(machine=machine(), versions=v, size=size, wrk=bool(WRK), pinned=PIN, **got), folder)
    print(text)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--small", action="store_true"); p.add_argument("--soak", type=float, help="minutes"); p.add_argument("--only", nargs="*", help="servers")
    main(p.parse_args())
