"""Groups of token ids as packs of tensors.

A pack holds whole groups one after another, without padding. Each group is its prompt with its
image once, followed by each distinct span once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from verl_prism.discriminator.attention import PackLayout, Segment
from verl_prism.discriminator.costs import FlopModel, GroupSizes, SpanTokens
from verl_prism.discriminator.plan import RankPlan, assign
from verl_prism.discriminator.spans import VIEWS, SpanIds, Spans

PROMPT = len(VIEWS)  # the token kind of a prompt's tokens
PLACEHOLDER_TOKENS = 128  # a block of FlexAttention


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt with the pixels of its images."""

    input_ids: Tensor  # [P]
    pixel_values: Tensor | None = None  # [patches, dim]
    image_grid_thw: Tensor | None = None  # [images, 3]

    def without_images(self, image_token: int) -> "Prompt":
        """Return the prompt without its images and their tokens."""
        return Prompt(self.input_ids[self.input_ids != image_token])

    def scrambled(self, generator: torch.Generator) -> "Prompt":
        """Return the prompt with the patches of its images in random order."""
        if self.pixel_values is None:
            return self
        order = torch.randperm(len(self.pixel_values), generator=generator)
        return replace(self, pixel_values=self.pixel_values[order])


@dataclass(frozen=True)
class Group:
    """A prompt, the teacher's spans and the spans of N students; None is an invalid response."""

    prompt: Prompt
    teacher: Spans
    students: Sequence[Spans | None]

    def scrambled(self, generator: torch.Generator) -> "Group":
        """Return the group with a scrambled prompt."""
        return replace(self, prompt=self.prompt.scrambled(generator))


def valid_pairs(groups: Sequence[Group]) -> int:
    """Return the number of valid student responses, each of which forms a pair."""
    return sum(spans is not None for group in groups for spans in group.students)


def group_sizes(group: Group) -> GroupSizes:
    """Return the sizes of a group, for the planner."""
    grids = group.prompt.image_grid_thw
    images = [] if grids is None else grids.prod(-1).tolist()
    students = [None if spans is None else span_tokens(spans) for spans in group.students]
    return GroupSizes(
        prompt=len(group.prompt.input_ids),
        images=tuple(images),
        teacher=span_tokens(group.teacher),
        students=tuple(students),
    )


def span_tokens(spans: Spans) -> SpanTokens:
    """Return the number of tokens of the span of each view."""
    return tuple(len(spans[view]) for view in VIEWS)


@dataclass(frozen=True)
class EncodedGroup:
    """A group, or a part of it with only some of the students, ready to be packed."""

    prompt: Prompt
    positions: Tensor  # [3, P]
    teacher: tuple[SpanIds, ...]  # per view
    students: tuple[tuple[SpanIds, ...] | None, ...]  # per student, per view

    @property
    def tokens(self) -> int:
        """Number of tokens that the model processes for it."""
        return len(self.prompt.input_ids) + sum(len(ids) for _, ids in self.spans())

    def spans(self) -> dict[tuple[int, SpanIds], None]:
        """Return the distinct pairs of view and span, the teacher's first."""
        distinct = dict.fromkeys(enumerate(self.teacher))
        for student in self.students:
            if student is not None:
                distinct |= dict.fromkeys(enumerate(student))
        return distinct

    def only(self, members: Sequence[int]) -> "EncodedGroup":
        """Return the part with only these students."""
        return replace(self, students=tuple(self.students[member] for member in members))


@dataclass(frozen=True)
class Pack:
    """T tokens of groups one after another, with S distinct spans."""

    input_ids: Tensor  # [T]
    position_ids: Tensor  # [3, T] mRoPE: time, height, width
    token_kinds: Tensor  # [T] index into VIEWS, or PROMPT
    image_tokens: Tensor  # [T] bool
    terminals: Tensor  # [S] position of each span's terminal token
    views: Tensor  # [S] index into VIEWS
    predictors: Tensor  # [K] position of the token before each of the spans' K tokens
    owners: Tensor  # [K] index of the span of each of these tokens
    pixel_values: Tensor | None  # [patches, dim] of all images
    image_grid_thw: Tensor | None  # [images, 3]
    layout: PackLayout

    @property
    def tokens(self) -> int:
        """Number of tokens T."""
        return len(self.input_ids)

    def to(self, device: torch.device | str | int) -> "Pack":
        """Copy all tensors to a device."""
        moved: list[Any] = []
        for field in fields(self):
            value = getattr(self, field.name)
            moved.append(None if value is None else value.to(device))
        return Pack(*moved)


@dataclass(frozen=True)
class ScoreIndex:
    """For G groups of N students, the index of the span in the pack that holds each score."""

    teacher: Tensor  # [views, G]
    student: Tensor  # [views, G, N], 0 if invalid
    valid: Tensor  # [G, N] bool


class GroupEncoder:
    """Computes the positions of prompts, plans packs and packs groups, for one model config."""

    def __init__(self, model_config: Any):
        self._flops = FlopModel.of(model_config)
        self._images: bool = model_config.images
        self._image_token: int = model_config.image_token_id
        self._merge: int = model_config.vision_config.spatial_merge_size

    def encode(self, group: Group) -> EncodedGroup:
        """Add the positions of the prompt's tokens and order the spans by view.

        If the model does not see images, the prompt loses them here.
        """
        prompt = group.prompt
        if not self._images:
            prompt = prompt.without_images(self._image_token)
        students = [None if spans is None else _by_view(spans) for spans in group.students]
        return EncodedGroup(
            prompt=prompt,
            positions=mrope_positions(prompt, self._image_token, self._merge),
            teacher=_by_view(group.teacher),
            students=tuple(students),
        )

    def plan(self, groups: Sequence[Group], max_tokens: int) -> RankPlan:
        """Divide groups into packs of at most `max_tokens` for one rank."""
        return assign([group_sizes(group) for group in groups], 1, max_tokens, self._flops)[0]

    def placeholder(self) -> tuple[Pack, ScoreIndex]:
        """Return a small pack without students, for a rank that has to wait for the others."""
        prompt = Prompt(torch.zeros(PLACEHOLDER_TOKENS, dtype=torch.long))
        teacher: Spans = dict.fromkeys(VIEWS, (0,))
        return self.pack([self.encode(Group(prompt, teacher, []))])

    def pack(self, groups: Sequence[EncodedGroup]) -> tuple[Pack, ScoreIndex]:
        """Join groups to a pack, with the index of their scores.

        N is the largest number of students. Groups with fewer are filled up with invalid ones.
        """
        parts: list[_Part] = []
        span_index: dict[tuple[int, int, SpanIds], int] = {}
        start = 0
        for g, group in enumerate(groups):
            prompt = _prompt_part(group, start)
            parts.append(prompt)
            start = prompt.segment.stop
            first_position = int(group.positions.max()) + 1
            for view, ids in group.spans():
                span_index[g, view, ids] = len(span_index)
                span = _span_part(ids, view, start, prompt.segment, first_position)
                parts.append(span)
                start = span.segment.stop
        pack = self._join(parts, [group.prompt for group in groups])
        return pack, _score_index(groups, span_index)

    def _join(self, parts: "Sequence[_Part]", prompts: Sequence[Prompt]) -> Pack:
        input_ids = torch.cat([part.ids for part in parts])
        token_kinds = torch.cat([torch.full_like(part.ids, part.kind) for part in parts])
        spans = [part for part in parts if part.kind != PROMPT]
        pixels = [prompt.pixel_values for prompt in prompts if prompt.pixel_values is not None]
        grids = [prompt.image_grid_thw for prompt in prompts if prompt.image_grid_thw is not None]
        return Pack(
            input_ids=input_ids,
            position_ids=torch.cat([part.positions for part in parts], dim=1),
            token_kinds=token_kinds,
            image_tokens=(input_ids == self._image_token) & (token_kinds == PROMPT),
            terminals=torch.tensor([span.segment.stop - 1 for span in spans]),
            views=torch.tensor([span.kind for span in spans]),
            predictors=torch.cat([_predictors(span.segment) for span in spans]),
            owners=torch.arange(len(spans)).repeat_interleave(
                torch.tensor([span.segment.length for span in spans])
            ),
            pixel_values=torch.cat(pixels) if pixels else None,
            image_grid_thw=torch.cat(grids) if grids else None,
            layout=PackLayout.of([part.segment for part in parts]),
        )


class _Part(NamedTuple):
    """A prompt or a span and its place in a pack."""

    ids: Tensor  # [L]
    positions: Tensor  # [3, L]
    kind: int
    segment: Segment


def _by_view(spans: Spans) -> tuple[SpanIds, ...]:
    return tuple(spans[view] for view in VIEWS)


def _prompt_part(group: EncodedGroup, start: int) -> _Part:
    stop = start + len(group.prompt.input_ids)
    segment = Segment(start, stop, prompt_start=start, prompt_stop=start)
    return _Part(group.prompt.input_ids, group.positions, PROMPT, segment)


def _span_part(ids: SpanIds, view: int, start: int, prompt: Segment, first_position: int) -> _Part:
    """Place a span after its prompt. All three of its positions count up from `first_position`."""
    segment = Segment(start, start + len(ids), prompt.start, prompt.stop)
    positions = (first_position + torch.arange(len(ids))).expand(3, -1)
    return _Part(torch.tensor(ids), positions, view, segment)


def _predictors(span: Segment) -> Tensor:
    """Return the position of the token before each token; before the first is the prompt's last."""
    positions = torch.arange(span.start - 1, span.stop - 1)
    positions[0] = span.prompt_stop - 1
    return positions


def _score_index(
    groups: Sequence[EncodedGroup], span_index: Mapping[tuple[int, int, SpanIds], int]
) -> ScoreIndex:
    students = max(len(group.students) for group in groups)
    teacher = torch.zeros(len(VIEWS), len(groups), dtype=torch.long)
    student = torch.zeros(len(VIEWS), len(groups), students, dtype=torch.long)
    valid = torch.zeros(len(groups), students, dtype=torch.bool)
    for g, group in enumerate(groups):
        for view, ids in enumerate(group.teacher):
            teacher[view, g] = span_index[g, view, ids]
        for n, spans in enumerate(group.students):
            if spans is None:
                continue
            valid[g, n] = True
            for view, ids in enumerate(spans):
                student[view, g, n] = span_index[g, view, ids]
    return ScoreIndex(teacher, student, valid)


def mrope_positions(prompt: Prompt, image_token: int, merge: int) -> Tensor:
    """Return positions[3, P] (time, height, width) of a prompt's tokens, as Qwen3-VL counts them.

    Text advances all three together. An image of h x w merged patches spreads over its rows and
    columns and then advances all three by the longer side.
    """
    grids = iter([] if prompt.image_grid_thw is None else prompt.image_grid_thw.tolist())
    parts: list[Tensor] = []
    position = 0
    for is_image, run in groupby((prompt.input_ids == image_token).tolist()):
        left = len(list(run))
        if not is_image:
            parts.append((position + torch.arange(left)).expand(3, -1))
            position += left
            continue
        while left:
            time, height, width = next(grids)
            height //= merge
            width //= merge
            axes = (torch.arange(time), torch.arange(height), torch.arange(width))
            parts.append(position + torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1))
            left -= time * height * width
            position += max(height, width)
    return torch.cat(parts, dim=1)
