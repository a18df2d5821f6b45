"""Groups of earlier steps, from which the discriminator learns again (arXiv 2609.30864).

A group holds the responses of the policy as it was in the group's step. Without them, a
discriminator can forget the faults that the policy no longer has, and the policy can return to
them. Each rank keeps some of its own groups, with their images, in host memory.
"""

import random
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from verl_prism.discriminator.batch import Group
from verl_prism.discriminator.stored_groups import from_plain, to_plain


class Remembered(NamedTuple):
    """A group and the step in which its responses were sampled."""

    step: int
    group: Group


class Replay:
    """The latest groups of one rank.

    What is drawn depends only on the seed, the step and the groups, so that a resumed run draws
    what an uninterrupted one does.
    """

    def __init__(self, share: float, capacity: int, seed: str) -> None:
        """Prepare an empty memory.

        Args:
            share: of the groups of an update that are from earlier steps, below 1; 0: none.
            capacity: number of groups to remember.
            seed: must differ between ranks.
        """
        self._ratio = share / (1 - share)
        self._seed = seed
        self._groups: deque[Remembered] = deque(maxlen=capacity if share else 0)

    @property
    def enabled(self) -> bool:
        """Whether groups are remembered."""
        return bool(self._groups.maxlen)

    def draw(self, step: int, new_groups: int) -> list[Remembered]:
        """Return earlier groups to learn from, next to this many new ones, each at most once.

        A fraction of a group is rounded at random, so that the share is right over many steps.
        """
        chooser = random.Random(f"{self._seed}/{step}")
        # The new groups of a rank may be so few that it would always be rounded to 0.
        exact = self._ratio * new_groups
        wanted = int(exact) + (chooser.random() < exact % 1)
        return chooser.sample(list(self._groups), min(wanted, len(self._groups)))

    def add(self, step: int, groups: Sequence[Group]) -> None:
        """Remember the groups of a step. The oldest ones make room for them."""
        self._groups.extend(Remembered(step, group) for group in groups)

    def save(self, folder: Path, rank: int) -> None:
        """Write the groups to `folder`, unless none are to be remembered."""
        if self.enabled:
            plain = [(step, to_plain(group)) for step, group in self._groups]
            torch.save(plain, replay_file(folder, rank))

    def load(self, folder: Path, rank: int) -> None:
        """Replace the groups by those that `save` wrote."""
        self._groups.clear()
        if self.enabled:
            for step, plain in torch.load(replay_file(folder, rank), weights_only=True):
                self._groups.append(Remembered(step, from_plain(plain)))


def replay_file(folder: Path, rank: int) -> Path:
    """Return the file of a rank in a checkpoint."""
    return folder / f"replay_rank_{rank}.pt"
