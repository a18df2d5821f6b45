"""Compute what our discriminator step saves over the reference algorithm at the paper's sizes.

    python benchmarks/plan.py
    python benchmarks/plan.py --spread 0.25 --ranks 16 --max-tokens 32768

It is arithmetic on the packs that our planner and packer make; no model is built. One step is 16
responses to each prompt, on 8 ranks, at the size of Qwen3-VL-2B with 4 experts. The reference makes
one pass for each text, with the image: one to score a student's text and three (forward and
backward) to learn from it, and three for the teacher's text with each student. The gain is the
reference's operations per rank over those of our busiest rank. A recomputed forward pass counts on
neither side. The exit code is 1 if a gain is below its bar, or the memory over 80 GB.

The columns:

- texts: tokens of the prompt, most of which is an image, of a caption and of a reasoning.
- unsplit: the limit, if no group were split and all ranks were equally busy.
- rows cut: rows divided evenly and in order among ranks, in packs of 8,192 tokens.
- planned: our plan.
- in step: our plan, if each pack takes as long as the costliest pack of all ranks in its turn.
- bar: the least gain of our plan.
- packs: of the rank with most.
- tokens and memory: of the largest pack; of its activations, by the estimate of the doctor.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich import box
from rich.console import Console
from rich.table import Column, Table

from verl_prism.compose import compose_run
from verl_prism.discriminator import (
    VIEWS,
    DiscriminatorConfig,
    FlopModel,
    Group,
    GroupEncoder,
    GroupSizes,
    Part,
    Prompt,
    RankPlan,
    assign,
    group_sizes,
)
from verl_prism.discriminator.batch import Pack
from verl_prism.doctor.memory_estimate import DeviceMemory
from verl_prism.doctor.sizes import sizes_of
from verl_prism.gpu_check.problem import MERGE, QWEN3_VL_2B, config_fields, reference_flops

STUDENTS = 16
OLD_MAX_TOKENS = 8192  # of the actor
MEMORY = 80e9  # bytes of an H100
SHARE_OF_LIMIT = 0.9  # bar for 16 prompts


@dataclass(frozen=True)
class Shape:
    """Lengths in tokens, the side of the square image in patches, and the bar for 4 prompts."""

    prompt: int
    caption: int
    reasoning: int
    image_side: int
    bar: float


SHAPES = (
    Shape(800, 300, 700, 34, 5.5),
    Shape(2048, 1000, 5000, 80, 3.8),
    Shape(4096, 300, 1200, 120, 15.5),
    Shape(4096, 600, 5400, 120, 5.5),
)


@dataclass(frozen=True)
class Result:
    """Gains over the reference, and the largest pack."""

    shape: Shape
    prompts: int
    unsplit: float
    rows_cut: float
    planned: float
    in_step: float
    packs: int  # of the rank with most
    tokens: int  # of the largest pack
    activations: int  # bytes

    @property
    def bar(self) -> float:
        """The least gain that is asked for."""
        return self.shape.bar if self.prompts == 4 else SHARE_OF_LIMIT * self.unsplit


class Comparison:
    """Compares the algorithms on one number of ranks."""

    def __init__(self, ranks: int, spread: float, max_tokens: int | None):
        _, prism = compose_run(["stage=align", "model=qwen3_vl_8b", "hardware=8xh100"])
        self._config = DiscriminatorConfig(**config_fields(QWEN3_VL_2B))
        self._flops = FlopModel.of(self._config)
        self._encoder = GroupEncoder(self._config)
        self._sizes = sizes_of(self._config)
        self._device = DeviceMemory(prism.hardware, prism.data)
        self._ranks = ranks
        self._spread = spread
        self.max_tokens = max_tokens or prism.discriminator.micro_batch_tokens

    def total_memory(self) -> int:
        """Return the doctor's estimate of the discriminator's update, with the policy offloaded."""
        update = self._device.discriminator_update(self._sizes, self.max_tokens, self._device.ranks)
        return sum((self._device.processes() | update).values())

    def compare(self, shape: Shape, prompts: int) -> Result:
        """Return the gains for one shape."""
        groups = make_groups(shape, prompts, self._spread)
        sizes = [group_sizes(group) for group in groups]
        everyone = range(STUDENTS)
        reference = sum(reference_flops(self._flops, each) for each in sizes) / self._ranks
        unsplit = 3 * sum(self._flops.part(each, everyone) for each in sizes) / self._ranks
        cut = [self._costs(groups, plan) for plan in rows_cut(sizes, self._ranks)]
        plans = assign(sizes, self._ranks, self.max_tokens, self._flops)
        packs = [list(self._packs(groups, plan)) for plan in plans]
        costs = [[self._pack_flops(pack) for pack in each] for each in packs]
        largest = max((pack for each in packs for pack in each), key=lambda pack: pack.tokens)
        image_tokens = int(largest.image_tokens.sum())
        return Result(
            shape=shape,
            prompts=prompts,
            unsplit=reference / unsplit,
            rows_cut=reference / max(map(sum, cut)),
            planned=reference / max(map(sum, costs)),
            in_step=reference / in_step(costs),
            packs=max(map(len, packs)),
            tokens=largest.tokens,
            activations=self._device.activations(self._sizes, largest.tokens, image_tokens),
        )

    def _costs(self, groups: Sequence[Group], plan: RankPlan) -> list[float]:
        return [self._pack_flops(pack) for pack in self._packs(groups, plan)]

    def _packs(self, groups: Sequence[Group], plan: RankPlan) -> Iterator[Pack]:
        for parts in plan:
            encoded = [self._encoder.encode(groups[g]).only(members) for g, members in parts]
            yield self._encoder.pack(encoded)[0]

    def _pack_flops(self, pack: Pack) -> float:
        """Return the operations of a forward and a backward pass over a pack, from its layout."""
        assert pack.image_grid_thw is not None
        total = sum(self._flops.image(int(grid.prod())) for grid in pack.image_grid_thw)
        for segment in pack.layout.segments:
            if segment.prompt_length:
                total += self._flops.span(segment.prompt_length, segment.length)
            else:
                total += self._flops.prompt(segment.length)
        return 3 * total


def make_groups(shape: Shape, prompts: int, spread: float) -> list[Group]:
    """Groups of distinct texts whose lengths vary by up to `spread`. There are no pixels."""
    rng = random.Random(0)
    vocabulary = QWEN3_VL_2B.vocabulary - 5

    def ids(mean: int) -> tuple[int, ...]:
        length = round(mean * rng.uniform(1 - spread, 1 + spread))
        return tuple(rng.choices(range(1, vocabulary), k=length))

    def spans():
        return dict(zip(VIEWS, (ids(shape.caption), ids(shape.reasoning)), strict=True))

    image = [QWEN3_VL_2B.image_token] * (shape.image_side // MERGE) ** 2
    prompt = Prompt(
        torch.tensor([*image, *[1] * (shape.prompt - len(image))]),
        image_grid_thw=torch.tensor([[1, shape.image_side, shape.image_side]]),
    )
    return [Group(prompt, spans(), [spans() for _ in range(STUDENTS)]) for _ in range(prompts)]


def rows_cut(sizes: Sequence[GroupSizes], ranks: int) -> list[RankPlan]:
    """Divide rows evenly and in order among ranks, in packs with one part each."""
    rows = [(g, n) for g, group in enumerate(sizes) for n in range(len(group.students))]
    per_rank = len(rows) // ranks
    plans = []
    for rank in range(ranks):
        packs: list[tuple[Part, ...]] = []
        for group, member in rows[rank * per_rank : (rank + 1) * per_rank]:
            if packs and packs[-1][0].group == group:
                together = (*packs[-1][0].members, member)
                if sizes[group].tokens(together) <= OLD_MAX_TOKENS:
                    packs[-1] = (Part(group, together),)
                    continue
            packs.append((Part(group, (member,)),))
        plans.append(tuple(packs))
    return plans


def in_step(costs: Sequence[Sequence[float]]) -> float:
    """Return the sum over turns of the costliest pack of any rank."""
    total = 0.0
    for turn in range(max(map(len, costs))):
        total += max(each[turn] for each in costs if turn < len(each))
    return total


def results_table(results: Sequence[Result]) -> Table:
    """Return one line for each shape and number of prompts."""
    texts = Column("texts", no_wrap=True)
    table = Table("prompts", texts, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("unsplit", "rows cut", "planned", "in step", "bar", "packs", "tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    for each in results:
        shape = each.shape
        table.add_row(
            str(each.prompts),
            f"{shape.prompt}/{shape.caption}/{shape.reasoning}",
            f"{each.unsplit:.2f}",
            f"{each.rows_cut:.2f}",
            f"{each.planned:.2f}",
            f"{each.in_step:.2f}",
            f"{each.bar:.2f}",
            str(each.packs),
            f"{each.tokens:,}",
            f"{each.activations / 1e9:.1f} GB",
        )
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--prompts", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--spread", type=float, default=0.0, help="of the lengths of texts")
    parser.add_argument("--max-tokens", type=int, help="of a pack; default: the paper's setting")
    options = parser.parse_args(arguments)
    comparison = Comparison(options.ranks, options.spread, options.max_tokens)
    results = []
    for prompts in options.prompts:
        results += [comparison.compare(shape, prompts) for shape in SHAPES]
    memory = comparison.total_memory()
    console = Console(width=90)
    console.print(results_table(results))
    console.print(
        f"Packs of at most {comparison.max_tokens:,} tokens. The doctor estimates "
        f"{memory / 1e9:.1f} GB on each of 8 devices in the update of the discriminator, while the "
        "policy is in host memory."
    )
    missed = [each for each in results if each.planned < each.bar]
    return 1 if missed or memory > MEMORY else 0


if __name__ == "__main__":
    sys.exit(main())
