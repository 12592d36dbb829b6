# Everything happens in .venv; `make demo` and `make test` set it up by themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup dev demo test unit lint bench clean

setup: .venv/installed

dev: .venv/installed-dev

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	# Alone: its loss is pure torch, and a test compares ours with it; what it depends on is a gigabyte of GPU compiler.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps liger-kernel
	touch $@

demo: setup
	$(BIN)/steerlift demo

# Lint, types, import layers, then all tests.
test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

unit: dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not e2e"

lint: dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: dev
	$(BIN)/python -m bench

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
