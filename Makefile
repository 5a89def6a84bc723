# Everything a developer types. `make help` lists it.
# The paths are relative, so a checkout may lie in a folder with spaces in its name.
PYTHON ?= python3
BIN := .venv/bin
# Workers for the tests: one per core.
WORKERS ?= auto
.DEFAULT_GOAL := help
.PHONY: help run test soak coverage lint format types contracts check schema lock graphiql clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

run: .venv/.run  ## Start PostgreSQL, Valkey and SegmentQL on http://127.0.0.1:8080/graphql
	@exec $(BIN)/segmentql serve

test: .venv/.dev tests/node/node_modules/.ok  ## Run every test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not soak" $(ARGS)

soak: .venv/.dev  ## Run the tests that take minutes, and print what they measured
	$(BIN)/python -m pytest -m soak -s --timeout 1800 $(ARGS)

coverage: .venv/.dev tests/node/node_modules/.ok  ## Print line and branch coverage of the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not soak" --cov --cov-report=term-missing $(ARGS)

check: lint types contracts  ## Lint, types and import contracts

lint: .venv/.dev  ## Ruff, and its formatter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/.dev  ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv/.dev  ## mypy, strict, over code and tests
	$(BIN)/mypy
	cd tests && ../$(BIN)/mypy --config-file ../pyproject.toml .

contracts: .venv/.dev  ## The directions of the imports
	$(BIN)/lint-imports

schema: .venv/.run  ## Print the schema into schema.graphql
	$(BIN)/segmentql schema > schema.graphql

lock:  ## Renew the hash-locked dependencies (needs uv)
	@for lock in "-dev: --extra embedded --extra build --extra dev" ": --extra embedded --extra build -c requirements-dev.lock" "-image: -c requirements-dev.lock"; do \
		uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url \
			$${lock#*: } pyproject.toml -o requirements$${lock%%:*}.lock || exit 1; done

clean:  ## Remove the environment; data in .segmentql stays
	rm -rf .venv tests/node/node_modules

.venv/.run: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

.venv/.dev: .venv/.run requirements-dev.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	touch $@

# The audits of GraphQL over HTTP are Node's; without npm their test says so and is skipped, except in CI.
tests/node/node_modules/.ok: tests/node/package.json
	@if command -v npm >/dev/null; then cd tests/node && npm install --silent --no-audit --no-fund --no-package-lock && touch node_modules/.ok; fi
