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
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from verl_prism.discriminator.costs import FlopModel, GroupSizes

Item = TypeVar("Item")
_WORTH_SPLITTING = 0.95  # relative load of the busiest rank that justifies more parts


class Part(NamedTuple):
    """Some students of a group, with its prompt, its images and its teacher."""

    group: int  # index of the group
    members: tuple[int, ...]  # indices of the students in the group


PackPlan = tuple[Part, ...]
RankPlan = tuple[PackPlan, ...]


def assign(
    sizes: Sequence[GroupSizes], world_size: int, max_tokens: int, flops: FlopModel
) -> list[RankPlan]:
    """Return the packs of each rank. Together they contain every student exactly once.

    A group is split only if it does not fit into `max_tokens`, or if that takes at least 5 % of the
    load off the busiest rank. A part repeats the prompt, the images and the teacher.

    Args:
        max_tokens: size of a pack; only a part with a single valid student may be larger.
    """
    divider = _Divider(sizes, max_tokens, flops)
    ranks = _balance(divider, world_size)
    num_packs = max(len(_fewest_packs(parts, max_tokens)) for parts in ranks)
    plans = []
    for parts in ranks:
        packs = _even_packs(parts, num_packs, max_tokens)
        packs.sort(key=lambda pack: -pack.flops)
        plans.append(tuple(tuple(pack.parts) for pack in packs))
    return plans


class _SizedPart(NamedTuple):
    part: Part
    size: float  # as `GroupSizes.size` counts it
    flops: float


@dataclass(frozen=True)
class _Unit:
    """Parts of a group that go to the same rank."""

    parts: list[_SizedPart]
    flops: float


@dataclass
class _OpenPack:
    """A pack that is being filled."""

    parts: list[Part] = field(default_factory=list)
    size: float = 0.0
    flops: float = 0.0

    def add(self, part: _SizedPart) -> None:
        self.parts.append(part.part)
        self.size += part.size
        self.flops += part.flops


@dataclass(frozen=True)
class _Divider:
    """Divides groups into units and parts."""

    sizes: Sequence[GroupSizes]
    max_tokens: int
    flops: FlopModel

    def divisions(self, world_size: int) -> Iterator[list[_Unit]]:
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
            units.append(_Unit(parts, sum(part.flops for part in parts)))
        return units

    def _within_limit(self, group: int, members: Sequence[int]) -> list[_SizedPart]:
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
        return [self._sized_part(group, sorted(each)) for each in divided]

    def _divide(self, group: int, members: Sequence[int], count: int) -> list[list[int]]:
        costs = [self.flops.student(self.sizes[group], member) for member in members]
        return spread_evenly(members, costs, count)

    def _sized_part(self, group: int, members: Sequence[int]) -> _SizedPart:
        sizes = self.sizes[group]
        flops = self.flops.part(sizes, members)
        return _SizedPart(Part(group, tuple(members)), sizes.size(members), flops)


def _balance(divider: _Divider, world_size: int) -> list[list[_SizedPart]]:
    """Return the parts of each rank."""
    best: list[list[_Unit]] | None = None
    for units in divider.divisions(world_size):
        ranks = spread_evenly(units, [unit.flops for unit in units], world_size)
        if best is None or _busiest(ranks) < _WORTH_SPLITTING * _busiest(best):
            best = ranks
        total = sum(unit.flops for unit in units)
        if total / world_size >= _WORTH_SPLITTING * _busiest(best):
            break  # more parts only add to the total
    assert best is not None
    return [[part for unit in units for part in unit.parts] for units in best]


def _busiest(ranks: Sequence[Sequence[_Unit]]) -> float:
    return max(sum(unit.flops for unit in units) for units in ranks)


def _fewest_packs(parts: Sequence[_SizedPart], max_tokens: int) -> list[_OpenPack]:
    """Put each part, the largest first, into the first pack that has room for it."""
    packs: list[_OpenPack] = []
    for part in sorted(parts, key=lambda part: -part.size):
        pack = next((pack for pack in packs if pack.size + part.size <= max_tokens), None)
        if pack is None:
            pack = _OpenPack()
            packs.append(pack)
        pack.add(part)
    return packs


def _even_packs(parts: Sequence[_SizedPart], count: int, max_tokens: int) -> list[_OpenPack]:
    """Put parts into up to `count` packs with about the same work."""
    packs = [_OpenPack() for _ in range(min(count, len(parts)))]
    for part in sorted(parts, key=lambda part: -part.flops):
        with_room = [
            pack for pack in packs if not pack.parts or pack.size + part.size <= max_tokens
        ]
        if not with_room:
            return _fewest_packs(parts, max_tokens)
        min(with_room, key=lambda pack: pack.flops).add(part)
    return packs


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


def shifted(plan: RankPlan, first: int) -> RankPlan:
    """Return the plan for the same groups after `first` others."""
    return tuple(tuple(Part(part.group + first, part.members) for part in pack) for pack in plan)


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
