# One vocabulary for people, hooks and CI. `make help` lists it.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
# Keep compiled modules: every test, task and Ray job is a process that imports them.
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
  $$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] <= (3,12))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
STAMP := $(VENV)/installed
LOCKS := $(filter-out requirements/rivals.txt,$(wildcard requirements/*.txt))
UNIT := $(BIN)/python -m pytest tests/unit -q -n logical --maxprocesses 4 --dist worksteal
COMPILE := $(UV) pip compile -q --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url

help: ## this list
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: $(STAMP) ## virtual environment, unpacked servers, example data (the other targets call it)

$(STAMP): $(LOCKS) pyproject.toml tools/unpack_servers.py
	@test -n "$(PYTHON)" || { echo "visionloop needs Python 3.11 or 3.12: install one, or say make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --require-hashes -r requirements/bootstrap.txt
	VIRTUAL_ENV=$(VENV) $(UV) pip sync -q --require-hashes --compile-bytecode requirements/lock.txt requirements/bootstrap.txt
	VIRTUAL_ENV=$(VENV) $(UV) pip install -q --no-deps --no-build-isolation --editable .
	$(BIN)/python tools/unpack_servers.py
	$(BIN)/python -m visionloop.demo.fashion fetch
	touch $@

demo: $(STAMP) ## the whole loop on this machine: train, release, degrade, notice, retrain, release
	$(BIN)/visionloop demo

up: $(STAMP) ## start the embedded servers
	$(BIN)/visionloop up

down: $(STAMP) ## stop them; data stay
	$(BIN)/visionloop down

test: $(STAMP) browser ## every test: unit, model, integration on real servers, the whole loop
	$(UNIT)
	$(BIN)/python -m pytest tests/model tests/integration tests/e2e --durations=25

test-unit: $(STAMP) ## the tests that need no server
	$(UNIT)

lint: $(STAMP) ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-%: $(STAMP) ## measure: bench-dag_parse, bench-serving, bench-stack, bench-variants
	$(BIN)/python tools/bench_$*.py

browser: # Chromium for the tests that look at pages
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } \
	  || { echo "the tests look at pages with Chromium: install it (Debian: apt install chromium)"; exit 1; }

lock: $(STAMP) ## resolve requirements/*.in again
	$(COMPILE) --python-platform x86_64-manylinux_2_28 requirements/{core,servers,dev}.in -o requirements/lock.txt
	$(COMPILE) --python-platform x86_64-manylinux_2_28 requirements/triton-backend.in -o requirements/triton-backend.txt
	$(COMPILE) --python-platform x86_64-manylinux_2_35 --no-deps requirements/binaries.in -o requirements/binaries.txt
	$(COMPILE) --python-platform x86_64-manylinux_2_28 requirements/rivals.in -o requirements/rivals.txt
	$(COMPILE) requirements/bootstrap.in -o requirements/bootstrap.txt

clean: ## stop the servers; remove what runs and caches left (asks nothing: .visionloop goes, .venv stays)
	@test ! -x $(BIN)/visionloop || for home in .visionloop .visionloop/demo .visionloop/e2e/demo .visionloop/bench/{stack,serving}-home; do \
	  test ! -d $$home/stack || $(BIN)/visionloop --home $$home down || exit 1; done
	rm -rf .visionloop .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.PHONY: help install demo up down test test-unit lint browser lock clean
