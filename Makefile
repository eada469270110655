# Two commands do everything on a fresh machine: `make demo` and `make test`. Both make .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
HF := .venv-hf/bin
HF_READY := .venv-hf/.ready
EXTRAS := all,dev
# Each process would compile PyTorch anew, where an environment forbids to write what was compiled.
export PYTHONDONTWRITEBYTECODE :=
HF_EXTRAS := qwen3-tts-hf,wandb,dev

.PHONY: demo test fast test-all test-hf reliability lint clean

demo: $(READY)
	@$(BIN)/sheen demo --overwrite
	@echo "(sheen is $(BIN)/sheen here)"

test: $(READY)
	@$(MAKE) --no-print-directory -j2 lint fast

fast:
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(READY) lint
	$(BIN)/python -m pytest

# The tests of Qwen3-TTS under its second stack, transformers 5, in an environment of its own; and
# that both stacks hear and speak the same. Not part of CI.
test-hf: $(READY) $(HF_READY)
	SHEEN_OTHER_STACK=$(CURDIR)/$(BIN)/python $(HF)/python -m pytest tests/test_qwen3_*.py

# What is promised of crashes, counted: one table, some minutes.
reliability: $(READY)
	@$(BIN)/python tests/reliability.py

lint: $(READY)
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	$(BIN)/mypy

$(READY): pyproject.toml constraints.txt
	$(call set-up,.venv,constraints.txt,$(EXTRAS))

$(HF_READY): pyproject.toml constraints-hf.txt
	$(call set-up,.venv-hf,constraints-hf.txt,$(HF_EXTRAS))
	@$(HF)/python -m pip uninstall --quiet --yes torchaudio # not needed; one that does not load ends transformers 5

# An environment: its folder, its constraints, its extras. Python compiles a module when it is first
# imported; doing that for all that pip brings is half of its time.
define set-up
	@echo "Setting up $(1) (once, some minutes: it installs PyTorch and what sheen needs)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sheen needs Python 3.11 or newer; try make PYTHON=python3.11")'
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -c $(2) -e ".[$(3)]"
	@touch $(1)/.ready
	@echo "Set-up done"
endef

clean:
	rm -rf .venv .venv-hf build dist .mypy_cache .pytest_cache .ruff_cache
