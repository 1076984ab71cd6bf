# featx: everything a newcomer or a maintainer types. `make help` lists it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WITH_DOCS := $(VENV)/.docs
WORKERS ?= 2
NOTEBOOKS ?= cache
TESTS ?=

.PHONY: help install demo test test-all test-torch-free test-oldest coverage mutation check bench docs dist clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-15s %s\n", $$1, $$2}'

install: $(STAMP)  ## make .venv and install featx with its test and check tools

$(STAMP): pyproject.toml
	@echo "== installing into $(VENV) (some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## run the main job on handwritten digits, offline: check, fit, evaluate, predict
	@$(BIN)/featx demo --output demo-output

test: $(STAMP)  ## the fast tests, WORKERS (2) at once
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not gpu"

test-all: $(WITH_DOCS)  ## every test, the slow ones and (where there is one) the GPU's too
	@$(BIN)/python -m pytest

# What is tried is the wheel, not a checkout that the environment names.
test-torch-free test-oldest dist: export PYTHONPATH :=

test-torch-free: $(STAMP)  ## search, predict and report in an environment without torch
	@rm -rf build/torch-free && mkdir -p build/torch-free
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/torch-free .
	@$(BIN)/python -m venv build/torch-free/venv
	@build/torch-free/venv/bin/pip install --quiet --disable-pip-version-check $$($(BIN)/python tests/torch_free.py dependencies)
	@build/torch-free/venv/bin/pip install --quiet --disable-pip-version-check --no-deps build/torch-free/*.whl
	@$(BIN)/python tests/torch_free.py prepare build/torch-free
	@cd build/torch-free && venv/bin/python ../../tests/torch_free.py check .

test-oldest:  ## the fast tests (or TESTS, some files) with the lowest versions of pyproject.toml, in build/oldest
	@mkdir -p build/oldest
	@test -x build/oldest/venv/bin/python || $(PYTHON) -m venv build/oldest/venv
	@$(PYTHON) tests/oldest.py > build/oldest/constraints.txt
	@build/oldest/venv/bin/pip install --quiet --disable-pip-version-check --constraint build/oldest/constraints.txt --editable '.[test]'
	@build/oldest/venv/bin/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not gpu" $(TESTS)

coverage: $(STAMP)  ## the fast tests, and which lines of featx they ran
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow and not gpu" --cov --cov-report=term:skip-covered

mutation: $(STAMP)  ## change featx in many small ways, and count the changes that a test notices
	@$(BIN)/python tests/mutation.py --jobs $(WORKERS)

check: $(STAMP)  ## lint, format, types and docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python docs/build.py --check

bench: $(STAMP)  ## run the benchmarks against the peers and write docs/benchmarks.md
	@$(BIN)/python benchmarks/run.py

$(WITH_DOCS): $(STAMP)
	@echo "== installing Sphinx into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

docs: $(WITH_DOCS)  ## write the tables of the documents, and build the site into build/docs/html (NOTEBOOKS=off: run none)
	@$(BIN)/python docs/build.py
	@$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -D nb_execution_mode=$(NOTEBOOKS) docs build/docs/html
	@echo "site: build/docs/html/index.html"

dist: $(STAMP)  ## build sdist and wheel, check them, and run the demo from the wheel outside the checkout
	@rm -rf dist build/dist && mkdir -p build/dist
	@$(PYTHON) -m venv build/dist/tools
	@build/dist/tools/bin/pip install --quiet --disable-pip-version-check build twine
	@build/dist/tools/bin/python -m build --outdir dist .
	@build/dist/tools/bin/twine check --strict dist/*
	@$(PYTHON) -m venv build/dist/venv
	@build/dist/venv/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	@cd build/dist && venv/bin/python -c "import featx, os; assert os.sep + 'venv' + os.sep in featx.__file__, featx.__file__"
	@cd build/dist && venv/bin/featx demo --output demo-output

clean:  ## remove the environment, caches of the tools and demo output
	@rm -rf $(VENV) .venv-bench benchmarks/out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-output
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
