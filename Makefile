# `make test` on a fresh machine: environment, lint, types, all tests. `make help` lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Tests run in two processes of one thread each, of up to 4 GB; more of them help where there are more cores.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=$(WORKERS) --dist=loadscope --no-loadscope-reorder

.DEFAULT_GOAL := install
.PHONY: help install demo lint types fast test clean clean-cache

help:
	@echo "make install  create $(VENV) and install with the tested versions (constraints.txt)"
	@echo "make demo     run SDP and SDP+ on drawn images with a small CLIP: nothing to download"
	@echo "make test     lint, type-check and run all tests, as CI does"
	@echo "make fast     only the fast tests (WORKERS=4 for more cores)"
	@echo "make clean    remove the environment and caches of tools; results and data stay"
	@echo "make clean-cache  remove what runs computed and can compute again (.cache)"

install: $(VENV)/.installed

# The stamp says with which requirements the environment was made.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/python -m experiments.demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

fast: install
	$(PYTEST)

test: lint types
	$(PYTEST) -m "slow or not slow"

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info

clean-cache:
	rm -rf .cache
