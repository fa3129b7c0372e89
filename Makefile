# Two commands do everything on a fresh machine: make demo, make test. make test-faults adds the faults that
# take long, make test-all everything that does.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo demo-synthetic test test-faults test-all lint unit install clean

demo: install
	$(BIN)/clickformer demo

demo-synthetic: install
	$(BIN)/clickformer demo --data synthetic

test: lint unit

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: install
	$(BIN)/python -m pytest

test-faults: install
	$(BIN)/python -m pytest tests/faults -m ""

test-all: install
	$(BIN)/python -m pytest -m ""

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "clickformer needs $(PYTHON): install Python 3.11 or give PYTHON=path"; exit 1; }
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
		|| { echo "clickformer needs Python 3.11 or 3.12 with the venv module (Debian: apt install python3.11-venv)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .hypothesis *.egg-info
