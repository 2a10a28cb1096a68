# Two commands matter to a newcomer: `make demo` and `make test`.  Each makes what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench clean

help:  ## what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/.stamp: pyproject.toml
	@echo "Setting up $(VENV) (a few minutes: PyTorch from PyPI brings CUDA, about 5 GB)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

setup: $(VENV)/.stamp  ## make .venv with nolabel and its development tools

demo: $(VENV)/.stamp  ## the main job on built-in data: train, compare, pictures, report
	$(BIN)/nolabel demo --out demo --overwrite $(ARGS)

test: $(VENV)/.stamp  ## all tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.stamp  ## formatter, linter, types, import floors, spelling, house rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check --output-format min-text
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(BIN)/python tools/check_source.py

format: $(VENV)/.stamp  ## format and sort imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.stamp  ## side-by-side measurements on this machine
	$(BIN)/python benchmarks/views.py $(ARGS)

clean:  ## remove what was made here
	rm -rf $(VENV) demo runs build dist .pytest_cache .ruff_cache
