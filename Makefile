# Each target sets itself up: only Python 3.11 or newer is needed. A second run starts in seconds.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-browser test-cluster lint docs bench metatrain lock clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "make %-14s %s\n", $$1, $$2}'

demo: $(READY)  ## Fashion-MNIST on two Ray workers, without and with nowcasts: a table and runs/demo/report.png
	$(BIN)/nowcast compare deploy/demo.toml --fresh

test: $(READY)  ## Run every test but those in a browser or on a cluster of several nodes
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-browser: $(READY)  ## The live page in Debian's chromium and chromium-driver
	$(BIN)/python -m pytest -m browser

test-cluster: $(READY)  ## Submitted jobs on a two-node Ray cluster that loses a node, and scaling with the load (minutes)
	$(BIN)/python -m pytest -m cluster

lint: $(READY)  ## ruff and mypy --strict
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(READY)  ## Build the documentation into build/site
	$(BIN)/mkdocs build --strict

bench: $(READY)  ## What nowcasts cost a training step, and how fast forecasts are
	$(BIN)/python bench/step_time.py
	$(BIN)/python bench/forecast.py --quick

metatrain: $(READY)  ## Fit the shipped forecasters from nothing (hours); stopped at any time, it goes on where it was
	$(BIN)/nowcast metatrain collect deploy/metatrain/collect.toml
	$(BIN)/nowcast metatrain fit deploy/metatrain/nino-base.toml
	$(BIN)/nowcast metatrain fit deploy/metatrain/wnn-base.toml
	$(BIN)/nowcast metatrain collect deploy/metatrain/collect-more.toml
	$(BIN)/nowcast metatrain fit deploy/metatrain/nino-base-more.toml
	$(BIN)/nowcast metatrain fit deploy/metatrain/wnn-base-more.toml
	$(BIN)/nowcast metatrain collect deploy/metatrain/collect-leaping.toml
	$(BIN)/nowcast metatrain fit deploy/metatrain/nino-base-leaping.toml
	$(BIN)/nowcast metatrain collect deploy/metatrain/collect-judging.toml
	$(BIN)/nowcast metatrain judge runs/metatrain runs/metatrain/nino-base-leaping/nino-base.safetensors runs/metatrain/wnn-base-more/wnn-base.safetensors

# The environment is pinned by requirements.lock; the project itself is installed in place.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

lock:  ## Resolve pyproject.toml afresh, in an environment of its own, and pin the result
	rm -rf $(VENV)-lock
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet torch==2.13.0 "setuptools>=77" "pip>=25.1"
	$(VENV)-lock/bin/pip install --quiet --editable ".[all]" --group dev
	$(VENV)-lock/bin/pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > requirements.lock
	rm -rf $(VENV)-lock

clean:  ## Delete the environment, builds and results
	rm -rf $(VENV) build dist runs
