"Profiles and drift from the command line: files, merging, a real Dask cluster, a killed worker, bad input, and the references"
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
    d = pd.read_parquet(ACS).drop(columns="id")
    return {y: v.reset_index(drop=True) for y, v in d.groupby("year")}


def parts(folder, years, rows=30_000):
    for y, v in years.items(): v.head(rows).drop(columns="year").to_parquet(folder/f"{y}.parquet", row_group_size=7_000)
    return [f"{y}.parquet" for y in years]


def test_profiles_from_files_merge_and_are_compared(here, years):
    names = parts(here.root, years)
    here.run(f"mlgov profile {names[0]} -o ref.json")
    for n in names: here.run(f"mlgov profile {n} --like ref.json -o {n}.json")
    here.run(f"mlgov profile-merge {' '.join(f'{n}.json' for n in names)} -o merged.json")
    here.run(f"mlgov profile {' '.join(names)} --like ref.json -o all.json")
    assert (here.root/"merged.json").read_bytes() == (here.root/"all.json").read_bytes()
    jsonschema.validate(json.loads((here.root/"all.json").read_text()), schema("profile"))
    assert read_profile(here.root/"all.json")["AGEP"].n == 30_000 * len(names)
    got = here.run("mlgov drift ref.json merged.json --json")
    said = json.loads(got.stdout)
    assert said["verdict"] == "pass" and any(m["name"] == "js_distance" and m["subject"] == "SCHL" for m in said["measures"])


def test_drift_of_the_survey_stays_quiet_and_finds_a_broken_column(here, years):
    "Survey years hardly differ; a code that is lost and a unit that is wrong are named, with the size and the p-value"
    old, new = pd.concat([years[2015], years[2016]]), years[2018]
    old.to_parquet(here.root/"old.parquet"); new.to_parquet(here.root/"new.parquet")
    shutil.copytree(ROOT/"data/raw", here.root/"data/raw", ignore=shutil.ignore_patterns("*.parquet")); [shutil.copy(ROOT/name, here.root) for name in ("params.yaml", "policy.yaml")]
    quiet = here.run("mlgov drift old.parquet new.parquet --card acs_employment")
    assert "drift: PASS" in quiet.stdout and "not tested here: combinations" in quiet.stdout
    broken = new.assign(MAR=new.MAR.astype("str").replace("5", "1"), AGEP=np.where(np.arange(len(new)) % 20 == 0, new.AGEP.astype(int) * 12, new.AGEP.astype(int)))
    broken.to_parquet(here.root/"broken.parquet")
    got = json.loads(here.run("mlgov drift old.parquet broken.parquet --card acs_employment --json").stdout)
    assert got["verdict"] == "warn"
    assert re.search(r"MAR: '1' 4\d% → 8\d% \(large change, Jensen-Shannon distance 0\.\d+, p < 0\.0001\)", got["line"])
    assert re.search(r"AGEP: mean 41\.\d → \d+", got["line"]) and "outside the reference's range" in got["line"]
    drifted = {m["subject"] for m in got["measures"] if m["name"] == "drifted" and m["value"]}
    assert drifted == {"MAR", "AGEP"}


# Dask: real workers in processes of their own

class Cluster:
    def __init__(self, root, workers=3):
        self.port, self.root = free_port(), root
        env = {**os.environ, "DASK_DISTRIBUTED__WORKER__PREFLIGHT": "0"}
        def run(*args): return subprocess.Popen([sys.executable, "-m", "distributed.cli." + args[0], *args[1:]], cwd=root, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.scheduler = run("dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard", "--dashboard-address", ":0")
        self.workers = [run("dask_worker", self.address, "--nthreads", "1", "--host", "127.0.0.1", "--no-nanny", "--no-dashboard", "--dashboard-address", ":0") for _ in range(workers)]

    address = property(lambda self: f"tcp://127.0.0.1:{self.port}")

    def wait(self):
        from dask.distributed import Client
        with Client(self.address, timeout="60s", set_as_default=False) as c: c.wait_for_workers(len(self.workers), timeout=60)

    def stop(self):
        for p in [*self.workers, self.scheduler]: p.kill()
        for p in [*self.workers, self.scheduler]: p.wait()


@pytest.fixture
def cluster(tmp_path):
    c = Cluster(tmp_path)
    try: c.wait(); yield c
    finally: c.stop()


def test_dask_gives_the_byte_identical_profile(here, cluster, years):
    names = parts(here.root, years)
    here.run(f"mlgov profile {' '.join(names)} -o one.json")
    here.run(f"mlgov profile --dask {cluster.address} {' '.join(names)} -o many.json")
    assert (here.root/"one.json").read_bytes() == (here.root/"many.json").read_bytes()


def test_a_killed_worker_costs_nothing_but_time(here, cluster, years):
    v = pd.concat(years.values(), ignore_index=True).drop(columns="year")
    v = pd.concat([v] * 4, ignore_index=True)
    for i in range(12): v.to_parquet(here.root/f"p{i:02}.parquet", row_group_size=20_000)
    names = " ".join(f"p{i:02}.parquet" for i in range(12))
    here.run("mlgov profile p00.parquet -o ref.json")
    here.run(f"mlgov profile {names} --like ref.json -o one.json")
    p = subprocess.Popen(["bash", "-c", f"mlgov profile --dask {cluster.address} {names} --like ref.json -o many.json"], cwd=here.root, env=here.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    busy(cluster)
    cluster.workers[0].send_signal(signal.SIGKILL)
    out, _ = p.communicate(timeout=300)
    assert p.returncode == 0, out
    assert (here.root/"one.json").read_bytes() == (here.root/"many.json").read_bytes()


def busy(cluster):
    "Wait until every worker has a task"
    from dask.distributed import Client
    with Client(cluster.address, set_as_default=False) as c:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if sum(bool(t) for t in c.processing().values()) == len(cluster.workers): return
            time.sleep(0.02)
    pytest.fail("the workers never got work")


def test_no_scheduler_is_said_so(here):
    shutil.copy(SAMPLE/"reference.parquet", here.root)
    here.refuses(f"mlgov profile --dask tcp://127.0.0.1:{free_port()} reference.parquet -o x.json", "no Dask scheduler answers there")
    assert not (here.root/"x.json").exists()


# Bad input: one readable message, nothing half-written

@pytest.fixture
def files(here):
    a = pd.DataFrame(dict(x=np.arange(200.0), y=np.arange(200) % 3, k=["a", "b"] * 100))
    a.to_csv(here.root/"a.csv", index=False)
    def write(name, **columns): a.assign(**columns).to_csv(here.root/name, index=False)
    write("same.csv")
    write("text.csv", x="many")
    a.drop(columns="k").to_csv(here.root/"less.csv", index=False)
    write("none.csv", x=np.nan)
    write("one.csv", k="a", x=1.0)
    write("inf.csv", x=[np.inf, -np.inf, 1.0, 2.0] * 50)
    a.head(0).to_csv(here.root/"empty.csv", index=False); a.head(1).to_csv(here.root/"row.csv", index=False)
    (here.root/"twice.csv").write_text("x,x\n1,2\n")
    (here.root/"broken.parquet").write_bytes(b"PAR1 no")
    pd.DataFrame(dict(x=np.arange(100_000.0), k=[f"id{i}" for i in range(100_000)])).to_parquet(here.root/"ids.parquet")
    pd.DataFrame(dict(x=pd.date_range("2024-01-01", periods=200), y=1, k="a")).to_parquet(here.root/"time.parquet")
    return here


@pytest.mark.parametrize("a, b, texts", [
    ("a.csv", "less.csv", ["less.csv: missing columns 'k'", "the file has: x, y"]),
    ("a.csv", "text.csv", ["text.csv", "cannot be read", "many"]),
    ("a.csv", "time.parquet", ["column 'x' holds times, the reference has numbers there"]),
    ("a.csv", "twice.csv", ["twice.csv: columns named twice: ['x']"]),
    ("twice.csv", "a.csv", ["columns named twice: ['x']"]),
    ("a.csv", "broken.parquet", ["broken.parquet: cannot be read"]),
    ("a.csv", "nowhere.csv", ["nowhere.csv: no such file"]),
])
def test_windows_that_do_not_fit_are_refused(files, a, b, texts): files.refuses(f"mlgov drift {a} {b}", *texts)


@pytest.mark.parametrize("a, b, why", [
    ("a.csv", "empty.csv", "fewer than 30 rows"), ("a.csv", "row.csv", "fewer than 30 rows (200 and 1)"), ("row.csv", "a.csv", "fewer than 30 rows (1 and 200)"),
    ("none.csv", "a.csv", "x: cannot tell, the reference has no value of it"), ("one.csv", "one.csv", "it has one value in both windows"),
    ("ids.parquet", "ids.parquet", "k: cannot tell, more than 50,000 categories: an identifier or free text")])
def test_what_cannot_be_told_is_unknown_with_the_reason(files, a, b, why):
    got = files.run(f"mlgov drift {a} {b} --json", 1)
    said = json.loads(got.stdout)
    assert said["verdict"] == "unknown" and why in said["line"] and "Traceback" not in got.stderr


@pytest.mark.parametrize("b, word", [("none.csv", "missing 0% → 100%"), ("inf.csv", "inf 0% → 25%"), ("one.csv", "k: 'a' 50% → 100%")])
def test_a_column_that_breaks_is_drift(files, b, word):
    said = json.loads(files.run(f"mlgov drift a.csv {b} --json").stdout)
    assert said["verdict"] == "warn" and word in said["line"]


def test_a_broken_link_between_columns_is_a_warning(here):
    "Nothing but the combination has changed: the columns alone see nothing, the full audit warns"
    r = np.random.default_rng(0)
    old, new = (pd.DataFrame(r.normal(size=(1500, 2)), columns=["x", "y"]) for _ in range(2))
    old.to_csv(here.root/"old.csv", index=False); new.assign(y=new.x + new.y / 10).assign(y=lambda d: d.y / d.y.std()).to_csv(here.root/"new.csv", index=False)
    assert json.loads(here.run("mlgov drift old.csv new.csv --json").stdout)["verdict"] == "pass"
    full = json.loads(here.run("mlgov drift old.csv new.csv --full --json").stdout)
    assert full["verdict"] == "warn" and re.search("domain classifier: rows of the two windows are told apart with AUC 0.9", full["line"])


@pytest.mark.parametrize("a, b, options, texts", [
    ("row.csv", "a.csv", "--full", ["fewer than 30 rows"]), ("ids.parquet", "ids.parquet", "--full", ["identifier or free text"]), ("uuid.csv", "uuid2.csv", "--full", ["an identifier or free text"])])
def test_the_full_audit_of_odd_files_cannot_tell(files, a, b, options, texts):
    for i, name in enumerate(("uuid.csv", "uuid2.csv")): pd.DataFrame(dict(k=[f"{i}-{j:08x}" for j in range(3000)], x=np.random.default_rng(i).normal(size=3000))).to_csv(files.root/name, index=False)
    got = files.run(f"mlgov drift {a} {b} {options} --json", 1)
    said = json.loads(got.stdout)
    assert said["verdict"] == "unknown" and all(t in said["line"] for t in texts), said["line"]


def test_dates_text_scores_and_short_histories(files):
    "A date is no drift; a text column may be called score; a history of one window is refused"
    for i, name in enumerate(("old.csv", "new.csv")): pd.DataFrame(dict(day=pd.date_range(f"202{i}-01-01", periods=600).astype("str"), score=["low", "high"] * 300, x=np.random.default_rng(i).normal(size=600))).to_csv(files.root/name, index=False)
    said = json.loads(files.run("mlgov drift old.csv new.csv --full --json").stdout)
    assert said["verdict"] == "pass" and "not tested: day (time moves on by itself)" in said["notes"]
    assert json.loads(files.run("mlgov drift old.csv new.csv --match month --json").stdout)["verdict"] == "pass"
    files.refuses("mlgov drift a.csv same.csv --match month", "the same month needs a time column")
    files.refuses("mlgov drift old.csv new.csv --history old.csv", "give at least 3")


def test_profiles_that_do_not_fit_are_refused(files):
    files.run("mlgov profile a.csv -o a.json && mlgov profile inf.csv -o other.json && mlgov profile same.csv --like a.json -o same.json")
    files.refuses("mlgov drift a.json other.json", "columns ['x'] have other bins in the two profiles")
    files.refuses("mlgov profile-merge a.json other.json -o c.json", "have other bins")
    assert not (files.root/"c.json").exists()
    d = json.loads((files.root/"a.json").read_text())
    (files.root/"old.json").write_text(json.dumps({**d, "schema": 1}))
    files.refuses("mlgov drift old.json a.json", "old.json: profile schema 1 is not known; this version reads schema 2")
    d["columns"][0]["counts"][1] += 1
    (files.root/"changed.json").write_text(json.dumps(d))
    files.refuses("mlgov drift a.json changed.json", "changed.json: its content does not match its sha256")
    (files.root/"cut.json").write_text((files.root/"a.json").read_text()[:500])
    files.refuses("mlgov drift a.json cut.json", "cut.json: not a profile")
    files.refuses("mlgov drift a.json same.json --full", "--full needs rows")


def test_a_full_disk_leaves_nothing_half_written(files):
    "A profile is written whole or not at all: here the shell's file-size limit ends the write"
    got = files.run("ulimit -f 1; mlgov profile a.csv -o p.json; code=$?; test ! -e p.json && test -z \"$(ls -A | grep '^\\.p.json')\" && exit $code", 2)
    assert got.stderr.startswith("mlgov: ") and "Traceback" not in got.stderr


# Against the reference libraries, on real rows

def test_statistics_equal_evidently_and_scipy_on_real_rows(years):
    "On the survey's codes: categorical Jensen-Shannon distance, PSI and chi-square to 1e-9; on its ages: KS exactly, Wasserstein within its bound"
    from evidently.legacy.calculations.stattests import (
        chi_stat_test,
        jensenshannon_stat_test,
        psi_stat_test,
        wasserstein_stat_test,
    )
    from evidently.legacy.core import ColumnType
    from scipy.stats import chi2_contingency, chisquare, ks_2samp
    cols = ["SCHL", "MAR", "RELP", "CIT", "MIG", "RAC1P"]
    a, b = (years[y].sample(n, random_state=0).astype({c: "str" for c in cols}) for y, n in ((2015, 20_000), (2018, 9_000)))
    p, same_psi = profile(a[[*cols, "AGEP"]]), []
    q = profile(b, p)
    for c in cols:
        x, y = (np.array(v[c].counts) for v in (p, q))
        x, y = x[x + y > 0], y[x + y > 0]
        assert (x > 0).all(), "chi-square against the reference's shares needs every category there"
        natural = jensenshannon_stat_test(a[c], b[c], ColumnType.Categorical, 0.1).drift_score      # Evidently's logarithm is natural, ours has base 2
        assert js_distance(x, y) == pytest.approx(natural / np.sqrt(np.log(2)), abs=1e-9)
        if (y > 0).all(): assert psi(x, y) == pytest.approx(psi_stat_test(a[c], b[c], ColumnType.Categorical, 0.1).drift_score, abs=1e-9); same_psi.append(c)   # they fill empty bins otherwise
        assert chisquare(y, x / x.sum() * y.sum()).pvalue == pytest.approx(chi_stat_test(a[c], b[c], ColumnType.Categorical, 0.05).drift_score, abs=1e-9)
        for k, kind in enumerate(("pearson", "log-likelihood")): assert chi_square(x, y)[k] == pytest.approx(chi2_contingency([x, y], correction=False, lambda_=kind).statistic, rel=1e-9)
    assert len(same_psi) >= 4
    x, y = p["AGEP"], q["AGEP"]
    assert x.each and ks(x, y) == pytest.approx(ks_2samp(a.AGEP, b.AGEP).statistic, abs=1e-12)
    theirs = wasserstein_stat_test(a.AGEP, b.AGEP, ColumnType.Numerical, 0.1).drift_score      # over numpy's deviation, divisor n
    assert wasserstein(x, y) == pytest.approx(theirs * a.AGEP.std(ddof=0) / a.AGEP.std(ddof=1), abs=1e-9)
    assert psi(*decile_counts(x, y)) < 0.01 and np.nansum(bin_means(x) * _finite(x)) == pytest.approx(a.AGEP.sum()) and moments(x)[0] == len(a)
    assert not decide({"w": drift_table(p, q)})["w"].drifted.any()


# What matters to the model

def test_a_column_that_the_model_ignores_raises_no_more_than_a_warning(tmp_path):
    "The same change fails where the model looks, by the policy of params.yaml, and warns where it does not"
    params, card = load_params(ROOT/"params.yaml"), load_card(ROOT/"data/raw/gss_wages.yaml")
    new = pd.read_parquet(SAMPLE/"reference.parquet").assign(educcat="Graduate")
    new.to_parquet(tmp_path/"new.parquet", index=False)
    others = [c for c in card.features if c != "educcat"]
    def verdict(share): return drift_of(SAMPLE/"reference.parquet", tmp_path/"new.parquet", card, params.audit, 7, params.limits["binary"].drift, {"educcat": share, **dict.fromkeys(others, (1 - share) / len(others))}).verdict
    looks, ignores = verdict(0.6), verdict(0.005)
    assert (looks["verdict"], ignores["verdict"]) == ("fail", "warn")
    assert "Drift weighted by importance" in looks["line"] and "educcat: 'Graduate'" in ignores["line"]
