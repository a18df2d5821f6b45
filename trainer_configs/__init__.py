"""Hydra configs, installed as the package `verl_prism.trainer_configs`."""
