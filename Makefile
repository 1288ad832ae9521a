# Every target does its own set-up: a machine needs Python 3.11 (or newer) and make, nothing else.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
QUICK ?=
export VAEGIS_QUICK = $(QUICK)
# Threads that wait asleep: on cores shared with other work, spinning ones make torch several times slower.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0

# Tests run in two processes, a file at a time, each with one thread: tiny networks gain nothing from more.
TEST_PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-slow check acceptance wheel clean bench-quality bench-calibration bench-serving bench-swaps bench-gpu bench-speed bench-choose

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(STAMP) ## make .venv with every package pinned by constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Vaegis needs Python 3.11 or newer; this is " + sys.version'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

# torch first and by its exact version: a plain requirement would take the newest build for another CUDA.
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

demo: $(STAMP) ## fit, serve, score and report on real and simulated data, in about two minutes
	VAEGIS_HOME=$${VAEGIS_HOME:-.vaegis} $(BIN)/vaegis demo

serve: $(STAMP) ## the service with the demo's models, on http://127.0.0.1:8000
	VAEGIS_HOME=$${VAEGIS_HOME:-.vaegis} $(BIN)/vaegis demo --models-only
	VAEGIS_HOME=$${VAEGIS_HOME:-.vaegis} $(BIN)/vaegis serve

test: $(STAMP) ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

test-slow: $(STAMP) ## whole journeys
	$(BIN)/python -m pytest -m slow

check: $(STAMP) ## static checks only: ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

acceptance: $(STAMP) ## the black-box tests beside this checkout, where they are
	@if test -d ../shared/acceptance; then $(BIN)/python -m pytest ../shared/acceptance -q; \
	else echo "There is no ../shared/acceptance beside this checkout; nothing to run."; fi

bench-quality: $(STAMP) ## detection quality on the data sets in ../shared/data (QUICK=1: the small panel)
	$(BIN)/python -m tests.bench.quality $(if $(QUICK),--panel small --families vae)

bench-calibration: $(STAMP) ## false alarms and p-values against truth on the same data
	$(BIN)/python -m tests.bench.calibration $(if $(QUICK),--panel small)

bench-serving: $(STAMP) ## serving against FastAPI, MLServer, LitServe, BentoML and the bare runtime (QUICK=1: short)
	$(BIN)/python -m tests.bench.serving

bench-swaps: $(STAMP) ## 200 promotions, then SIGTERM, under 64 connections: requests that failed
	$(BIN)/python -m tests.bench.swaps
	$(BIN)/python -m tests.bench.swaps --workers 2

bench-gpu: $(STAMP) ## on a machine with a GPU: scoring against bare onnxruntime and torch.compile
	$(BIN)/python -m tests.bench.gpu

bench-speed: $(STAMP) ## fit time, scoring against bare onnxruntime, memory
	$(BIN)/python -m tests.bench.speed
	$(BIN)/python -m tests.bench.costs

bench-choose: $(STAMP) ## which evidence to fuse, by synthetic defects, without labels
	$(BIN)/python -m tests.bench.choose

wheel: $(STAMP) ## dist/*.whl
	$(BIN)/python -m build --wheel

clean: ## remove what make made
	rm -rf $(VENV) dist build .vaegis
