"""Groups as plain types, which `torch.save` and `torch.load(weights_only=True)` take."""

from typing import Any

from verl_prism.discriminator.batch import Group, Prompt
from verl_prism.discriminator.spans import VIEWS, Spans


def to_plain(group: Group) -> dict[str, Any]:
    """Return tensors and lists that contain the group."""
    return {
        "prompt_ids": group.prompt.input_ids,
        "pixel_values": group.prompt.pixel_values,
        "image_grid_thw": group.prompt.image_grid_thw,
        "teacher_ids": _plain_spans(group.teacher),
        "student_ids": [None if spans is None else _plain_spans(spans) for spans in group.students],
    }


def from_plain(plain: dict[str, Any]) -> Group:
    """Return the group of which `to_plain` made `plain`."""
    prompt = Prompt(plain["prompt_ids"], plain["pixel_values"], plain["image_grid_thw"])
    students = [None if spans is None else _spans(spans) for spans in plain["student_ids"]]
    return Group(prompt, _spans(plain["teacher_ids"]), students)


def _plain_spans(spans: Spans) -> dict[str, list[int]]:
    return {view.value: list(spans[view]) for view in VIEWS}


def _spans(plain: dict[str, list[int]]) -> Spans:
    return {view: tuple(plain[view.value]) for view in VIEWS}
