"The project copied into an empty folder, as a new user's clone would be, with a smaller sample"
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
SMALL = [(r"sample: 1\.0", "sample: 0.35"), (r"max_iter: 200", "max_iter: 60"), (r"epochs: 60", "epochs: 40"), (r"resamples: 2000", "resamples: 300"),
         (r"explain_rows: 200", "explain_rows: 30"), (r"background: 50", "background: 20"), (r"subject: parity, min: 0\.8\}", "subject: parity, min: 0.7}")]


class Project:
    "A copy of the project, and how to run commands in it"

    def __init__(self, root):
        self.root = root
        bin_ = Path(sys.executable).parent
        drop = {"MLGOV_ROOT", "MLGOV_SERVED", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "BENTOML_HOME"}
        self.env = {**{k: v for k, v in os.environ.items() if k not in drop}, "PYTHONPATH": str(root), "PATH": f"{bin_}:{os.environ['PATH']}", "CI": "1", "DVC_NO_ANALYTICS": "true",
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


@pytest.hookimpl(tryfirst=True)     # before xdist reads the groups
def pytest_collection_modifyitems(items):
    "Two processes share the tests: those of the one clone stay together, and so do those of a file"
    for i in items: i.add_marker(pytest.mark.xdist_group("clone" if "clone" in i.fixturenames else i.path.stem))


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
    shutil.copy(ROOT/"params.yaml", tmp_path)
    shutil.copytree(ROOT/"nbs/audits", tmp_path/"nbs/audits")
    shutil.copytree(ROOT/"data/sample", tmp_path/"data/sample")
    shutil.copy(ROOT/"data/raw/gss_wages.yaml", tmp_path/"data/raw")
    pd.read_parquet(ROOT/"data/raw/gss_wages.parquet").iloc[::20].to_parquet(tmp_path/"data/raw/gss_wages.parquet", index=False)
    return Project(tmp_path)


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
