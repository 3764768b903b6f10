"""The layout: notebooks make the package, imports point down, stages depend on the code that makes their result."""
import ast
import importlib
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

PACKAGE = ROOT/"mlgov_nb"

# Each line stands on those above it and may import from them; folders on one line do not know one another.
FLOORS = """
task
settings files kernels
data
stats
html profile
pictures
model
log
drift fairness explanation performance
verdict
audit serve
pipeline
cli service
"""
FLOOR = {folder: level for level, line in enumerate(FLOORS.split("\n")) for folder in line.split()}


def notebook_files():
    "Every notebook that makes a module"
    found = (ROOT/"nbs").rglob("[0-9]*.ipynb")
    return sorted(nb for nb in found if nb.parent.name != "audits" and ".ipynb_checkpoints" not in nb.parts)


def module_name(notebook):
    "The module that a notebook makes: its folder and its name without the number"
    place = notebook.relative_to(ROOT/"nbs")
    return ".".join([*place.parts[:-1], place.stem.split("_", 1)[1]])


NOTEBOOKS = notebook_files()
MODULES = [module_name(nb) for nb in NOTEBOOKS]
FOLDERS = sorted({name.split(".")[0] for name in MODULES})
PAGES = {page.parent.name: page for page in sorted((ROOT/"nbs").glob("*/index.ipynb"))}     # folder: its landing page


def module_file(name):
    return PACKAGE.joinpath(*name.split(".")).with_suffix(".py")


def module_tree(name):
    return ast.parse(module_file(name).read_text())


def imported_name(module, node):
    "The full name, below the package, of what an import statement takes from; None for other packages"
    if node.level:
        package = module.split(".")[:-1]
        base = package[:len(package) - node.level + 1]
        return ".".join([*base, *([node.module] if node.module else [])])
    if (node.module or "").split(".")[0] == "mlgov_nb": return node.module.removeprefix("mlgov_nb").removeprefix(".")
    return None


def listed_names(folder):
    "What a folder's `__init__` says is public: module, names"
    tree = ast.parse((PACKAGE/folder/"__init__.py").read_text())
    (listed,) = [keyword.value for node in ast.walk(tree) if isinstance(node, ast.Call) for keyword in node.keywords
                 if keyword.arg == "submod_attrs"]
    return ast.literal_eval(listed)


def homes(folder):
    "Public name of a folder: the module that defines it"
    return {name: f"{folder}.{module}" for module, names in listed_names(folder).items() for name in names}


HOMES = {folder: homes(folder) for folder in PAGES}


def imported_modules(name, tree=None):
    "The project's modules that a module imports, anywhere in it, also by way of a folder's public names"
    found = set()
    for node in ast.walk(tree or module_tree(name)):
        if not isinstance(node, ast.ImportFrom): continue
        source = imported_name(name, node)
        if source is None: continue
        if source in MODULES: found.add(source)
        else:
            public = HOMES.get(source, {})
            named = {public.get(alias.name, f"{source}.{alias.name}".strip(".")) for alias in node.names}
            found |= named & set(MODULES)
    return found


def needed_modules(names):
    "Those modules and all that they import, directly or not"
    waiting, found = set(names), set()
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= imported_modules(name) - found
    return found


def notebook_text(notebook, kind):
    "The text of a notebook's cells of one kind, `code` or `markdown`"
    cells = json.loads(notebook.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == kind)


def notebook_tree(notebook):
    return ast.parse(notebook_text(notebook, "code"))


def notebook_imports(notebook):
    "The project's modules that an audit notebook or a folder's page imports"
    return imported_modules(notebook.stem, notebook_tree(notebook))


def test_package_is_what_the_notebooks_export():
    written = {p.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for p in PACKAGE.rglob("*.py")}
    made = {name for name in written if name.split(".")[-1] not in ("__init__", "_modidx")}
    assert made == set(MODULES)
    for notebook, name in zip(NOTEBOOKS, MODULES, strict=True):
        first = json.loads(notebook.read_text())["cells"][0]["source"]
        assert f"#| default_exp {name}" in "".join(first)
    for folder, page in PAGES.items():
        first = json.loads(page.read_text())["cells"][0]["source"]
        assert f"#| default_exp {folder}.__init__" in "".join(first)


def test_lines_of_notebooks_are_short():
    for notebook in (ROOT/"nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" in notebook.parts: continue
        for cell in json.loads(notebook.read_text())["cells"]:
            if cell["cell_type"] != "code": continue
            long = [line for line in "".join(cell["source"]).splitlines() if len(line) > 120]
            assert not long, f"{notebook.relative_to(ROOT)}: {long[0]}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name):
    folder = name.split(".")[0]
    for target in imported_modules(name):
        below = target.split(".")[0]
        if below == folder: assert MODULES.index(target) < MODULES.index(name), f"{name} imports {target}, a later one"
        else: assert FLOOR[below] < FLOOR[folder], f"{name} imports {target}, which does not stand below it"


@pytest.mark.parametrize("name", MODULES)
def test_imports_are_explicit(name):
    for node in ast.walk(module_tree(name)):
        if isinstance(node, ast.Import):
            assert not any(a.name.startswith("mlgov_nb") for a in node.names), f"{name}: import mlgov_nb.x; use from"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{name}: star import"


def test_every_folder_has_a_page():
    "The command line has nothing to import"
    folders = {name.split(".")[0] for name in MODULES if "." in name}
    assert folders - {"cli"} == set(PAGES)


@pytest.mark.parametrize("folder", PAGES)
def test_a_page_lists_the_notebooks_of_its_folder_in_reading_order(folder):
    links = [link for link in links_to_notebooks(PAGES[folder]) if "/" not in link]
    assert links == [notebook.name for notebook in NOTEBOOKS if notebook.parent == PAGES[folder].parent]


@pytest.mark.parametrize("folder", PAGES)
def test_imports_of_a_page_point_down(folder):
    for target in notebook_imports(PAGES[folder]):
        below = target.split(".")[0]
        assert below == folder or FLOOR[below] < FLOOR[folder], f"{folder}: its page imports {target}"


@pytest.mark.parametrize("folder", PAGES)
def test_a_public_name_has_one_home_and_is_no_module(folder):
    "`from mlgov_nb.drift import x` would be the function or the module, by what was imported before"
    names = [name for each in listed_names(folder).values() for name in each]
    modules = {name.split(".")[1] for name in MODULES if name.startswith(f"{folder}.")}
    assert len(names) == len(set(names))
    assert not set(names) & modules, "import such a name from its module"
    assert set(listed_names(folder)) <= modules


def names_taken(module, tree):
    "What a module or notebook takes from another folder: (folder, name), modules themselves left out"
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom): continue
        source = imported_name(module, node)
        folder = (source or "").split(".")[0]
        if folder not in PAGES or folder == module.split(".")[0]: continue
        names = {alias.name for alias in node.names if f"{source}.{alias.name}" not in MODULES}
        yield from ((folder, name) for name in names if name != source.split(".")[-1])


def test_what_another_folder_imports_is_public():
    "Names that are their module's own apart, which are imported from it"
    trees = {name: module_tree(name) for name in MODULES}
    trees |= {notebook.stem: notebook_tree(notebook) for notebook in (ROOT/"nbs/audits").glob("*.ipynb")}
    taken = {pair for name, tree in trees.items() for pair in names_taken(name, tree)}
    missing = sorted(f"{folder}: {name}" for folder, name in taken if name not in HOMES[folder])
    assert not missing, f"add them to nbs/<folder>/index.ipynb: {missing}"


def fresh_process(program):
    "What a program prints in a process of its own"
    result = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_public_names_can_be_imported_from_their_folders():
    lines = [f"from mlgov_nb.{folder} import {', '.join(names)}" for folder, names in HOMES.items()]
    lines += [f"import mlgov_nb.{folder} as folder; assert folder.__all__ == {sorted(names)}"
              for folder, names in HOMES.items()]
    fresh_process("\n".join(lines))


def test_a_folder_loads_no_numerical_library_before_a_name_of_it_is_used():
    imports = "; ".join(f"import mlgov_nb.{folder}" for folder in PAGES)
    libraries = "{'numpy', 'pandas', 'torch', 'scipy', 'sklearn', 'matplotlib'}"
    assert fresh_process(f"import sys; {imports}; print({libraries} & set(sys.modules))") == "set()"


def links_to_notebooks(notebook):
    return re.findall(r"\]\(([^)#\s]+\.ipynb)", notebook_text(notebook, "markdown"))


def test_links_to_notebooks_lead_to_files():
    for notebook in (ROOT/"nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" in notebook.parts: continue
        for link in links_to_notebooks(notebook):
            if link.startswith("http"): continue
            assert (notebook.parent/link).is_file(), f"{notebook.relative_to(ROOT)} links to {link}"


@pytest.mark.slow("a process for each module")
def test_every_module_imports_in_a_fresh_process():
    def run(name):
        command = [sys.executable, "-W", "error::SyntaxWarning", "-c", f"import mlgov_nb.{name}"]
        return name, subprocess.run(command, cwd="/", capture_output=True, text=True)
    last = {name.split(".")[0]: name for name in MODULES}     # the last of a folder imports the most
    with ThreadPoolExecutor(2) as pool:
        for name, result in pool.map(run, last.values()): assert result.returncode == 0, f"{name}: {result.stderr}"
    command = "; ".join(f"import mlgov_nb.{name}" for name in reversed(MODULES))
    result = subprocess.run([sys.executable, "-c", command], cwd="/", capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


STAGE_MODULES = {"ingest": "data", "split": "data", "train": "train", "select": "select", "audit": "audits",
                 "harm": "judge", "judge": "judge", "card": "model_card"}


def stages():
    text = (ROOT/"dvc.yaml").read_text()
    return {name: stage.get("do", stage) for name, stage in yaml.safe_load(text)["stages"].items()}


def code_of(deps, audit=""):
    "The modules that a stage's dependencies cover"
    places = [Path(d.replace("${key}", audit)) for d in deps if d.startswith("mlgov_nb")]
    return {name for name in MODULES if any(module_file(name).is_relative_to(ROOT/place) for place in places)}


@pytest.mark.parametrize("stage", STAGE_MODULES)
def test_stages_depend_on_the_code_they_run(stage):
    "A stage's dependencies cover everything that its module imports"
    needed = needed_modules([f"pipeline.{STAGE_MODULES[stage]}"])
    assert needed <= code_of(stages()[stage]["deps"]), f"stage {stage}"


@pytest.mark.parametrize("audit", ["drift", "fairness", "explanation", "performance"])
def test_audit_stages_depend_on_what_their_notebooks_import(audit):
    (notebook,) = (ROOT/"nbs/audits").glob(f"[0-9]*_{audit}.ipynb")
    assert needed_modules(notebook_imports(notebook)) <= code_of(stages()["audit"]["deps"], audit)


def test_the_model_card_stage_depends_on_what_its_notebook_imports():
    imported = notebook_imports(ROOT/"nbs/audits/model_card.ipynb")
    assert needed_modules(imported) <= code_of(stages()["card"]["deps"])


def hashed_modules(names):
    "The modules that a list of sources stands for"
    from mlgov_nb.files import source_files
    found = {p.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for p in source_files(names)}
    return {name for name in found if not name.endswith("__init__")}


@pytest.mark.parametrize("stage", ["train", "select"])
def test_evidence_hashes_the_code_that_its_stage_depends_on(stage):
    sources = importlib.import_module(f"mlgov_nb.pipeline.{stage}").SOURCES
    assert hashed_modules(sources) == code_of(stages()[stage]["deps"])


@pytest.mark.parametrize("audit", ["drift", "fairness", "explanation", "performance"])
def test_measures_hash_the_code_that_their_audit_depends_on(audit):
    "So DVC measures again exactly when the gate would call the measures stale"
    from mlgov_nb.pipeline.audits import SOURCES
    assert hashed_modules([*SOURCES, audit]) == code_of(stages()["audit"]["deps"], audit)


def test_the_command_line_loads_no_numerical_library_before_the_kernels_are_fixed():
    program = "import sys, mlgov_nb.cli.main; print({'numpy', 'torch', 'scipy', 'sklearn'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def task_names():
    from mlgov_nb.task import TASKS
    return set(TASKS)


def compared_tasks(tree):
    "Lines that compare something with the name of a task"
    names = task_names()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare | ast.MatchValue): continue
        if any(isinstance(part, ast.Constant) and part.value in names for part in ast.walk(node)): yield node.lineno


def task_tables(tree):
    "The keys of every table that has an entry for some task"
    names = task_names()
    for node in ast.walk(tree):
        keys = set()
        if isinstance(node, ast.Dict): keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            keys = {keyword.arg for keyword in node.keywords}
        if keys & names: yield node.lineno, keys


@pytest.mark.parametrize("name", MODULES)
def test_no_module_asks_which_task_it_is(name):
    "What differs from task to task, the task answers (`task.py`), or a table of the module that has an entry for each"
    tree = module_tree(name)
    assert not list(compared_tasks(tree)), f"{name}: ask the task instead of comparing its name"
    for line, keys in task_tables(tree):
        assert keys == task_names(), f"{name}, line {line}: the table has entries for {keys}, not for every task"


@pytest.mark.parametrize("audit", ["drift", "fairness", "explanation", "performance"])
def test_no_audit_asks_which_task_it_is(audit):
    (notebook,) = (ROOT/"nbs/audits").glob(f"[0-9]*_{audit}.ipynb")
    assert not list(compared_tasks(notebook_tree(notebook)))


def test_a_comparison_with_a_task_is_found():
    assert list(compared_tasks(ast.parse("x = 1 if card.task == 'binary' else 2"))) == [1]
    assert list(compared_tasks(ast.parse("x = task in ('binary', 'other')"))) == [1]
    assert list(task_tables(ast.parse("T = dict(binary=1)"))) == [(1, {"binary"})]
