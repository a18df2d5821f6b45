"""Teacher and policy answers to the same prompts, as groups for the warm-up."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from verl_prism.config import Discriminator
from verl_prism.discriminator.batch import Group, Prompt, Spans
from verl_prism.response import Response, View, parse_response


@dataclass(frozen=True)
class WarmupGroups:
    """Groups to train on and groups kept out of training, split by prompt; counts of rollouts left out."""

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
    """Pair `rollouts[prompt][sample]` with each prompt's teacher response.

    An invalid rollout forms no pair and is counted. Prompts without a valid rollout are left out.
    """
    groups = []
    for prompt, text, sampled in zip(prompts, teachers, rollouts, strict=True):
        students = [scored_spans(parse_response(each), tokenizer, limits)[1] for each in sampled]
        teacher = parse_response(text)
        assert teacher.valid, "teacher responses are checked before the run starts"
        spans = {view: teacher.view_text(view) for view in View}
        groups.append(Group(prompt, spans, students))
    invalid = sum(spans is None for group in groups for spans in group.students)
    usable = [group for group in groups if any(spans is not None for spans in group.students)]
    kept_out = max(1, round(heldout_fraction * len(usable)))
    return WarmupGroups(usable[kept_out:], usable[:kept_out], sum(map(len, rollouts)), invalid)


def add_swapped_teachers(groups: Sequence[Group], count: int, seed: int) -> list[Group]:
    """Give each group `count` more students: the teacher's answers to other prompts.

    They are in the teacher's style and wrong for this picture, so a discriminator that tells them apart has looked at
    it. An answer that happens to be this prompt's own counts as invalid.
    """
    chooser = random.Random(seed)

    def swapped(group: Group) -> Spans | None:
        other = chooser.choice(groups).teacher
        return None if other == group.teacher else other

    return [
        replace(group, students=[*group.students, *(swapped(group) for _ in range(count))])
        for group in groups
    ]


def view_limits(settings: Discriminator) -> dict[View, int]:
    """The longest span that is scored, in tokens, per view."""
    return {
        View.PERCEPTION: settings.max_perception_tokens,
        View.REASONING: settings.max_reasoning_tokens,
    }


def scored_spans(
    response: Response, tokenizer: PreTrainedTokenizerBase, limits: Mapping[View, int]
) -> tuple[str | None, Spans | None]:
    """The fault of a response, or its two spans. A view over its limit is a fault."""
    if response.fault is not None:
        return response.fault.name.lower(), None
    spans = {view: response.view_text(view) for view in View}
    for view, span in spans.items():
        if (
            len(tokenizer.encode(span, add_special_tokens=False, split_special_tokens=True))
            > limits[view]
        ):
            return f"{view.value}_too_long", None
    return None, spans
