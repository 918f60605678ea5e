# make demo   the whole road on this machine        make test   all tests, a real Slurm included
# make check  style, types, layers                  make fmt    formatting
# make quick  check, and the unit tests of what has changed: a minute
# make soak   one run under 42 faults, a quarter of an hour: SOAK="--seed 7 --out soak.json"
# make bench  the benchmarks of docs/benchmarks.md, half an hour: BENCH="attention duplicates"
# make record seconds to 95 % of a teacher's top-1 on a fixed corpus: RECORD="--steps 150"
# make gpu    what one GPU can tell, within 8 minutes: DRY=1 on a CPU, BREAK=speed to see it fail;
#             make gpu-kit PYTHON=3.12 collects what a machine without a network needs, KIT=gpu-kit there
# make slurm  a Slurm of two hosts on this machine, until Ctrl-C (as root on Debian)
# make dist   wheel and source, in dist/            make coverage   all tests, and what they leave out
# make sizes  how long modules and functions are, held against the limits
# make wheelhouse PYTHON=3.12 TORCH=cpu   what nodes without a network install from, in wheelhouse/
PYTHON ?= python3
VENV ?= .venv
# Workers take files in turn, those that take long first; three of five wait for clusters and clocks.
ORDER := --no-loadscope-reorder --randomly-dont-reorganize
export PATH := $(abspath $(VENV))/bin:$(PATH)

demo: $(VENV)/ready
	fitb demo

test: $(VENV)/ready slurm-packages browser
	ulimit -n 65536 2>/dev/null; python -m pytest -rs -n 5 --durations=40 --dist loadfile $(ORDER) $(TESTS)

soak: $(VENV)/ready slurm-packages
	python tests/benchmarks/soak.py $(SOAK)

# A line of JSON each; blanks needs a trained model: BENCH=blanks.
BENCH ?= step comm infer data attention plan resume duplicates
bench: $(VENV)/ready
	for name in $(BENCH); do \
	  if [ -f tests/benchmarks/$$name.py ]; then python tests/benchmarks/$$name.py; \
	  else fitb bench $$name --json; fi || exit; \
	done

record: $(VENV)/ready
	python tests/benchmarks/record.py $(RECORD)

# Results in build/gpu/gpu.json and gpu.md.
gpu: $(if $(KIT),,$(VENV)/ready)
	$(if $(KIT),$(PYTHON) -m pip install --quiet --no-index --no-deps $(KIT)/wheels/*.whl)
	$(PYTHON) tests/gpu/kit.py $(or $(KIT),build/gpu)
	$(PYTHON) tests/gpu/runner.py --shards $(or $(KIT),build/gpu)/shards --out build/gpu \
	  $(if $(DRY),--dry) $(if $(BREAK),--broken $(BREAK)) $(if $(ONLY),--only $(ONLY))

gpu-kit: $(VENV)/ready
	python tests/gpu/kit.py gpu-kit --python $(PYTHON)

slurm: $(VENV)/ready slurm-packages
	python tests/cluster/slurm_cluster.py

quick: $(VENV)/ready
	ruff check .
	ruff format --check .
	lint-imports
	mypy fitb launch
	python -m pytest -q -n 2 --dist loadfile $$(python tests/quick.py $(SINCE))

check: $(VENV)/ready
	ruff check .
	ruff format --check .
	lint-imports
	mypy fitb launch
	hadolint Dockerfile
	if command -v shellcheck >/dev/null; then shellcheck slurm/*.sh .ci/run; fi

fmt: $(VENV)/ready
	ruff check --fix .
	ruff format .

dist: $(VENV)/ready
	rm -f dist/fitb-*.whl dist/fitb-*.tar.gz
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) python -m build --no-isolation --outdir dist

# Processes that tests start are measured too; SIGKILL leaves no measurement behind.
coverage: $(VENV)/ready slurm-packages browser
	rm -rf build/coverage && mkdir -p build/coverage
	ulimit -n 65536 2>/dev/null; coverage run -m pytest -n 3 --dist loadfile $(ORDER) $(TESTS)
	coverage combine --quiet
	coverage report

sizes:
	$(PYTHON) tests/sizes.py

# PYTHON is a version here, or an interpreter; EXTRAS of fitb, with commas; TORCH the label of a build
# (cpu, cu130), none, or what pip prefers; PLATFORM as manylinux_2_28_x86_64. pip's own configuration
# (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS) says where builds of PyTorch are.
wheelhouse:
	python3 container/wheelhouse.py --python $(PYTHON) --out wheelhouse \
	  $(if $(EXTRAS),--extras $(EXTRAS)) $(if $(TORCH),--torch $(TORCH)) \
	  $(if $(PLATFORM),--platform $(PLATFORM))

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

.PHONY: demo test quick soak bench record gpu gpu-kit slurm check fmt dist coverage sizes wheelhouse install slurm-packages browser
