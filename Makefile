PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ENGINES := .engines
TORCH := torch==2.13.0
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint types docs wheel engines test-engines clean

# torch first, at a fixed version: an open range fetches a CUDA build of several gigabytes.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -m "not engines"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

# Strict: a link or an anchor that leads nowhere fails. The site is in build/site.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(STAMP)
	bash .ci/wheel

# vLLM in an environment of its own: it pins another transformers and compressed-tensors.
$(ENGINES)/.installed: .ci/engines
	bash .ci/engines $(ENGINES) $(PYTHON)
	touch $@

engines: $(ENGINES)/.installed

test-engines: $(STAMP) $(ENGINES)/.installed
	$(BIN)/python -m pytest tests/engines -m engines -rA

clean:
	rm -rf $(VENV) $(ENGINES) build dist out *.egg-info
