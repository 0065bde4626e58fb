# Everything runs in $(VENV), made on first use. Variables: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
# Another package index to take torch from, such as PyTorch's own one for CPU builds or for an older CUDA.
TORCH_INDEX ?=

RUN = $(VENV)/bin/python -m
INSTALL = $(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH_SOURCE = $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
HAS_NVIDIA = $(shell command -v nvidia-smi)

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.ready ## ask the bundled model about the bundled clip
	$(RUN) holitom_cli demo
	@echo "(holitom is $(VENV)/bin/holitom here)"

test: lint ## set up, then run all linters and tests
	$(RUN) pytest

lint: $(VENV)/.ready-dev ## ruff and mypy
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

docs: $(VENV)/.ready-dev ## write docs/cli.md from the commands' own help
	$(RUN) tests.make_cli_docs

clean: ## remove caches and build results; the virtual environment stays
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
	find holitom_cli tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "holitom_cli needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone: a CPU build that pip has at hand (2.13.0+cpu sorts above 2.13.0) is then kept.
$(VENV)/.ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	@$(if $(HAS_NVIDIA)$(TORCH_INDEX),,echo "No NVIDIA GPU here. Should pip fetch torch with CUDA, stop it and name an index of CPU builds: make TORCH_INDEX=URL")
	$(INSTALL) $(TORCH_SOURCE) torch
	$(INSTALL) -e .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(INSTALL) -e '.[dev]'
	@touch $@
