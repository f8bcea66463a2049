# SPDX-License-Identifier: Apache-2.0
# Everything below needs Python 3.11 or newer, make and a package registry. `make` alone lists the targets.

PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV ?= .venv
PIP_ARGS ?=
PHOTO ?= examples/astronaut.png
OUT ?= out
SCALE ?= 0.06
PYTEST_ARGS ?= -n auto
WEIGHTS ?=

VENV_PYTHON := $(VENV)/bin/python
PIP_INSTALL = $(VENV_PYTHON) -m pip install $(PIP_ARGS)

# Stamps: each is written last, so that an interrupted step is done again, and a finished one never.
CREATED := $(VENV)/.created
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALLED_SPACE := $(VENV)/.installed-space
VENVS := .venv-minimal .venv-oldest

# Ends a recipe whose interpreter is too old.
check_python = @$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " \
	+ sys.version.split()[0] + ": choose one with PYTHON=" if sys.version_info < (3, 11) else 0)'

.DEFAULT_GOAL := help
.PHONY: help demo space test quick lint venvs clean

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16
	@echo
	@echo 'Variables (make TARGET NAME=value):'
	@echo '  PHOTO         photograph for the demo (now $(PHOTO))'
	@echo '  OUT           folder for its results (now $(OUT))'
	@echo '  SCALE         largest disparity, as a share of the width; comfortable to look at (now $(SCALE))'
	@echo '  WEIGHTS       pipeline folder or Hub id for the web page, instead of the embedded one'
	@echo '  PYTHON        interpreter to make the environment with, 3.11 or newer (now $(PYTHON))'
	@echo '  VENV          folder of the environment (now $(VENV))'
	@echo '  PIP_ARGS      more arguments for pip, such as --index-url for another build of torch'
	@echo '  PYTEST_ARGS   arguments for pytest; by default one process per core (now $(PYTEST_ARGS))'

demo: export DEMO_PHOTO := $(value PHOTO)
demo: $(INSTALLED)  ## make a stereo pair, its maps and pictures from PHOTO into OUT
	$(VENV_PYTHON) synthesize.py "$$DEMO_PHOTO" --output "$(OUT)" --disparity-scale $(SCALE) --overwrite

space: $(INSTALLED_SPACE)  ## serve the web page at http://127.0.0.1:7860, with WEIGHTS if given
	$(if $(WEIGHTS),ZEROSTEREO_WEIGHTS="$(WEIGHTS)") $(VENV_PYTHON) space/app.py

test: lint  ## check style and types, then run all tests
	$(VENV_PYTHON) -m pytest --durations=0 $(PYTEST_ARGS)

quick: lint  ## the same without the tests marked slow
	$(VENV_PYTHON) -m pytest --durations=10 -m "not slow" $(PYTEST_ARGS)

lint: $(INSTALLED_DEV)  ## check style and types only
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m basedpyright --pythonpath $(VENV_PYTHON)

venvs: $(VENVS:=/.installed)  ## install the bare and the oldest libraries that the weights are tested with

clean:  ## remove .venv, the environments of venvs, out and caches
	rm -rf .venv $(VENVS) out .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	$(check_python)
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(INSTALLED): $(CREATED) requirements.txt
	$(PIP_INSTALL) -r requirements.txt
	@touch $@

$(INSTALLED_SPACE): $(INSTALLED) requirements-space.txt
	$(PIP_INSTALL) -r requirements-space.txt
	@touch $@

$(INSTALLED_DEV): $(INSTALLED) requirements-training.txt requirements-extras.txt requirements-space.txt requirements-dev.txt
	$(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

# Made anew when its list changes, for what is no longer on the list must not stay.
.venv-%/.installed: requirements-%.txt
	$(check_python)
	rm -rf .venv-$*
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install $(PIP_ARGS) -r $<
	@touch $@
