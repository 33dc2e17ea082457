# Two commands matter: `make demo` and `make test`. Both set up everything they need.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# What the compiled kernel is made from: an editable install compiles it once.
KERNEL := hatch_build.py client/gradwatch/kernels/cpu.c
# The pin stands here and not in pyproject.toml: users' training images bring their own torch.
# On a machine without a GPU the CPU build is smaller; choose it with, for example,
#   make demo PIP_TORCH="--index-url https://download.pytorch.org/whl/cpu"
TORCH     ?= torch==2.13.0
PIP_TORCH ?=
ARGS      ?=
PIP       := $(BIN)/python -m pip --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench soak claims clean

help: ## list the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/torch.stamp: | $(BIN)/python
	@echo "installing $(TORCH) into $(VENV) (the longest step, once)"
	$(PIP) install --quiet $(PIP_TORCH) "$(TORCH)"
	@touch $@

$(VENV)/demo.stamp: pyproject.toml $(KERNEL) $(VENV)/torch.stamp
	@echo "installing gradwatch"
	$(PIP) install --quiet -e '.[demo]'
	@touch $@

$(VENV)/dev.stamp: pyproject.toml $(KERNEL) $(VENV)/torch.stamp
	@echo "installing gradwatch and what its tests need"
	$(PIP) install --quiet -e '.[dev]'
	@touch $@ $(VENV)/demo.stamp

demo: $(VENV)/demo.stamp ## train a real LSTM with injected trouble and see what the service saw
	$(BIN)/gradwatch demo $(ARGS)

test: $(VENV)/dev.stamp ## every gate and every test
	@scripts/system-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist loadfile -m "not soak and not gpu" $(ARGS)
	@if $(BIN)/python -c "import triton" 2>/dev/null; \
	then TRITON_INTERPRET=1 $(BIN)/pytest -m "triton and not gpu" tests/client/test_cuda_kernel.py; \
	else echo "triton is not installed: the GPU kernel's tests are left out (pip install triton)"; fi

lint: $(VENV)/dev.stamp ## the gates alone, with what can be mended mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/dev.stamp ## the benchmarks, as tables
	$(BIN)/python -m benchmarks $(ARGS)

claims: $(VENV)/dev.stamp ## what is claimed of zero-centred clipping, tested: docs/claims.md
	$(BIN)/python -m benchmarks claims $(ARGS)

soak: $(VENV)/dev.stamp ## the long proofs
	$(BIN)/pytest -m soak --timeout 7200 $(ARGS)

clean: ## remove everything that was built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
