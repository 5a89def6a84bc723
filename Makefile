# Everything a developer types. `make help` lists it.
# The paths are relative, so a checkout may lie in a folder with spaces in its name.
PYTHON ?= python3
# Another one, with another PYTHON, lives inside: make test VENV=.venv/newest PYTHON=python3.14
VENV ?= .venv
BIN := $(VENV)/bin
# Errors are shown, notices are not.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
# Workers for the tests: they often wait for processes that they have started.
WORKERS ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 2 )))
.DEFAULT_GOAL := help
.PHONY: help run test test-processes test-pages test-image soak faults faults-proof fuzz bench bench-check bench-steps bench-jobs bench-lists bench-limits bench-floods coverage lint format types contracts contract fuzz-schema clients check schema reference lock graphiql clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

run: $(VENV)/.run  ## Start PostgreSQL, Valkey and SegmentQL on http://127.0.0.1:8080/graphql
	@exec $(BIN)/segmentql serve

test: $(VENV)/.dev tests/node/node_modules/.ok  ## Run the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not soak and not image and not pages and not processes" $(ARGS)

test-processes: $(VENV)/.dev  ## Start, kill and replace whole servers: two minutes
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "processes and not soak" $(ARGS)

test-pages: $(VENV)/.dev  ## Try GraphiQL and the example front end in Chromium (Debian's package chromium)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m pages $(ARGS)

test-image: $(VENV)/.dev  ## Build what the container has, without a container, and try it
	$(BIN)/python -m pytest -m image $(ARGS)

soak: $(VENV)/.dev  ## Run the tests that take minutes, and print what they measured
	$(BIN)/python -m pytest -m soak -s --timeout 1800 $(ARGS)

faults: $(VENV)/.dev  ## Strike with every fault 20 times, and check that nothing is lost: an hour
	PYTHONPATH=.:tests $(BIN)/python -m faults $(ARGS)

faults-proof: $(VENV)/.dev  ## Plant a bug for each promise, and see that the faults bring it to light: five minutes
	PYTHONPATH=.:tests $(BIN)/python -m faults.proving $(ARGS)

fuzz: $(VENV)/.dev  ## Send 50 000 hostile requests: ten minutes
	PYTHONPATH=.:tests $(BIN)/python -m fuzzing $(ARGS)

bench: $(VENV)/.dev bench/peers/node/node_modules/.ok  ## Measure SegmentQL beside other GraphQL servers: half an hour
	$(BIN)/python -m bench.speed $(ARGS)

bench-check: $(VENV)/.dev  ## See that the hot read has not become slower: a minute
	$(BIN)/python -m bench.speed.guard $(ARGS)

bench-steps: $(VENV)/.dev  ## Count the steps of Python that a request takes, function by function: half a minute
	$(BIN)/python -m bench.speed.steps $(ARGS)

bench-jobs: $(VENV)/.dev  ## Measure reports, purge and cleanup against their bounds: a quarter of an hour
	$(BIN)/python -m bench $(ARGS)

bench-lists: $(VENV)/.dev  ## Measure lists, rollouts and the past against their bounds: half an hour
	$(BIN)/python -m bench.lists $(ARGS)

bench-limits: $(VENV)/.dev  ## Measure limits, and reads beside an import, against their bounds: five minutes
	$(BIN)/python -m bench.limits $(ARGS)

bench-floods: $(VENV)/.dev  ## Measure requests made to cost much against their bounds: a minute
	$(BIN)/python -m bench.floods $(ARGS)

coverage: $(VENV)/.dev tests/node/node_modules/.ok  ## Print line and branch coverage of the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not soak and not image" --cov --cov-report=term-missing $(ARGS)

check: lint types contracts  ## Lint, types and import contracts

lint: $(VENV)/.dev  ## Ruff, and its formatter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev  ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev  ## mypy, strict, over code and tests
	$(BIN)/mypy

contracts: $(VENV)/.dev  ## The directions of the imports
	$(BIN)/lint-imports

schema: $(VENV)/.run  ## Print the schema into schema.graphql
	$(BIN)/segmentql schema > schema.graphql

reference: $(VENV)/.run  ## Write docs/reference.md from schema.graphql
	$(BIN)/python docs/schema/reference.py > docs/reference.md

contract: $(VENV)/.dev $(VENV)/contract/.ok tests/node/schema/node_modules/.ok  ## Hold the schema to its rules, to its last release, and to what it answers
	tests/node/schema/node_modules/.bin/eslint -c tests/node/schema/eslint.config.js schema.graphql
	tests/node/schema/node_modules/.bin/graphql-inspector diff docs/schema/released.graphql schema.graphql
	PYTHONPATH=tests/clients $(BIN)/python tests/contract/fuzz.py $(VENV)/contract/bin/schemathesis 300

fuzz-schema: $(VENV)/.dev $(VENV)/contract/.ok  ## Send 6 000 requests drawn from the schema: a minute or two
	PYTHONPATH=tests/clients $(BIN)/python tests/contract/fuzz.py $(VENV)/contract/bin/schemathesis 6000

clients: $(VENV)/.dev $(VENV)/clients/.ok tests/clients/node/node_modules/.ok  ## Run Apollo Client, urql, Relay and other clients against a server: half a minute
	$(BIN)/python tests/clients/run.py $(VENV)/clients/bin/python

# With extras: older versions of pip see no pin of a package for what is asked for with one.
lock:  ## Renew the hash-locked dependencies (needs uv)
	@for lock in "-dev: --extra embedded --extra build --extra dev" ": --extra embedded --extra build -c requirements-dev.lock" "-image: -c requirements-dev.lock"; do \
		uv pip compile -q --universal --no-strip-extras --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url \
			$${lock#*: } pyproject.toml -o requirements$${lock%%:*}.lock || exit 1; done
	@uv pip compile -q --universal --no-strip-extras --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url \
		tests/contract/requirements.in -o tests/contract/requirements.lock
	@uv pip compile -q --universal --no-strip-extras --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url \
		tests/clients/python/requirements.in -o tests/clients/python/requirements.lock

clean:  ## Remove the environment; data in .segmentql stays
	rm -rf .venv tests/node/node_modules tests/node/schema/node_modules tests/clients/node/node_modules bench/peers/node/node_modules tests/clients/node/*/generated

$(VENV)/.run: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "SegmentQL needs Python 3.11 or newer: make … PYTHON=python3.13")'
	@echo "Preparing $(VENV); the first time takes up to a minute."
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) --require-hashes -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock
	@echo "Adding the tools for tests and checks."
	@$(PIP) --require-hashes -r requirements-dev.lock
	@touch $@

# The audits of GraphQL over HTTP are Node's; without npm their test says so and is skipped, except in CI.
tests/node/node_modules/.ok: tests/node/package.json
	@if command -v npm >/dev/null; then cd tests/node && npm install --loglevel=error --no-audit --no-fund --no-package-lock && touch node_modules/.ok; fi

tests/node/schema/node_modules/.ok: tests/node/schema/package.json
	@command -v npm >/dev/null || { echo "This needs npm, and Node 20 or newer."; exit 1; }
	@cd tests/node/schema && npm install --loglevel=error --no-audit --no-fund --no-package-lock && touch node_modules/.ok

# Schemathesis brings much along that nothing else needs.
$(VENV)/contract/.ok: tests/contract/requirements.lock
	@test -x $(VENV)/contract/bin/pip || $(PYTHON) -m venv $(VENV)/contract
	@$(VENV)/contract/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r tests/contract/requirements.lock
	@touch $@

# Without npm the clients for Python are run alone, except in CI, where that is a failure.
tests/clients/node/node_modules/.ok: tests/clients/node/package.json
	@if command -v npm >/dev/null; then cd tests/clients/node && npm install --loglevel=error --no-audit --no-fund --no-package-lock && touch node_modules/.ok; fi

# ariadne-codegen wants an older graphql-core than the service has.
$(VENV)/clients/.ok: tests/clients/python/requirements.lock
	@test -x $(VENV)/clients/bin/pip || $(PYTHON) -m venv $(VENV)/clients
	@$(VENV)/clients/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r tests/clients/python/requirements.lock
	@touch $@

# What SegmentQL is measured beside; without npm the measurement says so, and goes on without it.
bench/peers/node/node_modules/.ok: bench/peers/node/package.json
	@if command -v npm >/dev/null; then cd bench/peers/node && npm install --loglevel=error --no-audit --no-fund --no-package-lock && touch node_modules/.ok; fi
