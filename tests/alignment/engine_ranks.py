"""Run by test_engine.py under torchrun: planned steps of the sharded discriminator engine."""

import sys
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from stored_rows import StoredRows, stored_row
from transformers import AutoProcessor

dist.init_process_group("gloo")  # before verl, as its workers do

from verl.workers.engine import EngineRegistry  # noqa: E402

from verl_prism.alignment import groups as groups_module  # noqa: E402
from verl_prism.alignment import planner as planner_module  # noqa: E402
from verl_prism.alignment.engine import MODEL_TYPE  # noqa: E402
from verl_prism.alignment.groups import read_groups, read_infos, scores_by_key  # noqa: E402
from verl_prism.alignment.worker import training_worker_config  # noqa: E402
from verl_prism.compose import compose_run  # noqa: E402
from verl_prism.discriminator import LossSettings, StepSettings, tokenize_spans  # noqa: E402
from verl_prism.response import parse_response  # noqa: E402
from verl_prism.stages.warmup_data import encode_row  # noqa: E402

WRONG = "<caption>A 1 and a 2.</caption><think>The sum is {}.</think><answer>5</answer>"
VALID = [(0, 2, 4), (1, 2, 3, 4), ()]  # valid students of the three groups
STUDENTS = 5


def build_engine(prism):
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


def stored_groups(discriminator, train) -> tuple[StoredRows, list[list[str]]]:
    """Three groups, and the keys of their rows."""
    processor = AutoProcessor.from_pretrained(discriminator)
    rows, keys = {}, []
    for g, row in enumerate(pq.read_table(train).slice(0, 3).to_pylist()):
        prompt = encode_row(processor, row)
        keys.append([f"{g}_{n}_0" for n in range(STUDENTS)])
        for n, key in enumerate(keys[g]):
            text = parse_response(WRONG.format("1" * (n + 1)))
            student = tokenize_spans(text, processor.tokenizer) if n in VALID[g] else None
            rows[key] = stored_row(prompt, row["teacher_response"], student)
    return StoredRows(rows), keys


def gathered(value):
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def main(discriminator, train, result):
    overrides = [f"prism.discriminator.path={discriminator}", "prism.discriminator.lr=1e-3"]
    tokens = "prism.discriminator.micro_batch_tokens=250"
    _, prism = compose_run(["stage=align", tokens, *overrides])
    engine = build_engine(prism)
    settings = StepSettings(micro_batch_tokens=1, loss=LossSettings(balance_coef=0.0))
    engine.prepare_steps(settings, Path(result).parent)
    store, keys = stored_groups(discriminator, train)
    groups_module.tq = planner_module.tq = store
    planner = planner_module.StepPlanner(prism.discriminator)

    def step(groups):
        """As the driver and a worker do together."""
        infos = read_infos([key for group in groups for key in group], "train")
        shares = planner.shares(groups, infos, "train", dist.get_world_size())
        share = shares[dist.get_rank()]
        store.reads.clear()
        members = read_groups(share)
        with engine.train_mode():
            done = engine.step_on(members, share.plan)
        return done.metrics, gathered(scores_by_key(share.groups, done.scores))

    first, scores = step(keys)
    reads = gathered(list(store.reads))
    second, _ = step(keys)
    none_valid, _ = step(keys[2:])
    weight = engine.module.heads["reasoning"].weight.full_tensor()
    for key in keys[0]:
        store.rows[key]["multi_modal_inputs"]["pixel_values"].fill_(torch.nan)
    nonfinite, _ = step(keys)
    after = engine.module.heads["reasoning"].weight.full_tensor()
    if dist.get_rank() == 0:
        torch.save(
            {
                "metrics": [first, second],
                "scores": scores,
                "reads": reads,
                "none_valid": none_valid,
                "nonfinite": nonfinite,
                "weight": weight,
                "after": after,
            },
            result,
        )
    engine.save_checkpoint(f"{result}.checkpoint", None, 1)


main(*sys.argv[1:])
