# make quickstart   set up, run a whole life on the built-in world, end with its report
# make test         set up, run the tests (under ten minutes on two cores)
# make conformance  the suite of RLHF details; then break each, and see its test fail and a run differ
# make test-faults  kill every stage at random moments, fill the disk, kill a rank; about half an hour
# make fuzz         a million mutated files for each reader; about an hour
# make docs         the documentation as a site in build/site; a broken link fails
# make lowest       run the smoke life, dpo and kto with the lowest versions that pyproject.toml allows; before a release
# make check        everything that CI runs
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STORE ?= store

.PHONY: setup quickstart smoke test test-all conformance test-faults fuzz lowest docs check lint types audit bench clean

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

setup: $(VENV)/.ready

quickstart: setup
	$(BIN)/gptlife run quickstart --store $(STORE)

smoke: setup
	$(BIN)/gptlife run smoke --store $(STORE)

test: setup
	$(BIN)/python -m pytest -m "not slow"

test-all: setup
	$(BIN)/python -m pytest

# Every detail of RLHF has its test; break it on purpose, and the test turns red and a run of a recipe differs.
conformance: setup
	$(BIN)/python -m pytest tests/conformance
	$(BIN)/python tools/conformance/mutants.py
	$(BIN)/python tools/conformance/on_runs.py

# What is killed and resumed ends with the very bytes of what was not.
test-faults: setup
	$(BIN)/python tools/faults/kills.py --kills 132 --page docs/results/kills.md
	$(BIN)/python tools/faults/lines.py --page docs/results/faults.md
	$(BIN)/python -m pytest tests/faults

fuzz: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python tools/faults/fuzz.py --page docs/results/fuzz.md

# Installs about 2 GB into build/lowest. `LOWEST="--instead torch==2.13.0"` takes another version of a package.
lowest:
	$(PYTHON) tools/lowest.py $(LOWEST)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy -p gptlife
	$(BIN)/mypy examples

# Known weaknesses of what is installed, where the database of them can be reached.
audit: setup
	@if $(BIN)/python -c "import socket; socket.create_connection(('api.osv.dev', 443), 10)" 2>/dev/null; then \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit && \
		$(BIN)/pip-audit --vulnerability-service osv --local --skip-editable; \
	else echo "audit: skipped, since its database (api.osv.dev) can't be reached from here"; fi

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

check: lint types audit docs
	rm -rf build/smoke
	$(BIN)/gptlife run smoke --store build/smoke
	$(BIN)/python -m pytest -m "not slow"

# The measurements behind docs/results/, each with its command; they take minutes to hours.
bench:
	@for file in benchmarks/*.py; do echo "$$file: $$(sed -n '1s/^"""//;1s/"""$$//;1p' $$file)"; done

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
