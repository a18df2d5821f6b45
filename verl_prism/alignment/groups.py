"""From rows of verl's replay store to the discriminator's groups."""

from itertools import groupby
from typing import Any

from tensordict import TensorDict

from verl_prism.discriminator.batch import VIEWS, Group, Prompt, Spans
from verl_prism.response import View, parse_response
from verl_prism.token_spans import TokenRange
from verl_prism.trainer.transfer import column

FIELDS = ["uid", "prompts", "multi_modal_inputs", "extra_fields", "teacher_response"]


def groups_of(data: TensorDict) -> list[Group]:
    """Groups of a rank's rows, in which the responses to one prompt stand side by side."""
    columns = {name: column(data[name]) for name in FIELDS}
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    return [_group(list(members)) for _, members in groupby(rows, key=lambda row: row["uid"])]


def _group(rows: list[dict[str, Any]]) -> Group:
    first = rows[0]
    images = first["multi_modal_inputs"]
    prompt = Prompt(first["prompts"], images.get("pixel_values"), images.get("image_grid_thw"))
    teacher = parse_response(first["teacher_response"])
    assert teacher.valid, f"teacher responses are checked before the run starts: {teacher.fault}"
    spans = {view: teacher.view_text(view) for view in View}
    return Group(
        prompt, spans, [_student(row["extra_fields"]["reward_extra_info"]) for row in rows]
    )


def _student(info: dict[str, Any]) -> Spans | None:
    return None if info["fault"] else {view: info[view.value] for view in View}


def token_ranges(info: dict[str, Any]) -> list[TokenRange]:
    """Tokens [start, end) of each view of a response, in the order of VIEWS; empty where it is invalid."""
    return [(info[f"{view.value}_start"], info[f"{view.value}_end"]) for view in VIEWS]


def uid_of(key: str) -> str:
    """The random name of a rollout's group, from verl's key `uid_session_index`."""
    return key.split("_")[0]
