PYTHON ?= python3.11
# Idle threads sleep. Spinning threads would take the core from the process that they wait for.
export OMP_WAIT_POLICY ?= PASSIVE
# Let the first run write bytecode; every later process of a run then imports faster.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup setup-gpu demo test test-slow test-slurm bench lint docs clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: ## create .venv with the locked packages (the other targets do this when needed)
	@PYTHON=$(PYTHON) scripts/bootstrap.sh

setup-gpu: ## create .venv with the locked packages for NVIDIA GPUs
	@PYTHON=$(PYTHON) scripts/bootstrap.sh --gpu

demo: setup ## run the whole method on pictures of handwritten digits
	@. .venv/bin/activate && examples/digits/run.sh

test: setup ## run the tests, except the slow ones, in two processes
	@.venv/bin/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup ## run the slow tests (over an hour)
	@.venv/bin/python -m pytest -m slow

test-slurm: setup ## run the Slurm scripts on a two-node Slurm on this host (Debian, as root; installs Slurm)
	@tests/slurm/slurm.sh install
	@.venv/bin/python -m pytest -m slow tests/slurm

bench: setup ## time a discriminator step against the published algorithm
	@.venv/bin/python benchmarks/discriminator.py

lint: setup ## check format, style, types, import layers and spelling
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@.venv/bin/codespell

docs: .venv-docs/bin/mkdocs ## build the documentation site in site/ (creates .venv-docs)
	@.venv-docs/bin/mkdocs build --strict

.venv-docs/bin/mkdocs: requirements/docs.txt
	@$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/pip install --quiet --no-deps -r requirements/docs.txt
	@touch $@

clean: ## delete the environments, outputs, site and caches
	rm -rf .venv .venv-docs outputs site build dist *.egg-info .import_linter_cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
