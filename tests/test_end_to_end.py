"A new user's way, in a clone: the pipeline, its pages, its evidence, and the README's commands"
import json
import re
import shutil

import pandas as pd
import pytest
from conftest import ROOT

AUDITS = ("drift", "fairness", "explanation", "performance")


def evidence(p, card="gss_wages"): return {f.name: f.read_bytes() for f in sorted(p.scope(card).glob("*.json"))}


def test_make_run_says_where_the_reports_are(clone):
    assert "reports/index.html" in clone.first and "gate:" in clone.first


def test_a_second_repro_does_nothing(clone):
    assert "Data and pipelines are up to date" in clone.run("dvc repro").stdout


@pytest.mark.parametrize("name", [*AUDITS, "model_card"])
def test_pages_open_without_a_network(clone, name):
    html = (clone.scope()/f"{name}.html").read_text()
    assert len(html.encode()) <= 3 * 2**20
    assert "<script" not in html and not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", html) and "@import" not in html
    assert html.index('class="badge') < html.index("data:image/png"), "the verdict comes before the picture"
    assert "<details class=\"code\">" in html, "code is folded away"
    assert str(clone.root) not in html


def test_index_links_lead_somewhere(clone):
    html = (clone.root/"reports/index.html").read_text()
    links = set(re.findall(r'href="([^":]+)"', html))
    assert {f"gss_wages/{a}.html" for a in (*AUDITS, "model_card")} <= links
    assert all((clone.root/"reports"/x).is_file() for x in links)
    assert (clone.scope()/"drift.evidently.html").is_file()


def test_verdicts_say_why_the_more_accurate_candidates_were_refused(clone):
    v = json.loads((clone.scope()/"select.verdict.json").read_text())
    assert v["model"]["name"] == "boosting_reduced" and v["verdict"] in ("pass", "warn")
    ratio = {c["subject"].split("@")[1]: c["value"] for c in v["checks"] if c["measure"] == "selection_rate_ratio_all"}
    assert all(ratio[k] < 0.7 <= ratio["boosting_reduced"] for k in ("gradient_boosting", "linear", "mlp")) and ratio["mlp_fair"] > ratio["mlp"] and ratio["boosting_reweighed"] > ratio["gradient_boosting"]
    assert "gradient_boosting" in json.loads((clone.scope()/"fairness.verdict.json").read_text())["line"]
    assert "gradient_boosting" in json.loads((clone.scope()/"performance.verdict.json").read_text())["line"]


def test_the_default_policy_releases_a_mitigated_candidate_and_refuses_the_others():
    "The committed evidence is that of the default data and policy"
    v = json.loads((ROOT/"reports/gss_wages/select.verdict.json").read_text())
    checks = {c["subject"]: c for c in v["checks"] if c["measure"] == "selection_rate_ratio_all"}
    assert v["verdict"] == "pass" and v["model"]["name"] == "boosting_reduced" and {c["bound"] for c in checks.values()} == {"≥ 0.8"}
    assert checks["gender@boosting_reduced"]["low"] > 0.8 and all(checks[f"gender@{k}"]["high"] < 0.8 for k in ("gradient_boosting", "boosting_reweighed", "linear", "mlp"))
    assert checks["gender@mlp_fair"]["verdict"] == "fail", "it is fair among those whose outcome is known only"


def test_unlabelled_rows_stay_in_their_window(clone):
    for r in json.loads((clone.scope()/"performance.json").read_text()):
        assert r["window"]["labelled"] < r["window"]["rows"]
        auc = next(m for m in r["measures"] if (m["name"], m["subject"]) == ("auc", "all rows"))
        assert auc["n"] == r["window"]["labelled"] and auc["low"] < auc["value"] < auc["high"]


def stale(clone):
    "The stages that would run again"
    return set(json.loads(clone.run("dvc status --json").stdout))


def test_a_change_runs_again_what_it_changes_and_nothing_else(clone):
    assert stale(clone) == set()
    clone.edit("mlgov_nb/pipeline/model_card.py", "the champion's model card", "the model card of the champion")
    assert stale(clone) == {"card", "package"}, "the text of the model card trains nothing"
    clone.edit("mlgov_nb/drift/distances.py", '"""(.*?)"""', r'"""\1 And more."""')
    assert stale(clone) == {"card", "package", "audit@drift"}
    clone.run("git checkout -q -- mlgov_nb")
    clone.edit("mlgov_nb/files.py", r"digits:int\|None=5", "digits:int|None=6")
    assert {"train@linear", "select", *(f"audit@{name}" for name in AUDITS)} <= stale(clone), "another rounding"
    clone.run("git checkout -q -- mlgov_nb")
    clone.edit("mlgov_nb/settings.py", r"Field\(0\.05, gt=0, lt=0\.5\)", "Field(0.06, gt=0, lt=0.5)")
    assert {"train@linear", "select", *(f"audit@{name}" for name in AUDITS)} <= stale(clone), "another default"
    clone.run("git checkout -q -- mlgov_nb")
    assert stale(clone) == set()


def test_the_same_evidence_twice_and_a_change_is_found(clone):
    clone.commit("evidence")
    before = evidence(clone)
    clone.run("dvc repro -f")
    assert evidence(clone) == before
    assert "bit-equal" in clone.run("mlgov reproduce --exact").stdout
    f = clone.scope()/"performance.json"
    f.write_text(re.sub(r'"value": 0\.8\d*', '"value": 0.5', f.read_text(), count=1))
    assert "NOT reproduced" in clone.run("mlgov reproduce", 1).stdout
    clone.run("git checkout -q -- reports")


def test_gate_closes_on_a_failed_verdict(clone):
    assert "gate: open" in clone.run("mlgov gate").stdout
    f = clone.scope()/"drift.verdict.json"
    v = json.loads(f.read_text())
    for level in ("fail", "unknown"):
        f.write_text(json.dumps({**v, "verdict": level}))
        assert f"closed (drift {level})" in clone.run("mlgov gate", 1).stdout
    clone.run("git checkout -q -- reports")


def test_audit_of_a_csv_file(clone):
    raw = pd.read_parquet(clone.root/"data/raw/gss_wages.parquet").query("year == 2018").head(600).drop(columns="realrinc")
    raw = raw.assign(educcat="Micro-credential")
    raw.to_csv(clone.root/"live.csv", index=False)
    code = clone.run("mlgov audit drift --current live.csv --out reports/live; echo exit $?").stdout.split()[-1]
    verdict = json.loads((clone.root/"reports/live/drift.verdict.json").read_text())["verdict"]
    assert code == ("1" if verdict in ("fail", "unknown") else "0"), "the exit code of `mlgov drift`"
    got = {(m["name"], m["subject"]): m["value"] for m in json.loads((clone.root/"reports/live/drift.json").read_text())[0]["measures"]}
    assert got["js_distance", "educcat"] > 0.99 and got["drifted", "educcat"] == 1.0
    clone.run("mlgov audit performance --current live.csv --out reports/live")
    v = json.loads((clone.root/"reports/live/performance.verdict.json").read_text())
    assert v["verdict"] == "unknown" and "cannot tell" in v["line"], "no label is no pass"
    assert (clone.root/"reports/live/performance.html").is_file()
    assert {c["window"] for c in v["checks"]} == {"live"}, "a file's verdict is of the file"
    shutil.rmtree(clone.root/"reports/live")
    (clone.root/"live.csv").unlink()


def test_dvc_has_something_to_say(clone):
    assert "selection_rate_ratio" in clone.run("dvc metrics show --md").stdout
    clone.run("dvc plots show")
    clone.edit("params.yaml", "seed: 7", "seed: 8")
    assert "seed" in clone.run("dvc params diff").stdout
    clone.edit("params.yaml", "seed: 8", "seed: 7")


def test_no_candidate_passes_nothing_is_packaged(clone):
    clone.edit("policy.yaml", r"\{measure: auc, subject: all rows, min: 0\.75\}", "{measure: auc, subject: all rows, min: 0.99}")
    assert "nothing is packaged" in clone.run("dvc repro package").stdout
    assert [f.name for f in (clone.root/"release/served").iterdir()] == ["REFUSED.json"]
    got = clone.run("timeout 60 bentoml serve mlgov_nb.service:Mlgov --port 0", 1)
    assert "No candidate is within the pre-release limits" in got.stdout + got.stderr
    clone.run("git checkout -q -- policy.yaml && dvc repro")
    assert (clone.root/"release/served/RELEASE.json").is_file()
