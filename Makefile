# `make demo` and `make test` do everything on a fresh machine: they make .venv, install, and run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-all test-gpu gpu-check gpu-wheels check clean

demo: $(STAMP)
	$(BIN)/plan --model lstm --gpus 8

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "" --hypothesis-profile=default

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

# On a machine with a CUDA device and torch, no network needed: ARGS="--only 'gpt2/*'", ARGS="--device cpu --tiny" to try it.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py $(ARGS)

# The packages that such a machine may lack, for Python 3.12 on Linux, without torch; beside those of the file the ones in MORE.
gpu-wheels:
	sh benchmarks/gpu_wheels.sh $(MORE)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), Python 3.11 or later is needed: make PYTHON=python3.12" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q planner runtime cost_models  # pip compiles what it copies; these stay where they are
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info plans .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
