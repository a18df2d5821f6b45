"""The driver's plan of a step: which rank of the discriminator scores which rollouts.

The sizes of groups come from token ids, without reading any pixels.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby

import transfer_queue as tq
from transformers import AutoTokenizer

from verl_prism.alignment.groups import GroupRows, Info, RankShare, student_spans
from verl_prism.config import Discriminator
from verl_prism.discriminator.batch import span_tokens
from verl_prism.discriminator.costs import FlopModel, GroupSizes
from verl_prism.discriminator.model import DiscriminatorConfig
from verl_prism.discriminator.pairs import teacher_spans
from verl_prism.discriminator.plan import RankPlan, assign, local_plan
from verl_prism.discriminator.spans import Spans
from verl_prism.trainer.transfer import column


class StepPlanner:
    """Plans steps of one discriminator."""

    def __init__(self, settings: Discriminator):
        self._tokenizer = AutoTokenizer.from_pretrained(settings.path)
        config = DiscriminatorConfig.from_pretrained(settings.path)
        self._flops = FlopModel.of(config)
        self._max_tokens = settings.micro_batch_tokens
        self._image_token: int = config.image_token_id
        self._patches_per_token: int = config.vision_config.spatial_merge_size**2

    def shares(
        self, groups: Sequence[Sequence[str]], infos: Mapping[str, Info], partition: str, ranks: int
    ) -> list[RankShare]:
        """Divide groups among ranks.

        Args:
            groups: keys of the rows of each group.
            infos: of each row, by key.
            partition: of the TransferQueue.
        """
        first = [keys[0] for keys in groups]
        data = tq.kv_batch_get(
            keys=first, partition_id=partition, select_fields=["prompts", "teacher_response"]
        )
        prompts = [ids.tolist() for ids in column(data["prompts"])]
        texts = column(data["teacher_response"])
        teachers = [teacher_spans(text, self._tokenizer) for text in texts]
        sizes = []
        for ids, teacher, keys in zip(prompts, teachers, groups, strict=True):
            sizes.append(self._sizes(ids, teacher, [infos[key] for key in keys]))
        plans = assign(sizes, ranks, self._max_tokens, self._flops)
        return [_share(plan, groups, teachers, partition) for plan in plans]

    def _sizes(self, prompt: Sequence[int], teacher: Spans, infos: Sequence[Info]) -> GroupSizes:
        students = []
        for info in infos:
            spans = student_spans(info)
            students.append(None if spans is None else span_tokens(spans))
        return GroupSizes(
            prompt=len(prompt),
            images=tuple(self._image_patches(prompt)),
            teacher=span_tokens(teacher),
            students=tuple(students),
        )

    def _image_patches(self, prompt: Sequence[int]) -> list[int]:
        """Return the patches of each image. Its tokens are next to each other."""
        runs = groupby(prompt, key=lambda token: token == self._image_token)
        return [len(list(run)) * self._patches_per_token for is_image, run in runs if is_image]


def _share(
    plan: RankPlan, groups: Sequence[Sequence[str]], teachers: Sequence[Spans], partition: str
) -> RankShare:
    parts, packs = local_plan(plan)
    rows = []
    for group, members in parts:
        keys = tuple(groups[group][member] for member in members)
        rows.append(GroupRows(keys, teachers[group]))
    return RankShare(partition, tuple(rows), packs)
