"""Answers of teacher and policy to the same prompts, as groups for the warm-up."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from verl_prism.discriminator.batch import Group, Prompt, valid_pairs
from verl_prism.discriminator.spans import Spans, scored_spans, tokenize_spans
from verl_prism.response import View, parse_response


@dataclass(frozen=True)
class WarmupGroups:
    """Groups for training and held-out groups, of different prompts; counts of the rollouts."""

    train: list[Group]
    heldout: list[Group]
    rollouts: int
    invalid: int


def warmup_groups(
    prompts: Sequence[Prompt],
    teachers: Sequence[str],
    rollouts: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    limits: Mapping[View, int],
    heldout_fraction: float,
) -> WarmupGroups:
    """Pair `rollouts[prompt][sample]` with the teacher's response to the same prompt.

    An invalid rollout forms no pair and is counted. Prompts without a valid rollout are left out.
    """
    groups = []
    for prompt, text, sampled in zip(prompts, teachers, rollouts, strict=True):
        teacher = parse_response(text)
        assert teacher.valid, "teacher responses are checked before the run starts"
        students = [scored_spans(parse_response(each), tokenizer, limits)[1] for each in sampled]
        groups.append(Group(prompt, tokenize_spans(teacher, tokenizer), students))
    usable = [group for group in groups if valid_pairs([group])]
    num_heldout = max(1, round(heldout_fraction * len(usable)))
    num_rollouts = sum(len(group.students) for group in groups)
    return WarmupGroups(
        train=usable[num_heldout:],
        heldout=usable[:num_heldout],
        rollouts=num_rollouts,
        invalid=num_rollouts - valid_pairs(groups),
    )


def add_swapped_teachers(groups: Sequence[Group], count: int, seed: int) -> list[Group]:
    """Give each group `count` more students: the teacher's answers to other prompts.

    These are in the teacher's style but wrong for the picture, so the discriminator has to look at
    it. An answer that equals the prompt's own counts as invalid.
    """
    chooser = random.Random(seed)
    extended = []
    for group in groups:
        swapped: list[Spans | None] = []
        for _ in range(count):
            other = chooser.choice(groups).teacher
            swapped.append(None if other == group.teacher else other)
        extended.append(replace(group, students=[*group.students, *swapped]))
    return extended
