# make help lists the targets. Everything goes into .venv and .cache in this folder.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Called by its own name, pytest leaves this folder off sys.path, where nodes/ would hide ComfyUI's nodes.py.
PYTEST := $(VENV)/bin/pytest --import-mode=importlib
# One process per core, up to four, each with a ComfyUI of its own; tests/conftest.py says what stays together.
JOBS ?= logical
PARALLEL := -n $(JOBS) --maxprocesses 4 --dist loadgroup --no-loadscope-reorder
# Compiling every file of every package takes longer than compiling those that are used.
INSTALL := $(PY) -m pip install --no-compile -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv install metrics demo test check types oldest weights scores bench clean

help: ## list the targets
	@awk -F ': .*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(VENV)/.installed ## make .venv with this library and the tools for its checks

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev]'
	@touch $@

install: venv ## venv, and a ComfyUI (COMFYUI_PATH, or a cached copy) with what it needs
	@$(PY) tools/comfy_install.py

metrics: $(VENV)/.metrics ## venv, and what scores and the perceptual loss need

$(VENV)/.metrics: train/metrics.txt $(VENV)/.installed
	$(INSTALL) --no-deps -r train/metrics.txt
	$(INSTALL) -e '.[metrics]'
	@touch $@

demo: install ## restore the bundled photo in a real ComfyUI; SERVE=1 leaves it running
	@$(PY) tools/demo.py $(if $(filter 1,$(SERVE)),--serve)

test: install metrics ## run all tests, a real ComfyUI included; JOBS=0 in one process
	OMP_NUM_THREADS=1 $(PYTEST) $(PARALLEL) tests

check: install ## lint, types, import rules and the core's tests: the fast loop
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(MAKE) types
	$(PYTEST) tests/core

types: venv ## check types as the oldest and the newest Python see them
	$(VENV)/bin/pyright --pythonversion 3.10
	$(VENV)/bin/pyright --pythonversion 3.13

oldest: venv ## run the core's tests on the oldest versions that pyproject.toml allows, but for torch
	@$(PY) tools/oldest.py

# Every stage goes on where it was stopped; RECIPE=debug proves the way and learns nothing.
RECIPE ?= tiny
DATA ?= data/photos
RUNS ?= runs/weights-$(RECIPE)
AUTOENCODER := $(RUNS)/cleaner/autoencoder.safetensors
BASE := $(RUNS)/base/base.safetensors
CONTROL := $(RUNS)/control/control.safetensors
weights: metrics $(DATA)/photos.json ## train the embedded default, from photo packages to RUNS/packed; hours on a CPU
	$(PY) -m train.train_autoencoder $(RECIPE) --data $(DATA) --run-dir $(RUNS)/autoencoder
	$(PY) -m train.train_cleaner $(RECIPE) --data $(DATA) --run-dir $(RUNS)/cleaner \
		--autoencoder $(RUNS)/autoencoder/autoencoder.safetensors
	$(PY) -m train.train_base $(RECIPE) --data $(DATA) --run-dir $(RUNS)/base --autoencoder $(AUTOENCODER)
	$(PY) -m train.train_psi_dit $(RECIPE) --data $(DATA) --run-dir $(RUNS)/control --autoencoder $(AUTOENCODER) --base $(BASE)
	$(PY) -m train.train_few_step $(RECIPE) --data $(DATA) --run-dir $(RUNS)/few_step --autoencoder $(AUTOENCODER) \
		--base $(BASE) --start $(CONTROL)
	$(PY) -m train.pack_embedded --autoencoder $(RUNS)/few_step/autoencoder.safetensors --base $(BASE) \
		--control $(RUNS)/few_step/control.safetensors --out $(RUNS)/packed

$(DATA)/photos.json:
	$(PY) -m train.prepare_photos --out $(DATA)

# The embedded default and its peers on the same inputs: the tables of the model card. The default is restored anew.
METHODS := ours realesrgan realsr dat-light bicubic lanczos
METRICS ?= stlpips psnr ssim psnr-lr
scores: metrics ## score the default beside other systems on the test photos: output/scores; hours on a CPU
	$(INSTALL) --no-deps -r tests/bench/peers.txt
	$(PY) -m train.prepare_test_set photos --out output/testset
	for preset in plain light stock; do \
		rm -rf output/peers/$$preset/ours; \
		$(PY) tests/bench/peers.py output/testset/lr-$$preset output/peers/$$preset && \
		$(PY) -m train.evaluate --protocol offline --metrics $(METRICS) --extremes stlpips --hr output/testset/hr \
			--lr output/testset/lr-$$preset --out output/scores/$$preset \
			--sr $(foreach method,$(METHODS),$(method)=output/peers/$$preset/$(method)) || exit 1; \
	done
	$(PY) -m train.dial_curve output/testset --out output/scores
	$(PY) tests/bench/seams.py output/testset

# basicsr is measured against, never installed: it stands in a folder of its own.
BASICSR := .cache/basicsr
bench: metrics ## measure speed and memory against the bars: output/bench.json; half an hour alone on a CPU
	$(INSTALL) --no-deps -r tests/bench/peers.txt
	test -d $(BASICSR) || $(PY) -m pip install --no-deps --no-build-isolation --target $(BASICSR) basicsr==1.4.2
	PYTHONPATH=$(BASICSR) $(PY) tests/bench/bench.py --out output

clean: ## remove .venv, .cache, the demo's output and the tools' caches
	rm -rf $(VENV) .cache output/demo .pytest_cache .ruff_cache .import_linter_cache *.egg-info
