# make help lists the targets. Everything goes into .venv and .cache in this folder.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Called by its own name, pytest leaves this folder off sys.path, where nodes/ would hide ComfyUI's nodes.py.
PYTEST := $(VENV)/bin/pytest --import-mode=importlib

.DEFAULT_GOAL := help
.PHONY: help venv install demo test check clean

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.installed ## make .venv with this library and the tools for its checks

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

install: venv ## venv, and a ComfyUI (COMFYUI_PATH, or a cached copy) with what it needs
	@$(PY) tools/comfy_install.py

demo: install ## restore the bundled photo in a real ComfyUI; SERVE=1 leaves it running
	@$(PY) tools/demo.py $(if $(filter 1,$(SERVE)),--serve)

test: install ## run all tests, a real ComfyUI included
	$(PYTEST) tests

check: install ## lint, types, import rules and the core's tests: the fast loop
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pyright
	$(PYTEST) tests/core

clean: ## remove .venv, .cache, the demo's output and the tools' caches
	rm -rf $(VENV) .cache output/demo .pytest_cache .ruff_cache .import_linter_cache *.egg-info
