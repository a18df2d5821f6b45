"""From rows of verl's TransferQueue to the discriminator's groups.

A row is one rollout. The driver knows the rows of each group and sends every rank its share: keys
of rows, and the teacher's spans. The rank then reads only these rows, and the images of a group
only once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import transfer_queue as tq
from transfer_queue import KVBatchMeta

from verl_prism.discriminator.batch import Group, Prompt
from verl_prism.discriminator.loss import GroupScores
from verl_prism.discriminator.plan import RankPlan
from verl_prism.discriminator.spans import VIEWS, Spans
from verl_prism.response import View
from verl_prism.token_spans import TokenRange
from verl_prism.trainer.transfer import column

ACCURACY = "acc"  # of a row, if the advantage has a term for it

Info = Mapping[str, Any]  # `reward_extra_info` of a row, see `DiscriminatorRewardManager.spans`
RowScores = tuple[float, ...]  # the score of each view, in the order of VIEWS


@dataclass(frozen=True)
class GroupRows:
    """A group, or a part of it, as keys of rows."""

    keys: tuple[str, ...]  # of each student
    teacher: Spans


@dataclass(frozen=True)
class RankShare:
    """What one rank of the discriminator computes in a step."""

    partition: str
    groups: tuple[GroupRows, ...]
    plan: RankPlan  # packs of these groups


@dataclass(frozen=True)
class ScoredShare:
    """What a rank returns."""

    scores: Mapping[str, RowScores]  # of each valid response of the share, by key
    metrics: Mapping[str, float]  # over all ranks


def read_infos(keys: Sequence[str], partition: str) -> dict[str, Info]:
    """Return what the reward manager left for each row: its fault, or its spans."""
    data = tq.kv_batch_get(keys=list(keys), partition_id=partition, select_fields=["extra_fields"])
    infos = [fields["reward_extra_info"] for fields in column(data["extra_fields"])]
    return dict(zip(keys, infos, strict=True))


def read_groups(share: RankShare) -> list[Group]:
    """Read the rows of a share."""
    if not share.groups:
        return []
    prompts = _read_prompts([rows.keys[0] for rows in share.groups], share.partition)
    keys = [key for rows in share.groups for key in rows.keys]
    infos = read_infos(keys, share.partition)
    groups = []
    for prompt, rows in zip(prompts, share.groups, strict=True):
        students = [student_spans(infos[key]) for key in rows.keys]
        groups.append(Group(prompt, rows.teacher, students))
    return groups


def _read_prompts(keys: Sequence[str], partition: str) -> list[Prompt]:
    data = tq.kv_batch_get(
        keys=list(keys), partition_id=partition, select_fields=["prompts", "multi_modal_inputs"]
    )
    prompts = []
    columns = (column(data["prompts"]), column(data["multi_modal_inputs"]))
    for ids, images in zip(*columns, strict=True):
        prompts.append(Prompt(ids, images.get("pixel_values"), images.get("image_grid_thw")))
    return prompts


def student_spans(info: Info) -> Spans | None:
    """Return the spans of a rollout, or None if it is invalid."""
    if info["fault"]:
        return None
    return {view: tuple(info[ids_key(view)]) for view in View}


def scores_by_key(groups: Sequence[GroupRows], scores: GroupScores) -> dict[str, RowScores]:
    """Return the scores of each valid response."""
    by_key = {}
    for g, rows in enumerate(groups):
        for n, key in enumerate(rows.keys):
            if scores.valid[g, n]:
                by_key[key] = tuple(scores.student[:, g, n].tolist())
    return by_key


def keys_by_group(batch: KVBatchMeta) -> list[list[str]]:
    """Return the keys of each group of a batch, without padding.

    Groups keep the order of the batch; sorting by key would not, as verl's group names are random.
    """
    groups: dict[str, list[str]] = {}
    for key, tag in zip(batch.keys, batch.tags, strict=True):
        if not tag.get("is_padding", False):
            groups.setdefault(uid_of(key), []).append(key)
    return list(groups.values())


def ids_key(view: View) -> str:
    """Return the key under which the reward manager leaves the token ids of a span."""
    return f"{view.value}_ids"


def token_ranges(info: Info) -> list[TokenRange]:
    """Return the tokens [start, end) of each view of a response, in the order of VIEWS.

    The ranges of an invalid response are empty.
    """
    return [(info[f"{view.value}_start"], info[f"{view.value}_end"]) for view in VIEWS]


def uid_of(key: str) -> str:
    """Return the random name of a rollout's group, from verl's key `uid_session_index`."""
    return key.split("_")[0]
