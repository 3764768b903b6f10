"The project copied into an empty folder, as a new user's clone would be"
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from filelock import FileLock

from mlgov_nb.cli.main import main
from mlgov_nb.files import atomic_dir
from mlgov_nb.log.segment import read_lines, segments
from mlgov_nb.model.artifact import load

ROOT = Path(__file__).parents[1]
# What `reduce` changes in params.yaml
SMALL = [
    (r"sample: 1\.0", "sample: 0.35"),
    (r"max_iter: 200", "max_iter: 60"),
    (r"epochs: 60", "epochs: 40"),
    (r"resamples: 2000", "resamples: 300"),
    (r"explain_rows: 200", "explain_rows: 30"),
    (r"background: 50", "background: 20"),
]
AUDITS = ("drift", "fairness", "explanation", "performance")
TRAINED = ("gradient_boosting", "linear", "mlp", "mlp_fair")     # candidates of a reduced project

NEEDS_A_RUN = {"made", "clone", "spare", "service"}     # fixtures that run the pipeline first
# Files whose fixture is costly: made once
SHARE_A_FIXTURE = {"test_batch", "test_gate", "test_hostile_text", "test_own_data", "test_service_live"}
# The slow tests in the order in which they start, beside those of the clone; the README's wait for the clone to be made
LONGEST = ["test_own_data", "test_service_failures", "test_service_live", "test_batch", "test_user_readme"]
MAKE_VARIABLES = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}


def base_env(source, bento_home):
    "This process's environment without settings of the project or of make, for the package in `source`"
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MLGOV_") and name not in MAKE_VARIABLES
    }
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(source),
        "BENTOML_HOME": str(bento_home),
        "BENTOML_DO_NOT_TRACK": "True",
    }


ALONE = re.compile(r"mlgov( [\w./:@%=+,-]+| '[^']*')*")     # and nothing that only a shell understands


@contextmanager
def working_in(root, env):
    "This process with another folder and environment"
    folder, variables = Path.cwd(), dict(os.environ)
    os.chdir(root)
    os.environ.clear()
    os.environ.update(env)
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)


def in_this_process(command, root, env):
    "How `mlgov` ends and what it writes; for most commands a new process would spend its time on imports"
    out, err, code = io.StringIO(), io.StringIO(), 0
    with working_in(root, env), patch.object(sys, "argv", command), redirect_stdout(out), redirect_stderr(err):
        try: main()
        except SystemExit as end: code = end.code or 0
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


class Project:
    "A copy of the project, and how to run commands in it"

    def __init__(self, root):
        self.root = root
        source = root if (root/"mlgov_nb").is_dir() else ROOT     # not the installed package, which may be another tree
        self.env = {
            **base_env(source, root/".bentoml"),
            "CI": "1",
            "DVC_NO_ANALYTICS": "true",
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t@example.org",
            "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@example.org",
        }

    def run(self, command, code=0, timeout=900):
        "Run a shell command and check its exit code; one of `mlgov` alone runs in this process"
        if ALONE.fullmatch(command):
            result = in_this_process(shlex.split(command), self.root, self.env)
        else:
            result = subprocess.run(
                ["bash", "-c", command], cwd=self.root, env=self.env, capture_output=True, text=True, timeout=timeout
            )
        assert result.returncode == code, (
            f"$ {command}\nexit {result.returncode}, expected {code}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
        )
        return result

    def refuses(self, command, *texts):
        "A command that must end with exit code 2 and one readable message that contains `texts`"
        result = self.run(command, 2)
        message = " ".join(result.stderr.split())
        assert "Traceback" not in result.stderr + result.stdout and result.stderr.startswith("mlgov: "), result.stderr
        for text in texts:
            assert text in message, f"{text!r} is not in: {message}"
        return message

    def edit(self, file, old, new):
        "Replace a pattern in a file; it must be there"
        text = (self.root/file).read_text()
        changed, replacements = re.subn(old, new, text)
        assert replacements, f"{old!r} is not in {file}"
        (self.root/file).write_text(changed)

    def commit(self, message): self.run(f"git add -A && git commit -qm '{message}'")

    def scope(self, card="gss_wages"): return self.root/"reports"/card


def copy_compiled(to):
    "Copy what numba has compiled here, so that a clone need not do it again"
    for file in (ROOT/"mlgov_nb").rglob("*.nb[ic]"):
        place = to/file.relative_to(ROOT)
        place.parent.mkdir(exist_ok=True)
        shutil.copy2(file, place)


def copy_project(to):
    "Copy the files that git tracks, or would, to another folder and make a repository of it"
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT/name).is_file():
            (to/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT/name, to/name)
    copy_compiled(to)
    project = Project(to)
    project.run("git init -q")
    return project


def reduce(project):
    "A smaller sample, fewer candidates and shorter training, so that a pipeline takes a minute"
    for old, new in SMALL: project.edit("params.yaml", old, new)
    params = yaml.safe_load((project.root/"params.yaml").read_text())
    params["candidates"] = {name: params["candidates"][name] for name in TRAINED}
    (project.root/"params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def is_slow(item):
    "Is it marked as slow? Each such mark says why"
    mark = item.get_closest_marker("slow")
    if mark and not mark.args: raise pytest.UsageError(f"{item.nodeid}: a mark `slow` says why, in words")
    return mark is not None


@pytest.hookimpl(tryfirst=True)     # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """A few processes share the tests, the slow ones first.

    Tests of the one clone stay together, and so do those of a file whose fixture is costly."""
    for item in items:
        if NEEDS_A_RUN & set(item.fixturenames): item.add_marker(pytest.mark.slow("a run of the pipeline"))
        if "clone" in item.fixturenames: item.add_marker(pytest.mark.xdist_group("clone"))
        elif item.path.stem in SHARE_A_FIXTURE: item.add_marker(pytest.mark.xdist_group(item.path.stem))
    def turn(item):
        place = LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)
        return not is_slow(item), "clone" not in item.fixturenames, place
    items.sort(key=turn)


@pytest.fixture(scope="session")
def made(tmp_path_factory, worker_id):
    """The folder of two clones in which `make run` has run; the process that asks first makes them.

    It ran once, in full, so that its results must be the committed ones."""
    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master": folder = folder.parent
    with FileLock(folder/"made.lock"):
        if not (folder/"output.txt").exists():
            project = copy_project(folder/"clone")
            (project.root/".venv").symlink_to(Path(sys.executable).parents[1], target_is_directory=True)
            project.edit(".gitignore", r"\.venv/", ".venv")
            project.commit("a clone")
            for file in project.scope().glob("*.json"): file.unlink()     # what is compared later is made here
            output = project.run("make -o .venv/.ready run").stdout
            shutil.copytree(folder/"clone", folder/"spare", symlinks=True)
            (folder/"output.txt").write_text(output)
    return folder


@pytest.fixture(scope="session")
def clone(made):
    "A clone in which `make run` has run"
    project = Project(made/"clone")
    project.first = (made/"output.txt").read_text()
    return project


@pytest.fixture(scope="session")
def spare(made):
    "A second one, reduced, for a long test beside the others"
    project = Project(made/"spare")
    reduce(project)
    return project


def small_project(root):
    "A small project without any output: settings, cards, a few raw rows, the audit notebooks"
    import pandas as pd
    for folder in ("data/raw", "nbs"): (root/folder).mkdir(parents=True)
    for name in ("params.yaml", "policy.yaml", "service.yaml"): shutil.copy(ROOT/name, root)
    shutil.copytree(ROOT/"nbs/audits", root/"nbs/audits")
    shutil.copytree(ROOT/"data/sample", root/"data/sample")
    shutil.copy(ROOT/"data/raw/gss_wages.yaml", root/"data/raw")
    few_rows = pd.read_parquet(ROOT/"data/raw/gss_wages.parquet").iloc[::20]
    few_rows.to_parquet(root/"data/raw/gss_wages.parquet", index=False)
    return Project(root)


@pytest.fixture
def project(tmp_path): return small_project(tmp_path)


class Service:
    "A running service: `bentoml serve` as `make serve` starts it, its log, and how to ask it"

    def __init__(self, root, env, workers=2, log=None, **more):
        self.root = root
        self.port = free_port()
        self.folder = Path(log or root/"log")
        self.url = f"http://127.0.0.1:{self.port}"
        settings = {name: str(value) for name, value in more.items()}
        self.env = {**env, "MLGOV_WORKERS": str(workers), "MLGOV_LOG_DIR": str(self.folder), **settings}

    def start(self, what="mlgov_nb.service:Mlgov"):
        "Start it and wait until every worker is ready"
        command = ["bentoml", "serve", what, "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--timeout-graceful-shutdown", "10"]
        output_file = self.root/f"service-{self.port}.txt"
        with open(output_file, "w") as output:
            self.process = subprocess.Popen(
                command,
                cwd=self.root,
                env=self.env,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.process.stdout = open(output_file)     # noqa: SIM115 - `wait_ready` shows it when the server ends
        wait_ready(f"{self.url}/readyz", self.process)
        end = time.monotonic() + 30
        while self.ready_workers() < int(self.env["MLGOV_WORKERS"]) and time.monotonic() < end:
            time.sleep(0.05)
        return self

    def ready_workers(self): return self.output().count("Completed async startup hook")

    def workers(self):
        "Process ids of those that answer"
        command = ["pgrep", "-P", str(self.process.pid), "-f", "_bentoml_impl.worker.service"]
        listed = subprocess.run(command, capture_output=True, text=True).stdout
        return [int(process_id) for process_id in listed.split()]

    def stop(self, how=signal.SIGTERM):
        "Send a signal, wait for the end, and kill what is left"
        if self.process.poll() is None:
            self.process.send_signal(how)
            try: self.process.wait(20)
            except subprocess.TimeoutExpired: pass
        try: os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        self.process.wait()

    def output(self):
        "What it has written to its output"
        return (self.root/f"service-{self.port}.txt").read_text()

    def ask(self, path, body=None, method=None, **headers):
        "Status and decoded answer"
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        more_headers = {name.replace("_", "-"): value for name, value in headers.items()}
        all_headers = {"Content-Type": "application/json", **more_headers}
        request = urllib.request.Request(self.url + path, data, all_headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                answer, status = response.read(), response.status
        except urllib.error.HTTPError as error:
            answer, status = error.read(), error.code
        try: return status, json.loads(answer)
        except ValueError: return status, answer

    def records(self, kind="predictions"):
        "Every record that is in the log"
        files = [segment.file for segment in segments(self.folder, kind) if segment.file.suffix != ".parquet"]
        return [json.loads(line) for file in files for line in read_lines(file)[0]]


@pytest.fixture(scope="session")
def service(clone):
    "The service of the clone's champion, with two workers and a key of subjects"
    running = Service(clone.root, clone.env, MLGOV_SUBJECT_KEY="a secret of the tests only").start()
    yield running
    running.stop()


def example_value(feature):
    "A value of a feature that the model knows"
    return feature["low"] if feature["kind"] == "numeric" else feature["categories"][0]


def sample_release(folder):
    "A release of the sample model, for services that need no pipeline; its example row"
    model = load(ROOT/"data/sample/model")
    example = {feature["name"]: example_value(feature) for feature in model.meta["features"]}
    release = dict(
        card="gss_wages",
        title="sample",
        use="tests",
        model=dict(name=model.name, version=model.version),
        example=example,
    )
    with atomic_dir(folder) as new_folder:
        shutil.copytree(ROOT/"data/sample/model", new_folder/"model")
        (new_folder/"RELEASE.json").write_text(json.dumps(release))
    return example


def plain_env(tmp):
    "An environment for a service on its own"
    return {**base_env(ROOT, tmp/".bentoml"), "MLGOV_SERVED": str(tmp/"served")}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_ready(url, process, seconds=180):
    "Wait until a server answers; fail with its output when it ends first"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            pytest.fail(f"the server ended with {process.returncode}:\n{process.stdout.read()[-3000:]}")
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                if response.status == 200: return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    process.kill()
    pytest.fail(f"the server was not ready after {seconds} s:\n{process.stdout.read()[-3000:]}")
