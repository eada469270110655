# Two commands do everything on a fresh machine: `make demo` and `make test`. Both make .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-all reliability lint clean

demo: $(READY)
	@$(BIN)/sheen demo --overwrite
	@echo "(sheen is $(BIN)/sheen here)"

test: $(READY) lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: $(READY) lint
	$(BIN)/python -m pytest

# What is promised of crashes, counted: one table, some minutes.
reliability: $(READY)
	@$(BIN)/python tests/reliability.py

lint: $(READY)
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	@echo "Setting up .venv (once, some minutes: it installs PyTorch and what sheen needs)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sheen needs Python 3.11 or newer; try make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all,dev]"
	@touch $(READY)
	@echo "Set-up done"

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache
