"""The same bits from every x86-64 processor with AVX2 and FMA, whatever the environment says."""
import os
import subprocess
import sys

import pytest

from mlgov_nb.kernels import processor_features

RUN = """
import sys
from mlgov_nb.kernels import fix_kernels
if sys.argv[1] == "fixed": assert fix_kernels()
import hashlib
import numpy as np
from mlgov_nb.model import candidates
from mlgov_nb.settings import Mitigation
from mlgov_nb.stats.two_sample import mmd
candidates.design = lambda encoder, codes: codes

rng = np.random.default_rng(0)
X = rng.random((3000, 30)) - 0.5
y = (X[:, 0] + X[:, 1] * X[:, 2] + 0.3 * (rng.random(3000) - 0.5) > 0).astype(float)
group = [np.where(X[:, 3] > 0, "a", "b")]

def bits(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[:12]

def bits_of(fitted):
    return bits(*(fitted.arrays[name] for name in sorted(fitted.arrays)))

distance = mmd(X[:1500], X[1500:] + 0.02, 7)
penalty = Mitigation(method="parity_penalty")
print(bits_of(candidates.mlp(dict(epochs=5), "binary", None, X, y, 7)),
      bits_of(candidates.mlp(dict(epochs=5), "binary", None, X, y, 7, group, penalty)),
      bits(np.array([distance.value, distance.p, distance.auc])),
      bits_of(candidates.linear({}, "binary", None, X, y)),
      bits_of(candidates.gradient_boosting(dict(max_iter=20), "binary", X, y, 7)))
"""
OTHER_MACHINE = {"OPENBLAS_CORETYPE": "Nehalem", "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "AUTO",
                 "NPY_DISABLE_CPU_FEATURES": "X86_V3", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2",
                 "OPENBLAS_NUM_THREADS": "2", "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}

# With the versions of requirements.lock: make them again when torch, numpy, scipy or scikit-learn change
EXPECTED = {"network": "a6363f400160", "mitigated network": "d9318aa0e001", "kernel test": "f6576e487e1b",
            "linear": "85c034a9124b", "boosting": "72d2808ef2f9"}

pytestmark = [pytest.mark.slow("four processes, each of which loads torch"),
              pytest.mark.skipif(not {"avx2", "fma"} <= processor_features(),
                                 reason="a processor without AVX2 or FMA runs its own kernels")]


def trained(mode, **environment):
    "The hash of each model, trained in a process of its own"
    command = [sys.executable, "-c", RUN, mode]
    result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return dict(zip(EXPECTED, result.stdout.split(), strict=True))


def test_fixed_kernels_give_the_committed_bits_in_any_environment():
    "On another make of processor this is the whole claim; on this one, another environment represents it"
    assert trained("fixed") == EXPECTED
    assert trained("fixed", **OTHER_MACHINE) == EXPECTED


def test_without_fixed_kernels_the_bits_change():
    "Or the test above could not fail"
    free, other = trained("free"), trained("free", **OTHER_MACHINE)
    assert all(free[name] != other[name] for name in ("network", "mitigated network", "linear"))
