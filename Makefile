# Two commands: `make demo` and `make test`. Everything they need goes into .venv (tests: and from the system's packages).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
# Three workers, a file of tests each: most tests take one core, but those of clusters, pages and faults also wait.
AT_ONCE ?= --numprocesses 3 --dist loadfile

# The browser of the tests, and for the scripts in cluster/ a Slurm; names are those of Debian and Ubuntu.
PACKAGES := chromium fonts-dejavu-core strace slurmctld slurmd slurm-client munge iproute2

.PHONY: help demo serve test test-full lint system clean

help:  ## What there is.
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /: /'

demo: $(VENV)/demo.installed  ## Real patients, all the way to a store with three worked questions.
	$(BIN)/whenwhy demo $(DEMO)

serve: $(VENV)/demo.installed  ## The same, then the dashboard.
	$(BIN)/whenwhy demo $(DEMO) --serve

test: lint system  ## Lint, types, import layers, tests.
	$(BIN)/python -m pytest $(AT_ONCE)

test-full: lint system  ## The same, and the suites that take long: figures on real cohorts, small benchmarks.
	$(BIN)/python -m pytest $(AT_ONCE) -m "full or not full"

lint: $(VENV)/test.installed  ## Lint, types and import layers alone.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

system:  ## What tests need of the system's packages, by apt-get.
	@missing=$$(for one in $(PACKAGES); do \
	  dpkg-query -W -f '$${db:Status-Status}' $$one 2>/dev/null | grep -qx installed || echo $$one; done); \
	[ -z "$$missing" ] || { \
	  echo "Installing by apt-get:" $$missing; \
	  SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$SUDO apt-get update -qq && $$SUDO apt-get install -y -qq --no-install-recommends $$missing; \
	} || command -v chromium >/dev/null || { \
	  echo "make test needs the browser Chromium: install the package chromium, then run it again." >&2; exit 2; }

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
