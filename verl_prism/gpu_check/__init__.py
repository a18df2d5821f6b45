"""Check the discriminator, and then every stage, on one GPU: python -m verl_prism.gpu_check.

The discriminator's part needs only torch, transformers, safetensors, numpy and Pillow, and no
network. docs/gpu.md explains the report.
"""
