"""Run by test_engine.py under torchrun: steps of the discriminator engine, sharded over the ranks."""

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
from verl_prism.discriminator.batch import Group  # noqa: E402
from verl_prism.discriminator.loss import LossWeights  # noqa: E402
from verl_prism.discriminator.step import StepSettings  # noqa: E402
from verl_prism.response import View, parse_response  # noqa: E402
from verl_prism.stages.warmup import encode_row  # noqa: E402

WRONG = "<caption>A 1 and a 2.</caption><think>The sum is 5.</think><answer>5</answer>"


def spans(text):
    response = parse_response(text)
    return {view: response.view_text(view) for view in View}


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
    """Four groups; the policy is right, wrong or invalid, and in the last two always invalid."""
    processor = AutoProcessor.from_pretrained(discriminator)
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
    engine.prepare_steps(StepSettings(LossWeights(balance=0.0), max_tokens=1), Path(result).parent)
    with engine.train_mode():
        updates = [engine.step_on(mine) for _ in range(2)]
        none_valid = engine.step_on(groups[2:])
    weight = engine.module.heads["reasoning"].weight.full_tensor()
    groups[0].prompt.pixel_values.fill_(torch.nan)  # of the first rank alone
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
