"The repository's own rules: one source, one direction, no pickle, every audit complete"
import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
from conftest import ROOT
from test_layout import MODULES, module_file, module_tree

from mlgov_nb.settings import Limits, load_params
from mlgov_nb.stats.measures import schema

AUDITS = sorted((ROOT/"nbs/audits").glob("*.ipynb"))


def cells(nb): return json.loads(nb.read_text())["cells"]
def source(c): return "".join(c["source"])


@pytest.mark.parametrize("module", MODULES)
def test_no_pickle_anywhere(module):
    text = module_file(module).read_text()
    for node in ast.walk(ast.parse(text)):
        names = [a.name for a in node.names] + [getattr(node, "module", "") or ""] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        assert not {n.split(".")[0] for n in names} & {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal"}
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle": assert node.value.value is False


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_are_documented(module):
    lines = module_file(module).read_text().splitlines()
    for f in module_tree(module).body:
        if not isinstance(f, ast.FunctionDef) or f.name.startswith("_") or module.startswith("cli."): continue
        assert ast.get_docstring(f) or len(f.body) == 1, f"{module}.{f.name} has no docstring"
        if ast.get_docstring(f) and len(f.args.args) and f.lineno != f.body[0].lineno - 1:
            for a in f.args.args: assert "#" in lines[a.lineno - 1] or a.arg == "self", f"{module}.{f.name}: parameter {a.arg} has no docment"


def test_every_audit_has_a_notebook_and_limits():
    params = load_params(ROOT/"params.yaml")
    assert set(params.audits) == set(Limits.model_fields) - {"pre_release"}
    for name, nb in params.audits.items():
        assert (ROOT/"nbs/audits"/f"{nb}.ipynb").is_file()
        for task in params.limits: assert getattr(params.limits[task], name), f"no limit for {name}, {task}"


@pytest.mark.parametrize("nb", AUDITS, ids=lambda p: p.stem)
def test_audit_notebooks_keep_the_rules(nb):
    tagged = [c for c in cells(nb) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1, "exactly one cell is tagged parameters"
    for node in ast.parse(source(tagged[0])).body: ast.literal_eval(node.value)   # literals only
    code = [source(c) for c in cells(nb) if c["cell_type"] == "code"]
    assert not any(isinstance(n, ast.FunctionDef) for c in code for n in ast.walk(ast.parse(c))), "an audit defines no function"
    assert "limits" not in "".join(code) or nb.stem == "model_card", "an audit never reads limits"


def test_committed_evidence_follows_its_schema():
    found = sorted((ROOT/"reports").glob("*/*.json"))
    names = {p.name for p in found}
    assert {"drift.json", "fairness.json", "explanation.json", "performance.json", "select.json", "harm.json"} <= names
    for p in found:
        if p.name in ("metrics.json", "model_card.json"): continue
        jsonschema.validate(json.loads(p.read_text()), schema("verdict" if p.name.endswith(".verdict.json") else "harm" if p.name == "harm.json" else "measures"))


def test_lock_is_exact_and_portable():
    lines = [x for x in (ROOT/"requirements.lock").read_text().splitlines() if x and not x.startswith("#")]
    assert all("==" in x and "+" not in x for x in lines)
    assert "torch==2.13.0" in lines and [x.split("==")[0] for x in lines if x.startswith("nvidia")] == ["nvidia-ml-py"]   # BentoML's; the others are torch's own


def test_nothing_of_the_makers_machine_is_in_the_tree():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    home = re.compile(rf"{re.escape(str(ROOT.parent))}/|/(home|Users)/\w+/|/root/")
    for f in tracked:
        if Path(f).suffix in (".py", ".md", ".json", ".ipynb", ".yaml", ".lock"): assert f == "tests/test_project.py" or not home.search((ROOT/f).read_text(errors="ignore")), f


def test_make_says_when_there_is_no_python(tmp_path):
    for c in ("make", "bash", "sh", "test", "touch", "awk"):
        if at := shutil.which(c): (tmp_path/"bin").mkdir(exist_ok=True); (tmp_path/"bin"/c).symlink_to(at)
    for f in ("Makefile", "requirements.lock", "pyproject.toml"): shutil.copy(ROOT/f, tmp_path)
    got = subprocess.run([tmp_path/"bin/make", "setup"], cwd=tmp_path, env={"PATH": str(tmp_path/"bin")}, capture_output=True, text=True)
    assert got.returncode == 2 and "mlgov-nb needs Python 3.11 or newer with venv; found: none" in got.stderr
    assert not (tmp_path/".venv").exists()
