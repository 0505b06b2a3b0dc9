# The two commands: `make up` and `make test`. Both do all the set-up on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup up test check docs bench edits kills chaos soak clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "llm-supervisor needs Python 3.11 or later, this is %d.%d; try: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --editable '.[worker,web,dev]'
	@touch $@

up: setup
	@exec $(BIN)/llm-supervisor up

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup
	$(BIN)/python scripts/make_docs.py
	$(BIN)/python scripts/make_lifecycle.py

# A part of it, into no file: .venv/bin/python benchmarks/run.py --help
bench: setup
	$(BIN)/python benchmarks/run.py --json docs/benchmarks.json --table docs/benchmarks.md

kills: setup
	$(BIN)/python benchmarks/kills.py

edits: setup
	$(BIN)/python benchmarks/edits.py

# Another hour: make chaos SECONDS=3600; the real FastChat: FORM=fastchat; the same again: SEED=n.
chaos: SECONDS = 60
chaos: setup
	@cd tests && PYTHONPATH=../benchmarks ../$(BIN)/python -m chaos \
		--seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(if $(FORM),--form $(FORM))

soak: RESTARTS = 20000
soak: setup
	@cd tests && ../$(BIN)/python -m chaos.soak --restarts $(RESTARTS)

clean:
	rm -rf $(VENV) build dist *.egg-info
