"""Lengths in tokens by split, in flat memory."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

KINDS = {
    "prompt": ("prompt, with its images", "max_prompt_tokens"),
    "images": ("images of a row", None),
    "response": ("response", "max_response_tokens"),
    "demonstration": ("demonstration", "max_demonstration_tokens"),
}

Counts = Counter[int]  # number of rows by their number of tokens


class Lengths:
    """Counts rows by their tokens. Memory: one entry per different length.

    counts: for each split and kind, the number of rows by their number of tokens.
    """

    def __init__(self, splits: Sequence[str]) -> None:
        self.counts: dict[str, dict[str, Counts]] = {split: {} for split in splits}

    def add(self, split: str, lengths: Mapping[str, Sequence[int]]) -> None:
        """Count the rows of a batch. lengths: tokens by kind."""
        for kind, tokens in lengths.items():
            self.counts[split].setdefault(kind, Counter()).update(tokens)

    def summary(self) -> Iterator[tuple[str, str]]:
        """Yield a name and the median, the 99th percentile and the maximum of each kind."""
        for split, kinds in self.counts.items():
            for kind, counts in kinds.items():
                median, most = (quantile(counts, 0.5), quantile(counts, 0.99))
                yield (
                    f"{split}, tokens of {KINDS[kind][0]}",
                    f"median {median:,}, 99 % up to {most:,}, longest {max(counts):,}",
                )


def quantile(counts: Counts, share: float) -> int:
    """Return the smallest length that at least this share of the rows does not exceed."""
    needed = share * counts.total()
    seen = 0
    for tokens in sorted(counts):
        seen += counts[tokens]
        if seen >= needed:
            return tokens
    raise ValueError("no rows")
