# Two commands are enough: `make demo` and `make test`. Each sets up .venv first.
#
# TORCH is installed first and alone, because on a machine without a GPU you choose the build here, for instance
#   make demo TORCH="torch --index-url <the CPU index that pytorch.org names>"
# PYTHON chooses the interpreter (3.11 or 3.12), JOBS the number of processes that share the tests.

PYTHON ?= python3
TORCH ?= torch==2.13.0
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-all triton bench gpu report dist lint setup clean

demo: $(VENV)/installed
	$(BIN)/lalic demo

# What protects behaviour, in minutes. `make test-slow` is the rest, `make test-all` both.
test: $(VENV)/installed-test
	$(BIN)/python -m pytest tests -n $(JOBS) -m "not slow" --durations 25

test-slow: $(VENV)/installed-interfaces
	$(BIN)/python -m pytest tests -n $(JOBS) -m slow --durations 25

test-all: test test-slow

# The kernels under another Triton, as `make triton TRITON=3.3.1`: every launch through its compiler, values in its
# interpreter, which before 3.7 needs numpy below 2.4.
triton: $(VENV)/installed-test
	$(BIN)/pip install --quiet --no-deps --target build/triton-$(TRITON) triton==$(TRITON) "numpy<2.4"
	PYTHONPATH=build/triton-$(TRITON) $(BIN)/python -m pytest tests/kernels/test_jit.py tests/kernels/test_contract.py \
		-k "test_jit or (test_values_and_gradients and cpu-triton and not float16)"

bench: $(VENV)/installed-test
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.codec --sizes 768x512 --batches 1

# Needs a CUDA device: the GPU tests, then the benchmarks in the order of their worth, in under 12 minutes. Records are
# appended to benchmarks/results/ as they are taken: commit them. Logs and a summary are in build/gpu/.
gpu: $(VENV)/installed-test
	$(BIN)/python -m benchmarks.gpu

# One page of all results, build/report.html.
report: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[report]"
	$(BIN)/python -m benchmarks.report

# What is published, in dist/: built from a clean copy, checked, installed where nothing else is, and used there.
dist: $(VENV)/installed-test
	rm -rf build/dist build/empty dist
	git clone --quiet . build/dist
	$(BIN)/pip install --quiet --disable-pip-version-check "build>=1.2" "twine>=6"
	$(BIN)/python -m build --outdir dist build/dist
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv build/empty
	build/empty/bin/pip install --quiet --disable-pip-version-check $(TORCH)
	build/empty/bin/pip install --quiet --disable-pip-version-check dist/*.whl
	cd build/empty && bin/lalic demo

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(VENV)/installed-test

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

$(VENV)/installed-interfaces: $(VENV)/installed-test
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[interfaces]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
