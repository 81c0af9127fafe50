# The commands of this project. Everything happens in .venv; nothing but Python and a C++17 compiler is needed.
#   make demo       rank real text with a real model, offline
#   make test       the whole test suite
#   make lint       ruff, mypy, clang-format
#   make bench      everything a user could pick instead, on every workload; rewrites the README's tables (half an hour)
#   make bench-quick  the same in five minutes, on fewer workloads, into build/
#   make sanitize   the C++ kernels under AddressSanitizer and UBSan, the thread pool under ThreadSanitizer
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard csrc/*)

.PHONY: demo test lint sanitize bench bench-quick bench-smoke clean

demo: $(VENV)/.demo
	$(BIN)/colbert-fast demo

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h tests/cpp/*.cpp tests/cpp/*/*.cpp tests/cpp/*/*.h

bench: $(VENV)/.bench
	$(BIN)/python -m pytest benchmarks --profile full
	$(BIN)/python -m benchmarks.report

bench-quick: $(VENV)/.bench
	$(BIN)/python -m pytest benchmarks --profile quick

# What `make test` runs to keep the suite alive: tiny shapes, one round.
bench-smoke: $(VENV)/.bench
	$(BIN)/python -m pytest benchmarks --profile smoke

sanitize: $(VENV)/.test
	$(BIN)/python -m pytest tests/test_sanitizers.py

clean:
	rm -rf $(VENV) build dist colbert_fast/*.so

# Editable, so that the tests run what is in the tree. A change of the C++ sources rebuilds.
$(VENV)/.%: $(VENV)/pyvenv.cfg $(SOURCES)
	$(PIP) --editable ".[$*]"
	touch $@

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)
	touch $@
