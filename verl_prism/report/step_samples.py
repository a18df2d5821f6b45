"""Samples of each training step in the run folder: JSON lines, which the report shows.

A sample has the step, the number of its row in `prism.data.train`, the policy's response, and what
the stage knows about it: scores, advantage, reward. Question, image and the teacher's response are
read from the data when they are shown.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from verl_prism.files import write_atomically
from verl_prism.run_folder import RunFolder

STEP, ROW, RESPONSE = "step", "row", "response"

Sample = Mapping[str, Any]
Item = TypeVar("Item")


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """Return at most `count` of the items, with about equal distances."""
    if len(items) <= count:
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]


def add_samples(run: RunFolder, samples: Iterable[Sample]) -> None:
    """Append samples to the file."""
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    with run.step_samples.open("a", encoding="utf-8") as file:
        file.writelines(lines)


def read_samples(run: RunFolder) -> list[Sample]:
    """Return all samples; none if there is no file. An incomplete last line is skipped."""
    if not run.step_samples.exists():
        return []
    lines = run.step_samples.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def keep_samples(run: RunFolder, last: int) -> None:
    """Remove the samples of steps after `last`, before a run resumes there."""
    if not run.step_samples.exists():
        return
    kept = [sample for sample in read_samples(run) if sample[STEP] <= last]
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in kept]
    write_atomically(run.step_samples, "".join(lines))
