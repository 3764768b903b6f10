# Everything sets itself up: `make run` and `make test` need only Python >= 3.11, git and make.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
export BENTOML_DO_NOT_TRACK := True
export BENTOML_HOME := $(CURDIR)/.bentoml
export DVC_NO_ANALYTICS := true
# the virtual environment's programs first, for the commands of dvc.yaml
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup run check test lab serve notebooks readme bench lock clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@echo "mlgov-nb: train, explain, audit and serve a model, with evidence that anyone can re-compute"; echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Python 3.11 is what the lock file was made with, so it comes first; any newer one is tried after it.
$(STAMP): requirements.lock pyproject.toml
	@py=""; for p in python3.11 python3.12 python3.13 python3 python; do \
	  if command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then py=$$p; break; fi; done; \
	if [ -z "$$py" ]; then echo "mlgov-nb needs Python 3.11 or newer with venv; found: $$(command -v python3 >/dev/null && python3 --version || echo none). Install it (for example: apt install python3.11-venv, or brew install python@3.11) and run make again." >&2; exit 2; fi; \
	echo "setting up $(VENV) with $$($$py --version)"; \
	test -x $(BIN)/python || $$py -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m ipykernel install --sys-prefix --name python3 --display-name "Python 3 (mlgov-nb)" >/dev/null 2>&1
	@if git rev-parse --git-dir >/dev/null 2>&1; then $(BIN)/nbdev_install_hooks >/dev/null; \
	  for f in "$$(git rev-parse --git-path hooks)/post-merge" .gitconfig; do \
	    sed -i.bak -E 's#(^|= )nbdev_(trust|merge)#\1$(BIN)/nbdev_\2#' "$$f" && rm -f "$$f.bak"; done; fi   # git runs them outside the environment
	@touch $(STAMP)

setup: $(STAMP)  ## make .venv with the exact versions of requirements.lock, the package and the git hooks

run: $(STAMP)  ## the whole pipeline: data, candidates, champion, audits, model card, Bento
	@dvc repro
	@mlgov stage set-aside
	@mlgov gate || echo "(the gate is closed; the reasons are above and in reports/index.html)"
	@echo "reports: $(CURDIR)/reports/index.html    serve the champion: make serve"

# two processes share the cores: threads that wait for each other on a busy core made this five times slower
check test: export OMP_NUM_THREADS := $(shell echo $$(( ($$(getconf _NPROCESSORS_ONLN) + 1) / 2 )))
check: $(STAMP)  ## before a commit: notebooks clean and exported, ruff, types, the fast tests
	@python tools/notebooks.py check
	@python tools/readme.py --check
	@ruff check mlgov_nb tests tools bench data/sample
	@mypy
	@pytest -n 2 --dist loadgroup -m "not slow"

test: $(STAMP)  ## everything: the checks, the notebooks run, an end-to-end run in a clone, the service
	@python tools/notebooks.py check
	@python tools/readme.py --check
	@ruff check mlgov_nb tests tools bench data/sample
	@mypy
	@nbdev_test --path nbs --n_workers 2
	@pytest -n 3 --dist loadgroup     # one more than two cores: tests of services mostly wait

lab: $(STAMP)  ## JupyterLab with the project's kernel
	@jupyter lab nbs

serve: $(STAMP)  ## the released champion on http://127.0.0.1:3000
	@test -f release/served/RELEASE.json -o -f release/served/REFUSED.json || dvc repro package
	@bentoml serve mlgov_nb.service:Mlgov --host 127.0.0.1 --port 3000 --timeout-graceful-shutdown 30

notebooks: $(STAMP)  ## export the package from the notebooks, run them, keep their outputs, clean them
	@python tools/notebooks.py run

readme: $(STAMP)  ## README.md from nbs/index.ipynb
	@python tools/readme.py

bench: $(STAMP)  ## benchmarks against the peers, as tables in bench/ (three hours; each has --small)
	@python bench/speed.py
	@python bench/speed.py --wide
	@python bench/quality.py
	@python bench/verdicts.py --write
	@python bench/explain.py
	@python bench/fairness.py
	@python bench/estimate.py
	@python bench/serving.py
	@python bench/serving.py --soak 10

lock: $(STAMP)  ## make requirements.lock and requirements-serve.lock again from pyproject.toml
	@python tools/lock.py

clean:  ## remove what was made; .venv, data/raw and what is in git stay
	@rm -rf data/ingested data/split models release dvclive .bentoml _proc .pytest_cache .ruff_cache .hypothesis reports/_draft
	@find reports -name '*.html' -delete 2>/dev/null; find reports -name '*.ipynb' -delete 2>/dev/null; true
