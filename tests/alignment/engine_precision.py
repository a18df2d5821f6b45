"""Run by test_engine_precision.py under torchrun: steps of the engine as on a GPU, and dtypes."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from transformers import AutoProcessor

dist.init_process_group("gloo")  # before verl, as its workers do

from verl.workers.engine import EngineRegistry  # noqa: E402

from verl_prism.alignment.engine import MODEL_TYPE  # noqa: E402
from verl_prism.alignment.worker import training_worker_config  # noqa: E402
from verl_prism.compose import compose_run  # noqa: E402
from verl_prism.discriminator import (  # noqa: E402
    Group,
    GroupEncoder,
    LossSettings,
    StepSettings,
    tokenize_spans,
)
from verl_prism.response import parse_response  # noqa: E402
from verl_prism.stages.warmup_data import encode_row  # noqa: E402

WRONG = "<caption>A 1 and a 2.</caption><think>The sum is {}.</think><answer>5</answer>"


def build_engine(discriminator):
    overrides = ["prism.hardware.dtype=bfloat16", "prism.hardware.gradient_checkpointing=true"]
    path = f"prism.discriminator.path={discriminator}"
    _, prism = compose_run(["stage=align", path, "prism.discriminator.lr=1e-3", *overrides])
    config = training_worker_config(prism)
    engine = EngineRegistry.new(
        model_type=MODEL_TYPE,
        backend="fsdp2",
        model_config=config.model_config,
        engine_config=config.engine_config,
        optimizer_config=config.optimizer_config,
        checkpoint_config=config.checkpoint_config,
    )
    engine.initialize()
    return engine


def build_groups(discriminator, train):
    processor = AutoProcessor.from_pretrained(discriminator)

    def spans(text):
        return tokenize_spans(parse_response(text), processor.tokenizer)

    return [
        Group(
            encode_row(processor, row),
            spans(row["teacher_response"]),
            [spans(WRONG.format("1" * (n + 1))) for n in range(2)],
        )
        for row in pq.read_table(train).slice(0, 2).to_pylist()
    ]


def main(discriminator, train, result):
    engine = build_engine(discriminator)
    seen = set()

    def see(experts, inputs):
        seen.update({inputs[0].dtype, experts.gate_up_proj.dtype, experts.down_proj.dtype})

    for layer in engine.module.model.language_model.layers:
        layer.mlp.experts.register_forward_pre_hook(see)
    settings = StepSettings(micro_batch_tokens=1, loss=LossSettings(balance_coef=1.0))
    engine.prepare_steps(settings, Path(result).parent)
    mine = build_groups(discriminator, train)[dist.get_rank() :: dist.get_world_size()]
    plan = GroupEncoder(engine.module.config).plan(mine, max_tokens=1)
    with engine.train_mode():
        steps = [engine.step_on(mine, plan) for _ in range(2)]
    if dist.get_rank() == 0:
        master = {parameter.dtype for parameter in engine.module.parameters()}
        metrics = [step.metrics for step in steps]
        scores = steps[0].scores.student
        torch.save(
            {"experts": seen, "master": master, "metrics": metrics, "scores": scores}, result
        )


main(*sys.argv[1:])
