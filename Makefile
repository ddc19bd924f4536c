# Every target makes .venv itself; nothing but Python 3.11+, make and a package registry is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check docs families bench format clean
.DEFAULT_GOAL := check

$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (torch and transformer-lens take a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)  ## a tour on a real model: register, fine-tune, load by name, refuse
	@$(BIN)/lensreg demo --folder .demo

test: $(READY)  ## the quick tests
	@$(BIN)/python -m pytest -m 'not slow'

check: $(READY)  ## all that CI runs: format, lint, types, import rules, docs, and every test
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest

docs: $(READY)  ## write the generated pages again
	@$(BIN)/python docs/write_cli_reference.py

families: $(READY)  ## measure every family, and write docs/families.md
	@$(BIN)/python -m docs.write_families

bench: $(READY)  ## measure against the usual ways, and write docs/benchmarks.md
	@$(BIN)/python benchmarks/compare.py

format: $(READY)  ## put the code in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## delete the environment and what the demo wrote
	rm -rf $(VENV) .demo build dist
