"The gate: evidence that is missing, foreign, edited, stale or partial closes it; what guards a release; exit codes"
import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import AUDITS, ROOT, Project

from mlgov_nb.cli.console import EXIT_MEANINGS
from mlgov_nb.data.card import load_card
from mlgov_nb.data.prepare import read_prepared
from mlgov_nb.data.read import write_rows
from mlgov_nb.files import sha256
from mlgov_nb.model.artifact import add_document, load
from mlgov_nb.pipeline.audits import audit_stage
from mlgov_nb.pipeline.judge import harm_stage, judge_stage
from mlgov_nb.pipeline.model_card import card_stage
from mlgov_nb.pipeline.package import package_stage
from mlgov_nb.pipeline.select import select_stage
from mlgov_nb.pipeline.train import origins_of
from mlgov_nb.settings import load_params
from mlgov_nb.stats.measures import KNOWN

ASKED = "params.yaml asks for drift, fairness, explanation, performance"
WINDOWS = ("1985-89", "2014-18")


def read(file): return json.loads(file.read_text())


def rewrite(file, change):
    "Edit a JSON file by hand"
    content = read(file)
    change(content)
    file.write_text(json.dumps(content))


def small_project(root):
    "The sample's model as the only candidate, and the sample's windows as the split"
    for folder in ("data/raw", "data/split/windows", "nbs", "models"): (root/folder).mkdir(parents=True)
    for name in ("params.yaml", "policy.yaml", "service.yaml"): shutil.copy(ROOT/name, root)
    shutil.copytree(ROOT/"nbs/audits", root/"nbs/audits")
    shutil.copy(ROOT/"data/raw/gss_wages.yaml", root/"data/raw")
    name = load(ROOT/"data/sample/model").name
    shutil.copytree(ROOT/"data/sample/model", root/"models"/name)
    card = load_card(root/"data/raw/gss_wages.yaml")
    def part(sample, *places):
        "Put rows of the sample there, as the stage `split` writes them"
        rows = read_prepared(ROOT/f"data/sample/{sample}.parquet", card).rows
        for place in places: write_rows(root/place, rows)
    part("reference", "data/split/reference.parquet", "data/split/train.parquet", "data/raw/gss_wages.parquet")
    for window in WINDOWS: part(window, f"data/split/windows/{window}.parquet")
    (root/"data/ingested").mkdir()
    ingested = dict(read=600, refused=0, sha256=sha256(root/"data/raw/gss_wages.parquet"))
    (root/"data/ingested/ingest.json").write_text(json.dumps(ingested))
    parts = [dict(name=name) for name in ("reference", *WINDOWS)]
    (root/"data/split/split.json").write_text(json.dumps(dict(parts=parts)))
    params = yaml.safe_load((root/"params.yaml").read_text())
    params["candidates"] = {name: dict(estimator="linear")}
    params["audit"] |= dict(resamples=100, explain_rows=60, background=10)
    (root/"params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    project = Project(root)
    project.edit("policy.yaml", r"max: 0\.21\}", "max: 0.3}")     # a few hundred rows drift more
    made_from = read(root/"models"/name/"lineage.json") | origins_of(root, load_params(root/"params.yaml"), card)[name]
    add_document(root/"models"/name, "lineage", made_from)
    return project


def judge_all(root):
    params = load_params(root/"params.yaml")
    harm_stage(root, params)
    for name in AUDITS: judge_stage(root, params, name)
    return params


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    "A small project whose audits ran and were judged"
    project = small_project(tmp_path_factory.mktemp("judged"))
    params = load_params(project.root/"params.yaml")
    select_stage(project.root, params)
    for name in AUDITS: audit_stage(project.root, params, name)
    judge_all(project.root)
    return project.root


@pytest.fixture
def judged(made_once, tmp_path):
    "A copy of it, to be spoilt"
    shutil.copytree(made_once, tmp_path/"p")
    return Project(tmp_path/"p")


slow = pytest.mark.slow("runs the four audits")


@slow
def test_evidence_that_fits_opens_the_gate(judged):
    assert "gate: open" in judged.run("mlgov gate").stdout


@slow
def test_a_verdict_that_is_not_there_closes_the_gate(judged):
    (judged.scope()/"fairness.verdict.json").unlink()
    output = judged.run("mlgov gate", 3).stdout
    assert f"no verdict of the audit fairness ({ASKED}); `dvc repro` makes it again" in output
    for name in ("drift", "explanation", "performance", "select"): (judged.scope()/f"{name}.verdict.json").unlink()
    shutil.copy(judged.scope()/"drift.json", judged.scope()/"fairness.json")
    judged.refuses("mlgov gate", "no verdicts here")
    judge_stage(judged.root, load_params(judged.root/"params.yaml"), "drift")
    output = judged.run("mlgov gate", 3).stdout
    assert "closed (select unknown, fairness unknown, explanation unknown, performance unknown)" in output


@slow
@pytest.mark.parametrize("content", ["{}", "[]", '"PASS"', "{", "[1, 2]", "null", '{"verdict": "pass"}'])
@pytest.mark.parametrize("name", ["fairness.verdict.json", "fairness.json", "select.json"])
def test_a_broken_file_closes_the_gate_and_is_named(judged, name, content):
    (judged.scope()/name).write_text(content)
    output = judged.run("mlgov gate", 3).stdout
    assert f"{name}: " in output and "gate: closed" in output


def passing(verdict):
    "Every word of a verdict file that says fail, turned to pass"
    verdict["verdict"] = "pass"
    for check in verdict["checks"]: check["verdict"] = "pass"


@slow
def test_an_edited_verdict_is_not_believed(judged):
    judged.edit("policy.yaml", r"window: reference, min: 0\.75", "window: reference, min: 0.95")
    judge_all(judged.root)
    assert read(judged.scope()/"performance.verdict.json")["verdict"] == "fail"
    for change in (passing, lambda verdict: verdict.update(verdict="pass")):
        rewrite(judged.scope()/"performance.verdict.json", change)
        output = judged.run("mlgov gate", 1).stdout
        assert "performance.verdict.json is not what its measures give: it was edited" in output
        assert "gate: closed (performance fail)" in output


@slow
@pytest.mark.parametrize("change, fault", [
    (lambda verdict: verdict.update(line="All is well."), "is not what its measures give"),
    (lambda verdict: verdict["model"].update(version="0123456789ab"), "is not what its measures give"),
    (lambda verdict: verdict.pop("evidence"), "does not say what it was judged by"),
    (lambda verdict: verdict["evidence"].update(code="0"), "states other code, data or settings than"),
    (lambda verdict: verdict["harm"].update(sentence="No harm at all."), "what it says of harm is not what"),
    (lambda verdict: verdict.update(audit="drift"), "are foreign: they are of"),
])
def test_other_edits_of_a_verdict_close_the_gate(judged, change, fault):
    rewrite(judged.scope()/"performance.verdict.json", change)
    assert fault in judged.run("mlgov gate", 3).stdout


@slow
@pytest.mark.parametrize("name, old, new, fault", [
    ("policy.yaml", r"four_fifths: \{(.*), min: 0\.8\}", r"four_fifths: {\1, min: 0.801}", "the limits in policy.yaml"),
    ("params.yaml", "seed: 7", "seed: 8", "seed or audit settings"),
    ("data/raw/gss_wages.yaml", 'title: "', 'title: "A ', "the dataset card is not the one"),
    ("nbs/audits/20_fairness.ipynb", "In short", "In brief", "the code that measures is not the code"),
    ("reports/gss_wages/fairness.json", '"value": 0', '"value": 1', "fairness.json is not the file that was judged"),
    ("data/split/split.json", r'"2014-18"', '"2019-22"', "the data are missing or broken"),
    ("data/split/split.json", r', \{"name": "2014-18"\}', "", "there is no window 2014-18 in data/split"),
])
def test_stale_and_edited_evidence_closes_the_gate(judged, name, old, new, fault):
    judged.edit(name, old, new)
    assert fault in judged.run("mlgov gate", 3).stdout


@slow
def test_other_rows_close_the_gate(judged):
    windows = judged.root/"data/split/windows"
    shutil.copy(windows/"1985-89.parquet", windows/"2014-18.parquet")
    assert "is stale: the rows of 2014-18 are others now" in judged.run("mlgov gate", 3).stdout
    (windows/"2014-18.parquet").unlink()
    assert "the data are missing or broken" in judged.run("mlgov gate", 3).stdout


@slow
def test_a_window_that_was_not_measured_closes_the_gate(judged):
    rewrite(judged.scope()/"drift.json", lambda records: records.pop())
    judge_stage(judged.root, load_params(judged.root/"params.yaml"), "drift")
    assert "drift.json is partial: it has no measures of the window 2014-18" in judged.run("mlgov gate", 3).stdout


@slow
def test_another_model_closes_the_gate(judged):
    champion = judged.root/"release/champion"
    shutil.move(champion, judged.root/"kept")
    assert "the model is missing or broken" in judged.run("mlgov gate", 3).stdout
    shutil.copytree(judged.root/"kept", champion)
    (champion/"metadata.json").write_text((champion/"metadata.json").read_text() + " ")
    assert "the model is missing or broken" in judged.run("mlgov gate", 3).stdout
    shutil.rmtree(champion)
    shutil.move(judged.root/"kept", champion)
    rewrite(judged.scope()/"drift.json", lambda records: [each["model"].update(version="0" * 12) for each in records])
    judge_stage(judged.root, load_params(judged.root/"params.yaml"), "drift")
    assert "drift.json is foreign: it is of model 000000000000" in judged.run("mlgov gate", 3).stdout


@slow
def test_candidates_that_are_not_those_that_were_compared_close_the_gate(judged):
    (name,) = load_params(judged.root/"params.yaml").candidates
    judged.edit("params.yaml", "candidates:\n", "candidates:\n  another:\n    estimator: linear\n")
    assert "select.json is partial: it has no measures of the candidate another" in judged.run("mlgov gate", 3).stdout
    judged.edit("params.yaml", f"  {name}:", "  renamed:")
    assert f"select.json is foreign: params.yaml has no candidate {name}" in judged.run("mlgov gate", 3).stdout
    judged.edit("params.yaml", "  renamed:", f"  {name}:")
    shutil.rmtree(judged.root/"models"/name)
    assert f"the candidate {name} is missing or broken" in judged.run("mlgov gate", 3).stdout


@slow
@pytest.mark.parametrize("file, fault", [
    ("data/raw/gss_wages.parquet", "data/raw/gss_wages.parquet is another file than the one that was ingested"),
    ("data/split/train.parquet", "was trained from other rows than are here"),
])
def test_other_raw_or_training_rows_close_the_gate(judged, file, fault):
    shutil.copy(judged.root/"data/split/windows/1985-89.parquet", judged.root/file)
    assert fault in judged.run("mlgov gate", 3).stdout


@slow
def test_a_candidate_of_other_parameters_closes_the_gate(judged):
    judged.edit("params.yaml", "estimator: linear", "estimator: linear\n    params: {l2: 0.5}")
    assert "was trained from other parameters" in judged.run("mlgov gate", 3).stdout


@slow
def test_a_served_model_that_is_not_the_champion_closes_the_gate(judged):
    served = judged.root/"release/served/model"
    served.mkdir(parents=True)
    shutil.copy(judged.root/"release/champion/MANIFEST.json", served)
    assert "gate: open" in judged.run("mlgov gate").stdout
    (served/"MANIFEST.json").write_text("{}")
    assert "release/served holds another model than release/champion" in judged.run("mlgov gate", 3).stdout


@slow
def test_what_is_said_of_harm_is_evidence(judged):
    file = judged.scope()/"harm.json"
    rewrite(file, lambda harm: harm.update(sentence="No harm at all."))
    assert "harm.json is not what the measures give" in judged.run("mlgov gate", 3).stdout
    file.unlink()
    assert "harm.json is missing" in judged.run("mlgov gate", 3).stdout


@slow
@pytest.mark.parametrize("content", ["{", "[]", '{"parts": 3}'])
def test_a_broken_split_closes_the_gate(judged, content):
    (judged.root/"data/split/split.json").write_text(content)
    output = judged.run("mlgov gate", 3).stdout
    assert "split.json" in output and "gate: closed" in output


@slow
def test_where_this_machine_differs_its_own_evidence_counts(judged):
    aside = judged.scope()/"this_machine"
    aside.mkdir()
    for file in judged.scope().glob("*.json"): shutil.copy(file, aside)
    rewrite(judged.scope()/"drift.json", lambda records: [each["model"].update(version="0" * 12) for each in records])
    assert "gate: open" in judged.run("mlgov gate").stdout
    (aside/"drift.json").unlink()
    assert "`make run` makes it again" in judged.run("mlgov gate", 3).stdout


@slow
def test_evidence_has_the_same_bytes_wherever_it_is_made(judged, made_once):
    "No clock, no path: judged again in another folder, the files are equal"
    judge_all(judged.root)
    for name in AUDITS:
        file = f"{name}.verdict.json"
        assert (judged.scope()/file).read_bytes() == (made_once/"reports/gss_wages"/file).read_bytes()
        assert set(read(judged.scope()/file)["evidence"]["data"]) >= set(WINDOWS)


def page_badge(html): return re.search(r'class="banner (\w+)"', html).group(1)


def index_badge(html): return re.search(r'badge (\w+)">\w+</span><h3><a href="[^"]*">Model card', html).group(1)


@slow
def test_a_model_whose_performance_fails_is_not_packaged_and_every_page_says_so(judged):
    root, served = judged.root, judged.root/"release/served"
    assert package_stage(root, load_params(root/"params.yaml")) and (served/"RELEASE.json").is_file()
    judged.edit("policy.yaml", r"window: reference, min: 0\.75", "window: reference, min: 0.95")
    assert package_stage(root, load_params(root/"params.yaml")) is None, "the verdict is by other limits"
    params = judge_all(root)
    card_stage(root, params)
    assert package_stage(root, params) is None
    assert "nothing is packaged" in judged.run("mlgov stage package --no-bento").stdout
    assert "The audit performance guards the release" in read(served/"REFUSED.json")["reasons"][0]
    page, index = (root/"reports/gss_wages/model_card.html").read_text(), (root/"reports/index.html").read_text()
    release = read(judged.scope()/"model_card.json")["release"]
    assert page_badge(page) == index_badge(index) == release["verdict"] == "fail"
    judged.edit("policy.yaml", r"requires: \[performance\]", "requires: []")
    params = load_params(root/"params.yaml")
    card_stage(root, params)
    assert package_stage(root, params)
    page, index = (root/"reports/gss_wages/model_card.html").read_text(), (root/"reports/index.html").read_text()
    assert page_badge(page) == index_badge(index) == "warn"


@slow
def test_an_audit_of_a_file_has_a_folder_and_a_gate_of_its_own(judged):
    command = "mlgov audit drift --current data/sample.parquet --out reports/now"
    shutil.copy(ROOT/"data/sample/2014-18.parquet", judged.root/"data/sample.parquet")
    judged.run(command)
    for scope in ("now", "reports/now", str(judged.root/"reports/now")):
        output = judged.run(f"mlgov gate --scope {scope}").stdout
        assert "gate: open" in output and "not asked for: fairness, explanation, performance: not run in" in output
    judged.refuses("mlgov gate --scope nowhere", "no such folder of reports; there are gss_wages, now")
    judged.edit("policy.yaml", r"max: 0\.3\}", "max: 0.01}")
    output = judged.run("mlgov gate --scope now", 1).stdout
    assert "`mlgov audit drift --current FILE --out reports/now` makes it again" in output
    judged.run(command, 1)
    assert "gate: closed (drift fail)" in judged.run("mlgov gate --scope now", 1).stdout


@slow
def test_parity_that_is_not_asked_must_be_stated(judged):
    card = "data/raw/gss_wages.yaml"
    judged.edit(card, "parity: true", "parity: false")
    params = judge_all(judged.root)
    assert read(judged.scope()/"fairness.verdict.json")["verdict"] == "unknown"
    judged.edit(card, "^", "no_parity: the rows are flights, not people\n")
    verdict = judge_stage(judged.root, params, "fairness")
    assert verdict["verdict"] == "pass"
    assert verdict["line"].startswith("No parity is asked, because the rows are flights, not people.")
    judged.edit(card, "parity: false", "parity: true")
    judged.refuses("mlgov gate", "no_parity says why no parity is asked, but it is asked for gender")


@slow
def test_data_about_nobody_need_no_fairness_audit(tmp_path):
    project = small_project(tmp_path/"flights")
    file = project.root/"data/raw/gss_wages.yaml"
    card = yaml.safe_load(file.read_text()) | dict(protected={}, no_parity="the rows are flights, not people")
    file.write_text(yaml.safe_dump(card))
    params = load_params(project.root/"params.yaml")
    select_stage(project.root, params)
    audit_stage(project.root, params, "fairness")
    assert judge_stage(project.root, params, "fairness")["verdict"] == "pass"
    html = (project.scope()/"fairness.html").read_text()
    headings = [re.sub("<[^>]*>|¶", "", found) for found in re.findall(r"<h2.*?</h2>", html)]
    assert headings == ["In short", "What this audit cannot show"]
    assert "No parity is asked, because the rows are flights, not people." in html
    for end in ("json", "verdict.json"): (project.scope()/f"fairness.{end}").unlink()
    output = project.run("mlgov gate", 3).stdout
    assert "not asked for: fairness: not about people (the rows are flights, not people)" in output


@pytest.mark.parametrize("old, new, texts", [
    ("measure: js_distance", "measure: js_distanec", ["js_distanec", "did you mean 'js_distance'?"]),
    ("measure: js_distance", "measure: auc", ["'auc' is not measured here, but in pre_release"]),
    (r"windows, max: 0\.3", "windwos, max: 0.3", ["score_distance", "did you mean 'windows'?"]),
    (r"max: 0\.21", "max: 0.21, min: 0.5", ["drift_impact", "min 0.5 is above max 0.21"]),
    (r"max: 0\.21", "max: .nan", ["drift_impact", "finite numbers"]),
    (r"max: 0\.21", "max: .inf", ["drift_impact", "finite numbers"]),
    (r"requires: \[performance\]", "requires: [perfomance]", ["release.requires", "did you mean 'performance'?"]),
    ("release:", "relaese:", ["unknown key 'relaese'; allowed here: binary, regression, release"]),
])
def test_a_fault_of_the_policy_is_named(project, old, new, texts):
    project.edit("policy.yaml", old, new)
    files = "data/sample/reference.parquet data/sample/2014-18.parquet"
    project.refuses(f"mlgov drift {files} --card gss_wages", "policy.yaml", *texts)


def test_a_limit_on_a_subject_that_does_not_exist_is_a_fault_of_the_policy(project):
    project.edit("policy.yaml", r"subject: score, (window: windows, max: 0\.3)", r"subject: scoer, \1")
    shutil.copytree(ROOT/"reports/gss_wages", project.root/"reports/gss_wages")
    fault = "drift.score_distance: js_distance has no subject 'scoer'; did you mean 'score'?"
    project.refuses("mlgov stage judge drift", "policy.yaml", fault)


def test_every_measure_that_is_written_can_be_limited():
    "Those of the committed reports, and those that the policy limits"
    for name in ("select", *AUDITS):
        files = list((ROOT/"reports").glob(f"*/{name}.json"))
        assert files, name
        known = KNOWN["pre_release" if name == "select" else name]
        written = {measure["name"] for file in files for record in read(file) for measure in record["measures"]}
        assert written <= known, f"{name}: {written - known}"
    for policy in load_params(ROOT/"params.yaml").limits.values():
        for name, limits in policy: assert {limit.measure for limit in limits} <= KNOWN[name]


def test_names_and_options_are_blamed_where_they_stand(project):
    shutil.copytree(ROOT/"reports/gss_wages", project.root/"reports/gss_wages")
    for command in ("mlgov audit driftt", "mlgov stage judge driftt", "mlgov audit driftt --current x.csv"):
        project.refuses(command, "no audit 'driftt'", "did you mean 'drift'?")
    files = "data/sample/reference.parquet data/sample/2014-18.parquet"
    message = project.refuses(f"mlgov drift {files} --card gss_wage", "--card: no dataset card 'gss_wage'")
    assert "params.yaml" not in message


def test_the_readme_and_the_help_have_the_table_of_exit_codes(project):
    rows = re.findall(r"^\| (\d) \| (.*) \|$", (ROOT/"README.md").read_text(), re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == EXIT_MEANINGS
    help_text = " ".join(project.run("mlgov --help").stdout.split())
    for code, meaning in EXIT_MEANINGS.items(): assert f"{code} {meaning.split(':')[0]}" in help_text


def test_mlgov_cannot_tell_has_a_code_of_its_own(project):
    "Too few rows for an answer: 3, not 1"
    for name in ("a", "b"): (project.root/f"{name}.csv").write_text("x\n1\n2\n")
    project.run("mlgov drift a.csv b.csv", 3)


ENTRY = "import sys; sys.path.append({first!r}); from mlgov_nb.cli.main import main; main()"


def second_clone(folder):
    "A project with code of its own, told by its help, and the entry point of another clone's environment"
    for name in ("params.yaml", "policy.yaml", "service.yaml"): shutil.copy(ROOT/name, folder)
    shutil.copytree(ROOT/"mlgov_nb", folder/"mlgov_nb", ignore=shutil.ignore_patterns("__pycache__"))
    console = folder/"mlgov_nb/cli/console.py"
    console.write_text(console.read_text().replace("Train, explain, audit", "The second clone: train, explain, audit"))
    (folder/"bin").mkdir()
    (folder/"bin/mlgov").write_text(ENTRY.format(first=str(ROOT)))
    return Project(folder)


@pytest.mark.parametrize("asked_for, own", [(None, True), (ROOT, False)])
def test_a_second_clone_runs_its_own_code_or_says_whose(tmp_path, asked_for, own):
    project = second_clone(tmp_path)
    env = {name: value for name, value in project.env.items() if name != "PYTHONPATH"}
    if asked_for: env["PYTHONPATH"] = str(asked_for)
    command = [sys.executable, tmp_path/"bin/mlgov", "--help"]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert ("The second clone" in result.stdout) == own
    says = f"this is the code of {ROOT/'mlgov_nb'}, as PYTHONPATH asks, not of this project's {tmp_path/'mlgov_nb'}"
    assert (says in result.stderr) != own
