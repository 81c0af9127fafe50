# The commands of this project. Everything happens in .venv; nothing but Python and a C++17 compiler is needed.
#   make demo       rank real text with a real model, offline
#   make test       the whole test suite
#   make lint       ruff, mypy, clang-format
#   make bench      everything a user could pick instead, on every workload; rewrites the README's tables (half an hour)
#   make bench-quick  the same in five minutes, on fewer workloads, into build/
#   make test-arm       the NEON tier on emulated AArch64 processors; installs compiler and emulator on Debian, as root
#   make test-old-x86   every tier, and the extension, on emulated x86-64 processors without AVX-512, AVX2 or AVX
#   make bench-gpu  the tests and workloads of a CUDA device in eight minutes, with the machine's own Python; writes its
#                   JSON into RESULTS, and takes what is not installed from the pure-Python wheels in WHEELS
#   make sanitize   the C++ kernels under AddressSanitizer and UBSan, the thread pool under ThreadSanitizer
PYTHON ?= python3
VENV ?= .venv
WHEELS ?= build/wheels
RESULTS ?= benchmarks/results
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard csrc/*)

.PHONY: demo test test-arm test-old-x86 lint sanitize bench bench-quick bench-gpu bench-smoke clean

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

# Nothing is installed: torch comes with the machine, and colbert-fast was built there before
# (pip install --no-build-isolation --no-deps --editable .).
bench-gpu:
	$(PYTHON) -m benchmarks.cuda --wheels $(WHEELS) --results $(RESULTS) $(if $(COMMIT),--commit $(COMMIT))

# What `make test` runs to keep the suite alive: tiny shapes, one round.
bench-smoke: $(VENV)/.bench
	$(BIN)/python -m pytest benchmarks --profile smoke

test-arm: $(VENV)/.test
	.ci/emulators
	COLBERT_FAST_REQUIRE=aarch64 $(BIN)/python -m pytest tests/test_emulated.py -k aarch64

test-old-x86: $(VENV)/.test
	.ci/emulators
	COLBERT_FAST_REQUIRE=x86_64 $(BIN)/python -m pytest tests/test_emulated.py -k x86_64

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
