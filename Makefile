# Two commands: `make demo` and `make test`. Everything they need goes into .venv (and Chromium, from the system).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
# Two workers, a file of tests each: most tests take one core.
AT_ONCE ?= --numprocesses 2 --dist loadfile

.PHONY: help demo serve test test-full lint chromium clean

help:  ## What there is.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /: /'

demo: $(VENV)/demo.installed  ## Real patients, all the way to a store with three worked questions.
	$(BIN)/whenwhy demo $(DEMO)

serve: $(VENV)/demo.installed  ## The same, then the dashboard.
	$(BIN)/whenwhy demo $(DEMO) --serve

test: lint chromium  ## Lint, types, import layers, tests.
	$(BIN)/python -m pytest $(AT_ONCE)

test-full: lint chromium  ## The same, and the suites that take long: figures on real cohorts, small benchmarks.
	$(BIN)/python -m pytest $(AT_ONCE) -m "full or not full"

lint: $(VENV)/test.installed  ## Lint, types and import layers alone.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

chromium:  ## The browser of the tests, from the system's packages.
	@command -v chromium >/dev/null || { \
	  echo "Installing chromium by apt-get."; \
	  SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; \
	} || { echo "make test needs the browser Chromium: install the package chromium, then run it again." >&2; exit 2; }

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "whenwhy needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(VENV)/test.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,test]'
	@touch $@ $(VENV)/demo.installed

clean:  ## Remove what make made.
	rm -rf $(VENV) $(DEMO) screenshots
