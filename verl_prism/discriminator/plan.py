"""Which rank computes which students of which group, and in which packs.

The plan is made from sizes, without tensors. It depends on nothing else, so that all ranks make the
same plan from the same sizes.

1. Each group is one unit of work. It is split if ranks would otherwise wait for the busiest one.
2. Units go to ranks, the largest first, each to the rank with the least work so far.
3. Each rank packs its units up to the limit of tokens.

Ranks that share a sharded model run their packs in step. Therefore all ranks get the same number of
packs if they can, each rank's packs are about equal, and the largest comes first.
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

Item = TypeVar("Item")
SpanTokens = tuple[int, ...]  # tokens of the span of each view, terminal tokens included

PATCH_SIZE = 0.2  # of a patch in a pack, in tokens
_WORTH_SPLITTING = 0.95  # relative load of the busiest rank that justifies more parts


@dataclass(frozen=True)
class GroupSizes:
    """Sizes of a group, in tokens and patches."""

    prompt: int  # tokens, those of its images included
    images: tuple[int, ...]  # patches of each image
    teacher: SpanTokens
    students: tuple[SpanTokens | None, ...]  # None: an invalid response

    def tokens(self, members: Sequence[int]) -> int:
        """Return the number of tokens of a part with these students, if no two are equal."""
        spans = [self.students[member] or () for member in members]
        return self.prompt + sum(self.teacher) + sum(map(sum, spans))

    def size(self, members: Sequence[int]) -> float:
        """Return how much of a pack's limit a part takes, in tokens.

        Patches of images count too. Otherwise packs of many images and little text would take more
        memory than those of text: the vision tower needs as much for a patch as the text layers of
        a discriminator from Qwen3-VL-2B need for 0.4 tokens, but not at the same time.
        """
        return self.tokens(members) + PATCH_SIZE * sum(self.images)

    @property
    def valid(self) -> int:
        """Number of valid students."""
        return sum(spans is not None for spans in self.students)


class Part(NamedTuple):
    """Some students of a group, with its prompt, its images and its teacher."""

    group: int  # index of the group
    members: tuple[int, ...]  # indices of the students in the group


PackPlan = tuple[Part, ...]
RankPlan = tuple[PackPlan, ...]


@dataclass(frozen=True)
class FlopModel:
    """Floating-point operations of one forward pass.

    Only matrix products count, and attention counts the pairs of tokens that see each other. There
    is no output layer over the vocabulary. In the last layer only terminal tokens go to experts.
    """

    layers: int
    token: float  # of one token in the attention projections of one layer
    expert_token: float  # of one token in the router and the active experts of one layer
    pair: float  # of one query and one key in one layer
    patch: float  # of one patch in the whole vision tower, without attention
    patch_pair: float  # of two patches of one image in the attention of all vision layers

    @classmethod
    def of(cls, config: Any) -> "FlopModel":
        """Take the sizes from a `DiscriminatorConfig`."""
        text = config.text_config
        heads = 2 * text.num_attention_heads + 2 * text.num_key_value_heads
        if config.routing == "dense":
            mlp = 3 * text.hidden_size * text.intermediate_size
        else:
            expert = 3 * text.hidden_size * text.moe_intermediate_size
            mlp = text.num_experts_per_tok * expert + text.num_experts * text.hidden_size
        vision = config.vision_config
        return cls(
            layers=text.num_hidden_layers,
            token=2 * text.hidden_size * text.head_dim * heads,
            expert_token=2 * mlp,
            pair=4 * text.num_attention_heads * text.head_dim,
            patch=_patch_flops(vision),
            patch_pair=4 * vision.hidden_size * vision.depth,
        )

    def image(self, patches: int) -> float:
        """Return the operations of encoding one image."""
        return self.patch * patches + self.patch_pair * patches**2

    def prompt(self, tokens: int) -> float:
        """Return the operations of the text layers on a prompt."""
        attention = self.token * tokens + self.pair * tokens**2 / 2
        return self.layers * attention + (self.layers - 1) * self.expert_token * tokens

    def span(self, prompt: int, tokens: int) -> float:
        """Return the operations of the text layers on a span after a prompt."""
        pairs = prompt * tokens + tokens**2 / 2
        attention = self.token * tokens + self.pair * pairs
        to_experts = (self.layers - 1) * tokens + 1
        return self.layers * attention + self.expert_token * to_experts

    def student(self, sizes: GroupSizes, member: int) -> float:
        """Return the operations of the spans of one student, 0 if it is invalid."""
        return sum(self.span(sizes.prompt, tokens) for tokens in sizes.students[member] or ())

    def shared(self, sizes: GroupSizes) -> float:
        """Return the operations that each part of a group repeats."""
        images = sum(map(self.image, sizes.images))
        teacher = sum(self.span(sizes.prompt, tokens) for tokens in sizes.teacher)
        return images + self.prompt(sizes.prompt) + teacher

    def part(self, sizes: GroupSizes, members: Sequence[int]) -> float:
        """Return the operations of a part of a group."""
        return self.shared(sizes) + sum(self.student(sizes, member) for member in members)


def training_factor(checkpointing: bool) -> int:
    """Return the operations of a training pass, relative to one forward pass.

    A backward pass costs two forward passes. Gradient checkpointing adds one forward pass.
    """
    return 4 if checkpointing else 3


def _patch_flops(vision: Any) -> float:
    hidden = vision.hidden_size
    layer = 2 * (4 * hidden**2 + 2 * hidden * vision.intermediate_size)
    merged = hidden * vision.spatial_merge_size**2
    merger = 2 * merged * (merged + vision.out_hidden_size) / vision.spatial_merge_size**2
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    mergers = 1 + len(vision.deepstack_visual_indexes)
    return 2 * hidden * pixels + vision.depth * layer + mergers * merger


def assign(
    sizes: Sequence[GroupSizes], world_size: int, max_tokens: int, flops: FlopModel
) -> list[RankPlan]:
    """Return the packs of each rank. Together they contain every student exactly once.

    A group is split only if it does not fit into `max_tokens`, or if that takes at least 5 % of the
    load off the busiest rank. A part repeats the prompt, the images and the teacher.

    Args:
        max_tokens: size of a pack; only a part with a single valid student may be larger.
    """
    planner = _Planner(sizes, max_tokens, flops)
    ranks = planner.balance(world_size)
    num_packs = max(len(planner.fewest_packs(parts)) for parts in ranks)
    return [planner.even_packs(parts, num_packs) for parts in ranks]


@dataclass(frozen=True)
class _Unit:
    """Parts of a group that go to the same rank."""

    parts: list[Part]
    flops: float


@dataclass(frozen=True)
class _Planner:
    sizes: Sequence[GroupSizes]
    max_tokens: int
    flops: FlopModel

    def balance(self, world_size: int) -> list[list[Part]]:
        """Return the parts of each rank."""
        best: list[list[_Unit]] | None = None
        for units in self._divisions(world_size):
            ranks = spread_evenly(units, [unit.flops for unit in units], world_size)
            if best is None or _busiest(ranks) < _WORTH_SPLITTING * _busiest(best):
                best = ranks
            total = sum(unit.flops for unit in units)
            if total / world_size >= _WORTH_SPLITTING * _busiest(best):
                break  # more parts only add to the total
        assert best is not None
        return [[part for unit in units for part in unit.parts] for units in best]

    def _divisions(self, world_size: int) -> Iterator[list[_Unit]]:
        """Yield the units without a split, then again and again with the largest one split more."""
        by_group = [self._units(group, 1) for group in range(len(self.sizes))]
        for _ in range(len(self.sizes) + world_size):
            yield [unit for units in by_group for unit in units]
            divisible = [g for g, units in enumerate(by_group) if len(units) < self.sizes[g].valid]
            if not divisible:
                return
            largest = max(divisible, key=lambda g: max(unit.flops for unit in by_group[g]))
            by_group[largest] = self._units(largest, len(by_group[largest]) + 1)

    def _units(self, group: int, count: int) -> list[_Unit]:
        """Divide a group into `count` units with about the same work."""
        units = []
        for members in self._divide(group, range(len(self.sizes[group].students)), count):
            parts = self._within_limit(group, members)
            units.append(_Unit(parts, sum(map(self._part_flops, parts))))
        return units

    def _within_limit(self, group: int, members: Sequence[int]) -> list[Part]:
        """Divide students of a group into as few parts as fit into the limit."""
        sizes = self.sizes[group]
        valid = sum(sizes.students[member] is not None for member in members)
        most = max(valid, 1)
        repeated = sizes.size([])
        fewest = most
        if repeated < self.max_tokens:
            needed = (sizes.size(members) - repeated) / (self.max_tokens - repeated)
            fewest = min(max(math.ceil(needed), 1), most)
        for count in range(fewest, most + 1):
            divided = self._divide(group, members, count)
            if max(map(sizes.size, divided)) <= self.max_tokens:
                break
        return [Part(group, tuple(sorted(each))) for each in divided]

    def _divide(self, group: int, members: Sequence[int], count: int) -> list[list[int]]:
        costs = [self.flops.student(self.sizes[group], member) for member in members]
        return spread_evenly(members, costs, count)

    def _part_flops(self, part: Part) -> float:
        return self.flops.part(self.sizes[part.group], part.members)

    def _part_size(self, part: Part) -> float:
        return self.sizes[part.group].size(part.members)

    def fewest_packs(self, parts: Sequence[Part]) -> list[list[Part]]:
        """Put each part, the longest first, into the first pack that has room for it."""
        packs: list[list[Part]] = []
        for part in sorted(parts, key=self._part_size, reverse=True):
            pack = next((pack for pack in packs if self._has_room(pack, part)), None)
            if pack is None:
                packs.append([part])
            else:
                pack.append(part)
        return packs

    def even_packs(self, parts: Sequence[Part], count: int) -> RankPlan:
        """Return up to `count` packs with about the same work, the one with the most first."""
        packs: list[list[Part]] = [[] for _ in range(min(count, len(parts)))]
        for part in sorted(parts, key=self._part_flops, reverse=True):
            with_room = [pack for pack in packs if not pack or self._has_room(pack, part)]
            if not with_room:
                packs = self.fewest_packs(parts)
                break
            min(with_room, key=self._pack_flops).append(part)
        return tuple(tuple(pack) for pack in sorted(packs, key=self._pack_flops, reverse=True))

    def _has_room(self, pack: Sequence[Part], part: Part) -> bool:
        return sum(map(self._part_size, pack)) + self._part_size(part) <= self.max_tokens

    def _pack_flops(self, pack: Sequence[Part]) -> float:
        return sum(map(self._part_flops, pack))


def spread_evenly(items: Sequence[Item], costs: Sequence[float], bins: int) -> list[list[Item]]:
    """Divide items into bins of about the same cost: the largest first, each into the least full.

    The order of the bins and ties depend only on the arguments. Bins may be empty.
    """
    divided: list[list[Item]] = [[] for _ in range(bins)]
    loads = [(0.0, number) for number in range(bins)]
    for index in sorted(range(len(items)), key=lambda index: -costs[index]):
        load, number = loads[0]
        divided[number].append(items[index])
        heapq.heapreplace(loads, (load + costs[index], number))
    return divided


def _busiest(ranks: Sequence[Sequence[_Unit]]) -> float:
    return max(sum(unit.flops for unit in units) for units in ranks)


def local_plan(plan: RankPlan) -> tuple[list[Part], RankPlan]:
    """Return what a rank has to hold of each of its groups, and its plan in these indices.

    A group that is in several packs of the rank is held once.
    """
    members: dict[int, list[int]] = {}
    for pack in plan:
        for part in pack:
            members.setdefault(part.group, []).extend(part.members)
    held = [Part(group, tuple(sorted(each))) for group, each in members.items()]
    number = {part.group: index for index, part in enumerate(held)}

    def local(part: Part) -> Part:
        index = number[part.group]
        positions = [held[index].members.index(member) for member in part.members]
        return Part(index, tuple(positions))

    return held, tuple(tuple(local(part) for part in pack) for pack in plan)
