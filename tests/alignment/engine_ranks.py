"""Run by test_engine.py under torchrun: steps of the sharded discriminator engine."""

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
    LossSettings,
    StepSettings,
    tokenize_spans,
)
from verl_prism.response import parse_response  # noqa: E402
from verl_prism.stages.warmup import encode_row  # noqa: E402

WRONG = "<caption>A 1 and a 2.</caption><think>The sum is 5.</think><answer>5</answer>"


def build_engine(discriminator):
    _, prism = compose_run(
        ["stage=align", f"prism.discriminator.path={discriminator}", "prism.discriminator.lr=1e-3"]
    )
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
    """Four groups. Students are wrong or invalid in the first two, and invalid in the others."""
    processor = AutoProcessor.from_pretrained(discriminator)

    def spans(text):
        return tokenize_spans(parse_response(text), processor.tokenizer)

    rows = pq.read_table(train).slice(0, 4).to_pylist()
    students = [[spans(WRONG), None], [spans(WRONG), spans(WRONG)], [None, None], [None, None]]
    return [
        Group(encode_row(processor, row), spans(row["teacher_response"]), texts)
        for row, texts in zip(rows, students, strict=True)
    ]


def main(discriminator, train, result):
    engine, groups = build_engine(discriminator), build_groups(discriminator, train)
    size = len(groups) // dist.get_world_size()
    mine = groups[dist.get_rank() * size :][:size]
    settings = StepSettings(micro_batch_tokens=1, loss=LossSettings(balance_coef=0.0))
    engine.prepare_steps(settings, Path(result).parent)
    with engine.train_mode():
        updates = [engine.step_on(mine) for _ in range(2)]
        none_valid = engine.step_on(groups[2:])
    weight = engine.module.heads["reasoning"].weight.full_tensor()
    groups[0].prompt.pixel_values.fill_(torch.nan)  # only on the first rank
    with engine.train_mode():
        nonfinite = engine.step_on(mine)
    after = engine.module.heads["reasoning"].weight.full_tensor()
    if dist.get_rank() == 0:
        torch.save(
            {
                "metrics": [update.metrics for update in updates],
                "none_valid": none_valid.metrics,
                "nonfinite": nonfinite.metrics,
                "weight": weight,
                "after": after,
            },
            result,
        )
    engine.save_checkpoint(f"{result}.checkpoint", None, 1)


main(*sys.argv[1:])
