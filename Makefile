# `make demo` and `make test` set themselves up; Python >= 3.11 and make are all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# recbole's wheel carries MovieLens-100K; without its own dependencies it is 2 MB.
DATA := recbole==1.2.1

# Processes that share the test files; 0: all tests in one, in order.
WORKERS ?= 2

.PHONY: install demo test lint bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "counterflow needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[playground,dev]'
	$(BIN)/pip install --quiet --no-deps $(DATA)
	$(BIN)/counterflow compile
	touch $(STAMP)

demo: install
	$(BIN)/counterflow up --dataset ml-100k $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/pytest -n $(WORKERS) --dist loadfile $(ARGS)

bench: install
	PEER=$(PEER) $(BIN)/python -m tests.benchmarks $(ARGS)

clean:
	rm -rf $(VENV)
