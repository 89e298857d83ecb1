# Every target makes its own environment first; nothing needs to be installed by hand but Python 3.10 or newer.
#
#   make demo        train a teacher, distil it into a small student, evaluate both, write a report
#   make test        lint, type-check and run the fast tests
#   make test-slow   real compilation and long runs
#   make lint        the style, type and architecture checks alone
#   make bench       side-by-side measurements, printed as ratios
#   make docs        the manual, in docs/_build/html
#
# PIP_ARGS is handed to every `pip install`; the README says how to choose another build of torch with it.

PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-slow lint bench docs clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "tutelage needs Python 3.10 or newer; choose one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps --no-build-isolation -e .
	touch $@

demo: $(READY)
	$(BIN)/tutelage run recipes/demo/demo.yaml

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint
	$(BIN)/pytest -n 2

test-slow: $(READY)
	$(BIN)/pytest -m slow -n 2

bench: $(READY)
	$(BIN)/python -m benchmarks

docs: $(READY)
	$(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html

clean:
	rm -rf $(VENV) docs/_build .mypy_cache .ruff_cache .pytest_cache
