"""Keep notebooks and package together.

`python tools/notebooks.py check`: notebooks are clean and the package is what they export (nothing is changed).
`python tools/notebooks.py run [NOTEBOOK ...]`: export, run these library notebooks (or all), keep their outputs, clean.
"""
import difflib
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

root = Path(__file__).parents[1]


def nbdev(command, where):
    result = subprocess.run([str(Path(sys.executable).parent/command)], cwd=where, capture_output=True, text=True)
    if result.returncode: sys.exit(f"{command} failed:\n{result.stdout}{result.stderr}")


def files(folder):
    "Notebooks and package, relative to `folder`, without what tools leave there"
    found = (path.relative_to(folder) for name in ("nbs", "mlgov_nb") for path in (folder/name).rglob("*"))
    def left_by_a_tool(path): return any(part.startswith(".") or part == "__pycache__" for part in path.parts)
    return {path for path in found if (folder/path).is_file() and not left_by_a_tool(path)}


def library():
    "Every notebook that makes a module, and each folder's page; audits are run by the pipeline"
    found = [*(root/"nbs").rglob("[0-9]*.ipynb"), *(root/"nbs").glob("*/index.ipynb")]
    return sorted(nb for nb in found if nb.parent.name != "audits" and ".ipynb_checkpoints" not in nb.parts)


def same(one, other):
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def show_difference(name, here, exported):
    "The first lines that differ"
    texts = [(folder/name).read_text(errors="replace").splitlines() if (folder/name).is_file() else []
             for folder in (here, exported)]
    difference = difflib.unified_diff(*texts, f"{name} here", f"{name} cleaned and exported", lineterm="", n=1)
    print("\n".join(list(difference)[:12]))


def check():
    with tempfile.TemporaryDirectory() as d:
        copy = Path(d)
        for name in (*files(root), Path("settings.ini"), Path("pyproject.toml")):
            (copy/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root/name, copy/name)
        nbdev("nbdev_clean", copy)
        nbdev("nbdev_export", copy)
        odd = sorted(name for name in files(copy) | files(root) if not same(root/name, copy/name))
        for name in odd: show_difference(name, root, copy)
    if odd:
        sys.exit("notebooks and package disagree; run `nbdev_export` and `nbdev_clean` (edit the notebooks, never the "
                 f"package): {', '.join(map(str, odd))}")
    print(f"notebooks are clean, and the package is what they export ({len(files(root))} files)")


def execute(notebook):
    "Run a notebook in its folder and keep its outputs, but not what it printed as errors"
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config
    doc = nbformat.read(notebook, as_version=4)
    with tempfile.TemporaryDirectory() as d:
        sockets = Config(KernelManager=dict(transport="ipc", ip=str(Path(d)/"k")))
        resources = {"metadata": {"path": str(notebook.parent)}}
        NotebookClient(doc, kernel_name="python3", resources=resources, config=sockets).execute()
    for cell in doc.cells:
        if cell.cell_type != "code": continue
        cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.name != "stderr"]
    nbformat.write(doc, notebook)


def run(*names):
    nbdev("nbdev_export", root)
    for nb in [Path(name).resolve() for name in names] or library():
        print(nb.relative_to(root), flush=True)
        execute(nb)
    nbdev("nbdev_clean", root)


if __name__ == "__main__":
    verbs = {"check": check, "run": run}
    verbs.get(sys.argv[1] if len(sys.argv) > 1 else "", lambda *_: sys.exit(__doc__))(*sys.argv[2:])
