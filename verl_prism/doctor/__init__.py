"""Looks for what would stop a run, before it has cost a GPU hour: `python -m verl_prism.doctor [overrides]`."""
