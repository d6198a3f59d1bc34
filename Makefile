# make demo          fine-tune two sources on drawn pictures, merge them, print one table
# make test          the default test suite
# make test-slow     the tests that run for minutes
# make test-rounding the default suite as other processors round, seven times
# make test-gpu      the tests that need an accelerator
# make test-floors   the default suite with the lowest versions allowed, and on the newest Python that torch serves (slow)
# make fuzz          spoilt files, words and trees through the commands, drawn from a seed: SEED=1 CASES=400 make fuzz
# make lint          formatting, types, import layers
# make constraints   write configs/env/constraints.txt from what this environment holds

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := configs/env/constraints.txt
DEMO := runs/demo
SOURCES := $(DEMO)/sources/clipart/finished $(DEMO)/sources/sketch/finished

.PHONY: demo test test-slow test-rounding test-gpu test-floors fuzz lint constraints clean-demo

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@echo "installing into $(VENV): a few minutes, once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) --group dev
	@touch $@

demo: $(VENV)/.installed
	@for file in $(SOURCES) $(DEMO)/merge/results.json; do if [ -e $$file ]; then echo "reusing $$file"; fi; done
	@if $(MAKE) --question $(DEMO)/merge/results.json; then $(BIN)/python -m project.report $(DEMO)/merge; \
	else $(MAKE) --no-print-directory $(DEMO)/merge/results.json; fi
	@echo "Look closer: $(BIN)/tensorboard --logdir runs"

# A fit that was interrupted has a best.ckpt, too; it is no finished source.
$(DEMO)/sources/%/finished: | $(VENV)/.installed
	$(BIN)/pleas fit --config configs/demo/fit_$*.yaml --overwrite true
	@touch $@

$(DEMO)/merge/results.json: $(SOURCES) | $(VENV)/.installed
	$(BIN)/pleas merge --config configs/demo/merge.yaml --overwrite true

test: $(VENV)/.tested
	$(BIN)/python -m pytest

test-slow: $(VENV)/.tested
	$(BIN)/python -m pytest -m slow

test-rounding: $(VENV)/.tested
	$(BIN)/python tests/rounding.py

test-gpu: $(VENV)/.tested
	$(BIN)/python -m pytest -m gpu -n 0

# In temporary environments; PYTHONS="…" names the interpreters, else those on the path are taken.
test-floors:
	bash tests/floors.sh

fuzz: $(VENV)/.tested
	PYTHONPATH=tests $(BIN)/python -m fuzzing --seed $${SEED:-0} --cases $${CASES:-400}
	$(BIN)/python -m pytest -n 0 --hypothesis-profile fuzz tests/test_fuzzing.py

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The newest of everything that the ranges in pyproject.toml allow, in a fresh environment; nothing by hand.
constraints:
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . --group dev
	mkdir -p $(dir $(CONSTRAINTS))
	( echo "# Written by 'make constraints'; $$($(BIN)/python -V), $$(uname -sm). Install with pip -c."; \
	  $(BIN)/python -m pip freeze --exclude-editable ) > $(CONSTRAINTS)
	touch $(VENV)/.installed $(VENV)/.tested

clean-demo:
	rm -rf $(DEMO)
