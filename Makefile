# make demo · make test · make fast · make check: each sets everything up first and then does its job.
# A machine needs python3 (3.11 or newer, with venv) and make; PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# two processes of one thread each: the networks of the tests are too small for more
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test fast check format clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z]+):.*## */  make \1	/'

# The stamp is written last: an installation that broke off is taken up again, a finished one costs nothing.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: sdlora needs Python 3.11 or newer; call make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "error: $(PYTHON) cannot make a virtual environment (on Debian: install python3-venv)" >&2; exit 1; }
	@echo "installing into $(VENV) (once; torch is the large part)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-deps k-diffusion sd-prompt-reader  # for what their own wishes include
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-deps --target $(VENV)/aside bitsandbytes  # beside: PEFT imports it wherever it sees it
	@touch $@

setup: $(READY)  ## the virtual environment only

demo: $(READY)  ## train two adapters and draw with them; prints where the pictures are
	@$(BIN)/sdlora demo

test: check  ## everything that has to pass: style, types, all tests
	@$(TESTS)

fast: $(READY)  ## the tests without the slow ones
	@$(TESTS) -m "not slow"

check: $(READY)  ## style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(READY)  ## bring the tree into the style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:  ## remove the environment and everything that was made; runs/ stays
	@rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
