"""Run by test_planned_ranks.py: steps on planned packs of random groups, by 1, 2, ... ranks.

The ranks are forks of this process, which has imported torch but computed nothing.
"""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import AutoProcessor

from verl_prism.discriminator import (
    VIEWS,
    DiscriminatorStep,
    FlopModel,
    Group,
    LossSettings,
    Optimization,
    Prompt,
    Ranks,
    StepSettings,
    assign,
    group_sizes,
    load_discriminator,
    local_plan,
    shard,
)
from verl_prism.stages.warmup_data import encode_row

MAX_TOKENS = 260  # of a pack; the largest groups have more
BALANCED = 3  # ranks of the plan for the load-balancing loss, however many ranks run it


def random_groups(prompts: list[Prompt], rng: random.Random) -> list[Group]:
    """1 to 5 groups of 1 to 8 students: invalid ones, duplicates, and prompts without an image."""

    def spans():
        return {view: tuple(rng.choices(range(20, 200), k=rng.randint(2, 30))) for view in VIEWS}

    def group() -> Group:
        prompt = rng.choice(prompts)
        if rng.random() < 0.3:
            prompt = Prompt(torch.tensor(rng.choices(range(20, 200), k=rng.randint(3, 20))))
        teacher = spans()
        students = [spans() for _ in range(rng.randint(1, 8))]
        students += rng.choices([None, teacher, students[0]], k=rng.randint(0, 3))
        rng.shuffle(students)
        return Group(prompt, teacher, students)

    return [group() for _ in range(rng.randint(1, 5))]


class Discriminator:
    """A sharded model that keeps the gradients of its last step and does not change."""

    def __init__(self, folder: str, ranks: Ranks):
        self.ranks = ranks
        self.model = load_discriminator(folder).train()
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if "experts" in name:
                    parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
        self.flops = FlopModel.of(self.model.config)
        if ranks.world_size > 1:
            shard(self.model, ranks, torch.float32)
        self.gradients: dict[str, torch.Tensor] = {}

    def keep(self) -> float:
        for name, parameter in self.model.named_parameters():
            if parameter.grad is None:
                continue
            sharded = self.ranks.world_size > 1
            gradient = parameter.grad.full_tensor() if sharded else parameter.grad.clone()
            self.gradients[name] = gradient
        return 1.0

    def share_of_experts(self) -> float:
        """The part of the experts' parameters that this rank stores, with FSDP's padding."""
        experts = [p for name, p in self.model.named_parameters() if "experts" in name]
        stored = 0
        for parameter in experts:
            local = parameter.to_local() if self.ranks.world_size > 1 else parameter
            stored += local.untyped_storage().nbytes() // local.element_size()
        return stored / sum(parameter.numel() for parameter in experts)

    def step(self, groups: list[Group], plan, balance: float) -> dict:
        settings = StepSettings(MAX_TOKENS, LossSettings(balance_coef=balance))
        optimization = Optimization(self.keep, self.model.zero_grad)
        step = DiscriminatorStep(self.model, settings, optimization, self.ranks, Path("unused"))
        held, packs = local_plan(plan)
        parts = []
        for group, members in held:
            students = [groups[group].students[member] for member in members]
            parts.append(replace(groups[group], students=students))
        self.gradients = {}
        result = step(parts, packs)
        scores = {}
        for p, (group, members) in enumerate(held):
            for n, member in enumerate(members):
                if result.scores.valid[p, n]:
                    scores[group, member] = result.scores.student[:, p, n].tolist()
        return {"gradients": self.gradients, "metrics": result.metrics, "scores": gathered(scores)}


def gathered(scores: dict) -> dict:
    """Join the scores of all ranks, which must have no row in common."""
    per_rank: list = [None] * dist.get_world_size()
    dist.all_gather_object(per_rank, scores)
    joined = {key: value for each in per_rank for key, value in each.items()}
    assert len(joined) == sum(map(len, per_rank))
    return joined


def run_rank(rank: int, world_size: int, folder: str, prompts: list[Prompt], seeds: int, out: Path):
    store = f"file://{out}/store-{world_size}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    discriminator = Discriminator(folder, Ranks("cpu"))
    results = []
    for seed in range(seeds):
        groups = random_groups(prompts, random.Random(seed))
        sizes = [group_sizes(group) for group in groups]
        plans = assign(sizes, world_size, MAX_TOKENS, discriminator.flops)
        results.append(discriminator.step(groups, plans[rank], balance=0.0))
    plans = assign(sizes, BALANCED, MAX_TOKENS, discriminator.flops)
    mine = sum(plans[rank::world_size], start=())
    results.append(discriminator.step(groups, mine, balance=1.0))
    shares: list = [None] * world_size
    dist.all_gather_object(shares, discriminator.share_of_experts())
    if rank == 0:
        torch.save({"steps": results, "shares": shares}, out / f"{world_size}.pt")
    dist.destroy_process_group()


def main(folder: str, train: str, seeds: str, out: str, *world_sizes: str) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    prompts = [encode_row(processor, row) for row in pq.read_table(train).slice(0, 4).to_pylist()]
    for world_size in map(int, world_sizes):
        arguments = (world_size, folder, prompts, int(seeds), Path(out))
        mp.start_processes(run_rank, arguments, world_size, start_method="fork")


main(*sys.argv[1:])
