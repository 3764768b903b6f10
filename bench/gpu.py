"""The network candidate and the kernel two-sample test (MMD) on a CUDA device beside the CPU: seconds, and agreement.

The network is the `mlp` of params.yaml on the General Social Survey, made ready by the pipeline's own stages; the test
is the drift audit's. Both are the project's functions as they are: on the CPU's turn, the device is hidden from them.
Where packages are missing or of other versions, those of requirements.lock are put into .bench/gpu-packages first.
All of it ends within five minutes. Exit code 0: all checks hold; 1: one does not, or time ran out; 2: no CUDA device.

    python bench/gpu.py                 everything, into bench/gpu.md and bench/gpu.json
    python bench/gpu.py --no-install    the same, with the packages that are there
    python bench/gpu.py --cpu-only      a short try on the CPU alone, which writes nothing to bench/
"""
import argparse
import ctypes
import importlib.metadata
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ROOT / ".bench" / "gpu-packages"
sys.path[:0] = [str(ROOT), *([str(PACKAGES)] if PACKAGES.is_dir() else [])]

try:
    import numpy as np
    import pandas as pd
    import torch
    from report import machine, table, versions, write

    from mlgov_nb.data.card import card_path, load_card
    from mlgov_nb.data.read import read_rows
    from mlgov_nb.model.artifact import Artifact, ArtifactError, load, parity_rows, save
    from mlgov_nb.model.candidates import fit
    from mlgov_nb.model.encoding import codes, design, fit_encoder
    from mlgov_nb.pipeline.data import ingest, split_stage
    from mlgov_nb.settings import load_params
    from mlgov_nb.stats.quality import auc
    from mlgov_nb.stats.two_sample import mmd
except ImportError as error:  # on a bare machine; `make_ready` looks at it
    PROBLEM = error
else:
    PROBLEM = None

CARD = "gss_wages"
SECONDS = 280  # for everything, installs included; the first imports, some ten seconds, are not counted
NEEDED = ["torch", "numpy", "pandas", "pyarrow", "scipy", "scikit-learn", "numba", "llvmlite", "pydantic", "pyyaml"]
NEEDED += ["pandera", "duckdb", "shap"]
SHOWN = ["torch", "numpy", "pandas", "scikit-learn", "numba"]

# Epochs of the network (None: as in params.yaml), runs, then the same network on many rows, and the two-sample test.
FULL = dict(epochs=None, runs=3, many=1_000_000, many_epochs=3, batch=16_384)
FULL |= dict(rows=100_000, sample=5_000, permutations=1_000)
SHORT = dict(epochs=2, runs=2, many=20_000, many_epochs=2, batch=4_096)
SHORT |= dict(rows=4_000, sample=1_000, permutations=200)

# How far the two devices may be apart. Without dropout, one epoch differs by the order of sums alone (float32);
# with it, each device draws its own dropout, so the trained networks are two draws, as networks of two seeds are.
SCORE_TOLERANCE = 1e-4  # of a score, after one epoch without dropout
AUC_TOLERANCE = 0.005  # on all rows that no network has seen
MMD_TOLERANCE = 1e-9  # of the distance, relative, and of the p-value: both are float64, on the same permutations


class Data(NamedTuple):
    """What the networks learn from and are scored on"""

    card: object
    params: object
    encoder: object
    inputs: object  # codes of the labelled training rows
    target: object
    reference: object  # rows of the training period that were held out
    last: object  # rows of the last window
    unseen: object  # the reference and all windows


def version_here(package):
    """The version of a package here, without its platform; None where it is not here"""
    try:
        return importlib.metadata.version(package).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def lacking(exact):
    """Needed packages that are not here, or, if it must be exact, are not of the version in requirements.lock"""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if "==" in line)
    here = {package: version_here(package) for package in NEEDED}
    return [package for package in NEEDED if here[package] is None or (exact and here[package] != locked[package])]


def driver_answers():
    """Whether a CUDA driver is here and counts a device; needs no package"""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def refuse(why):
    """Say in one sentence why nothing was measured, and end with exit code 2"""
    print(f"Nothing was measured, because {why}; --cpu-only tries out what runs on the CPU.", file=sys.stderr)
    sys.exit(2)


def install():
    """Put the needed packages, at the versions of requirements.lock, into a folder of their own, whole or not at all"""
    PACKAGES.parent.mkdir(exist_ok=True)
    folder = tempfile.mkdtemp(dir=PACKAGES.parent, prefix="gpu-packages-")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    try:
        subprocess.run([*pip, "--target", folder, "--constraint", ROOT / "requirements.lock", *NEEDED], check=True)
        shutil.rmtree(PACKAGES, ignore_errors=True)
        Path(folder).replace(PACKAGES)
    except subprocess.CalledProcessError:
        sys.exit("The packages of requirements.lock could not be installed; pip says why above.")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_ready(cpu_only, may_install):
    """Go on with all packages here, and a CUDA device unless it is not asked for; or say what is missing"""
    if not cpu_only and not driver_answers():
        refuse("this machine has no CUDA device (no driver answers)")
    if PROBLEM and (PROBLEM.name or "").startswith("mlgov_nb"):
        sys.exit(f"The imports at the top of bench/gpu.py are wrong: {PROBLEM}.")
    wanting = lacking(exact=may_install)
    if wanting and may_install:
        say(f"installing into {PACKAGES.relative_to(ROOT)}, not here as in requirements.lock: {', '.join(wanting)}")
        install()
        os.execv(sys.executable, [sys.executable, *sys.argv, "--no-install"])
    if wanting or PROBLEM:
        sys.exit(f"These packages are missing: {', '.join(wanting)}." if wanting else f"An import failed: {PROBLEM}.")
    if not cpu_only and not torch.cuda.is_available():
        built = f"with CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        refuse(f"torch {torch.__version__}, built {built}, finds no CUDA device that it can use")


def say(what):
    """One line of progress, with the seconds since the start"""
    print(f"{SECONDS - signal.getitimer(signal.ITIMER_REAL)[0]:.0f} s: {what}", file=sys.stderr, flush=True)


def too_long(*_):
    """End when the time is used up"""
    sys.exit(f"Stopped after {SECONDS} seconds: nothing was written.")


@contextmanager
def on(device):
    """The project's functions ask torch for CUDA and take it where there is one: for the CPU, hide it from them"""
    if device == "cuda":
        yield
    else:
        with patch.object(torch.cuda, "is_available", return_value=False):
            yield


def timed(device, run, runs=1):
    """Median seconds of some runs on a device, and what each of them gave"""
    seconds, results = [], []
    for _ in range(runs):
        start = time.perf_counter()
        with on(device):
            results.append(run())
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), results


def survey():
    """The survey's rows through the pipeline's stages, in a folder that is thrown away"""
    params = load_params(ROOT / "params.yaml")
    params = params.model_copy(update=dict(data=params.data.model_copy(update=dict(card=CARD, sample=1.0))))
    card = load_card(card_path(ROOT, CARD))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data" / "raw").mkdir(parents=True)
        for file in (f"{CARD}.yaml", card.path):
            shutil.copy(ROOT / "data" / "raw" / file, folder / "data" / "raw")
        ingest(folder, params)
        split_stage(folder, params)
        made = folder / "data" / "split"
        train, reference = (read_rows(made / f"{part}.parquet") for part in ("train", "reference"))
        windows = [read_rows(made / "windows" / f"{window}.parquet") for window in card.split.windows]
    encoder, known = fit_encoder(train, card), train.dropna(subset=card.target.name)
    target = known[card.target.name].to_numpy(float)
    unseen = pd.concat([reference, *windows], ignore_index=True)
    return Data(card, params, encoder, codes(encoder, known), target, reference, windows[-1], unseen)


def recipe_of(data, **changes):
    """The network candidate of params.yaml, with some of its parameters changed"""
    recipe = data.params.candidates["mlp"]
    changes = {name: value for name, value in changes.items() if value is not None}
    return recipe.model_copy(update=dict(params={**recipe.params, **changes}))


def learn(data, recipe, seed_shift=0):
    """Train a network by the project's own function"""
    return fit(recipe, data.card.task, data.encoder, data.inputs, data.target, data.params.seed + seed_shift)


def about(data, fitted):
    """What an artifact says of its network"""
    return dict(name="mlp", task=data.card.task, card=CARD, threshold=data.params.decision.threshold, kind=fitted.kind)


def scores(data, fitted):
    """Scores of all unseen rows by the compiled evaluator"""
    return Artifact(about(data, fitted), fitted.arrays, data.encoder).score(data.unseen)


def through_artifact(data, fitted):
    """Save and load a network as an artifact: its largest distance from torch's own raw scores of all unseen rows"""
    rows, inputs = parity_rows(data.reference, data.card), codes(data.encoder, data.unseen)
    with tempfile.TemporaryDirectory() as name:
        folder = save(Path(name) / "mlp", fitted, data.encoder, about(data, fitted), rows)
        try:
            return float(np.abs(load(folder).raw(inputs) - fitted.raw(inputs)).max())
        except ArtifactError as refused:
            say(str(refused))
            return np.inf


def auc_of(data, score):
    """AUC on the unseen rows that have a label"""
    target = data.unseen[data.card.target.name].to_numpy(float)
    known = ~np.isnan(target)
    return float(auc(target[known], score[known])[0])


def differences(data, networks, one, other):
    """How far the scores of two networks are apart"""
    gap = np.abs(one - other)
    spread = dict(mean=gap.mean(), median=np.median(gap), p95=np.quantile(gap, 0.95), p99=np.quantile(gap, 0.99))
    spread = {name: float(value) for name, value in spread.items()}
    return dict(networks=networks, auc=auc_of(data, one), other_auc=auc_of(data, other), **spread, max=float(gap.max()))


def check(what, found, allowed):
    """One line of the table of checks; `found` must be at most `allowed`"""
    return dict(check=what, found=float(found), allowed=float(allowed), holds=bool(found <= allowed))


def many_rows(data, rows):
    """The same data with training rows drawn with replacement"""
    at = np.random.default_rng(data.params.seed).integers(0, len(data.inputs), rows)
    return data._replace(inputs=data.inputs[at], target=data.target[at])


def beside(task, run, device, runs=1, threads=1, dtype="float32"):
    """A line of the table of times, and what the runs gave on the CPU and on the device"""
    cpu, ours = timed("cpu", run, runs)
    fast, theirs = timed(device, run, runs)
    say(f"{task}: {cpu:.3f} s on the CPU, {fast:.3f} s on the device")
    return dict(task=task, dtype=dtype, threads=threads, cpu=cpu, device=fast), ours, theirs


def network_times(data, size, device):
    """Lines of the table of times, of the network as it is and on many rows, and the networks as they are"""
    recipe = recipe_of(data, epochs=size["epochs"])
    epochs, batch = recipe.params["epochs"], recipe.params["batch"]
    task = f"network of params.yaml: {len(data.inputs):,} rows, {epochs} epochs, batches of {batch:,}"
    line, ours, theirs = beside(task, partial(learn, data, recipe), device, size["runs"])
    epochs, batch = size["many_epochs"], size["batch"]
    task = f"the same on {size['many']:,} rows drawn from them: {epochs} epochs, batches of {batch:,}"
    large = recipe_of(data, epochs=epochs, batch=batch)
    more, *_ = beside(task, partial(learn, many_rows(data, size["many"]), large), device)
    return [line, more], ours, theirs


def network_gaps(data, size, device, ours, theirs):
    """How far networks trained on both devices are apart, and, as a yardstick, two of the CPU"""
    plain, recipe = recipe_of(data, epochs=1, dropout=0.0), recipe_of(data, epochs=size["epochs"])
    pair = [scores(data, timed(place, partial(learn, data, plain))[1][0]) for place in ("cpu", device)]
    other = scores(data, timed("cpu", partial(learn, data, recipe, seed_shift=1))[1][0])
    ours, theirs = scores(data, ours), scores(data, theirs)
    return dict(
        plain=differences(data, "CPU and device, one epoch without dropout", *pair),
        full=differences(data, "CPU and device, as in params.yaml", ours, theirs),
        seeds=differences(data, "CPU and CPU with another seed", ours, other),
    )


def network_checks(data, device, gaps, ours, theirs):
    """What must hold of networks trained on both devices"""
    say("saving and loading the networks as artifacts")
    plain, full, seeds = gaps["plain"], gaps["full"], gaps["seeds"]
    return [
        check("networks not trained on the device that is named", theirs.note["device"] != device, 0),
        check("largest difference of a score, one epoch without dropout", plain["max"], SCORE_TOLERANCE),
        check("difference of the AUC, as in params.yaml", abs(full["auc"] - full["other_auc"]), AUC_TOLERANCE),
        check("mean difference of a score; allowed is that of two seeds on the CPU", full["mean"], seeds["mean"]),
        check("artifact trained on the CPU, loaded: distance from torch", through_artifact(data, ours), 0),
        check("artifact trained on the device, loaded: distance from torch", through_artifact(data, theirs), 0),
    ]


def windows_of(data, rows):
    """Rows drawn with replacement: of the reference, of it again, and of the last window"""
    random = np.random.default_rng(data.params.seed)
    pools = [design(data.encoder, codes(data.encoder, part)) for part in (data.reference, data.reference, data.last)]
    return [pool[random.integers(0, len(pool), rows)] for pool in pools]


def two_sample(data, size, device, threads):
    """Lines of the table of times, and results, of the kernel two-sample test on both devices"""
    torch.set_num_threads(threads)  # training leaves one
    old, same, new = windows_of(data, size["rows"])
    permutations, lines, results = size["permutations"], [], []
    for rows, runs in ((size["rows"], size["runs"]), (size["sample"], 1)):
        for change, other in (("reference again", same), ("last window", new)):
            task = f"MMD, {change}: {rows:,} + {rows:,} rows, {old.shape[1]} columns, {permutations:,} permutations"
            run = partial(mmd, old[:rows], other[:rows], data.params.seed, permutations)
            line, ours, theirs = beside(task, run, device, runs, threads, "float64")
            lines.append(line)
            results.append(dict(rows=rows, change=change, ours=ours[0], theirs=theirs[0]))
    return lines, results


def mmd_checks(rows, change, ours, theirs):
    """The checks of one two-sample test: distance and p-value"""
    where = f"{change}, {rows:,} + {rows:,} rows"
    return [
        check(f"MMD, {where}: relative difference of the distance", abs(theirs.value / ours.value - 1), MMD_TOLERANCE),
        check(f"MMD, {where}: difference of the p-value", abs(theirs.p - ours.p), MMD_TOLERANCE),
    ]


def warm_up(data, device):
    """Seconds of the first use: the device's start, and compiling"""
    little = data._replace(inputs=data.inputs[:600], target=data.target[:600])
    rows = design(data.encoder, data.inputs[:600])
    for place in ("cpu", device):
        seconds, _ = timed(place, lambda: (learn(little, recipe_of(data, epochs=1)), mmd(rows[:300], rows[300:])))
    return seconds


def device_facts(device):
    """The device and the software that drives it"""
    facts = dict(device="the CPU, a second time", torch=torch.__version__, cuda=torch.version.cuda or "none")
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        peak = round(torch.cuda.max_memory_allocated() / 2**20)
        facts |= dict(device=card.name, memory_gib=round(card.total_memory / 2**30), peak_mib=peak)
    return facts | dict(float32_products=torch.get_float32_matmul_precision())


def repeats(runs):
    """Whether training again with the same seed gave the same weights, in words"""
    first = runs[0].arrays
    same = all(np.array_equal(run.arrays[name], first[name], equal_nan=True) for run in runs for name in first)
    return "the same" if same else "other"


def time_rows(lines):
    """The table of times, as shown"""
    return [{
        "task": line["task"], "dtype": line["dtype"], "CPU threads": line["threads"], "CPU, s": f"{line['cpu']:.3f}",
        "device, s": f"{line['device']:.3f}", "CPU / device": f"{line['cpu'] / line['device']:.1f}",
    } for line in lines]


def gap_rows(gaps):
    """The table of differences between networks, as shown"""
    shown = {"mean": "mean", "median": "median", "95%": "p95", "99%": "p99", "largest": "max"}
    return [{
        "networks": gap["networks"], "AUC": f"{gap['auc']:.4f}", "other AUC": f"{gap['other_auc']:.4f}",
        **{title: f"{gap[name]:.1e}" for title, name in shown.items()},
    } for gap in gaps.values()]


def result_rows(results):
    """The table of two-sample tests, as shown"""
    return [{
        "rows": f"{run['rows']:,} + {run['rows']:,}", "reference against": run["change"],
        "distance, CPU": f"{run['ours'].value:.6f}", "distance, device": f"{run['theirs'].value:.6f}",
        "p, CPU": f"{run['ours'].p:.3g}", "p, device": f"{run['theirs'].p:.3g}",
    } for run in results]


def check_rows(checks):
    """The table of checks, as shown"""
    return [{
        "check": line["check"], "found": f"{line['found']:.2g}", "allowed": f"{line['allowed']:.2g}",
        "holds": "yes" if line["holds"] else "NO",
    } for line in checks]


def page(run):
    """The report in Markdown"""
    facts, checks = run["facts"], run["checks"]
    shown = (time_rows(run["times"]), gap_rows(run["gaps"]), result_rows(run["results"]), check_rows(checks))
    times, gaps, results, checked = (table(rows, list(rows[0])) for rows in shown)
    memory = f", {facts['memory_gib']} GiB, of which {facts['peak_mib']:,} MiB were used" if "peak_mib" in facts else ""
    return f"""# On a CUDA device

`python bench/gpu.py`. The device is {facts['device']}{memory}; torch {facts['torch']}, CUDA {facts['cuda']}, \
float32 products at precision "{facts['float32_products']}". Its first use took {run['first']:.1f} s and is not counted.
Seconds are of the project's whole function, with what it does on the CPU in any case: encoding, drawing, copying.
Network of params.yaml and large MMD: median of {run['runs']} runs; all else once. Networks train on one CPU thread, \
as always in the project.

{times}

Differences of scores on the {run['unseen']:,} rows that no network has seen. Each device draws its own dropout, so
networks trained with it differ as two draws do. Again with the same seed, the device gave {run['repeats']} weights.

{gaps}

The two-sample test, on the same permutations. Rows are drawn with replacement, from the survey's reference, from it
again, and from the last window.

{results}

{sum(line['holds'] for line in checks)} of {len(checks)} checks hold:

{checked}"""


def measure(device, size):
    """Everything that is measured and checked on one device beside the CPU"""
    threads = torch.get_num_threads()
    say("preparing the survey's rows")
    data = survey()
    first = warm_up(data, device)
    times, ours, theirs = network_times(data, size, device)
    mmd_times, results = two_sample(data, size, device, threads)
    say("comparing the networks")
    gaps = network_gaps(data, size, device, ours[-1], theirs[-1])
    checks = network_checks(data, device, gaps, ours[-1], theirs[-1])
    checks += [line for result in results for line in mmd_checks(**result)]
    run = dict(facts=device_facts(device), first=first, runs=size["runs"], unseen=len(data.unseen))
    run |= dict(repeats=repeats(theirs), times=times + mmd_times, gaps=gaps, results=results, checks=checks)
    return run


def main():
    """Read the command line, measure, print the page, and write it unless it is a try"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-install", action="store_true", help="take the packages that are there")
    parser.add_argument("--cpu-only", action="store_true", help="a short try on the CPU alone, which writes nothing")
    given = parser.parse_args()
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(signal.alarm(0) or SECONDS)  # what is left, if this is the second start, after installing
    make_ready(given.cpu_only, not given.no_install)
    run = measure("cpu", SHORT) if given.cpu_only else measure("cuda", FULL)
    text = page(run)
    print(text)
    if not given.cpu_only:
        results = [result | {who: vars(result[who]) for who in ("ours", "theirs")} for result in run["results"]]
        write("gpu", text, run | dict(machine=machine(), versions=versions(*SHOWN), results=results))
    sys.exit(0 if all(line["holds"] for line in run["checks"]) else 1)


if __name__ == "__main__":
    main()
