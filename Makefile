# Everything here sets itself up: all it needs is python3 (3.11 or newer) with venv, make and the package index.

PYTHON ?= python3# the interpreter that .venv is made from
VENV ?= .venv
EXTRAS ?= dev# what pip installs beside the package; on an NVIDIA GPU: EXTRAS=dev,cuda
PYTEST_WORKERS ?= 2
TESTS ?= tests# files or folders of tests that `make test` runs

comma := ,
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
QUICK := runs/quickstart

# Test processes share the machine's accelerator, where there is one.
test test-all: export XLA_PYTHON_CLIENT_PREALLOCATE = false

.PHONY: help venv quickstart test test-all lint clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "PYTHON=python3.12 picks the interpreter, EXTRAS=dev,cuda adds the GPU build of JAX."

venv: $(INSTALLED)  ## create .venv with the package in it

quickstart: $(INSTALLED)  ## weights, data, training, evaluation: ends with a table and runs/quickstart/report.html
	$(BIN)/llmdpd embed --fetch
	$(BIN)/llmdpd collect --family=point_robot --quality=mixed --episodes=100 --out=data/quickstart
	$(BIN)/llmdpd train --config=configs/quickstart.py --out=$(QUICK)
	$(BIN)/llmdpd evaluate $(QUICK)

test: $(INSTALLED)  ## the fast tests
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup -m "not slow and not weights and not parity" $(TESTS)

test-all: $(INSTALLED)  ## all tests; those against torch are skipped where torch is not installed (README, "Tests")
	for source in smollm2 minilm gemma3-270m; do $(BIN)/llmdpd embed --fetch --source=$$source || exit 1; done
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup -rs

lint: $(INSTALLED)  ## ruff, rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:  ## remove .venv and caches; runs/ and data/ stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# Made again only when pyproject.toml is newer: the package is installed in place, so edits need no new installation.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1 || true); Python 3.11 or newer is needed." \
	       "Name one with: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "make: $(PYTHON) could not make $(VENV); on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "Installing the package and what it needs into $(VENV); the first time takes a minute or more."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	@touch $@
