"""A picture of a few held-out questions with what each policy answered."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from verl_prism.response import BLOCK_NAMES, parse_response

if TYPE_CHECKING:
    from verl_prism.stages.evaluation import Answers

RIGHT, WRONG, INVALID = "#1a7f37", "#b42318", "#6e6e6e"
QUESTION_WIDTH, CELL_WIDTH = 1.9, 3.1  # inches
LINE_HEIGHT, MIN_ROW_HEIGHT = 0.15, 1.15  # inches
ROW_GAP = 0.12  # of a row's height
CHARACTERS, MAX_LINES = 44, 5  # of a block of a response
Cell = list[tuple[str, list[str]]]  # heading and lines of each block


def draw_examples(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    answers: Mapping[str, Sequence["Answers"]],
    count: int = 6,
) -> None:
    """Write the picture: one row per question, one column per policy, each with its first sampled response."""
    verdicts = [
        [bool(given[q].samples[0].marks["accuracy"]) for given in answers.values()]
        for q in range(len(rows))
    ]
    chosen = choose(verdicts, count)
    texts = [[given[q].samples[0].sample.text for given in answers.values()] for q in chosen]
    marks = [[given[q].samples[0].marks for given in answers.values()] for q in chosen]
    heights = [max(MIN_ROW_HEIGHT, *(_height(blocks(text)) for text in line)) for line in texts]
    width, height = QUESTION_WIDTH + CELL_WIDTH * len(answers), sum(heights) * (1 + ROW_GAP) + 0.95
    figure = Figure(figsize=(width, height), dpi=150)
    grid = figure.subplots(
        len(chosen),
        1 + len(answers),
        squeeze=False,
        width_ratios=[QUESTION_WIDTH, *[CELL_WIDTH] * len(answers)],
        height_ratios=heights,
        gridspec_kw={
            "left": 0.15 / width,
            "right": 1 - 0.1 / width,
            "top": 1 - 0.35 / height,
            "bottom": 0.6 / height,
            "wspace": 0.04,
            "hspace": ROW_GAP,
        },
    )
    for axes, title in zip(grid[0], ["question", *answers], strict=True):
        axes.set_title(title, fontsize=11, fontweight="bold", loc="left")
    for line, question, line_texts, line_marks in zip(grid, chosen, texts, marks, strict=True):
        _draw_question(line[0], rows[question])
        for axes, text, mark in zip(line[1:], line_texts, line_marks, strict=True):
            _draw_response(axes, text, mark)
    note = textwrap.fill(explain(verdicts, chosen), int(width * 17))
    figure.text(0.15 / width, 0.08 / height, note, fontsize=7.5, color="#444444", va="bottom")
    figure.savefig(path)


def choose(verdicts: Sequence[Sequence[bool]], count: int) -> list[int]:
    """Question numbers: the first of each kind in turn, kinds with change first. verdicts[Q][P]: right or wrong.

    Kinds, by the first and the last policy: repaired, broken, wrong in both, right in both. Half of the places are for
    repaired ones; the others are shared out evenly, so that what went wrong is shown too.
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
    """How the examples were picked, and how many there were to pick from."""
    repaired = sum(not verdict[0] and verdict[-1] for verdict in verdicts)
    broken = sum(verdict[0] and not verdict[-1] for verdict in verdicts)
    return (
        f"First sampled response of each policy. From the first to the last policy {repaired} of {len(verdicts)} "
        f"questions turned right and {broken} turned wrong. Shown are the first of each kind by question number "
        f"({', '.join(map(str, chosen))}), half of them turned right where there are enough."
    )


def blocks(text: str) -> Cell:
    """The blocks of a response with what they hold; of an invalid one its fault, and the text as it is."""
    response = parse_response(text)
    if not response.valid:
        return [(f"not in the format: {response.fault}", _lines(text))]
    contents = (response.caption, response.think, response.answer)
    return [(name, _lines(content)) for name, content in zip(BLOCK_NAMES, contents, strict=True)]


def _lines(content: str) -> list[str]:
    content = "".join(character if character.isprintable() else " " for character in content)
    return textwrap.wrap(content, CHARACTERS, max_lines=MAX_LINES, placeholder=" …") or [
        "(nothing visible)"
    ]


def _height(cell: Cell) -> float:
    """Inches: per block a heading, its lines and a small gap, and one line for the verdicts."""
    return LINE_HEIGHT * (sum(1.3 + len(lines) for _, lines in cell) + 1.9)


def _draw_question(axes: Axes, row: Mapping[str, Any]) -> None:
    axes.axis("off")
    for number, image in enumerate(row["images"]):
        width = 0.92 / len(row["images"])
        inset = axes.inset_axes((number * width, 0.42, width * 0.96, 0.58))
        inset.imshow(Image.open(io.BytesIO(image["bytes"])).convert("RGB"), interpolation="nearest")
        inset.set_anchor("NW")
        inset.axis("off")
    question = row["prompt"][-1]["content"].replace("<image>", "").strip()
    text = f"{textwrap.fill(question, 26, max_lines=3, placeholder=' …')}\ngold: {row['reward_model']['ground_truth']}"
    axes.text(0, 0.34, text, fontsize=8.5, va="top", transform=axes.transAxes, parse_math=False)


def _draw_response(axes: Axes, text: str, marks: Mapping[str, Any]) -> None:
    """Green where the answer is right, red where it is wrong, grey where the response is not in the format."""
    colour = INVALID if not marks["format"] else RIGHT if marks["accuracy"] else WRONG
    axes.set(xticks=[], yticks=[], facecolor=colour + "14")
    axes.spines[:].set(color=colour, linewidth=1.3)
    style: dict[str, Any] = {
        "va": "top",
        "transform": axes.transAxes,
        "parse_math": False,
        "clip_on": True,
    }
    line = LINE_HEIGHT / (
        axes.get_window_extent().height / axes.figure.dpi
    )  # in parts of the cell's height
    top = 1 - 0.4 * line
    for heading, lines in blocks(text):
        axes.text(0.02, top, heading, fontsize=7, color=colour, fontweight="bold", **style)
        axes.text(0.02, top - 0.95 * line, "\n".join(lines), fontsize=8, linespacing=1.15, **style)
        top -= line * (1.3 + len(lines))
    for number, (name, right) in enumerate(verdicts := _verdicts(marks)):
        verdict, verdict_colour = (f"{name} right", RIGHT) if right else (f"{name} wrong", WRONG)
        axes.text(
            0.02 + number / len(verdicts),
            1.25 * line,
            verdict,
            fontsize=7,
            color=verdict_colour,
            **style,
        )


def _verdicts(marks: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """The marks that are right or wrong, of a response in the format: the answer and the task's own."""
    if not marks["format"]:
        return []
    named = {
        "answer" if name == "accuracy" else name: mark
        for name, mark in marks.items()
        if name != "format"
    }
    return [(name, mark) for name, mark in named.items() if isinstance(mark, bool)]
