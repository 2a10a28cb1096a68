# Begin with `make demo` or `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
UV := $(shell command -v uv 2>/dev/null)
INSTALL := $(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/python -m pip install --disable-pip-version-check --quiet)

.DEFAULT_GOAL := help
.PHONY: help setup demo check test lint format bench clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'
	@echo '  ARGS=... is passed on by demo, check, test and bench; PYTHON=... chooses the interpreter'

# Made once, and again when pyproject.toml changes.
$(VENV)/.stamp: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("nolabel needs Python 3.11 or newer; this is %d.%d. Try: make PYTHON=python3.12 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@echo "Setting up $(VENV) with $(if $(UV),uv,pip). The first time takes some minutes and"
	@echo "about 5 GB of disk, because PyPI's PyTorch is the CUDA build; later calls skip this."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev]'
	@touch $@

setup: $(VENV)/.stamp  ## make .venv with nolabel and its development tools

demo: $(VENV)/.stamp  ## an example on built-in data: train, compare, pictures, report
	$(BIN)/nolabel demo --out demo --overwrite $(ARGS)

check: lint  ## lint and the quick tests of tests/quick.txt, in about a minute
	$(BIN)/python -m pytest -n auto --dist worksteal @tests/quick.txt $(ARGS)

test: $(VENV)/.stamp  ## all tests, without a GPU
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

lint: $(VENV)/.stamp  ## formatter, linter, types, import floors, spelling, house rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check --output-format min-text
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(BIN)/python tools/check_source.py

format: $(VENV)/.stamp  ## put the layout and the imports right
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.stamp  ## side-by-side measurements on this machine
	$(BIN)/python benchmarks/views.py $(ARGS)

clean:  ## remove .venv, the demo and caches; your own runs stay
	rm -rf $(VENV) demo build dist .pytest_cache .ruff_cache .import_linter_cache
