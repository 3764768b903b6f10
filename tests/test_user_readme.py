"Every command of the README, run in a clone"
import json
import re

from conftest import ROOT

SERVE_FOR_OTHERS = "MLGOV_TOKENS_FILE=tokens.json bentoml serve mlgov_nb.service:Mlgov --host 0.0.0.0"
RUN_ELSEWHERE = {                                                   # command: where it is run
    "make run":                                "the made fixture",
    "make test":                               "runs this very test",
    "make serve":                              "test_service",
    "mlgov gate":                              "test_end_to_end; here the settings are not those of the evidence",
    SERVE_FOR_OTHERS:                          "test_service_live, on this machine only",
    "dvc repro":                               "test_end_to_end; test_own_data runs the same stages on other data",
    "mlgov card new my.csv --target churned":  "test_own_data",
}


def readme_commands():
    "Every line of every bash block"
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT/"README.md").read_text(), re.S)
    return [line for block in blocks for line in block.strip().splitlines()]


def test_readme_commands_all_run(spare):
    "Every command is run here, or by the test that is named"
    commands = readme_commands()
    assert set(RUN_ELSEWHERE) <= set(commands)
    spare.run("git add -A && (git diff --cached --quiet || git commit -qm evidence)")
    for command in commands:
        if command in RUN_ELSEWHERE or command.startswith("curl "): continue     # curl: test_service
        # 1 or 3: it drifted too far, or nobody can tell, which is an answer; 2 is none
        if command.startswith("mlgov audit"): command = f"{{ {command} || test $? -ne 2; }}"
        spare.run(command if command.startswith("source") else f"source .venv/bin/activate && {command}")
    acs = json.loads((spare.scope("acs_employment")/"drift.verdict.json").read_text())
    drifted = {check["subject"] for check in acs["checks"] if check["measure"] == "drifted" and check["value"]}
    assert acs["verdict"] == "warn" and "AGEP: above 94 0% →" in acs["line"], "the code of the highest age has changed"
    assert "score" not in drifted, "and that does not move the scores"
