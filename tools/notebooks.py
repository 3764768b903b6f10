"""Keep notebooks and package together.

`python tools/notebooks.py check`: notebooks are clean and the package is what they export (in a copy; nothing is changed).
`python tools/notebooks.py run [NOTEBOOK ...]`: export, run the named library notebooks (or all) and keep their outputs, clean.
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
    got = subprocess.run([str(Path(sys.executable).parent/command)], cwd=where, capture_output=True, text=True)
    if got.returncode: sys.exit(f"{command} failed:\n{got.stdout}{got.stderr}")


def files(folder):
    keep = (p for d in ("nbs", "mlgov_nb") for p in sorted((folder/d).rglob("*")) if p.is_file())
    return {p.relative_to(folder) for p in keep if "__pycache__" not in p.parts and ".ipynb_checkpoints" not in p.parts}


def library():
    "Every notebook that makes a module; audits are run by the pipeline"
    return sorted(nb for nb in (root/"nbs").rglob("[0-9]*.ipynb") if nb.parent.name != "audits" and ".ipynb_checkpoints" not in nb.parts)


def check():
    with tempfile.TemporaryDirectory() as d:
        copy = Path(d)
        for f in (*files(root), Path("settings.ini"), Path("pyproject.toml")):
            (copy/f).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root/f, copy/f)
        nbdev("nbdev_clean", copy)
        nbdev("nbdev_export", copy)
        odd = sorted(f for f in files(copy) | files(root) if not ((root/f).is_file() and (copy/f).is_file() and filecmp.cmp(root/f, copy/f, shallow=False)))
        for f in odd:
            pair = [(p/f).read_text(errors="replace").splitlines() if (p/f).is_file() else [] for p in (root, copy)]
            print("\n".join(list(difflib.unified_diff(*pair, f"{f} here", f"{f} cleaned and exported", lineterm="", n=1))[:12]))
    if odd: sys.exit("notebooks and package disagree; run `nbdev_export` and `nbdev_clean` (edit the notebooks, never the package): " + ", ".join(map(str, odd)))
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
