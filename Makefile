# make demo   the whole road on this machine        make test   all tests, a real Slurm included
# make check  style, types, layers                  make fmt    formatting
# make soak   one run under 45 faults, half an hour: SOAK="--seed 7 --out soak.json"
PYTHON ?= python3
VENV ?= .venv
# Two workers take files in turn, those that take long first.
ORDER := --no-loadscope-reorder --randomly-dont-reorganize
export PATH := $(abspath $(VENV))/bin:$(PATH)

demo: $(VENV)/ready
	fitb demo

test: $(VENV)/ready slurm-packages browser
	ulimit -n 65536 2>/dev/null; python -m pytest -rs -n 2 --dist loadfile $(ORDER) $(TESTS)

soak: $(VENV)/ready slurm-packages
	python tests/cluster/soak.py $(SOAK)

check: $(VENV)/ready
	ruff check .
	ruff format --check .
	lint-imports
	mypy fitb launch
	if command -v shellcheck >/dev/null; then shellcheck slurm/*.sh .ci/run; fi

fmt: $(VENV)/ready
	ruff check --fix .
	ruff format .

install: $(VENV)/ready

$(VENV)/ready: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --upgrade "pip>=24"
	python -m pip install --quiet --constraint constraints.txt torch
	python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

# Packages of a real Slurm for the cluster tests, where this user may install them.
slurm-packages:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! { command -v slurmctld \
	  && command -v slurmd && command -v munged && command -v ip && command -v shellcheck; } >/dev/null; \
	then apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -qq --no-install-recommends slurm-wlm munge iproute2 shellcheck >/dev/null; fi

# A browser for the tests of the page that `fitb serve` shows.
browser:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v chromium >/dev/null; \
	then apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	  apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; fi

.PHONY: demo test soak check fmt install slurm-packages browser
