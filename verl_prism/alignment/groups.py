"""From rows of verl's replay store to the discriminator's groups."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from tensordict import TensorDict
from transformers import PreTrainedTokenizerBase

from verl_prism.discriminator.batch import Group, Prompt
from verl_prism.discriminator.spans import VIEWS, Spans, tokenize_spans
from verl_prism.response import View, parse_response
from verl_prism.token_spans import TokenRange
from verl_prism.trainer.transfer import column

FIELDS = ["uid", "prompts", "multi_modal_inputs", "extra_fields", "teacher_response"]


def groups_of(data: TensorDict, tokenizer: PreTrainedTokenizerBase) -> list[Group]:
    """Return the groups of a rank's rows, in which responses to the same prompt are adjacent.

    The students' spans were tokenized by the reward manager. Only the teacher's are tokenized here.
    """
    columns = [column(data[name]) for name in FIELDS]
    rows = [dict(zip(FIELDS, values, strict=True)) for values in zip(*columns, strict=True)]
    by_prompt = groupby(rows, key=lambda row: row["uid"])
    return [_group(list(members), tokenizer) for _, members in by_prompt]


def _group(rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> Group:
    first = rows[0]
    images = first["multi_modal_inputs"]
    prompt = Prompt(first["prompts"], images.get("pixel_values"), images.get("image_grid_thw"))
    teacher = parse_response(first["teacher_response"])
    assert teacher.valid, f"teacher responses are checked before the run starts: {teacher.fault}"
    students = [_student(row["extra_fields"]["reward_extra_info"]) for row in rows]
    return Group(prompt, tokenize_spans(teacher, tokenizer), students)


def _student(info: dict[str, Any]) -> Spans | None:
    if info["fault"]:
        return None
    return {view: tuple(info[ids_key(view)]) for view in View}


def ids_key(view: View) -> str:
    """Return the key under which the reward manager leaves the token ids of a span."""
    return f"{view.value}_ids"


def token_ranges(info: dict[str, Any]) -> list[TokenRange]:
    """Return the tokens [start, end) of each view of a response, in the order of VIEWS.

    The ranges of an invalid response are empty.
    """
    return [(info[f"{view.value}_start"], info[f"{view.value}_end"]) for view in VIEWS]


def uid_of(key: str) -> str:
    """Return the random name of a rollout's group, from verl's key `uid_session_index`."""
    return key.split("_")[0]
