# Everything runs in .venv, which is built on first use and again only when pyproject.toml changes.
# A fresh machine needs Python 3.10 or newer and make:   make demo   or   make test
# Another interpreter:   make test PYTHON=python3.12

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Arguments for pytest, for example:   make test PYTEST_ARGS="tests/test_frame.py -x"
# By default one process a core (at most four), each with one torch thread, so that they do not fight over the cores.
PYTEST_ARGS ?= -n auto --maxprocesses 4
ONE_THREAD  := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test lint format slow bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(STAMP) ## train a spiking network with S-TLLR on event data and draw the result
	@$(BIN)/stllr demo

test: lint ## lint, then the whole default test suite
	@echo "pytest"
	@$(ONE_THREAD) $(BIN)/python -m pytest -q $(PYTEST_ARGS)

lint: $(STAMP) ## ruff check, ruff format --check, mypy
	@echo "ruff check"
	@$(BIN)/ruff check --quiet .
	@echo "ruff format --check"
	@$(BIN)/ruff format --check --quiet . || { echo "Some files are not formatted. Run: make format"; exit 1; }
	@echo "mypy"
	@$(BIN)/mypy --no-error-summary

format: $(STAMP) ## let ruff sort imports, mend what it can, and format
	@$(BIN)/ruff check --quiet --fix --exit-zero .
	@$(BIN)/ruff format .

slow: $(STAMP) ## only the tests marked slow (minutes)
	@$(ONE_THREAD) $(BIN)/python -m pytest -q -m slow

bench: $(STAMP) ## run every benchmark with its default settings
	@for script in benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done
	$(BIN)/python -m benchmarks.speed --output runs/speed

clean: ## remove .venv, caches and everything that runs have written
	rm -rf $(VENV) build dist demo runs lightning_logs .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "No '$(PYTHON)' here. Install Python 3.10 or newer, or: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$$($(PYTHON) --version) is too old: Python 3.10 or newer is needed (make PYTHON=...)."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (once; torch is a large download) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@
