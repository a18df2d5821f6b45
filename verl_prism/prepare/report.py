"""What a command did, for the console and for the data card."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Report:
    """What a command did.

    Attributes:
        counts: numbers in words: {"rows read": 100, "rows written": 97}.
        rejects: rows that were left out, by reason.
        figures: other results, such as tokens and costs.
        outputs: the files that were written.
        problems: what is wrong with the data, one line each; the exit code is then 1.
    """

    counts: Mapping[str, int]
    rejects: Mapping[str, int] = field(default_factory=dict)
    figures: Mapping[str, float | str] = field(default_factory=dict)
    outputs: tuple[Path, ...] = ()
    problems: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the report as lines of text."""
        lines = [f"{count:,} {name}" for name, count in self.counts.items()]
        most = sorted(self.rejects.items(), key=lambda item: -item[1])
        lines += [f"left out: {count:,} {reason}" for reason, count in most]
        lines += [f"{name}: {_shown(value)}" for name, value in self.figures.items()]
        lines += [f"-> {path}" for path in self.outputs]
        return lines


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.6g}"
