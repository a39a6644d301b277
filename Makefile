# Everything lives in .venv. An interrupted installation is simply started again.
# TORCH_INDEX: a package index with CPU builds of torch, where the default one has none.
PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo install test test-slow lint bench clean

demo: install
	$(BIN)/pipeline run

install: .venv/installed

# torch first and alone: another package's open-ended requirement would bring gigabytes of CUDA.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
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
