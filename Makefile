# Two commands need nothing but Python 3.10 or newer: `make demo` measures, `make test` tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test check bench bench-gpu format clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | column -t -s '|'

# torch comes first and by its exact version: an open range may fetch several GB that a CPU does not need.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("hess needs Python 3.10 or newer; give one with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) -e '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## measure the spectral density of the embedded checkpoint
	$(BIN)/hess density demo

test: $(VENV)/.installed  ## the tests, all of them
	$(BIN)/python -m pytest -n 2

check: $(VENV)/.installed  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed  ## put the code in its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# curvlinops comes without its requirements, one of which would replace torch; the extra has those that it needs.
# Options of the benchmark go into BENCH, such as BENCH='--what products --repeats 15'.
bench: $(VENV)/.installed  ## cost of products and probes, beside other libraries
	$(INSTALL) -e '.[bench]'
	$(INSTALL) --no-deps curvlinops-for-pytorch==3.0.1
	$(BIN)/python tests/benchmark $(BENCH)

# Out of memory is a row of a table, not an end. Parts of it: BENCH='--parts products', of products, largest, elsewhere.
bench-gpu: $(VENV)/.installed  ## products of a model of 1.7B parameters on a GPU: ten minutes on an H100
	$(BIN)/python tests/benchmark --what gpu --device cuda --repeats 3 $(BENCH)

clean:  ## remove what make made
	rm -rf $(VENV) build *.egg-info .ruff_cache .mypy_cache .pytest_cache
