# Two commands for newcomers: `make demo` and `make test`. Each makes .venv and installs what it needs the first time.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

.PHONY: demo test slow lint types contract check clean

demo: .venv/.demo
	$(BIN)/triform demo

test: .venv/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# with llama.cpp beside it, which is compiled in some minutes the first time
slow: .venv/.dev .venv/.interop
	$(BIN)/python -m pytest -m slow

lint: .venv/.dev
	$(BIN)/ruff check src tests

types: .venv/.dev
	$(BIN)/mypy -p triform

contract: .venv/.dev
	$(BIN)/lint-imports

check: test lint types contract

.venv/bin/python:
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] < (3, 14), f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}; try make PYTHON=python3.12"'
	$(PYTHON) -m venv .venv

# torch comes first: asked for by its pinned version, it is the build that the machine's pip settings name
.venv/.torch: constraints.txt | .venv/bin/python
	@echo "installing torch (the first time only) ..."
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	@touch $@

.venv/.demo: pyproject.toml constraints.txt .venv/.torch
	@echo "installing triform for the demo (the first time only) ..."
	$(PIP) -e '.[demo]'
	@touch $@

.venv/.dev: pyproject.toml constraints.txt .venv/.torch
	@echo "installing triform for its tests (the first time only) ..."
	$(PIP) -e '.[dev]'
	@touch $@ .venv/.demo

.venv/.interop: pyproject.toml constraints.txt .venv/.dev
	@echo "compiling llama.cpp for the slow tests (the first time only) ..."
	$(PIP) -e '.[interop]'
	@touch $@

clean:
	rm -rf .venv demo runs dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
