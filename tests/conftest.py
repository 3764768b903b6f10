"The project copied into an empty folder, as a new user's clone would be, with a smaller sample"
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from filelock import FileLock

from mlgov_nb.files import atomic_dir
from mlgov_nb.log.segment import read_lines, segments
from mlgov_nb.model.artifact import load

ROOT = Path(__file__).parents[1]
SMALL = [(r"sample: 1\.0", "sample: 0.35"), (r"max_iter: 200", "max_iter: 60"), (r"epochs: 60", "epochs: 40"), (r"resamples: 2000", "resamples: 300"),
         (r"explain_rows: 200", "explain_rows: 30"), (r"background: 50", "background: 20")]


NEEDS_A_RUN = {"made", "clone", "spare", "service"}     # fixtures that run the pipeline first


class Project:
    "A copy of the project, and how to run commands in it"

    def __init__(self, root):
        self.root = root
        bin_ = Path(sys.executable).parent
        self.env = {**{k: v for k, v in os.environ.items() if not k.startswith("MLGOV_") and k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "BENTOML_HOME"}}, "PYTHONPATH": str(root), "PATH": f"{bin_}:{os.environ['PATH']}", "CI": "1", "DVC_NO_ANALYTICS": "true",
                    "BENTOML_HOME": str(root/".bentoml"), "BENTOML_DO_NOT_TRACK": "True", "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.org"}

    def run(self, command, code=0, timeout=900):
        "Run a shell command and check its exit code"
        got = subprocess.run(["bash", "-c", command], cwd=self.root, env=self.env, capture_output=True, text=True, timeout=timeout)
        assert got.returncode == code, f"$ {command}\nexit {got.returncode}, expected {code}\n{got.stdout[-3000:]}\n{got.stderr[-3000:]}"
        return got

    def refuses(self, command, *texts):
        "A command that must end in exit code 2 and one readable message that holds `texts`"
        got = self.run(command, 2)
        said = " ".join(got.stderr.split())
        assert "Traceback" not in got.stderr + got.stdout and got.stderr.startswith("mlgov: "), got.stderr
        for t in texts: assert t in said, f"{t!r} is not in: {said}"
        return said

    def edit(self, file, old, new):
        "Replace a pattern in a file; it must be there"
        text = (self.root/file).read_text()
        out, n = re.subn(old, new, text)
        assert n, f"{old!r} is not in {file}"
        (self.root/file).write_text(out)

    def commit(self, message): self.run(f"git add -A && git commit -qm '{message}'")

    def scope(self, card="gss_wages"): return self.root/"reports"/card


def copy_project(to):
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for n in names:
        if (ROOT/n).is_file():
            (to/n).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT/n, to/n)
    p = Project(to)
    p.run("git init -q")
    return p


def reduce(p):
    "A smaller sample and shorter training, so that a pipeline takes a minute"
    for old, new in SMALL: p.edit("params.yaml", old, new)
    p.edit("policy.yaml", r"subject: parity, min: 0\.8\}", "subject: parity, min: 0.7}")


@pytest.hookimpl(tryfirst=True)     # before xdist reads the groups
def pytest_collection_modifyitems(items):
    "Two processes share the tests: those of the one clone stay together, and so do those of a file"
    for item in items:
        item.add_marker(pytest.mark.xdist_group("clone" if "clone" in item.fixturenames else item.path.stem))
        if NEEDS_A_RUN & set(item.fixturenames): item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def made(tmp_path_factory, worker_id):
    "The folder of two equal clones with a reduced sample, their pipeline run once by `make run`; the process that asks first makes them"
    d = tmp_path_factory.getbasetemp()
    d = d if worker_id == "master" else d.parent
    with FileLock(d/"made.lock"):
        if not (d/"said.txt").exists():
            p = copy_project(d/"clone")
            reduce(p)
            (p.root/".venv").symlink_to(Path(sys.executable).parents[1], target_is_directory=True)
            p.edit(".gitignore", r"\.venv/", ".venv")
            p.commit("a clone")
            said = p.run("make -o .venv/.ready run").stdout
            shutil.copytree(d/"clone", d/"spare", symlinks=True)
            (d/"said.txt").write_text(said)
    return d


@pytest.fixture(scope="session")
def clone(made):
    "A clone in which `make run` has run"
    p = Project(made/"clone")
    p.first = (made/"said.txt").read_text()
    return p


@pytest.fixture(scope="session")
def spare(made):
    "A second one, for a long test beside the others"
    return Project(made/"spare")


@pytest.fixture
def project(tmp_path):
    "A small project without any output: settings, cards, a few raw rows, the audit notebooks"
    import pandas as pd
    for d in ("data/raw", "nbs"): (tmp_path/d).mkdir(parents=True)
    for name in ("params.yaml", "policy.yaml", "service.yaml"): shutil.copy(ROOT/name, tmp_path)
    shutil.copytree(ROOT/"nbs/audits", tmp_path/"nbs/audits")
    shutil.copytree(ROOT/"data/sample", tmp_path/"data/sample")
    shutil.copy(ROOT/"data/raw/gss_wages.yaml", tmp_path/"data/raw")
    pd.read_parquet(ROOT/"data/raw/gss_wages.parquet").iloc[::20].to_parquet(tmp_path/"data/raw/gss_wages.parquet", index=False)
    return Project(tmp_path)


class Service:
    "A running service: `bentoml serve` as `make serve` starts it, its log, and how to ask it"

    def __init__(self, root, env, workers=2, log=None, **more):
        self.root, self.port, self.folder = root, free_port(), Path(log or root/"log")
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {**env, "MLGOV_WORKERS": str(workers), "MLGOV_LOG_DIR": str(self.folder), **{k: str(v) for k, v in more.items()}}

    def start(self, what="mlgov_nb.service:Mlgov"):
        file = self.root/f"service-{self.port}.txt"
        with open(file, "w") as said: self.process = subprocess.Popen(["bentoml", "serve", what, "--host", "127.0.0.1", "--port", str(self.port), "--timeout-graceful-shutdown", "10"], cwd=self.root, env=self.env, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        self.process.stdout = open(file)
        wait_ready(f"{self.url}/readyz", self.process)
        end = time.monotonic() + 30
        while self.said().count("Completed async startup hook") < int(self.env["MLGOV_WORKERS"]) and time.monotonic() < end: time.sleep(.05)   # every worker
        return self

    def workers(self):
        "Process ids of those that answer"
        got = subprocess.run(["pgrep", "-P", str(self.process.pid), "-f", "_bentoml_impl.worker.service"], capture_output=True, text=True).stdout
        return [int(p) for p in got.split()]

    def stop(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
            try: self.process.wait(20)
            except subprocess.TimeoutExpired: pass
        try: os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        self.process.wait()

    def said(self): return (self.root/f"service-{self.port}.txt").read_text()

    def ask(self, path, body=None, method=None, **headers):
        "Status and decoded answer"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        req = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}, method=method)
        try:
            with urllib.request.urlopen(req, timeout=30) as r: got, code = r.read(), r.status
        except urllib.error.HTTPError as e: got, code = e.read(), e.code
        try: return code, json.loads(got)
        except ValueError: return code, got

    def records(self, kind="predictions"):
        "Every record that is in the log"
        return [json.loads(x) for s in segments(self.folder, kind) if s.file.suffix != ".parquet" for x in read_lines(s.file)[0]]


@pytest.fixture(scope="session")
def service(clone):
    "The service of the clone's champion, with two workers and a key of subjects"
    s = Service(clone.root, clone.env, MLGOV_SUBJECT_KEY="a secret of the tests only").start()
    yield s
    s.stop()


def sample_release(folder):
    "A release of the sample model, for services that need no pipeline; its example row"
    art = load(ROOT/"data/sample/model")
    example = {f["name"]: (f["low"] if f["kind"] == "numeric" else f["categories"][0]) for f in art.meta["features"]}
    with atomic_dir(folder) as d:
        shutil.copytree(ROOT/"data/sample/model", d/"model")
        (d/"RELEASE.json").write_text(json.dumps(dict(card="gss_wages", title="sample", use="tests", model=dict(name=art.name, version=art.version), example=example)))
    return example


def plain_env(tmp):
    "An environment for a service on its own"
    return {**{k: v for k, v in os.environ.items() if not k.startswith("MLGOV_") and k not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "BENTOML_HOME": str(tmp/".bentoml"), "BENTOML_DO_NOT_TRACK": "True", "MLGOV_SERVED": str(tmp/"served")}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_ready(url, process, seconds=60):
    "Wait until a server answers; fail with its output when it ends first"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None: pytest.fail(f"the server ended with {process.returncode}:\n{process.stdout.read()[-3000:]}")
        try:
            with urllib.request.urlopen(url, timeout=2) as r:
                if r.status == 200: return
        except (urllib.error.URLError, OSError): time.sleep(0.2)
    process.kill()
    pytest.fail(f"the server was not ready after {seconds} s:\n{process.stdout.read()[-3000:]}")
