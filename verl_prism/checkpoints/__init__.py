"""Checkpoints of a stage: saved atomically, resumed, and exported as Hugging Face folders."""
