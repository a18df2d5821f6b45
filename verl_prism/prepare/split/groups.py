"""Groups of rows that share an image or a question, and the split of each group.

Memory: about 100 bytes per row, most of it while groups are formed.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


class SharedContent:
    """Digests of what the rows may share, in the order of the rows."""

    def __init__(self) -> None:
        self.rows = 0
        self._digests = array("Q")
        self._numbers = array("Q")  # the row of each digest

    def add(self, counts: Sequence[int], digests: Sequence[int]) -> None:
        """Add rows. counts: number of digests of each row, at least 1; digests: of all of them."""
        numbers = np.repeat(np.arange(self.rows, self.rows + len(counts)), counts)
        self._numbers.frombytes(numbers.astype(np.uint64).tobytes())
        self._digests.extend(digests)
        self.rows += len(counts)

    @property
    def digests(self) -> np.ndarray:
        """The digests [D], uint64."""
        return np.frombuffer(self._digests, np.uint64)

    @property
    def numbers(self) -> np.ndarray:
        """The row of each digest [D]."""
        return np.frombuffer(self._numbers, np.uint64).astype(np.int64)

    def rows_with(self, digests: np.ndarray) -> np.ndarray:
        """Return for each row whether it has any of these digests [N], bool."""
        found = np.zeros(self.rows, bool)
        found[self.numbers[np.isin(self.digests, digests)]] = True
        return found


@dataclass(frozen=True)
class Groups:
    """Groups of rows.

    Attributes:
        of_rows: number of each row's group [N].
        names: the smallest digest in each group [G], uint64.
    """

    of_rows: np.ndarray
    names: np.ndarray


def grouped(content: SharedContent) -> Groups:
    """Return the groups of rows that are linked by shared digests."""
    digests, nodes = np.unique(content.digests, return_inverse=True)
    size = content.rows + len(digests)
    edges = (np.ones(len(nodes), np.int8), (content.numbers, content.rows + nodes))
    _, labels = connected_components(coo_matrix(edges, shape=(size, size)), directed=False)
    # Digests are in order, so the first one of each group is its smallest.
    _, first = np.unique(labels[content.rows :], return_index=True)
    return Groups(labels[: content.rows], digests[first])


def drawn(names: np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """Return the number of the split of each group [G].

    names[G]: what identifies the groups. shares: probability of each split.
    """
    hashes = [xxhash.xxh3_64_intdigest(name.tobytes(), seed) for name in names]
    points = np.array(hashes, np.uint64) / 2.0**64
    splits = np.searchsorted(np.cumsum(shares), points, side="right")
    return np.minimum(splits, len(shares) - 1)
