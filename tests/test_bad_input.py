"Bad input gets one readable message and exit code 2, and leaves nothing half-written"
import pandas as pd
import pytest

RAW = "data/raw/gss_wages.parquet"
CARD = "data/raw/gss_wages.yaml"


def raw_rows(project): return pd.read_parquet(project.root/RAW)


def write_raw(project, rows): rows.to_parquet(project.root/RAW, index=False)


def test_missing_raw_file(project):
    (project.root/RAW).unlink()
    project.refuses("mlgov stage ingest", "gss_wages.parquet: no such file")
    assert not (project.root/"data/ingested").exists()


def test_misspelt_column(project):
    write_raw(project, raw_rows(project).rename(columns={"prestg10": "prestige10"}))
    project.refuses("mlgov stage ingest", "missing columns 'prestg10'", "did you mean 'prestige10'?")
    assert not (project.root/"data/ingested").exists()


def test_wrong_type(project):
    write_raw(project, raw_rows(project).assign(age="old"))
    project.refuses("mlgov stage ingest", "column 'age' is numeric in the card", "'old'")


def test_target_with_one_class(project):
    project.edit(CARD, "expr: realrinc > 20000", "expr: realrinc > -1")
    project.run("mlgov stage ingest")
    project.refuses("mlgov stage split", "has one class (1) in the train rows")
    assert not (project.root/"data/split").exists()


def test_target_that_cannot_be_evaluated(project):
    project.edit(CARD, "expr: realrinc > 20000", "expr: realrincome > 20000")
    project.refuses("mlgov stage ingest", "target.expr 'realrincome > 20000' cannot be evaluated")


def test_protected_attribute_that_does_not_exist(project):
    project.edit(CARD, "column: gender", "column: sex")
    project.edit(CARD, "  gender: \\{", "  sexx: {")
    project.refuses("mlgov stage ingest", "missing columns 'sex'")


def test_protected_attribute_among_the_inputs(project):
    project.edit(CARD, "categorical: \\[", "categorical: [gender, ")
    project.refuses("mlgov stage ingest", "gss_wages.yaml", "['gender'] are among the features", "as_input: true")


def test_unknown_key(project):
    project.edit("params.yaml", "seed: 7", "sead: 7")
    unknown, missing = "unknown key 'sead'; allowed here: audit, audits", "missing key 'seed'"
    project.refuses("mlgov stage ingest", "params.yaml", unknown, missing)


def test_unknown_card(project):
    project.edit("params.yaml", "card: gss_wages", "card: gss_wage")
    project.refuses("mlgov stage ingest", "no dataset card 'gss_wage'", "cards here: gss_wages")


def test_broken_yaml(project):
    (project.root/"params.yaml").write_text("seed: [7")
    project.refuses("mlgov stage ingest", "params.yaml: not valid YAML")


def test_window_without_rows(project):
    project.edit(CARD, "\\[2014, 2018\\]", "[2030, 2034]")
    project.run("mlgov stage ingest")
    project.refuses("mlgov stage split", "window '2014-18' [2030, 2034] has no rows; year runs from 1974 to 2018")


def test_bad_rows_are_kept_aside_with_the_reason(project):
    rows = raw_rows(project)
    rows["age"] = rows["age"].to_numpy(float, na_value=float("nan"))
    rows.loc[[0, 1, 2], "age"] = [float("inf"), float("nan"), float("-inf")]
    rows.loc[3, "id"] = rows.loc[4, "id"]
    write_raw(project, rows)
    output = project.run("mlgov stage ingest").stdout
    assert "3 refused" in output and "2 × age: infinite" in output and "1 × id: seen before" in output
    assert len(pd.read_parquet(project.root/"data/ingested/refused.parquet")) == 3


def test_unknown_candidate_and_audit(project):
    project.refuses("mlgov stage train boosting", "no 'boosting'; there are gradient_boosting, linear")
    project.refuses("mlgov audit drfit --current x.csv", "no audit 'drfit'; params.yaml has drift, fairness")


def test_outside_a_project(project):
    project.refuses("cd / && mlgov gate", "no params.yaml in / or above")


@pytest.mark.parametrize("content, texts", [
    ("", ["is empty; expected Parquet, or CSV"]),
    ("a,b\n1,2\n", ["missing columns", "the file has: a, b"]),
])
def test_audit_of_a_bad_file(project, content, texts):
    (project.root/"data/split").mkdir()
    (project.root/"data/sample/reference.parquet").rename(project.root/"data/split/reference.parquet")
    (project.root/"bad.csv").write_text(content)
    project.refuses("mlgov audit drift --current bad.csv --model data/sample/model", *texts)
    assert not (project.root/"reports").exists()


def test_tampered_artifact_is_refused_by_the_file(project):
    file = project.root/"data/sample/model/model.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    sample = "data/sample"
    windows = f"--current {sample}/2014-18.parquet --reference {sample}/reference.parquet"
    project.refuses(f"mlgov audit drift {windows} --model {sample}/model", "refused: model.npz is changed")


@pytest.mark.parametrize("old, new", [
    ("ingest", "stage ingest"),
    ("split", "stage split"),
    ("train linear", "stage train NAME"),
    ("select", "stage select"),
    ("judge drift --help", "stage judge NAME"),
    ("harm", "stage harm"),
    ("package --no-bento", "stage package"),
    ("card build", "model-card"),
    ("profile merge a.json b.json -o c.json", "profile-merge A.json B.json -o C.json"),
])
def test_a_renamed_command_says_its_new_name(project, old, new):
    project.refuses(f"mlgov {old}", f"has a new name: `mlgov {new}`")


def test_nothing_to_gate(project): project.refuses("mlgov gate", "no verdicts here")


def test_card_new_refuses_what_it_cannot_read(project):
    project.refuses("mlgov card new nowhere.csv --target y", "nowhere.csv: no such file")
    project.refuses(f"mlgov card new {RAW} --target salary", "missing columns 'salary'")
    project.refuses(f"mlgov card new {RAW} --target realrinc", "exists already")
    project.refuses(f"mlgov card new {RAW} --target educcat --name x", "5 classes", "--positive")
    assert not (project.root/"data/raw/x.yaml").exists()
