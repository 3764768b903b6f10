"""Make requirements.lock, the exact version of everything that pyproject.toml asks for, directly or not,
and requirements-serve.lock, the part of it that the service needs: pyproject's dependency group `serve` and what that needs in turn.

Local versions (+cpu) are left out, and so are the CUDA libraries that torch brings by itself on Linux:
the same lock gives each platform its own build of torch. `--serve` makes the second file alone, from what is installed.
"""
import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

root = Path(__file__).parents[1]
sys.path.insert(0, str(root))
from mlgov_nb.files import write_atomic  # noqa: E402

PLATFORM = ("nvidia-", "cuda-", "triton", "intel-", "mkl")
KEEP = {"nvidia-ml-py", "tritonclient"}   # the same on every platform: BentoML counts GPUs by the first at each start, the second is a client in the tests


def portable(name): return name in KEEP or not name.startswith((*PLATFORM, "mlgov-nb"))


def resolve():
    "requirements.lock as text, and each package's requirements, from the package index"
    got = subprocess.run([sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", "-e", ".[dev]"],
                         cwd=root, capture_output=True, text=True)
    if got.returncode: sys.exit(got.stderr)
    meta = {i["metadata"]["name"].lower().replace("_", "-"): i["metadata"] for i in json.loads(got.stdout)["install"]}
    lines = [f"{k}=={m['version'].split('+')[0]}" for k, m in sorted(meta.items()) if portable(k)]
    head = "# Exact versions of everything. Made by `make lock` from pyproject.toml; do not edit.\n"
    return head + "\n".join(lines) + "\n", {canonicalize_name(k): m.get("requires_dist", []) for k, m in meta.items()}.__getitem__


def closure(roots, requires):
    "The names that `roots` need, directly or not; `requires(name)` lists a package's requirements"
    todo, seen = [Requirement(r) for r in roots], set()
    while todo:
        r = todo.pop()
        for key in {(canonicalize_name(r.name), extra) for extra in ("", *r.extras)} - seen:
            seen.add(key)
            todo += [q for q in map(Requirement, requires(key[0]) or []) if not q.marker or q.marker.evaluate({"extra": key[1]})]
    return {name for name, _ in seen}


def serve_lock(
    lock, # Text of requirements.lock
    requires=importlib.metadata.requires, # Gives a package's requirements
):
    "requirements-serve.lock as text: the lines of `lock` that the group `serve` needs"
    need = closure(tomllib.loads((root/"pyproject.toml").read_text())["dependency-groups"]["serve"], requires)
    lines = [x for x in lock.splitlines() if not x.startswith("#") and canonicalize_name(x.split("==")[0]) in need]
    if lost := need - {canonicalize_name(x.split("==")[0]) for x in lines}: sys.exit(f"the service needs {sorted(lost)}, which requirements.lock does not have")
    return "# Exact versions of what the service needs. Made by `make lock` from pyproject.toml's group `serve`; do not edit.\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    if "--serve" in sys.argv[1:]: lock, requires = (root/"requirements.lock").read_text(), importlib.metadata.requires
    else:
        lock, requires = resolve()
        write_atomic(root/"requirements.lock", lock)
    serve = serve_lock(lock, requires)
    write_atomic(root/"requirements-serve.lock", serve)
    print(f"requirements.lock: {lock.count('==')} packages; requirements-serve.lock: {serve.count('==')} of them")
