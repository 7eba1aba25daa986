# Every target sets up what it needs: Python 3.11, a C++ compiler and make are enough to start.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE := src/fastrank/_native.abi3.so
PROBES := src/fastrank/_probes.abi3.so
EXT := $(filter-out ext/_native.cpp ext/_probes.cpp,$(wildcard ext/*.cpp ext/*.h ext/*.px?)) \
  src/fastrank/_native.pxd setup.py
# Parallelism is measured and chosen by the caller; libraries must not bring their own.
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export NUMBA_NUM_THREADS := 1
# What Python has compiled it keeps, whatever the environment says: tests start it hundreds of times.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow test-all ray engines nightly lint asan asan-build tsan tsan-build wheel dist pythons aarch64 container container-test audit docs docs-links loadtest bench bench-quick figures report clean

demo: $(VENV)/.demo $(NATIVE)
	$(BIN)/fastrank demo

# Neighbours in a file go to one process, which makes what they share once; who is done helps out.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist worksteal

test: $(VENV)/.test $(PROBES)
	$(PYTEST) -m "not slow" --hypothesis-profile brief

# The rest: the same kinds of tests over more cases and examples, and those that take seconds each.
test-slow: $(VENV)/.dev $(PROBES)
	$(PYTEST) -m "slow or hypothesis"

test-all: $(VENV)/.dev $(PROBES)
	$(PYTEST)

# Ray, and Spark, which wants a JRE: each in an environment that has it beside what `make test` installs.
SITE := -c "import site; print(site.getsitepackages()[0])"
ENGINE_TESTS := tests/test_batch_engines.py tests/test_ope_parts_ray.py
define with-extras
	$(PYTHON) -m venv $(1)
	$(BIN)/python $(SITE) > "$$($(1)/bin/python $(SITE))/dev.pth"
	$(1)/bin/python -m pip install -q $$($(BIN)/python -c \
	  "from fastrank.extras import requirements as of; print(*(each for extra in '$(2)'.split() for each in of(extra)))")
endef

# Without the kills, but for a node's. Three quarters of a minute of one core.
ray: $(VENV)/.dev $(PROBES)
	$(call with-extras,build/ray,ray)
	PYTHONPATH=src:serving build/ray/bin/python -m pytest -q -m "not slow" $(ENGINE_TESTS)

engines: $(VENV)/.dev $(PROBES)
	$(call with-extras,build/engines,ray spark)
	PYTHONPATH=src:serving build/engines/bin/python -m pytest -q $(ENGINE_TESTS)

# All of it with ten times the draws, and what needs an hour, root or a network.
nightly:
	.ci/nightly

lint: $(VENV)/.dev $(NATIVE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint serving/container/Dockerfile
	$(BIN)/shellcheck serving/container/build.sh .ci/run .ci/nightly .ci/aarch64
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema -q --builtin-schema vendor.citation-file-format CITATION.cff
	for file in rank evaluate flat_tail inputs probes quantise table dispatch scan_v2; do \
	  $(CXX) -std=c++17 -fsyntax-only -O2 -Wall -Wextra -Wshadow -Werror ext/$$file.cpp || exit 1; \
	done

# The tests of the native core under AddressSanitizer and UndefinedBehaviorSanitizer, with few draws,
# small catalogs and pairs of what tests multiply: sanitizers look at memory, not at laws.
# With -O1 it is compiled in a third of the time, and runs as fast: most of it is Python.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1
asan-build: $(VENV)/.test
	FASTRANK_PROBES=1 FASTRANK_CXXFLAGS="$(SANITIZE)" $(BIN)/python setup.py -q build \
	  --build-base build/asan --build-lib build/asan/lib

asan: asan-build
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/asan/lib FASTRANK_TEST_DRAWS=0.02 \
	  $(BIN)/python -m pytest -q -n 2 -m "not law and not large" tests/test_rank.py \
	  tests/test_damage.py tests/test_ids.py \
	  tests/test_laws.py tests/test_properties.py tests/test_catalog.py tests/test_golden.py \
	  tests/test_threads.py tests/test_batch.py tests/test_int8.py tests/test_elementary.py \
	  tests/test_philox.py tests/test_given.py tests/test_tables.py tests/test_model_tables.py tests/test_flat_tail.py \
	  tests/test_scores.py tests/test_features.py tests/test_masses.py

# The tests of threads under ThreadSanitizer. NumPy and Python are not instrumented: what is seen is
# our own code, with the locks of both.
tsan-build: $(VENV)/.test
	FASTRANK_PROBES=1 FASTRANK_CXXFLAGS="-fsanitize=thread -fno-omit-frame-pointer -g" \
	  $(BIN)/python setup.py -q build --build-base build/tsan --build-lib build/tsan/lib

tsan: tsan-build
	LD_PRELOAD="$$($(CXX) -print-file-name=libtsan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  TSAN_OPTIONS="halt_on_error=1 die_after_fork=0" PYTHONPATH=build/tsan/lib \
	  $(BIN)/python -m pytest -q -n 2 -k "not test_interrupt or few or ctrl_c" \
	  tests/test_threads.py tests/test_interrupt.py \
	  tests/test_batch.py::test_filters_biases_policies_and_temperatures_of_each_user \
	  tests/test_int8.py::test_a_batch_is_its_rows_and_threads_do_not_show \
	  tests/test_given.py::test_over_several_chunks_and_threads \
	  tests/test_given.py::test_a_row_of_a_batch_is_a_ranking_of_its_own \
	  tests/test_tables.py::test_threads_change_nothing \
	  tests/test_tables.py::test_a_table_is_the_same_however_it_was_made \
	  tests/test_scores.py::test_over_many_chunks_threads_and_storages \
	  tests/test_scores.py::test_a_score_that_is_none_names_the_item \
	  tests/test_masses.py::test_masses_are_the_same_by_any_threads_and_in_any_batch

# An sdist, and of that a wheel for this machine's CPU, whose name says which systems it runs on
# (auditwheel): Linux with the C library of this one, or an older one as far as the module lets it.
wheel: $(VENV)/.dev
	rm -rf dist build/dist && mkdir -p build/dist
	$(BIN)/python -m build -q --sdist --outdir dist .
	$(BIN)/python -m pip wheel -q --no-deps -w build/dist dist/*.tar.gz
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair -w dist build/dist/*.whl

# That wheel, installed and used in an empty directory without the package's sources.
dist: wheel
	$(PYTHON) -m venv build/dist/venv
	build/dist/venv/bin/pip install -q dist/*.whl
	cd build/dist && venv/bin/python $(abspath tests/installed.py)

# The tests on other Pythons, each in an environment of its own.
PYTHONS ?= $(wildcard /usr/bin/python3.1[2-9] /usr/local/bin/python3.1[2-9] \
  $(HOME)/.pyenv/versions/3.1[2-9].*/bin/python)
pythons:
	for python in $(PYTHONS); do \
	  $(MAKE) test PYTHON=$$python \
	    VENV=build/python$$($$python -c "import sys; print('%d.%d' % sys.version_info[:2])") || exit 1; \
	done

# Goldens and laws on aarch64, compiled here and run by qemu: as root, with Debian's packages.
aarch64: $(VENV)/.dev
	PYTHON=$(BIN)/python .ci/aarch64

# The image, without a Docker engine: as root, with Debian's buildah and debootstrap. The second runs
# it as SageMaker does, and the contract suite against it.
container:
	serving/container/build.sh

container-test: $(VENV)/.dev $(PROBES) container
	PYTHON=$(BIN)/python serving/container/build.sh test

# asv clones the repository and builds the last commit into an environment of its own.
bench: $(VENV)/.bench
	cd bench && ../$(BIN)/asv machine --yes
	cd bench && ../$(BIN)/asv run 'HEAD^!' --show-stderr
	cd bench && ../$(BIN)/asv publish

# Every contender once: results are checked, times are not judged.
bench-quick: $(VENV)/.bench $(NATIVE)
	$(BIN)/python bench/figures.py --quick
	$(BIN)/python bench/report.py --measure --quick
	$(BIN)/python bench/retrieval.py --quick
	$(BIN)/python bench/serving.py --rounds 1 --seconds 0.2 --part cost,ping
	$(BIN)/python bench/batch.py --items 1000 --users 8000 --rounds 1
	$(BIN)/python bench/profile_http.py --rounds 1 --seconds 0.2
	cd bench && ../$(BIN)/asv check --python=same

figures: $(VENV)/.bench $(NATIVE)
	$(BIN)/python bench/figures.py

# Writes docs/speed.md, its pictures and data, the tables of docs/figures.md and the README; JAX takes part if installed.
report: $(VENV)/.bench $(NATIVE)
	$(BIN)/python bench/report.py --measure

# The documentation site, in build/docs. A warning is an error, a link that leads nowhere among them.
docs: $(VENV)/.dev $(NATIVE)
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs

# Its links to elsewhere; needs a network.
docs-links: $(VENV)/.dev $(NATIVE)
	$(BIN)/python -m sphinx -q -b linkcheck docs build/docs-links

# Known vulnerabilities of what the container installs; needs PyPI's advisories.
audit:
	rm -rf build/audit && mkdir -p build && $(PYTHON) -m venv build/audit
	build/audit/bin/pip install -q "pip-audit>=2.7,<3"
	$(PYTHON) -m venv build/audit/image && build/audit/image/bin/pip install -q ".[serving]"
	build/audit/image/bin/pip uninstall -q -y fastrank-sampling
	build/audit/bin/pip-audit --strict --skip-editable --path "$$(echo build/audit/image/lib/python3*/site-packages)"

# A server on a model made for it, asked by locust; LOADTEST holds options of loadtest/run.py.
loadtest: $(VENV)/.loadtest $(NATIVE)
	$(BIN)/python loadtest/run.py $(LOADTEST)

BUILD_TOOLS := "Cython>=3.1,<4" "setuptools>=77"
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e ".[cli,data,ope]"
	touch $@

# pip and the compiler side by side: what the one fetches and unpacks the other does not need. Of 16,000
# files of Python most are imported by nobody: Python compiles what it imports.
$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q $(BUILD_TOOLS)
	FASTRANK_PROBES=1 $(BIN)/python setup.py -q build_ext --inplace & \
	  FASTRANK_COMPILED=1 $(BIN)/python -m pip install -q --no-compile --no-build-isolation \
	    -e ".[test]"; \
	  installed=$$?; wait $$! && exit $$installed
	touch $@ $(VENV)/.demo $(VENV)/.loadtest

$(VENV)/.dev: $(VENV)/.test
	FASTRANK_COMPILED=1 $(BIN)/python -m pip install -q --no-compile --no-build-isolation -e ".[dev]"
	touch $@ $(VENV)/.bench

$(VENV)/.loadtest: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e ".[gateway,loadtest]"
	touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -e ".[bench]"
	touch $@ $(VENV)/.demo

# An editable install does not rebuild by itself.
$(NATIVE): $(EXT) | $(VENV)/bin/python
	$(BIN)/python -m pip install -q $(BUILD_TOOLS)
	$(BIN)/python setup.py -q build_ext --inplace

# What only tests look into the native core by, and the core again, of the same objects.
$(PROBES): $(EXT) | $(VENV)/.test
	FASTRANK_PROBES=1 $(BIN)/python setup.py -q build_ext --inplace

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info $(NATIVE) $(PROBES) \
	  ext/_native.cpp ext/_probes.cpp
