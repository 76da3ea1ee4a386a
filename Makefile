# `make demo` and `make test` do all the set-up themselves and need nothing but Python 3.11 or newer.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# alpaca_eval 0.6.6 imports pkg_resources, which setuptools has up to version 80; for `make parity` alone.
PKG_RESOURCES := $(abspath $(VENV))/pkg_resources

.PHONY: help venv demo test parity harness scienceworld lint format bench clean

help:
	@echo "make demo    install into $(VENV), then build a model, train, evaluate and write a report"
	@echo "make test    install into $(VENV), then run the tests"
	@echo "make parity  compare objectives with TRL's running code, and win rates with AlpacaEval's (installs both)"
	@echo "make harness compare our evaluation with lm-evaluation-harness (installs it)"
	@echo "make scienceworld  run the tests that start its simulator (needs Java)"
	@echo "make lint    style, types and import directions"
	@echo "make format  rewrite the code in the house style"
	@echo "make bench   compare speed with TRL (installs it)"
	@echo "make clean   remove $(VENV) and caches; runs and data stay"

venv: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/prefopt demo

# Two workers of one thread each: the fastest split of two cores.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

parity: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(PKG_RESOURCES) "setuptools==80.9.0"
	PYTHONPATH=$(PKG_RESOURCES) $(BIN)/python -W ignore -c "import alpaca_eval"
	OMP_NUM_THREADS=1 PYTHONPATH=$(PKG_RESOURCES) $(BIN)/python -m pytest -m parity -n 2 -q tests/parity

harness: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[harness]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/evals/test_harness.py

# One after the other: the simulators use several cores by themselves.
scienceworld: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m scienceworld -q tests

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/vs_trl.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
