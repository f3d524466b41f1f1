# Everything a developer or CI calls. Needs python3 (>= 3.11) with venv; all else is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := tests/data/x86-agent

.PHONY: demo test test-long test-live worlds lint bench zipapp lab-x86 lab-arm64 lab-all clean help

help:
	@echo "make demo   the main job on a bundled recording of a host and its guest"
	@echo "make test   all tests (install Debian's trace-cmd to compare with it)"
	@echo "make test-long  those that take some minutes more: more worlds, more damaged files"
	@echo "make test-live  tests of the running kernel, where there are root, tracefs and /dev/kvm"
	@echo "make worlds 500 simulated worlds judged by their truth (some ten minutes on two cores)"
	@echo "make lint   ruff and mypy --strict"
	@echo "make bench  timings, side by side with trace-cmd"
	@echo "make lab-x86, lab-arm64  a real host and guest in an emulated machine, end to end (CASE=plain; needs apt-get)"
	@echo "make lab-all  every case of the lab (an hour or two), and its table of results"
	@echo "make zipapp counterpoint.pyz: the live commands in one file, for any Python from 3.9 on"

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

# pip reads dependency groups since 25.1; Debian 12's own is older
$(VENV)/.develop: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group test --group lint
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/counterpoint sync $(DEMO)/host.dat $(DEMO)/guest.dat -o demo.pftrace --force
	@echo
	@echo "demo.pftrace is written. Open it at https://ui.perfetto.dev (the file stays on your machine):"
	@echo "host and guest are two groups of tracks; 'Counterpoint: proof' at the top says how they were related."
	@echo "The same as text:  $(BIN)/counterpoint show $(DEMO)/host.dat $(DEMO)/guest.dat | less"

test: $(VENV)/.develop
	$(BIN)/python -m pytest -n auto -m "not long" $(ARGS)

test-long: $(VENV)/.develop
	$(BIN)/python -m pytest -n auto -m long $(ARGS)

# alone: tracefs and /dev/kvm are the machine's
test-live: $(VENV)/.develop
	COUNTERPOINT_LIVE=1 $(BIN)/python tests/live/on_this_machine.py $(BIN)/python -m pytest tests/live $(ARGS)

# some ten minutes on two cores: what the page on accuracy states
worlds: $(VENV)/.develop
	$(BIN)/python tests/simulate/run_worlds.py 0..500 --write docs/accuracy.md $(ARGS)

lint: $(VENV)/.develop
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(VENV)/.develop
	$(BIN)/python benchmarks/run.py $(ARGS)

# what it needs of Debian is fetched once and unpacked below ~/.cache (COUNTERPOINT_LAB_CACHE); nothing is installed
CASE ?= plain
lab-x86 lab-arm64: $(VENV)/.installed
	$(BIN)/python -m lab $(addprefix $(@:lab-%=%)-,$(CASE)) $(ARGS)

lab-all: $(VENV)/.installed
	$(BIN)/python -m lab x86 arm64 --table docs/lab-results.md $(ARGS)

zipapp:
	$(PYTHON) tools/zipapp.py counterpoint.pyz

clean:
	rm -rf counterpoint.pyz $(VENV) dist build demo.pftrace .pytest_cache .mypy_cache .ruff_cache .hypothesis
