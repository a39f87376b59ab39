# Each target makes the environment that it needs (.venv) and runs. On Debian, as root, missing system packages are
# installed; elsewhere they are named.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help profile test check lint format types imports bench slow train

VENV := .venv
VENV_TRAIN := .venv-train
PYTHON_TEST := $(VENV)/bin/python
PYTHON_TRAIN := $(VENV_TRAIN)/bin/python
MADE_FROM := setup.cfg pyproject.toml .ci/constraints.txt .ci/environment

# What `make profile` writes, and how long it may measure.
NAME := $(shell date -u +%Y%m%d-%H%M%S)
RUN := runs/$(NAME)
LUT := $(RUN).lut.json
BUDGET := 3m
BENCH := runs/bench
UNSEEN := $(RUN).unseen

PYTEST := -n auto --dist loadfile

help:
	@echo "make profile   measure the default plan, build the table, predict, validate (BUDGET=$(BUDGET), RUN=$(RUN))"
	@echo "make test      the tests, with coverage"
	@echo "make check     ruff, mypy --strict, import contracts"
	@echo "make slow      the tests that take longer"
	@echo "make train     the tests against TensorFlow, in an environment of their own"
	@echo "make bench     measure the figures in README (about two hours, most of it converting the zoo once) and write them there"

$(VENV)/made: $(MADE_FROM)
	.ci/environment $(VENV) test,dev
	@touch $@

$(VENV_TRAIN)/made: $(MADE_FROM)
	.ci/environment $(VENV_TRAIN) test,train
	@touch $@

profile: $(VENV)/made
	$(PYTHON_TEST) -m harness.profile --out $(RUN) --budget $(BUDGET)
	$(PYTHON_TEST) -m luts.build $(RUN) -o $(LUT)
	$(PYTHON_TEST) -m op_models.spaces enas-micro --count 3 --seed 1 --out $(UNSEEN)
	$(PYTHON_TEST) -m luts.predict $(UNSEEN)/*.tflite --lut $(LUT)
	$(PYTHON_TEST) -m luts.validate --lut $(LUT)

test: $(VENV)/made
	$(PYTHON_TEST) -m pytest $(PYTEST) --cov --cov-report=term $(ARGS)

slow: $(VENV)/made
	$(PYTHON_TEST) -m pytest -m "slow and not train and not device" --timeout=900 $(ARGS)

train: $(VENV_TRAIN)/made
	ELP_LUT_CACHE=$${ELP_LUT_CACHE:-$(CURDIR)/.cache} $(PYTHON_TRAIN) -m pytest -m "train and not device" --timeout=900 $(ARGS)

check: lint format types imports
lint: $(VENV)/made
	$(PYTHON_TEST) -m ruff check
format: $(VENV)/made
	$(PYTHON_TEST) -m ruff format --check
types: $(VENV)/made
	$(PYTHON_TEST) -m mypy
imports: $(VENV)/made
	$(VENV)/bin/lint-imports

bench: $(VENV_TRAIN)/made
	$(PYTHON_TRAIN) -m benchmarks.zoo_files --out $(BENCH)/zoo
	$(PYTHON_TRAIN) -m benchmarks.run --work $(BENCH)
	$(PYTHON_TRAIN) -m benchmarks.table
