"""What a check says, and what it is told."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from omegaconf import DictConfig

from verl_prism.config import ON_RAY, Prism

Level = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Finding:
    """level: a fault would stop the run, or spoil it. cure: how to mend it; what is ok needs none."""

    level: Level
    text: str
    cure: str = ""


@dataclass(frozen=True)
class Case:
    """The run that is looked at."""

    config: DictConfig
    prism: Prism

    @property
    def rl(self) -> bool:
        """Whether it runs on Ray."""
        return self.prism.stage in ON_RAY


Check = Callable[[Case], Iterator[Finding]]


def ok(text: str) -> Finding:
    return Finding("ok", text)


def warning(text: str, cure: str) -> Finding:
    return Finding("warning", text, cure)


def fault(text: str, cure: str) -> Finding:
    return Finding("fault", text, cure)
