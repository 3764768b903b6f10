"""Profiles and drift from the command line.

Files, merging, a real Dask cluster, a killed worker, bad input, and the reference libraries."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jsonschema
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, Project, free_port

from mlgov_nb.cli.console import EXIT_CODES
from mlgov_nb.data.card import load_card
from mlgov_nb.drift.columns import decide, drift_table
from mlgov_nb.drift.distances import _finite, chi_square, decile_counts, js_distance, ks, psi, wasserstein
from mlgov_nb.pipeline.drift_check import drift_of
from mlgov_nb.profile.build import profile, read_profile
from mlgov_nb.profile.column import bin_means, moments
from mlgov_nb.settings import load_params
from mlgov_nb.stats.measures import schema

SAMPLE = ROOT/"data/sample"
ACS = ROOT/"data/raw/acs_employment.parquet"


@pytest.fixture
def here(tmp_path): return Project(tmp_path)


@pytest.fixture(scope="module")
def years():
    "Ten years of the survey's codes, by year"
    rows = pd.read_parquet(ACS).drop(columns="id")
    return {year: of_year.reset_index(drop=True) for year, of_year in rows.groupby("year")}


def write_parts(folder, years, rows=30_000):
    "One Parquet file for each year; their names"
    for year, of_year in years.items():
        of_year.head(rows).drop(columns="year").to_parquet(folder/f"{year}.parquet", row_group_size=7_000)
    return [f"{year}.parquet" for year in years]


def run_json(project, command, code=0):
    "The JSON answer of a command"
    return json.loads(project.run(command, code).stdout)


# What really changes in the survey: the highest age is coded 95 instead of 94 from 2017 on; fewer report their ancestry
TOP_CODES = {"AGEP", "ANC", "year"}


def drifted_columns(answer):
    "The columns that an answer calls drifted"
    return {m["subject"] for m in answer["measures"] if m["name"] == "drifted" and m["value"]}


@pytest.mark.slow("a dozen processes")
def test_profiles_from_files_merge_and_are_compared(here, years):
    names = write_parts(here.root, years)
    here.run(f"mlgov profile {names[0]} -o ref.json")
    for name in names: here.run(f"mlgov profile {name} --like ref.json -o {name}.json")
    profiles = " ".join(f"{name}.json" for name in names)
    here.run(f"mlgov profile-merge {profiles} -o merged.json")
    here.run(f"mlgov profile {' '.join(names)} --like ref.json -o all.json")
    assert (here.root/"merged.json").read_bytes() == (here.root/"all.json").read_bytes()
    jsonschema.validate(json.loads((here.root/"all.json").read_text()), schema("profile"))
    assert read_profile(here.root/"all.json")["AGEP"].n == 30_000 * len(names)
    answer = run_json(here, "mlgov drift ref.json merged.json --json")
    assert drifted_columns(answer) <= TOP_CODES
    assert any(m["name"] == "js_distance" and m["subject"] == "SCHL" for m in answer["measures"])


@pytest.mark.slow("a dozen processes")
def test_drift_of_the_survey_is_a_changed_code_and_a_broken_column_is_found(here, years):
    "Survey years differ in codes; a lost code and a wrong unit are named, with the size and the p-value"
    old, new = pd.concat([years[2015], years[2016]]), years[2018]
    old.to_parquet(here.root/"old.parquet")
    new.to_parquet(here.root/"new.parquet")
    shutil.copytree(ROOT/"data/raw", here.root/"data/raw", ignore=shutil.ignore_patterns("*.parquet"))
    for name in ("params.yaml", "policy.yaml"): shutil.copy(ROOT/name, here.root)
    quiet = run_json(here, "mlgov drift old.parquet new.parquet --card acs_employment --json")
    assert drifted_columns(quiet) == {"AGEP", "ANC"} and "AGEP: above 94 0% → 0.8%" in quiet["line"]
    assert any("not tested here: combinations" in note for note in quiet["notes"])

    ages = new.AGEP.astype(int)
    every_20th = np.arange(len(new)) % 20 == 0
    broken = new.assign(MAR=new.MAR.astype("str").replace("5", "1"), AGEP=np.where(every_20th, ages * 12, ages))
    broken.to_parquet(here.root/"broken.parquet")
    answer = run_json(here, "mlgov drift old.parquet broken.parquet --card acs_employment --json")
    line = answer["line"]
    assert answer["verdict"] == "warn"
    lost_code = r"MAR: '1' 4\d% → 8\d% \(large change, Jensen-Shannon distance 0\.\d+, p < 0\.0001\)"
    assert re.search(lost_code, line)
    assert re.search(r"AGEP: mean 41\.\d → \d+", line) and "outside the reference's range" in line
    assert drifted_columns(answer) == {"MAR", "AGEP", "ANC"}


# Dask: real workers in processes of their own

class Cluster:
    "A Dask scheduler and its workers, each a process without output"

    def __init__(self, root, workers=3):
        self.port, self.root = free_port(), root
        self.scheduler = self.start("dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port))
        worker_options = ["--nthreads", "1", "--host", "127.0.0.1", "--no-nanny"]
        self.workers = [self.start("dask_worker", self.address, *worker_options) for _ in range(workers)]

    address = property(lambda self: f"tcp://127.0.0.1:{self.port}")

    def start(self, module, *options):
        "One process of the cluster"
        command = [sys.executable, "-m", f"distributed.cli.{module}", *options]
        command += ["--no-dashboard", "--dashboard-address", ":0"]
        env = {**os.environ, "DASK_DISTRIBUTED__WORKER__PREFLIGHT": "0"}
        return subprocess.Popen(
            command, cwd=self.root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def wait(self):
        from dask.distributed import Client
        with Client(self.address, timeout="60s", set_as_default=False) as client:
            client.wait_for_workers(len(self.workers), timeout=60)

    def stop(self):
        processes = [*self.workers, self.scheduler]
        for process in processes: process.kill()
        for process in processes: process.wait()


@pytest.fixture
def cluster(tmp_path):
    started = Cluster(tmp_path)
    try:
        started.wait()
        yield started
    finally:
        started.stop()


@pytest.mark.slow("starts Dask")
def test_dask_gives_the_byte_identical_profile(here, cluster, years):
    names = write_parts(here.root, years)
    here.run(f"mlgov profile {' '.join(names)} -o one.json")
    here.run(f"mlgov profile --dask {cluster.address} {' '.join(names)} -o many.json")
    assert (here.root/"one.json").read_bytes() == (here.root/"many.json").read_bytes()


@pytest.mark.slow("starts Dask")
def test_a_killed_worker_costs_nothing_but_time(here, cluster, years):
    rows = pd.concat(years.values(), ignore_index=True).drop(columns="year")
    rows = pd.concat([rows] * 4, ignore_index=True)
    files = [f"p{i:02}.parquet" for i in range(12)]
    for file in files: rows.to_parquet(here.root/file, row_group_size=20_000)
    names = " ".join(files)
    here.run("mlgov profile p00.parquet -o ref.json")
    here.run(f"mlgov profile {names} --like ref.json -o one.json")
    process = subprocess.Popen(
        ["bash", "-c", f"mlgov profile --dask {cluster.address} {names} --like ref.json -o many.json"],
        cwd=here.root,
        env=here.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until_busy(cluster)
    cluster.workers[0].send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert (here.root/"one.json").read_bytes() == (here.root/"many.json").read_bytes()


def wait_until_busy(cluster):
    "Wait until every worker has a task"
    from dask.distributed import Client
    with Client(cluster.address, set_as_default=False) as client:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            at_work = sum(bool(tasks) for tasks in client.processing().values())
            if at_work == len(cluster.workers): return
            time.sleep(0.02)
    pytest.fail("the workers never got work")


@pytest.mark.slow("starts Dask")
def test_no_scheduler_is_said_so(here):
    shutil.copy(SAMPLE/"reference.parquet", here.root)
    command = f"mlgov profile --dask tcp://127.0.0.1:{free_port()} reference.parquet -o x.json"
    here.refuses(command, "no Dask scheduler answers there")
    assert not (here.root/"x.json").exists()


# Bad input: one readable message, nothing half-written

@pytest.fixture
def files(here):
    "A file of three columns and others that differ from it in one way each"
    base = pd.DataFrame(dict(x=np.arange(200.0), y=np.arange(200) % 3, k=["a", "b"] * 100))

    def write(name, rows): rows.to_csv(here.root/name, index=False)

    write("a.csv", base)
    write("same.csv", base)
    write("text.csv", base.assign(x="many"))
    write("less.csv", base.drop(columns="k"))
    write("none.csv", base.assign(x=np.nan))
    write("one.csv", base.assign(k="a", x=1.0))
    write("inf.csv", base.assign(x=[np.inf, -np.inf, 1.0, 2.0] * 50))
    write("empty.csv", base.head(0))
    write("row.csv", base.head(1))
    (here.root/"twice.csv").write_text("x,x\n1,2\n")
    (here.root/"broken.parquet").write_bytes(b"PAR1\x15\x04 no")
    identifiers = pd.DataFrame(dict(x=np.arange(100_000.0), k=[f"id{i}" for i in range(100_000)]))
    identifiers.to_parquet(here.root/"ids.parquet")
    times = pd.DataFrame(dict(x=pd.date_range("2024-01-01", periods=200), y=1, k="a"))
    times.to_parquet(here.root/"time.parquet")
    return here


@pytest.mark.slow("a process for each pair of files")
@pytest.mark.parametrize("a, b, texts", [
    ("a.csv", "less.csv", ["less.csv: missing columns 'k'", "the file has: x, y"]),
    ("a.csv", "text.csv", ["text.csv", "must be a number", "many"]),
    ("a.csv", "time.parquet", ["column 'x' holds times, the reference has numbers there"]),
    ("a.csv", "twice.csv", ["twice.csv: missing columns"]),
    ("twice.csv", "a.csv", ["'x' occurs twice, with different values"]),
    ("a.csv", "broken.parquet", ["broken.parquet: cannot be read"]),
    ("a.csv", "nowhere.csv", ["nowhere.csv: no such file"]),
])
def test_windows_that_do_not_fit_are_refused(files, a, b, texts): files.refuses(f"mlgov drift {a} {b}", *texts)


@pytest.mark.slow("a process for each pair of files")
@pytest.mark.parametrize("a, b, why", [
    ("a.csv", "empty.csv", "fewer than 30 rows"),
    ("a.csv", "row.csv", "fewer than 30 rows (200 and 1)"),
    ("row.csv", "a.csv", "fewer than 30 rows (1 and 200)"),
])
def test_what_cannot_be_told_is_unknown_with_the_reason(files, a, b, why):
    result = files.run(f"mlgov drift {a} {b} --json", EXIT_CODES["unknown"])
    answer = json.loads(result.stdout)
    assert answer["verdict"] == "unknown" and why in answer["line"] and "Traceback" not in result.stderr


@pytest.mark.slow("a process for each pair of files")
def test_a_column_that_cannot_be_told_is_named_and_hides_nothing(files):
    answer = run_json(files, "mlgov drift ids.parquet ids.parquet --json")
    assert answer["verdict"] == "pass"
    assert "k: cannot tell, more than 50,000 categories: an identifier or free text" in answer["line"]


@pytest.mark.slow("a process for each pair of files")
def test_what_is_the_same_passes_and_what_comes_back_is_drift(files):
    "One value in both windows is no change; values where there were none are one"
    assert run_json(files, "mlgov drift one.csv one.csv --json")["verdict"] == "pass"
    back = run_json(files, "mlgov drift none.csv a.csv --json")
    assert back["verdict"] == "warn" and "x: " in back["line"]


@pytest.mark.slow("a process for each pair of files")
@pytest.mark.parametrize("b, word", [
    ("none.csv", "missing 0% → 100%"),
    ("inf.csv", "inf 0% → 25%"),
    ("one.csv", "k: 'a' 50% → 100%"),
])
def test_a_column_that_breaks_is_drift(files, b, word):
    answer = run_json(files, f"mlgov drift a.csv {b} --json")
    assert answer["verdict"] == "warn" and word in answer["line"]


@pytest.mark.slow("a whole drift audit")
def test_a_broken_link_between_columns_is_a_warning(here):
    "Nothing but the combination has changed: the columns alone see nothing, the full audit warns"
    random = np.random.default_rng(0)
    old, new = (pd.DataFrame(random.normal(size=(1500, 2)), columns=["x", "y"]) for _ in range(2))
    linked = new.x + new.y / 10
    old.to_csv(here.root/"old.csv", index=False)
    new.assign(y=linked / linked.std()).to_csv(here.root/"new.csv", index=False)
    assert run_json(here, "mlgov drift old.csv new.csv --json")["verdict"] == "pass"
    full = run_json(here, "mlgov drift old.csv new.csv --full --json")
    distinguished = "domain classifier: rows of the two windows are distinguished with AUC 0.9"
    assert full["verdict"] == "warn" and re.search(distinguished, full["line"])


@pytest.mark.slow("a whole drift audit")
@pytest.mark.parametrize("a, b, options, texts", [
    ("row.csv", "a.csv", "--full", ["fewer than 30 rows"]),
])
def test_the_full_audit_of_odd_files_cannot_tell(files, a, b, options, texts):
    for i, name in enumerate(("uuid.csv", "uuid2.csv")):
        identifiers = [f"{i}-{j:08x}" for j in range(3000)]
        numbers = np.random.default_rng(i).normal(size=3000)
        pd.DataFrame(dict(k=identifiers, x=numbers)).to_csv(files.root/name, index=False)
    answer = run_json(files, f"mlgov drift {a} {b} {options} --json", EXIT_CODES["unknown"])
    assert answer["verdict"] == "unknown" and all(text in answer["line"] for text in texts), answer["line"]


@pytest.mark.slow("a whole drift audit")
def test_dates_text_scores_and_short_histories(files):
    "A date is no drift; a text column may be called score; a history of one window is refused"
    for i, name in enumerate(("old.csv", "new.csv")):
        days = pd.date_range(f"202{i}-01-01", periods=600).astype("str")
        numbers = np.random.default_rng(i).normal(size=600)
        rows = pd.DataFrame(dict(day=days, score=["low", "high"] * 300, x=numbers))
        rows.to_csv(files.root/name, index=False)
    answer = run_json(files, "mlgov drift old.csv new.csv --full --json")
    assert answer["verdict"] == "pass" and "not tested: day (time moves on by itself)" in answer["notes"]
    assert run_json(files, "mlgov drift old.csv new.csv --match month --json")["verdict"] == "pass"
    files.refuses("mlgov drift a.csv same.csv --match month", "the same month needs a time column")
    files.refuses("mlgov drift old.csv new.csv --history old.csv", "give at least 3")


@pytest.mark.slow("a dozen processes")
def test_profiles_that_do_not_fit_are_refused(files):
    profile_three = (
        "mlgov profile a.csv -o a.json",
        "mlgov profile inf.csv -o other.json",
        "mlgov profile same.csv --like a.json -o same.json",
    )
    files.run(" && ".join(profile_three))
    files.refuses("mlgov drift a.json other.json", "columns ['x'] have other bins in the two profiles")
    files.refuses("mlgov profile-merge a.json other.json -o c.json", "have other bins")
    assert not (files.root/"c.json").exists()

    content = json.loads((files.root/"a.json").read_text())
    (files.root/"old.json").write_text(json.dumps({**content, "schema": 1}))
    files.refuses(
        "mlgov drift old.json a.json", "old.json: profile schema 1 is not known; this version reads schema 3"
    )
    content["columns"][0]["counts"][1] += 1
    (files.root/"changed.json").write_text(json.dumps(content))
    files.refuses("mlgov drift a.json changed.json", "changed.json: its content does not match its sha256")
    (files.root/"cut.json").write_text((files.root/"a.json").read_text()[:500])
    files.refuses("mlgov drift a.json cut.json", "cut.json: not a profile")
    files.refuses("mlgov drift a.json same.json --full", "--full needs rows")


def test_a_full_disk_leaves_nothing_half_written(files):
    "A profile is written whole or not at all: here the shell's file-size limit ends the write"
    nothing_left = "test ! -e p.json && test -z \"$(ls -A | grep '^\\.p.json')\""
    result = files.run(f"ulimit -f 1; mlgov profile a.csv -o p.json; code=$?; {nothing_left} && exit $code", 2)
    assert result.stderr.startswith("mlgov: ") and "Traceback" not in result.stderr


# Against the reference libraries, on real rows

@pytest.mark.slow("loads Evidently and asks it for every statistic")
def test_statistics_equal_evidently_and_scipy_on_real_rows(years):
    """On the survey's codes: categorical Jensen-Shannon distance, PSI and chi-square to 1e-9.

    On its ages: KS exactly, Wasserstein within its bound."""
    from evidently.legacy.calculations.stattests import (
        chi_stat_test,
        jensenshannon_stat_test,
        psi_stat_test,
        wasserstein_stat_test,
    )
    from evidently.legacy.core import ColumnType
    from scipy.stats import chi2_contingency, chisquare, ks_2samp
    codes = ["SCHL", "MAR", "RELP", "CIT", "MIG", "RAC1P"]
    as_text = dict.fromkeys(codes, "str")
    old = years[2015].sample(20_000, random_state=0).astype(as_text)
    new = years[2018].sample(9_000, random_state=0).astype(as_text)
    reference = profile(old[[*codes, "AGEP"]])
    current = profile(new, reference)

    same_psi = []
    for code in codes:
        def evidently(test, threshold, code=code):
            return test(old[code], new[code], ColumnType.Categorical, threshold).drift_score

        x, y = np.array(reference[code].counts), np.array(current[code].counts)
        x, y = x[x + y > 0], y[x + y > 0]
        assert (x > 0).all(), "chi-square against the reference's shares needs every category there"
        natural = evidently(jensenshannon_stat_test, 0.1)   # Evidently's logarithm is natural, ours has base 2
        assert js_distance(x, y) == pytest.approx(natural / np.sqrt(np.log(2)), abs=1e-9)
        if (y > 0).all():       # Evidently fills empty bins otherwise
            assert psi(x, y) == pytest.approx(evidently(psi_stat_test, 0.1), abs=1e-9)
            same_psi.append(code)
        p_value = chisquare(y, x / x.sum() * y.sum()).pvalue
        assert p_value == pytest.approx(evidently(chi_stat_test, 0.05), abs=1e-9)
        for i, kind in enumerate(("pearson", "log-likelihood")):
            statistic = chi2_contingency([x, y], correction=False, lambda_=kind).statistic
            assert chi_square(x, y)[i] == pytest.approx(statistic, rel=1e-9)
    assert len(same_psi) >= 4

    x, y = reference["AGEP"], current["AGEP"]
    assert x.each and ks(x, y) == pytest.approx(ks_2samp(old.AGEP, new.AGEP).statistic, abs=1e-12)
    theirs = wasserstein_stat_test(old.AGEP, new.AGEP, ColumnType.Numerical, 0.1).drift_score
    # Evidently divides by numpy's deviation, whose divisor is n
    in_our_unit = theirs * old.AGEP.std(ddof=0) / old.AGEP.std(ddof=1)
    assert wasserstein(x, y) == pytest.approx(in_our_unit, abs=1e-9)
    assert psi(*decile_counts(x, y)) < 0.01
    assert np.nansum(bin_means(x) * _finite(x)) == pytest.approx(old.AGEP.sum())
    assert moments(x)[0] == len(old)
    decided = decide({"w": drift_table(reference, current)})["w"].drifted
    assert set(decided[decided.astype(bool)].index) <= TOP_CODES


# What matters to the model

@pytest.mark.slow("a whole drift audit")
def test_a_column_that_the_model_ignores_raises_no_more_than_a_warning(tmp_path):
    "The same change fails where the model looks, by the policy of params.yaml, and warns where it does not"
    params, card = load_params(ROOT/"params.yaml"), load_card(ROOT/"data/raw/gss_wages.yaml")
    new = pd.read_parquet(SAMPLE/"reference.parquet").assign(educcat="Graduate")
    new.to_parquet(tmp_path/"new.parquet", index=False)
    others = [name for name in card.features if name != "educcat"]
    limits = params.limits["binary"].drift

    def verdict(share):
        importance = {"educcat": share, **dict.fromkeys(others, (1 - share) / len(others))}
        files = (SAMPLE/"reference.parquet", tmp_path/"new.parquet")
        return drift_of(*files, card, params.audit, 7, limits, importance).verdict

    looks, ignores = verdict(0.6), verdict(0.005)
    assert (looks["verdict"], ignores["verdict"]) == ("fail", "warn")
    assert "Drift weighted by importance" in looks["line"] and "educcat: 'Graduate'" in ignores["line"]
