"Bad input gets one readable message and exit code 2, and leaves nothing half-written"
import pandas as pd
import pytest

RAW = "data/raw/gss_wages.parquet"


def rows(p): return pd.read_parquet(p.root/RAW)


def change(p, **columns): rows(p).assign(**columns).to_parquet(p.root/RAW, index=False)


def test_missing_raw_file(project):
    (project.root/RAW).unlink()
    project.refuses("mlgov stage ingest", "gss_wages.parquet: no such file")
    assert not (project.root/"data/ingested").exists()


def test_misspelt_column(project):
    rows(project).rename(columns={"prestg10": "prestige10"}).to_parquet(project.root/RAW, index=False)
    project.refuses("mlgov stage ingest", "missing columns 'prestg10'", "did you mean 'prestige10'?")
    assert not (project.root/"data/ingested").exists()


def test_wrong_type(project):
    change(project, age="old")
    project.refuses("mlgov stage ingest", "column 'age' is numeric in the card", "'old'")


def test_target_with_one_class(project):
    project.edit("data/raw/gss_wages.yaml", "expr: realrinc > 20000", "expr: realrinc > -1")
    project.run("mlgov stage ingest")
    project.refuses("mlgov stage split", "has one class (1) in the train rows")
    assert not (project.root/"data/split").exists()


def test_target_that_cannot_be_evaluated(project):
    project.edit("data/raw/gss_wages.yaml", "expr: realrinc > 20000", "expr: realrincome > 20000")
    project.refuses("mlgov stage ingest", "target.expr 'realrincome > 20000' cannot be evaluated")


def test_protected_attribute_that_does_not_exist(project):
    project.edit("data/raw/gss_wages.yaml", "column: gender", "column: sex")
    project.edit("data/raw/gss_wages.yaml", "  gender: \\{", "  sexx: {")
    project.refuses("mlgov stage ingest", "missing columns 'sex'")


def test_protected_attribute_among_the_inputs(project):
    project.edit("data/raw/gss_wages.yaml", "categorical: \\[", "categorical: [gender, ")
    project.refuses("mlgov stage ingest", "gss_wages.yaml", "['gender'] are among the features", "as_input: true")


def test_unknown_key(project):
    project.edit("params.yaml", "seed: 7", "sead: 7")
    project.refuses("mlgov stage ingest", "params.yaml", "unknown key 'sead'; allowed here: audit, audits", "missing key 'seed'")


def test_unknown_card(project):
    project.edit("params.yaml", "card: gss_wages", "card: gss_wage")
    project.refuses("mlgov stage ingest", "no dataset card 'gss_wage'", "cards here: gss_wages")


def test_broken_yaml(project):
    (project.root/"params.yaml").write_text("seed: [7")
    project.refuses("mlgov stage ingest", "params.yaml: not valid YAML")


def test_window_without_rows(project):
    project.edit("data/raw/gss_wages.yaml", "\\[2014, 2018\\]", "[2030, 2034]")
    project.run("mlgov stage ingest")
    project.refuses("mlgov stage split", "window '2014-18' [2030, 2034] has no rows; year runs from 1974 to 2018")


def test_bad_rows_are_kept_aside_with_the_reason(project):
    d = rows(project)
    d["age"] = d["age"].to_numpy(float, na_value=float("nan"))
    d.loc[[0, 1, 2], "age"] = [float("inf"), float("nan"), float("-inf")]
    d.loc[3, "id"] = d.loc[4, "id"]
    d.to_parquet(project.root/RAW, index=False)
    said = project.run("mlgov stage ingest").stdout
    assert "3 refused" in said and "2 × age: infinite" in said and "1 × id: seen before" in said
    assert len(pd.read_parquet(project.root/"data/ingested/refused.parquet")) == 3


def test_unknown_candidate_and_audit(project):
    project.refuses("mlgov stage train boosting", "no 'boosting'; there are gradient_boosting, linear")
    project.refuses("mlgov audit drfit --current x.csv", "no audit 'drfit'; params.yaml has drift, fairness")


def test_outside_a_project(project):
    project.refuses("cd / && mlgov gate", "no params.yaml in / or above")


@pytest.mark.parametrize("content, texts", [("", ["cannot be read"]), ("a,b\n1,2\n", ["missing columns", "the file has: a, b"])])
def test_audit_of_a_bad_file(project, content, texts):
    (project.root/"data/split").mkdir()
    (project.root/"data/sample/reference.parquet").rename(project.root/"data/split/reference.parquet")
    (project.root/"bad.csv").write_text(content)
    project.refuses("mlgov audit drift --current bad.csv --model data/sample/model", *texts)
    assert not (project.root/"reports").exists()


def test_tampered_artifact_is_refused_by_the_file(project):
    f = project.root/"data/sample/model/model.npz"
    blob = bytearray(f.read_bytes())
    blob[len(blob) // 2] ^= 1
    f.write_bytes(blob)
    project.refuses("mlgov audit drift --current data/sample/2014-18.parquet --reference data/sample/reference.parquet --model data/sample/model", "refused: model.npz is changed")


@pytest.mark.parametrize("old, new", [("ingest", "stage ingest"), ("split", "stage split"), ("train linear", "stage train NAME"), ("select", "stage select"),
                                      ("judge drift --help", "stage judge NAME"), ("harm", "stage harm"), ("package --no-bento", "stage package"),
                                      ("card build", "model-card"), ("profile merge a.json b.json -o c.json", "profile-merge A.json B.json -o C.json")])
def test_a_renamed_command_says_its_new_name(project, old, new): project.refuses(f"mlgov {old}", f"has a new name: `mlgov {new}`")


def test_nothing_to_gate(project): project.refuses("mlgov gate", "no verdicts here")


def test_card_new_refuses_what_it_cannot_read(project):
    project.refuses("mlgov card new nowhere.csv --target y", "nowhere.csv: no such file")
    project.refuses(f"mlgov card new {RAW} --target salary", "missing columns 'salary'")
    project.refuses(f"mlgov card new {RAW} --target realrinc", "exists already")
    project.refuses(f"mlgov card new {RAW} --target educcat --name x", "5 classes", "--positive")
    assert not (project.root/"data/raw/x.yaml").exists()
