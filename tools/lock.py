"""Make requirements.lock: the exact version of everything that pyproject.toml asks for, directly or not.

Local versions (+cpu) are left out, and so are the CUDA libraries that torch brings by itself on Linux:
the same lock gives each platform its own build of torch.
"""
import json
import subprocess
import sys
from pathlib import Path

root = Path(__file__).parents[1]
sys.path.insert(0, str(root))
from mlgov_nb.files import write_atomic  # noqa: E402

PLATFORM = ("nvidia-", "cuda-", "triton", "intel-", "mkl")

got = subprocess.run([sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", "-e", ".[dev]"],
                     cwd=root, capture_output=True, text=True)
if got.returncode: sys.exit(got.stderr)
found = {i["metadata"]["name"].lower().replace("_", "-"): i["metadata"]["version"].split("+")[0] for i in json.loads(got.stdout)["install"]}
found.pop("mlgov-nb", None)
lines = [f"{k}=={v}" for k, v in sorted(found.items()) if not k.startswith(PLATFORM)]
head = "# Exact versions of everything. Made by `make lock` from pyproject.toml; do not edit.\n"
write_atomic(root/"requirements.lock", head + "\n".join(lines) + "\n")
print(f"requirements.lock: {len(lines)} packages")
