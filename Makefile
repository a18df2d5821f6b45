PYTHON ?= python3.11
# Torch's threads wait asleep: spinning ones take the core from the process that they wait for.
export OMP_WAIT_POLICY ?= PASSIVE
# The first run compiles what it imports, and the dozen processes of every later one find it compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test test-slow test-slurm bench lint clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: ## make .venv with the locked packages (the others do this by themselves)
	@PYTHON=$(PYTHON) scripts/bootstrap.sh

demo: setup ## run the whole method on real pictures of digits
	@. .venv/bin/activate && examples/digits/run.sh

test: setup ## run the tests
	@.venv/bin/python -m pytest -m "not slow"

test-slow: setup ## run the tests that take long
	@.venv/bin/python -m pytest -m slow

test-slurm: setup ## run the Slurm scripts on a Slurm of two nodes on this host (Debian; installs it, as root)
	@tests/slurm/slurm.sh install
	@.venv/bin/python -m pytest -m slow tests/slurm

bench: setup ## time a discriminator step against the reference algorithm
	@.venv/bin/python benchmarks/discriminator.py

lint: setup ## check style and types
	@.venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/mypy && .venv/bin/lint-imports

clean: ## delete .venv, outputs and caches
	rm -rf .venv outputs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
