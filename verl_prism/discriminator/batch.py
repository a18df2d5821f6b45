"""From texts to tensors: the one way by which a span becomes tokens, whoever wrote it.

A span is the caption or the reasoning of a response. It is tokenised on its own, from its text, and ends on the same
terminal token, so the teacher's and the policy's identical text are the same tokens, positions and score.

A pack holds whole groups end to end, without padding: each prompt with its image once, then each distinct span once.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from verl_prism.discriminator.attention import PackLayout, Segment
from verl_prism.response import View

VIEWS = (View.PERCEPTION, View.REASONING)
PROMPT = len(VIEWS)  # the kind of token that belongs to no view
Spans = Mapping[View, str]
SpanIds = tuple[int, ...]  # tokens of a span and the terminal token


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt: `input_ids[P]`, and `pixel_values[patches, dim]`, `image_grid_thw[images, 3]` or None."""

    input_ids: Tensor
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None


@dataclass(frozen=True)
class Group:
    """A prompt, the teacher's spans, and those of the N students; None stands for an invalid response."""

    prompt: Prompt
    teacher: Spans
    students: Sequence[Spans | None]


@dataclass(frozen=True)
class EncodedGroup:
    """A group, or some of its members, in tokens."""

    prompt: Prompt
    positions: Tensor  # [3, P]
    teacher: tuple[SpanIds, ...]  # per view
    students: tuple[tuple[SpanIds, ...] | None, ...]  # per member, per view
    group: int  # which of the groups this one is, or is part of
    members: tuple[int, ...]  # which of the group's students stand here

    @property
    def tokens(self) -> int:
        """Tokens that the model processes for it."""
        return len(self.prompt.input_ids) + sum(len(ids) for _, ids in self.spans())

    def spans(self) -> dict[tuple[int, SpanIds], None]:
        """The distinct (view, span), the teacher's first."""
        sides = (self.teacher, *(student for student in self.students if student is not None))
        return dict.fromkeys((view, ids) for side in sides for view, ids in enumerate(side))

    def only(self, members: Sequence[int]) -> "EncodedGroup":
        """The same prompt and teacher with some of the students, given by where they stand here."""
        return replace(
            self,
            students=tuple(self.students[m] for m in members),
            members=tuple(self.members[m] for m in members),
        )


@dataclass(frozen=True)
class Pack:
    """T tokens: groups end to end, each as its prompt and then its S distinct spans."""

    input_ids: Tensor  # [T]
    position_ids: Tensor  # [3, T] mRoPE: time, height, width
    token_kinds: Tensor  # [T] index into VIEWS, or PROMPT
    image_tokens: Tensor  # [T] True where an image token stands
    terminals: Tensor  # [S] where each span's terminal token stands
    views: Tensor  # [S] index into VIEWS
    pixel_values: Tensor | None  # [patches, dim] of the groups' images, end to end
    image_grid_thw: Tensor | None  # [images, 3]
    layout: PackLayout

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device | str | int) -> "Pack":
        moved: list[Any] = [
            None if value is None else value.to(device)
            for value in (getattr(self, field.name) for field in fields(self))
        ]
        return Pack(*moved)


@dataclass(frozen=True)
class ScoreIndex:
    """Which of a pack's spans hold the scores of G groups of N students: a text is scored once per group."""

    teacher: Tensor  # [views, G]
    student: Tensor  # [views, G, N], 0 where invalid
    valid: Tensor  # [G, N]


class SpanEncoder:
    """Tokenises groups and packs them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model_config):
        self._tokenizer = tokenizer
        self._image_token = model_config.image_token_id
        self._merge = model_config.vision_config.spatial_merge_size
        self._terminal = tokenizer.eos_token_id

    def span_ids(self, text: str) -> SpanIds:
        """Tokens of a span and the terminal token. A text that spells a special token is text, and smuggles none in."""
        return (
            *self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True),
            self._terminal,
        )

    def encode(self, group: Group) -> EncodedGroup:
        return EncodedGroup(
            group.prompt,
            mrope_positions(group.prompt, self._image_token, self._merge),
            self._views(group.teacher),
            tuple(None if spans is None else self._views(spans) for spans in group.students),
            group=0,
            members=tuple(range(len(group.students))),
        )

    def _views(self, spans: Spans) -> tuple[SpanIds, ...]:
        return tuple(self.span_ids(spans[view]) for view in VIEWS)

    def pack(self, groups: Sequence[EncodedGroup]) -> tuple[Pack, ScoreIndex]:
        """The groups end to end, and where their scores stand. Groups of fewer members than others have N invalid."""
        parts: list[_Part] = []
        where: dict[tuple[int, int, SpanIds], int] = {}
        for g, group in enumerate(groups):
            start = parts[-1].segment.stop if parts else 0
            prompt = Segment(
                start, start + len(group.prompt.input_ids), prompt_start=start, prompt_stop=start
            )
            parts.append(_Part(group.prompt.input_ids, group.positions, PROMPT, prompt))
            first = int(group.positions.max()) + 1
            for view, span in group.spans():
                where[g, view, span] = len(where)
                start = parts[-1].segment.stop
                segment = Segment(start, start + len(span), prompt.start, prompt.stop)
                positions = (first + torch.arange(len(span))).expand(3, -1)
                parts.append(_Part(torch.tensor(span), positions, view, segment))
        return self._join(parts, [group.prompt for group in groups]), _score_index(groups, where)

    def _join(self, parts: "Sequence[_Part]", prompts: Sequence[Prompt]) -> Pack:
        input_ids = torch.cat([part.ids for part in parts])
        token_kinds = torch.cat([torch.full_like(part.ids, part.kind) for part in parts])
        spans = [part for part in parts if part.kind != PROMPT]
        pixels = [prompt.pixel_values for prompt in prompts if prompt.pixel_values is not None]
        grids = [prompt.image_grid_thw for prompt in prompts if prompt.image_grid_thw is not None]
        return Pack(
            input_ids,
            torch.cat([part.positions for part in parts], dim=1),
            token_kinds,
            (input_ids == self._image_token) & (token_kinds == PROMPT),
            torch.tensor([span.segment.stop - 1 for span in spans]),
            torch.tensor([span.kind for span in spans]),
            torch.cat(pixels) if pixels else None,
            torch.cat(grids) if grids else None,
            PackLayout.of([part.segment for part in parts]),
        )


class _Part(NamedTuple):
    """A prompt or a span, where it stands in a pack."""

    ids: Tensor  # [L]
    positions: Tensor  # [3, L]
    kind: int
    segment: Segment


def _score_index(
    groups: Sequence[EncodedGroup], where: Mapping[tuple[int, int, SpanIds], int]
) -> ScoreIndex:
    students = max(len(group.students) for group in groups)
    teacher = torch.zeros(len(VIEWS), len(groups), dtype=torch.long)
    student = torch.zeros(len(VIEWS), len(groups), students, dtype=torch.long)
    valid = torch.zeros(len(groups), students, dtype=torch.bool)
    for g, group in enumerate(groups):
        teacher[:, g] = torch.tensor(
            [where[g, view, ids] for view, ids in enumerate(group.teacher)]
        )
        for n, spans in enumerate(group.students):
            if spans is not None:
                student[:, g, n] = torch.tensor(
                    [where[g, view, ids] for view, ids in enumerate(spans)]
                )
                valid[g, n] = True
    return ScoreIndex(teacher, student, valid)


def micro_batches(groups: Sequence[EncodedGroup], max_tokens: int) -> list[list[EncodedGroup]]:
    """Groups that go through the model together, in order: as many as fit max_tokens, at least one.

    A group over max_tokens is split into parts of as many students as fit, at least one. Each part repeats the prompt
    and the teacher; as the loss is a sum over pairs, its gradient stays the same.
    """
    batches: list[list[EncodedGroup]] = []
    room = 0
    for part in _parts(groups, max_tokens):
        if not batches or part.tokens > room:
            batches.append([])
            room = max_tokens
        batches[-1].append(part)
        room -= part.tokens
    return batches


def _parts(groups: Sequence[EncodedGroup], max_tokens: int) -> Iterator[EncodedGroup]:
    for g, group in enumerate(groups):
        whole = replace(group, group=g)
        if whole.tokens <= max_tokens:
            yield whole
            continue
        members: list[int] = []
        for m in range(len(whole.students)):
            if members and whole.only([*members, m]).tokens > max_tokens:
                yield whole.only(members)
                members = []
            members.append(m)
        yield whole.only(members)


def mrope_positions(prompt: Prompt, image_token: int, merge: int) -> Tensor:
    """Positions[3, P] (time, height, width) of a prompt's tokens, as Qwen3-VL counts them.

    Text advances all three together; an image of h x w merged patches spreads over its rows and columns and advances
    by the longer side.
    """
    grids = iter([] if prompt.image_grid_thw is None else prompt.image_grid_thw.tolist())
    parts: list[Tensor] = []
    position = 0
    for is_image, run in groupby((prompt.input_ids == image_token).tolist()):
        left = len(list(run))
        if not is_image:
            parts.append((position + torch.arange(left)).expand(3, -1))
            position += left
        while is_image and left:
            time, height, width = next(grids)
            height, width = height // merge, width // merge
            axes = (torch.arange(time), torch.arange(height), torch.arange(width))
            parts.append(position + torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1))
            left -= time * height * width
            position += max(height, width)
    return torch.cat(parts, dim=1)
