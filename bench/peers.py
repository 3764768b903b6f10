"""Peers whose requirements clash with the project's, each in a virtual environment of its own under .bench/."""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SAME = ["scikit-learn==1.9.1", "pandas==3.0.6", "numpy==2.4.6", "pyarrow"]     # as the project's
PINS = dict(
    nannyml=["nannyml==0.13.1", "statsmodels", "setuptools<81"],
    whylogs=["whylogs[viz]==1.6.4", "pandas<3", "pyarrow", "setuptools<81"],
    fastapi=[
        "fastapi==0.165.0",
        "bentoml==1.4.39",
        "uvicorn[standard]==0.54.0",
        "starlette==1.10.0",
        "pydantic==2.14.3",
        "onnxruntime==1.32.0",
        "skl2onnx==1.20.0",
        "onnx==1.23.2",
        *SAME,
    ],
    mlserver=["mlserver==1.7.1", "mlserver-sklearn==1.7.1", *SAME],
    mlflow=["mlflow==3.17.2", *SAME],
)


def python_of(name):
    "The Python of a peer's environment, made when it is not there; None, with a message, when it does not install"
    environment = ROOT/".bench"/name
    python = environment/"bin"/"python"
    if (environment/"ready").is_file(): return python
    print(f"{name}: making {environment.relative_to(ROOT)}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
    for arguments in (["-m", "pip", "install", "-q", *PINS[name]], ["-c", f"import {name}"]):
        result = subprocess.run([python, *arguments], capture_output=True, text=True)
        if result.returncode:
            print(f"{name}: does not install: {result.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return None
    (environment/"ready").touch()
    return python


def version_of(name):
    "The version that `python_of` installs"
    return PINS[name][0].split("==")[1]


if __name__ == "__main__":
    for peer in PINS: print(peer, python_of(peer))
