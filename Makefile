# make bench   set up, run what is missing of the embedded suite, print the leaderboard
# make test    set up, run the tests, with one method of each kind; minutes
# make test-all    and then make test-slow, what it left out: the other methods, mutants, compilers, recipes
# make gpu-check   on a machine with a GPU: is it right there, and how fast; four minutes
# make bench ARGS="methods=[iql] method.expectile=0.9"    any setting of conf/
PYTHON ?= python3
ARGS ?=
VENV := .venv
READY := $(VENV)/.ready
# with what the tests and linters need
TESTED := $(VENV)/.tested

.PHONY: bench test test-slow test-all lint speed gpu-check clean

bench: $(READY)
	@$(VENV)/bin/offbench bench $(ARGS)

PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist loadfile

test: $(TESTED)
	$(PYTEST) -m "not slow" $(ARGS)

test-all: test test-slow

test-slow: $(TESTED)
	$(PYTEST) -m slow $(ARGS)

lint: $(TESTED)
	$(VENV)/bin/ruff check offbench tests
	$(VENV)/bin/ruff format --check offbench tests
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

speed: $(READY)
	@$(VENV)/bin/offbench speed $(ARGS)

# modules are compiled when they are first imported: most never are
INSTALL = $(VENV)/bin/python -m pip install -q --no-compile --disable-pip-version-check -c constraints.txt

# OGBench and its dm-control, where one of their dependencies has no wheel (pyproject.toml says which)
WITHOUT_LABMAZE = if $(VENV)/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then $(INSTALL) --no-deps ogbench dm-control; fi

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "offbench needs Python 3.11 to 3.13, $(PYTHON) is %d.%d; use: make PYTHON=python3.11" % v)'
	@echo "setting up $(VENV) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) -e .
	@$(WITHOUT_LABMAZE)
	@touch $(READY)

$(TESTED): $(READY)
	@$(INSTALL) -e '.[test]'
	@touch $(TESTED)

# on a machine with a GPU, installed or not: nothing is downloaded
GPU_PYTHON = $(if $(filter file,$(origin PYTHON)),$(firstword $(wildcard $(VENV)/bin/python) $(PYTHON)),$(PYTHON))

gpu-check:
	@$(GPU_PYTHON) -m offbench.speed.gpu_check $(or $(OUT),results/gpu_check) $(ARGS)

clean:
	rm -rf $(VENV)
