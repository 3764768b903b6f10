"A Bento is built wherever the project is cloned to"
import json
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from mlgov_nb.model.artifact import load
from mlgov_nb.pipeline.package import bento, bento_env

pytestmark = pytest.mark.slow("builds a Bento")
NEEDED = ("bentofile.yaml", "params.yaml", "README.md", "requirements-serve.lock")


@pytest.fixture
def hidden_project(tmp_path):
    "A project with a release, below a folder whose name begins with a dot, as in ~/.projects/mlgov-nb"
    root = tmp_path/".projects"/"mlgov-nb"
    root.mkdir(parents=True)
    for name in NEEDED: shutil.copy(ROOT/name, root)
    shutil.copytree(ROOT/"mlgov_nb", root/"mlgov_nb", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT/"data/sample/model", root/"release/served/model")
    model = load(root/"release/served/model")
    release = dict(
        card="gss_wages",
        title="Wages",
        use="A test",
        selection="It is the only one.",
        example={},
        service={},
        model=dict(name=model.name, version=model.version),
    )
    (root/"release/served/RELEASE.json").write_text(json.dumps(release))
    (root/"data").mkdir()
    (root/"data/private.csv").write_text("not for a Bento\n")
    return root


def test_a_bento_is_built_below_a_hidden_folder(hidden_project):
    version = load(hidden_project/"release/served/model").version
    tag = bento(hidden_project, version)
    assert tag == f"mlgov:{version}"
    built = hidden_project/".bentoml/bentos/mlgov"/version
    source = built/"src"
    assert (source/"mlgov_nb/service.py").read_bytes() == (ROOT/"mlgov_nb/service.py").read_bytes()
    for present in ("release/served/RELEASE.json", "mlgov_nb/schemas/profile.schema.json"):
        assert (source/present).is_file(), present
    for absent in ("data", "params.yaml"):
        assert not (source/absent).exists(), absent
    assert yaml.safe_load((built/"bento.yaml").read_text())["labels"]["git_commit"]
    assert bento(hidden_project, version) == tag, "an older one of the same version is replaced"


def test_bentoml_alone_refuses_there(hidden_project):
    "The reason for the copy; when this fails, BentoML has changed and the copy may go"
    command = [sys.executable, "-m", "bentoml", "build", "--output", "tag"]
    env = bento_env(hidden_project)
    result = subprocess.run(command, cwd=hidden_project, env=env, capture_output=True, text=True)
    assert result.returncode and "hidden" in result.stdout + result.stderr
