# make quickstart   everything from set-up to a trained real model, alone on a fresh machine
# make test         set-up, then everything that CI runs
# make bench        contests against what one would use instead; docs/benchmarks.md
# PYTHON=python3.12 picks the interpreter; each version has an environment of its own, .venv/pythonX.Y

PYTHON ?=
FOUND := $(shell bash scripts/find_python.sh $(PYTHON))
VERSION := $(word 2,$(FOUND))
VENV_PYTHON := .venv/python$(VERSION)/bin/python
SETUP = @test -n "$(FOUND)" && bash scripts/setup_environment.sh $(FOUND)

.PHONY: quickstart test test-fast test-matrix lint setup docs bench bench-full clean

quickstart:
	$(SETUP) quickstart
	$(VENV_PYTHON) examples/quickstart/run.py

test: setup
	$(VENV_PYTHON) -m pytest

test-fast: setup
	$(VENV_PYTHON) -m pytest tests/unit -m "not slow" -n 2

test-matrix: setup
	$(VENV_PYTHON) -m nox

lint: setup
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

setup:
	$(SETUP) dev

docs: setup
	$(VENV_PYTHON) tools/render_config_docs.py
	$(VENV_PYTHON) tools/render_memory_docs.py

bench: setup
	$(VENV_PYTHON) -m benchmarks.run

bench-full: setup
	$(VENV_PYTHON) -m benchmarks.run --full --output build/bench-full

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .nox .hypothesis *.egg-info
