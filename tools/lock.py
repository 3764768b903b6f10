"""Make requirements.lock and requirements-serve.lock.

The first is the exact version of everything that pyproject.toml asks for, directly or not; the second is the part of it
that the service needs: pyproject's dependency group `serve` and what that needs in turn.

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
from mlgov_nb.files import write_atomic

PLATFORM = ("nvidia-", "cuda-", "triton", "intel-", "mkl")
# The same on every platform: BentoML counts GPUs by the first at each start, the second is a client in the tests
KEEP = {"nvidia-ml-py", "tritonclient"}
HEAD = "# Exact versions of {what}. Made by `make lock` from {source}; do not edit.\n"


def portable(name):
    return name in KEEP or not name.startswith((*PLATFORM, "mlgov-nb"))


def resolve():
    "requirements.lock as text, and each package's requirements, from the package index"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    result = subprocess.run([*command, "-e", ".[dev]"], cwd=root, capture_output=True, text=True)
    if result.returncode: sys.exit(result.stderr)
    found = [item["metadata"] for item in json.loads(result.stdout)["install"]]
    packages = {package["name"].lower().replace("_", "-"): package for package in found}
    kept = {name: package for name, package in sorted(packages.items()) if portable(name)}
    lines = [f"{name}=={package['version'].split('+')[0]}" for name, package in kept.items()]
    requires = {canonicalize_name(name): package.get("requires_dist", []) for name, package in packages.items()}
    return HEAD.format(what="everything", source="pyproject.toml") + "\n".join(lines) + "\n", requires.__getitem__


def applies(requirement, extra):
    "Does a requirement hold on this platform, with that extra?"
    return not requirement.marker or requirement.marker.evaluate({"extra": extra})


def closure(roots, requires):
    "The names that `roots` need, directly or not; `requires(name)` lists a package's requirements"
    waiting, seen = [Requirement(root) for root in roots], set()
    while waiting:
        requirement = waiting.pop()
        keys = {(canonicalize_name(requirement.name), extra) for extra in ("", *requirement.extras)}
        for name, extra in keys - seen:
            seen.add((name, extra))
            needed = map(Requirement, requires(name) or [])
            waiting += [one for one in needed if applies(one, extra)]
    return {name for name, _ in seen}


def serve_lock(
    lock, # Text of requirements.lock
    requires=importlib.metadata.requires, # Gives a package's requirements
):
    "requirements-serve.lock as text: the lines of `lock` that the group `serve` needs"
    groups = tomllib.loads((root/"pyproject.toml").read_text())["dependency-groups"]
    needed = closure(groups["serve"], requires)
    versions = {canonicalize_name(line.split("==")[0]): line for line in lock.splitlines() if not line.startswith("#")}
    if lost := needed - set(versions):
        sys.exit(f"the service needs {sorted(lost)}, which requirements.lock does not have")
    lines = [line for name, line in versions.items() if name in needed]
    return HEAD.format(what="what the service needs", source="pyproject.toml's group `serve`") + "\n".join(lines) + "\n"


if __name__ == "__main__":
    if "--serve" in sys.argv[1:]:
        lock, requires = (root/"requirements.lock").read_text(), importlib.metadata.requires
    else:
        lock, requires = resolve()
        write_atomic(root/"requirements.lock", lock)
    serve = serve_lock(lock, requires)
    write_atomic(root/"requirements-serve.lock", serve)
    print(f"requirements.lock: {lock.count('==')} packages; requirements-serve.lock: {serve.count('==')} of them")
