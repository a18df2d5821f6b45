"""A picture of a few held-out questions with each policy's response."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from verl_prism.response import BLOCK_NAMES, parse_response

RIGHT = "#1a7f37"  # green
WRONG = "#b42318"  # red
INVALID = "#6e6e6e"  # gray

# Inches.
QUESTION_WIDTH = 1.9
CELL_WIDTH = 3.1
LINE_HEIGHT = 0.15
MIN_ROW_HEIGHT = 1.15

ROW_GAP = 0.12  # relative to a row's height
LINE_LENGTH = 44  # characters
MAX_LINES = 5  # of a block of a response

Block = tuple[str, list[str]]  # heading and lines
Marks = Mapping[str, Any]
Response = tuple[str, Marks]  # text, and its marks


def draw_examples(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    answers: Mapping[str, Sequence[Response]],
    count: int = 6,
) -> None:
    """Write a picture with one row per question and one column per policy.

    rows[Q]: the questions. answers: for each policy, its response to each question.
    count: number of questions to show.
    """
    verdicts = [  # [Q][P]
        [bool(marks["accuracy"]) for _, marks in given]
        for given in zip(*answers.values(), strict=True)
    ]
    chosen = choose(verdicts, count)
    responses = {question: [given[question] for given in answers.values()] for question in chosen}
    heights = [_row_height(responses[question]) for question in chosen]
    width = QUESTION_WIDTH + CELL_WIDTH * len(answers)
    height = sum(heights) * (1 + ROW_GAP) + 0.95
    figure = Figure(figsize=(width, height), dpi=150)
    grid = _grid(figure, heights, len(answers))
    for axes, title in zip(grid[0], ["question", *answers], strict=True):
        axes.set_title(title, fontsize=11, fontweight="bold", loc="left")
    for line, question in zip(grid, chosen, strict=True):
        _draw_question(line[0], rows[question])
        for axes, (text, marks) in zip(line[1:], responses[question], strict=True):
            _draw_response(axes, text, marks)
    note = textwrap.fill(explain(verdicts, chosen), int(width * 17))
    figure.text(0.15 / width, 0.08 / height, note, fontsize=7.5, color="#444444", va="bottom")
    figure.savefig(path)


def choose(verdicts: Sequence[Sequence[bool]], count: int) -> list[int]:
    """Return the numbers of `count` questions to show. verdicts[Q][P]: whether an answer is right.

    Questions are of four kinds, by the first and the last policy: repaired, broken, wrong in both,
    right in both. Half of the places are for repaired ones. The other kinds share the rest evenly,
    so that failures are shown too. Within a kind, the first questions are taken.
    """
    kinds: dict[tuple[bool, bool], list[int]] = {
        (False, True): [],
        (True, False): [],
        (False, False): [],
        (True, True): [],
    }
    for question, verdict in enumerate(verdicts):
        kinds[verdict[0], verdict[-1]].append(question)
    repaired, *others = kinds.values()
    chosen = repaired[: (count + 1) // 2]
    others = [*others, repaired[len(chosen) :]]
    while len(chosen) < count and any(others):
        chosen += [kind.pop(0) for kind in others if kind][: count - len(chosen)]
    return chosen


def explain(verdicts: Sequence[Sequence[bool]], chosen: Sequence[int]) -> str:
    """Return a note that tells how the examples were chosen, and from how many."""
    repaired = sum(not verdict[0] and verdict[-1] for verdict in verdicts)
    broken = sum(verdict[0] and not verdict[-1] for verdict in verdicts)
    return (
        "First sampled response of each policy. From the first to the last policy "
        f"{repaired} of {len(verdicts)} questions turned right and {broken} turned wrong. "
        f"The first questions of each kind are shown (numbers {', '.join(map(str, chosen))}); "
        "half of them turned right if there are enough."
    )


def blocks(text: str) -> list[Block]:
    """Return the blocks of a response or, if its format is invalid, the fault and the text."""
    response = parse_response(text)
    if not response.valid:
        return [(f"not in the format: {response.fault}", _lines(text))]
    contents = (response.caption, response.think, response.answer)
    return list(zip(BLOCK_NAMES, map(_lines, contents), strict=True))


def _lines(content: str) -> list[str]:
    printable = "".join(letter if letter.isprintable() else " " for letter in content)
    lines = textwrap.wrap(printable, LINE_LENGTH, max_lines=MAX_LINES, placeholder=" …")
    return lines or ["(nothing visible)"]


def _row_height(responses: Sequence[Response]) -> float:
    return max(MIN_ROW_HEIGHT, *(_height(blocks(text)) for text, _ in responses))


def _height(cell: Sequence[Block]) -> float:
    """Return inches: a heading, the lines and a small gap per block, and a line of verdicts."""
    return LINE_HEIGHT * (sum(1.3 + len(lines) for _, lines in cell) + 1.9)


def _grid(figure: Figure, heights: Sequence[float], policies: int) -> np.ndarray:
    """Return the axes[rows, 1 + policies]; the first column is for the question."""
    width, height = figure.get_size_inches()
    margins = {
        "left": 0.15 / width,
        "right": 1 - 0.1 / width,
        "top": 1 - 0.35 / height,
        "bottom": 0.6 / height,
    }
    return figure.subplots(
        len(heights),
        1 + policies,
        squeeze=False,
        width_ratios=[QUESTION_WIDTH, *[CELL_WIDTH] * policies],
        height_ratios=heights,
        gridspec_kw={**margins, "wspace": 0.04, "hspace": ROW_GAP},
    )


def _draw_question(axes: Axes, row: Mapping[str, Any]) -> None:
    axes.axis("off")
    images = row.get("images") or []
    width = 0.92 / max(1, len(images))
    for number, image in enumerate(images):
        inset = axes.inset_axes((number * width, 0.42, width * 0.96, 0.58))
        inset.imshow(Image.open(io.BytesIO(image["bytes"])).convert("RGB"), interpolation="nearest")
        inset.set_anchor("NW")
        inset.axis("off")
    question = row["prompt"][-1]["content"].replace("<image>", "").strip()
    wrapped = textwrap.fill(question, 26, max_lines=3, placeholder=" …")
    text = f"{wrapped}\ngold: {row['reward_model']['ground_truth']}"
    axes.text(0, 0.34, text, fontsize=8.5, va="top", transform=axes.transAxes, parse_math=False)


def _draw_response(axes: Axes, text: str, marks: Marks) -> None:
    """Draw a response in the color of its verdict: right, wrong or not in the format."""
    if not marks["format"]:
        color = INVALID
    elif marks["accuracy"]:
        color = RIGHT
    else:
        color = WRONG
    axes.set(xticks=[], yticks=[], facecolor=color + "14")
    axes.spines[:].set(color=color, linewidth=1.3)
    cell_height = axes.get_window_extent().height / axes.figure.dpi
    line = LINE_HEIGHT / cell_height
    top = 1 - 0.4 * line
    for heading, lines in blocks(text):
        _write(axes, 0.02, top, heading, fontsize=7, color=color, fontweight="bold")
        _write(axes, 0.02, top - 0.95 * line, "\n".join(lines), fontsize=8, linespacing=1.15)
        top -= line * (1.3 + len(lines))
    verdicts = _verdicts(marks)
    for number, (name, right) in enumerate(verdicts.items()):
        left = 0.02 + number / len(verdicts)
        if right:
            _write(axes, left, 1.25 * line, f"✓ {name}", fontsize=7, color=RIGHT)
        else:
            _write(axes, left, 1.25 * line, f"✗ {name}", fontsize=7, color=WRONG)


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Write plain text. (x, y): its upper left corner, in shares of the cell."""
    axes.text(
        x, y, text, va="top", transform=axes.transAxes, parse_math=False, clip_on=True, **style
    )


def _verdicts(marks: Marks) -> dict[str, bool]:
    """Return the verdicts on a response in a valid format: on its answer, and the task's own."""
    if not marks["format"]:
        return {}
    named = {"answer" if name == "accuracy" else name: mark for name, mark in marks.items()}
    del named["format"]
    return {name: mark for name, mark in named.items() if isinstance(mark, bool)}
