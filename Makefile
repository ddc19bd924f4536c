# Every target makes .venv itself; nothing but Python 3.11+, make and a package registry is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# nearly half of the time would go into compiling what is never imported
PIP_OPTIONS := --quiet --disable-pip-version-check --no-compile
# a second environment, with the transformer-lens that has no HookedTransformer any more
VENV_TL4 := .venv-tl4
READY_TL4 := $(VENV_TL4)/.ready
REFERENCE_TL4 := $(VENV_TL4)/reference
# `make bench` stops a way to load at so much private memory; the usual ones may want more for 1.5 billion parameters
MEMORY_GB ?= 14

.PHONY: demo test tests test-long tl4 lint faults faults-long fuzz check docs families bench lineage-rates comparison format clean
.DEFAULT_GOAL := check

$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (torch and transformer-lens take a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install $(PIP_OPTIONS) --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)  ## a tour on a real model: register, fine-tune, load by name, refuse
	@$(BIN)/lensreg demo --folder .demo

test: $(READY)  ## the quick tests
	@$(BIN)/python -m pytest -m 'not slow'

test-long: $(READY)  ## every case of the corpora of which the other tests take a sample, and what takes longest
	@LENSREG_TEST_SHARE=1 $(BIN)/python -m pytest --override-ini timeout=1800
	@$(BIN)/python -m tests.hostile

$(READY_TL4): tests/tl4/requirements.txt constraints.txt
	@echo "Setting up $(VENV_TL4)"
	@$(PYTHON) -m venv $(VENV_TL4)
	@grep -v '^transformer-lens==' constraints.txt > $(VENV_TL4)/constraints.txt
	@$(VENV_TL4)/bin/python -m pip install $(PIP_OPTIONS) \
		--constraint $(VENV_TL4)/constraints.txt --requirement tests/tl4/requirements.txt
	@$(VENV_TL4)/bin/python -m pip install $(PIP_OPTIONS) --no-deps --editable .
	@touch $@

tl4: $(READY) $(READY_TL4)  ## what is registered with transformer-lens 3.9 loads with 4.3
	@rm -rf $(REFERENCE_TL4)
	@mkdir $(REFERENCE_TL4)
	@HF_HUB_OFFLINE=1 $(BIN)/python -m tests.tl4.write_reference $(REFERENCE_TL4)
	@HF_HUB_OFFLINE=1 LENSREG_TL4_FOLDER=$(REFERENCE_TL4) $(VENV_TL4)/bin/python -m pytest \
		--config-file tests/tl4/pytest.ini --rootdir . tests/tl4

faults: $(READY)  ## provoke every fault for three minutes, and look for what they broke
	@$(BIN)/python -m tests.faults --seconds 180

faults-long: $(READY)  ## ten times that, and write down what came of it in docs/reliability.md
	@$(BIN)/python -m tests.faults --seconds 1800 --write

fuzz: $(READY)  ## judge a hundred thousand mutated files, and write down what came of it in docs/reliability.md
	@$(BIN)/python -m tests.hostile.fuzz --cases 100000 --write

lint: $(READY)  ## format, lint, types, import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

check: $(READY)  ## all that CI runs: format, lint, types, import rules, docs, and every test
	@$(MAKE) --no-print-directory --jobs 2 tl4 tests
	@$(BIN)/python -m tests.faults --seconds 180

tests: lint  ## every test, but for those with transformer-lens 4
	@$(BIN)/python -m pytest

docs: $(READY)  ## write the generated pages again
	@$(BIN)/python docs/write_cli_reference.py
	@$(BIN)/python docs/write_search_page.py

families: $(READY)  ## measure every family, and write docs/families.md
	@$(BIN)/python -m docs.write_families

bench: $(READY)  ## measure against the usual ways, and write docs/benchmarks.md
	@$(BIN)/python -m benchmarks --memory-gb $(MEMORY_GB)

lineage-rates: $(READY)  ## measure how often lineage is told right from weights, and write docs/lineage.md
	@HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/lineage_rates.py

comparison: $(READY)  ## compare the demo's pair, and write docs/comparison.md with its pictures
	@test -e .demo/lensreg-tour/registry.db || $(BIN)/lensreg demo --folder .demo
	@HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.comparison --folder .demo

format: $(READY)  ## put the code in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## delete the environments and what the demo and the benchmarks wrote
	rm -rf $(VENV) $(VENV_TL4) .bench .demo build dist
