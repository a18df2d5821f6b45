"""The discriminator: a library of its own on torch, transformers and safetensors, with no verl, ray or vllm in it.

Importing this package registers the model with transformers' Auto classes.
"""

from verl_prism.discriminator.model import (
    DiscriminatorConfig,
    PrismDiscriminatorForTokenClassification,
    load_discriminator,
)

__all__ = ["DiscriminatorConfig", "PrismDiscriminatorForTokenClassification", "load_discriminator"]
