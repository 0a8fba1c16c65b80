# Sallyport's entry points. Each installs what it needs and can be run again and again.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
BIN := .venv/bin
export PATH := $(CURDIR)/.venv/bin:/usr/sbin:$(PATH)
PACKAGES := foundation pki policies gateway agent

.PHONY: help setup demo test test-postgresql check format generate bench profile agent-install attacks-proof fuzz differential scenarios-long h2spec clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 16

setup: ## install what the others need (apt packages, .venv, opa)
	@deploy/dev/setup.sh

demo: setup ## the main job as a story, everything embedded; KEEP=1 leaves it running
	@$(BIN)/python -m deploy.demo.story $(if $(KEEP),--keep)

test: setup ## the whole suite; ARGS="tests/pki -k quote" narrows it
	@$(BIN)/python -m pytest $(ARGS)

check: setup ## format, lint, types, import contracts, freshness of generated files
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m docs.generate --check

format: setup ## format and mend what ruff can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

generate: setup ## write the generated reference in docs/reference
	@$(BIN)/python -m docs.generate

bench: setup ## measure, with peers in the same run; writes benchmarks/results/latest.json
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@$(BIN)/python -m benchmarks.run $(ARGS)

profile: setup ## where the CPU of a request goes, by function; ARGS="--native --no-cache"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@$(BIN)/python -m benchmarks.profile $(ARGS)

agent-install: setup ## install the agent alone into a fresh environment, and see that it runs
	@deploy/dev/agent_install.sh

attacks-proof: setup ## take out each defence, one at a time, and require that its test fails
	@$(BIN)/python -m tests.attacks.proof.run $(ARGS)

fuzz: setup ## fuzz each parser for longer; SECONDS_EACH=60
	@$(BIN)/python -m tests.fuzz.run --seconds $(or $(SECONDS_EACH),60)

differential: setup ## broken requests against five real servers, for longer; CASES=300000 SEED=…
	@$(BIN)/python -m tests.support.differential --cases $(or $(CASES),300000) $(if $(SEED),--seed $(SEED))

scenarios-long: setup ## break a fleet in network namespaces by lot, for longer (as root); MINUTES=10 SEED=…
	@$(BIN)/python -m tests.support.netns.chaos --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

test-postgresql: setup ## all tests that can choose a database, with SQLite and PostgreSQL
	@$(BIN)/python -m pytest --every-storage tests/conformance/test_storage.py tests/foundation/test_postgresql.py tests/pki \
		tests/attacks/test_one_time_token_raced.py tests/attacks/test_serial_collision__crash_between_sign_and_record.py $(ARGS)

h2spec: setup ## the conformance cases of h2spec against the gateway
	@GOBIN=$(CURDIR)/$(BIN) go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible
	@$(BIN)/python -m tests.support.h2spec

clean: ## remove what these targets made, but for .venv
	@rm -rf .demo .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info
