"Every command of the README, run in a clone"
import json
import re

from conftest import ROOT


def test_readme_commands_all_run(spare):
    "Every line of every bash block is run here, or by the test that is named"
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT/"README.md").read_text(), re.S)
    commands = [c for b in blocks for c in b.strip().splitlines()]
    elsewhere = {"make run": "the made fixture", "make test": "runs this very test", "make serve": "test_service", "MLGOV_TOKENS_FILE=tokens.json bentoml serve mlgov_nb.service:Mlgov --host 0.0.0.0": "test_service_live, on this machine only", "dvc repro": "test_own_data", "mlgov card new my.csv --target churned": "test_own_data"}
    assert set(elsewhere) <= set(commands)
    spare.run("git add -A && (git diff --cached --quiet || git commit -qm evidence)")
    for c in commands:
        if c in elsewhere or c.startswith("curl "): continue   # curl: test_service
        if c.startswith("mlgov audit drift"): c = f"{{ {c} || test $? = 1; }}"   # 1: it drifted too far, which is an answer
        spare.run(c if c.startswith("source") else f"source .venv/bin/activate && {c}")
    acs = json.loads((spare.scope("acs_employment")/"drift.verdict.json").read_text())
    assert acs["verdict"] == "pass", "hardly anything changes in the ACS data: the audit must stay quiet"
