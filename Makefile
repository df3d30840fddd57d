PYTHON ?= python3
PY := .venv/bin/python
SETUP := .venv/.requirements-installed

.PHONY: help setup demo test test-slow lint format hooks docs clean

help:  ## these lines
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(SETUP)  ## make .venv and install the pinned requirements

# opencv-python needs libGL, which machines without a screen may lack
$(SETUP): requirements.txt requirements-dev.txt requirements-search.txt requirements-export.txt requirements-docs.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	@$(PY) -c 'import ctypes; ctypes.CDLL("libGL.so.1")' 2>/dev/null \
	  && cp requirements.txt .venv/requirements.txt \
	  || { echo "no libGL here: taking opencv-python-headless"; \
	       sed 's/^opencv-python==/opencv-python-headless==/' requirements.txt > .venv/requirements.txt; }
	$(PY) -m pip install --quiet --disable-pip-version-check -r .venv/requirements.txt -r requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: setup  ## synthetic data -> training -> test -> table and pictures, at most 10 minutes on two cores
	$(PY) scripts/demo.py

test: setup  ## the tests, under five minutes on two cores
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -q

test-slow: setup  ## the long tests too
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 -q -m "slow or not slow"

lint: setup  ## ruff and mypy
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: setup  ## let ruff put the code into shape
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

hooks: setup  ## let git run format, lint and types before each commit
	$(PY) -m pre_commit install --hook-type pre-commit --hook-type pre-push

docs: setup  ## the pages of docs/ as a site in site/; a link that leads nowhere stops it
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

clean:  ## remove the environment and the caches; runs and data stay
	rm -rf .venv site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
