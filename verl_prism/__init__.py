"""Adversarial on-policy distillation for vision-language models, as an extension of verl."""

__version__ = "0.1.0"
