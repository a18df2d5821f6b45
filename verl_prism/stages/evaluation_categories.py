"""Stage `eval`: the results of each category of questions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from verl_prism.config import Prism
from verl_prism.data.rows import heldout_rows
from verl_prism.errors import UserError
from verl_prism.measures.marks import QuestionMarks, intervals
from verl_prism.rollout.sampling import Row

COLUMN = "data_source"


def read_categories(prism: Prism, questions: int) -> list[str]:
    """Return the category of each of the first questions (`prism.eval.category`).

    Raises:
        UserError: a question has no category.
    """
    name = prism.eval.category
    rows = heldout_rows(prism, (COLUMN, "extra_info"))
    found = []
    for number in range(questions):
        value = _value(rows[number], name)
        if value is None:
            raise UserError(
                f"prism.eval.category={name}: {rows.place(number)} has no such value in "
                f"extra_info; choose a field that all rows have, or {COLUMN}"
            )
        found.append(str(value))
    return found


def _value(row: Row, name: str) -> Any:
    if name == COLUMN:
        return row[COLUMN]
    return (row["extra_info"] or {}).get(name)


def by_category(
    marks: Mapping[str, Sequence[QuestionMarks]], categories: Sequence[str], field: str
) -> dict[str, Any] | None:
    """Return the intervals of each policy in each category, as in results.json.

    None if all questions are of one category.
    """
    names = list(dict.fromkeys(categories))
    if len(names) < 2:
        return None
    counts = {name: categories.count(name) for name in names}
    policies: dict[str, dict[str, Any]] = {}
    for policy, given in marks.items():
        policies[policy] = {}
        for name in names:
            of_category = [
                each for each, category in zip(given, categories, strict=True) if category == name
            ]
            found = intervals(of_category)
            policies[policy][name] = {mark: asdict(each) for mark, each in found.items()}
    return {"field": field, "questions": counts, "policies": policies}
