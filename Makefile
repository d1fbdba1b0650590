# What a developer does, each by a short name. `make build` first: it makes .venv, with shardmem editable in it.

PYTHON ?= python3
BIN ?= .venv/bin
TOX = $(BIN)/tox run -e

.PHONY: build fast test lint format types docs bench

build: # again after a change of csrc
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet tox setuptools wheel cffi -r tests/requirements.txt
	$(BIN)/pip install --quiet --no-build-isolation --editable .

fast: # unit tests and policy, under a minute
	$(BIN)/pytest -q -n 2 --dist worksteal tests/unit tests/policy

test: # all that .ci/run runs
	./check

lint:
	$(TOX) lint

format: # what lint would complain of, as far as a program can change it
	$(BIN)/tox exec -q -e lint -- ruff check --fix-only --quiet .
	$(BIN)/tox exec -q -e lint -- ruff format --quiet .
	$(BIN)/tox exec -q -e lint -- clang-format -i $$(find csrc tests/native bench -name '*.[ch]')

types:
	$(TOX) types

docs:
	$(TOX) docs

bench: # alone on the machine
	$(TOX) bench
