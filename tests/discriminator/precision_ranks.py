"""Run by test_precision.py under torchrun: a sharded step as real runs make it, and its gradients.

With gradient checkpointing, the load-balancing loss and views that choose among experts. It needs
only the discriminator's dependencies, so that it runs beside any torch:

    PYTHONPATH=. torchrun --nproc-per-node=2 tests/discriminator/precision_ranks.py OUT.pt head
"""

import sys
import tempfile
from pathlib import Path

import torch
from one_step import make_config, make_group, make_tokenizer
from torch.distributed.tensor import DTensor
from transformers import AutoModelForTokenClassification

from verl_prism.discriminator import (
    DiscriminatorStep,
    LossSettings,
    Optimization,
    PrismDiscriminatorForTokenClassification,
    Ranks,
    StepSettings,
    process_group,
    shard,
)

GROUPS = 4


def make_model(scoring: str) -> PrismDiscriminatorForTokenClassification:
    torch.manual_seed(0)
    config = make_config(make_tokenizer())
    config.text_config.num_experts = 8
    config.scoring = scoring
    model = AutoModelForTokenClassification.from_config(config).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def watch_experts(model: PrismDiscriminatorForTokenClassification) -> set[torch.dtype]:
    """The dtypes, filled in by forward passes, of the experts' inputs and weights."""
    seen: set[torch.dtype] = set()

    def see(experts: torch.nn.Module, inputs: tuple) -> None:
        seen.update({inputs[0].dtype, experts.gate_up_proj.dtype, experts.down_proj.dtype})

    for layer in model.model.language_model.layers:
        layer.mlp.experts.register_forward_pre_hook(see)
    return seen


def run(scoring: str, dtype: torch.dtype, ranks: Ranks) -> dict:
    model = make_model(scoring)
    seen = watch_experts(model)
    shard(model, ranks, dtype)
    torch.manual_seed(1)
    groups = [make_group(make_tokenizer()) for _ in range(GROUPS)]
    gradients = {}

    def keep() -> float:
        for name, parameter in model.named_parameters():
            assert isinstance(parameter, DTensor)
            assert parameter.dtype == torch.float32
            gradients[name] = parameter.grad.full_tensor()
        return 0.0

    step = DiscriminatorStep(
        model,
        StepSettings(micro_batch_tokens=1, loss=LossSettings(balance_coef=1.0)),
        Optimization(keep, model.zero_grad),
        ranks,
        Path(tempfile.gettempdir()),
    )
    result = step(groups[ranks.rank :: ranks.world_size])
    return {
        "gradients": gradients,
        "metrics": result.metrics,
        "scores": result.scores.student,
        "experts": seen,
    }


def main(file: str, scoring: str) -> None:
    with process_group("cpu") as ranks:
        results = {dtype: run(scoring, dtype, ranks) for dtype in (torch.float32, torch.bfloat16)}
        if ranks.rank == 0:
            torch.save(results, file)


main(*sys.argv[1:])
