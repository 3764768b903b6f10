"""Peers whose requirements clash with the project's, each in a virtual environment of its own under .bench/."""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PINS = dict(nannyml=["nannyml==0.13.1", "statsmodels", "setuptools<81"], whylogs=["whylogs[viz]==1.6.4", "pandas<3", "pyarrow", "setuptools<81"])


def python_of(name):
    "The Python of a peer's environment, made when it is not there; None, with the reason printed, when it does not install"
    env = ROOT/".bench"/name
    py = env/"bin"/"python"
    if not (env/"ready").is_file():
        print(f"{name}: making {env.relative_to(ROOT)}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", env], check=True)
        got = subprocess.run([py, "-m", "pip", "install", "-q", *PINS[name]], capture_output=True, text=True)
        if not got.returncode: got = subprocess.run([py, "-c", f"import {name}"], capture_output=True, text=True)
        if got.returncode:
            print(f"{name}: does not install: {got.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return None
        (env/"ready").touch()
    return py


def version_of(name):
    "The version that `python_of` installs"
    return PINS[name][0].split("==")[1]


if __name__ == "__main__":
    for peer in PINS: print(peer, python_of(peer))
