# Everything lives in .venv. An interrupted installation is simply started again.
# TORCH_INDEX: a package index with CPU builds of torch, where the default one has none.
PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo install test test-slow lint bench clean

demo: install
	$(BIN)/pipeline run

install: .venv/installed .venv/tflite-runtime/installed

# torch first and alone: another package's open-ended requirement would bring gigabytes of CUDA.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# tflite-runtime needs NumPy 1, so it has an environment of its own, in which only the runner runs.
TFLITE_RUNTIME := .venv/tflite-runtime

$(TFLITE_RUNTIME)/installed: deploy/requirements/tflite-runtime.txt | .venv/installed
	@if $(BIN)/python -c 'import sys; sys.exit(sys.platform != "linux" or sys.version_info >= (3, 12))'; then \
		$(BIN)/python -m venv $(TFLITE_RUNTIME) && \
		$(TFLITE_RUNTIME)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<; \
	else \
		mkdir -p $(TFLITE_RUNTIME); \
		echo "tflite-runtime has wheels for Linux and Python 3.11 at most: left out"; \
	fi
	touch $@

# Two processes of one thread each: two threads each would slow one another many times over.
test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow' --numprocesses 2 --dist loadfile

test-slow: install
	$(BIN)/pytest -m slow

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/training.py

clean:
	rm -rf .venv runs
