PYTHON ?= python3
PY := .venv/bin/python
SETUP := .venv/.requirements-installed

.PHONY: help setup lock licences audit demo test test-slow test-gpu test-timm lint format hooks docs clean

help:  ## these lines
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(SETUP)  ## make .venv and install the pinned requirements

# requirements.lock holds the hash of every file that may be installed, both opencv packages among them: opencv-python
# needs libGL, which machines without a screen may lack. A block is a line and those that its backslashes continue.
# setuptools comes first, so that what is built from source is built by it. torch comes last and without a hash, because
# its CPU and CUDA builds differ; all that both builds need is in place by then.
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
LOCKED := $(PIP) --require-hashes --no-deps --no-build-isolation

$(SETUP): requirements.lock requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	sed -n '/^setuptools==/,/[^\\]$$/p' requirements.lock > .venv/setuptools.lock
	@$(PY) -c 'import ctypes; ctypes.CDLL("libGL.so.1")' 2>/dev/null \
	  && sed '/^opencv-python-headless==/,/[^\\]$$/d' requirements.lock > .venv/requirements.lock \
	  || { echo "no libGL here: taking opencv-python-headless"; \
	       sed '/^opencv-python==/,/[^\\]$$/d' requirements.lock > .venv/requirements.lock; }
	$(LOCKED) -r .venv/setuptools.lock
	$(LOCKED) -r .venv/requirements.lock
	$(PIP) --constraint requirements.txt "$$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements.txt)"
	$(PIP) --no-deps --no-build-isolation --editable .
	$(PY) -m pip check
	touch $@

lock:  ## write requirements.lock anew, after pyproject.toml or a pin in requirements.txt was changed
	$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	sed -n 's/^opencv-python\(==[^ ]*\).*/opencv-python-headless\1/p' requirements.txt > .venv/lock/headless.txt
	.venv/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --no-emit-package torch --no-emit-package ssd-effnet --custom-compile-command "make lock" \
	  --constraint requirements.txt --output-file requirements.lock --extra dev pyproject.toml .venv/lock/headless.txt

licences: setup  ## write docs/licences.md anew: what every dependency is licensed under
	$(PYTHON) -m venv .venv/licences
	.venv/licences/bin/python -m pip install --quiet --disable-pip-version-check pip-licenses==5.5.5
	.venv/licences/bin/pip-licenses --python $(PY) --with-system --ignore-packages pip ssd-effnet --from mixed \
	  --format markdown --output-file .venv/licences/table.md
	{ sed '/^| *Name/,$$d' docs/licences.md; \
	  sed -E 's/ +\|/ |/g; s/-{3,}/---/g; s/\+cpu//' .venv/licences/table.md; } > .venv/licences/page.md
	cp .venv/licences/page.md docs/licences.md

audit:  ## known weaknesses of the locked versions, asked of PyPI's database (needs the network)
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	.venv/audit/bin/pip-audit --disable-pip --require-hashes --requirement requirements.lock

demo: setup  ## synthetic data -> training -> test -> table and pictures, about 10 minutes on two cores
	$(PY) scripts/demo.py

# PYTHONDONTWRITEBYTECODE empty: modules are compiled once, not by every process. loadfile: one process makes a file's
# fixtures. No autoload: pytest would rewrite the assertions of all of hypothesis, whose plugin is named by its module.
TEST := PYTHONDONTWRITEBYTECODE= PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 OMP_NUM_THREADS=1 \
  $(PY) -m pytest -p xdist -p _hypothesis_pytestplugin -n 2 --dist loadfile -q

test: setup  ## the tests, under five minutes on two cores
	$(TEST)

test-slow: setup  ## the long tests too
	$(TEST) -m "not gpu"

test-gpu: setup  ## every experiment on the GPU; without one, on a fake device (needs torch's CUDA build)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m gpu tests/gpu

# 6 GB: timm brings torchvision, which needs the torch of its own release.
TIMM := .venv-timm/bin/python
$(TIMM): pyproject.toml
	$(PYTHON) -m venv .venv-timm
	$(TIMM) -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
	$(TIMM) -m pip install --quiet --disable-pip-version-check --editable '.[timm,export]' pytest hypothesis
	touch $@

test-timm: $(TIMM)  ## backbones of timm, in an environment of their own, .venv-timm
	OMP_NUM_THREADS=1 $(TIMM) -m pytest -q -rs tests/models/test_timm.py

lint: setup  ## ruff, mypy and the layers' contracts
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports

format: setup  ## let ruff put the code into shape
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

hooks: setup  ## let git run format, lint and types before each commit
	$(PY) -m pre_commit install --hook-type pre-commit --hook-type pre-push

docs: setup  ## the pages of docs/ as a site in site/; a link that leads nowhere stops it
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

clean:  ## remove the environment and the caches; runs and data stay
	rm -rf .venv site *.egg-info .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis
