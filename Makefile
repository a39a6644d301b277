# Everything lives in .venv. An interrupted installation is simply started again.
# TORCH_INDEX: a package index with CPU builds of torch, where the default one has none.
PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo install emulators test test-slow test-emulated lint bench results docs pictures clean

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

# What compiles for the boards and runs that here: Zig, QEMU, and the boards' own Debian with Python,
# from this system or from Debian's packages, of which nothing is installed: they are unpacked. Static
# QEMU: after a change of root its libraries are gone. What is not to be had has its tests skipped.
QEMU := .venv/qemu
APT = apt-get -qq -o Dir::State=$(CURDIR)/$(QEMU)/apt/state -o Dir::Cache=$(CURDIR)/$(QEMU)/apt/cache
ZIG = ziglang==0.17.1

emulators: .venv/installed
	@$(BIN)/python -c 'import sys; from importlib.metadata import distribution as d; sys.exit(d("ziglang").version != "$(lastword $(subst ==, ,$(ZIG)))")' 2>/dev/null || \
		$(BIN)/pip install --quiet --disable-pip-version-check $(ZIG)
	@if { command -v qemu-aarch64-static && command -v qemu-arm-static; } >/dev/null || \
			[ -x $(QEMU)/usr/bin/qemu-arm-static ]; then \
		echo "QEMU is here"; \
	elif mkdir -p $(QEMU)/apt/state/lists/partial $(QEMU)/apt/cache/archives/partial && \
			$(APT) update && cd $(QEMU)/apt && $(APT) download qemu-user qemu-user-static && \
			for package in *.deb; do dpkg-deb --extract $$package .. || exit 1; done; then \
		echo "QEMU is in $(QEMU)"; \
	else \
		echo "no static QEMU: neither on PATH nor from Debian's packages; what needs it is skipped"; \
	fi
	@tests/boards.sh .venv/boards

# Two processes of one thread each: two threads each would slow one another many times over.
test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow and not emulated and not browser' --numprocesses 2 --dist loadfile \
		--no-loadscope-reorder

# In the order of conftest.py, the longest files first: pytest-xdist would begin with those of most
# tests, and end with one long one beside nothing.
test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'slow or emulated or browser' --numprocesses 2 --dist loadfile \
		--no-loadscope-reorder

# The part of them in which every bundle runs on its boards; whole machines boot in the slow tests.
test-emulated: install emulators
	OMP_NUM_THREADS=1 $(BIN)/pytest -m emulated --numprocesses 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Latencies and instructions are of the run "bench"; what of it is current is not made again.
bench: install emulators
	$(BIN)/python benchmarks/training.py
	[ -d runs/bench ] || $(BIN)/pipeline train --run bench --dataset mnist --epochs 3
	$(BIN)/pipeline export --run bench
	$(BIN)/python benchmarks/latency.py --run bench
	$(BIN)/python benchmarks/instructions.py --run bench

# The tables in README's results, measured: an hour on 2 cores; what was done is not done again.
results: install
	$(BIN)/python benchmarks/results.py

# The pages of docs/ as a site, in site/.
docs: install
	$(BIN)/mkdocs build --quiet

# README's pictures, of the run that `make demo` leaves, by Chromium.
pictures: install
	$(BIN)/python docs/pictures.py

clean:
	rm -rf .venv runs site
