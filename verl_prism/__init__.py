"""Adversarial on-policy distillation for vision-language models, as an extension of verl."""
