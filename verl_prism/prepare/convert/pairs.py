"""The pairs of a warm-up: lines with a teacher's and a student's caption and reasoning."""

from typing import Any

from verl_prism.data.row_files import Row
from verl_prism.prepare.convert.columns import PAIR_TEXTS
from verl_prism.prepare.convert.records import Place, Rejected, Values
from verl_prism.prepare.convert.rows import RowMaker
from verl_prism.prepare.convert.seen import Group, Groups, Line
from verl_prism.prepare.convert.texts import check_response, joined_response


def add_line(groups: Groups, plan: int, maker: RowMaker, place: Place, values: Values) -> None:
    """Add a line to its group.

    Raises:
        Rejected: it lacks a text, or a response is not in the response format.
    """
    rest = {name: value for name, value in values.items() if name not in PAIR_TEXTS}
    lacking = [name for name in PAIR_TEXTS if values.get(name) in (None, "")]
    if lacking:
        raise Rejected(f"pair lacks {' and '.join(lacking)}")
    row = maker.question_row(rest)
    teacher = _response("teacher", values)
    student = _response("student", values)
    key: Any = (row["prompt"], row["images"], maker.images_name)
    groups.add(plan, key, rest, teacher, Line(place, maker.source_id(rest), student))


def group_row(maker: RowMaker, group: Group) -> Row:
    """Return the row of a group of lines.

    Raises:
        Rejected: an image cannot be used.
    """
    maker.notes.clear()
    row = maker.question_row(group.values)
    maker.demonstration(row, group.teacher)
    row["student_responses"] = [line.student for line in group.lines]
    return maker.finish(row, group.values)


def _response(side: str, values: Values) -> str:
    response = joined_response(values[f"{side}_caption"], values[f"{side}_cot"], None)
    check_response(f"{side}'s response", response)
    return response
