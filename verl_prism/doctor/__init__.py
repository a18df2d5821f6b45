"""Checks before a run: `python -m verl_prism.doctor [overrides]` reports what would stop it."""
