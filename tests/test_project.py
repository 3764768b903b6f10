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
PICKLES = {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal"}
TEXT_FILES = {".py", ".md", ".json", ".ipynb", ".yaml", ".lock"}


def cells(notebook): return json.loads(notebook.read_text())["cells"]


def source(cell): return "".join(cell["source"])


def imported_packages(node):
    "The top-level names that a node of the syntax tree imports"
    if not isinstance(node, ast.Import | ast.ImportFrom): return set()
    names = [alias.name for alias in node.names]
    names.append(getattr(node, "module", "") or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("module", MODULES)
def test_no_pickle_anywhere(module):
    for node in ast.walk(module_tree(module)):
        assert not imported_packages(node) & PICKLES
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert node.value.value is False


def public_functions(module):
    "The functions that a module offers"
    for node in module_tree(module).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"): yield node


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_are_documented(module):
    if module.startswith("cli."): return        # a command's help is its documentation
    lines = module_file(module).read_text().splitlines()
    for function in public_functions(module):
        name = f"{module}.{function.name}"
        docstring, parameters = ast.get_docstring(function), function.args.args
        assert docstring or len(function.body) == 1, f"{name} has no docstring"
        on_one_line = function.lineno == function.body[0].lineno - 1
        if not docstring or on_one_line: continue
        for parameter in parameters:
            documented = "#" in lines[parameter.lineno - 1] or parameter.arg == "self"
            assert documented, f"{name}: parameter {parameter.arg} has no docment"


def test_every_audit_has_a_notebook_and_limits():
    params = load_params(ROOT/"params.yaml")
    assert set(params.audits) == set(Limits.model_fields) - {"pre_release"}
    for name, notebook in params.audits.items():
        assert (ROOT/"nbs/audits"/f"{notebook}.ipynb").is_file()
        for task, limits in params.limits.items():
            assert getattr(limits, name), f"no limit for {name}, {task}"


@pytest.mark.parametrize("nb", AUDITS, ids=lambda p: p.stem)
def test_audit_notebooks_keep_the_rules(nb):
    tagged = [cell for cell in cells(nb) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1, "exactly one cell is tagged parameters"
    for node in ast.parse(source(tagged[0])).body:
        ast.literal_eval(node.value)        # fails on anything but a literal
    code = [source(cell) for cell in cells(nb) if cell["cell_type"] == "code"]
    nodes = [node for text in code for node in ast.walk(ast.parse(text))]
    assert not any(isinstance(node, ast.FunctionDef) for node in nodes), "an audit defines no function"
    assert "limits" not in "".join(code) or nb.stem == "model_card", "an audit never reads limits"


def schema_of(report):
    "The name of the schema that a report follows; None where there is none"
    if report.name in ("metrics.json", "model_card.json"): return None
    if report.name.endswith(".verdict.json"): return "verdict"
    if report.name == "harm.json": return "harm"
    return "measures"


def test_committed_evidence_follows_its_schema():
    reports = sorted((ROOT/"reports").glob("*/*.json"))
    names = {report.name for report in reports}
    assert {"drift.json", "fairness.json", "explanation.json", "performance.json", "select.json", "harm.json"} <= names
    for report in reports:
        name = schema_of(report)
        if name: jsonschema.validate(json.loads(report.read_text()), schema(name))


def test_lock_is_exact_and_portable():
    lines = (ROOT/"requirements.lock").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in pin and "+" not in pin for pin in pins)
    assert "torch==2.13.0" in pins
    from_nvidia = [pin.split("==")[0] for pin in pins if pin.startswith("nvidia")]
    assert from_nvidia == ["nvidia-ml-py"], "it is BentoML's; PyTorch's own packages for a GPU are not locked"


def test_nothing_of_the_makers_machine_is_in_the_tree():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    home = re.compile(rf"{re.escape(str(ROOT.parent))}/|/(home|Users)/\w+/|/root/")
    for name in listed.splitlines():
        if Path(name).suffix not in TEXT_FILES or name == "tests/test_project.py": continue
        assert not home.search((ROOT/name).read_text(errors="ignore")), name


def test_make_says_when_there_is_no_python(tmp_path):
    programs = tmp_path/"bin"
    programs.mkdir()
    for name in ("make", "bash", "sh", "test", "touch", "awk"):
        found = shutil.which(name)
        if found: (programs/name).symlink_to(found)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"): shutil.copy(ROOT/name, tmp_path)
    result = subprocess.run(
        [programs/"make", "setup"], cwd=tmp_path, env={"PATH": str(programs)}, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "mlgov-nb needs Python 3.11 or newer with venv; found: none" in result.stderr
    assert not (tmp_path/".venv").exists()
