# Few verbs; `make` alone lists them. The environment is made once and again only when its list of packages changes.
PYTHON ?= python3
VENV := .venv
EXTRAS := baselines,tensorboard,mlflow,search,slurm,ray,dev
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help run setup test lint format clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

run: setup  ## the main job: a diffusion detector on a real dataset
	$(VENV)/bin/run train detector=diffusion

setup: $(READY)  ## create .venv with everything the tests need

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	@echo "creating $(VENV): a few minutes, most of them PyTorch"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

test: setup  ## every test, a file of them on each of up to 4 cores
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: setup  ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright

format: setup  ## rewrite the files in house style
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:  ## remove the environment and the caches; outputs/ stays
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
