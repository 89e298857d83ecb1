# Every target makes its own environment first; only Python 3.10 or newer must be installed. `make help` lists them.
#
# PIP_ARGS is passed to every `pip install`; the README shows how to choose another build of torch with it.

PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test test-slow lint bench docs clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-16s%s\n' "$$name" "$$text"; done

setup: $(READY) ## make the environment in .venv

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "tutelage needs Python 3.10 or newer; choose one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps --no-build-isolation -e .
	touch $@

demo: $(READY) ## train a teacher, distil it into a small student, evaluate both, write a report
	$(BIN)/tutelage run recipes/demo/demo.yaml

lint: $(READY) ## check style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint ## lint, then run the fast tests
	$(BIN)/pytest -n 2

test-slow: $(READY) ## run the slow tests: real compilation and long runs
	$(BIN)/pytest -m slow -n 2

bench: $(READY) ## measure side by side with other code; prints ratios
	$(BIN)/python -m benchmarks

docs: $(READY) ## build the manual in docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html

clean: ## remove the environment and all caches
	rm -rf $(VENV) docs/_build .mypy_cache .ruff_cache .pytest_cache
