"""From texts to tensors: the one way by which a span becomes tokens, whoever wrote it.

A span is the caption or the reasoning of a response. It is tokenised on its own, from its text, and ends on the same
terminal token, so the teacher's and the policy's identical text are the same tokens, positions and score.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from verl_prism.response import View

VIEWS = (View.PERCEPTION, View.REASONING)
PROMPT, PADDING = len(VIEWS), len(VIEWS) + 1  # kinds of token besides the views
Spans = Mapping[View, str]


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
class SpanBatch:
    """R rows of prompt + span, padded on the right to L."""

    input_ids: Tensor  # [R, L]
    position_ids: Tensor  # [3, R, L] mRoPE: time, height, width
    token_kinds: Tensor  # [R, L] index into VIEWS, PROMPT or PADDING
    lengths: Tensor  # [R]
    views: Tensor  # [R] index into VIEWS
    image_tokens: Tensor  # [R, L] True where an image token stands
    image_features: Tensor  # [image tokens of all rows] index of the feature that each shows
    pixel_values: Tensor | None  # [patches, dim] of the distinct images
    image_grid_thw: Tensor | None  # [images, 3]

    def to(self, device: torch.device | str | int) -> "SpanBatch":
        moved: list[Any] = [
            None if tensor is None else tensor.to(device)
            for tensor in (getattr(self, field.name) for field in fields(self))
        ]
        return SpanBatch(*moved)


@dataclass(frozen=True)
class ScoreIndex:
    """Where in a batch's rows the scores of G groups of N students stand: a text is scored once per group."""

    teacher: Tensor  # [views, G]
    student: Tensor  # [views, G, N], 0 where invalid
    valid: Tensor  # [G, N]


class SpanEncoder:
    """Tokenises spans and lays groups out as batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model_config):
        self._tokenizer = tokenizer
        self._image_token = model_config.image_token_id
        self._merge = model_config.vision_config.spatial_merge_size
        self._terminal = tokenizer.eos_token_id
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def span_ids(self, text: str) -> list[int]:
        """Tokens of a span and the terminal token. A text that spells a special token is text, and smuggles none in."""
        return [*self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True), self._terminal]

    def batch(self, groups: Sequence[Group]) -> tuple[SpanBatch, ScoreIndex]:
        """One row for each distinct (group, view, text)."""
        rows: dict[tuple[int, View, str], int] = {}

        def row(group: int, view: View, text: str) -> int:
            return rows.setdefault((group, view, text), len(rows))

        teacher = [[row(g, view, group.teacher[view]) for g, group in enumerate(groups)] for view in VIEWS]
        student = [
            [[0 if spans is None else row(g, view, spans[view]) for spans in group.students]
             for g, group in enumerate(groups)]
            for view in VIEWS
        ]  # fmt: skip
        valid = [[spans is not None for spans in group.students] for group in groups]
        index = ScoreIndex(torch.tensor(teacher), torch.tensor(student), torch.tensor(valid))
        return self._lay_out(groups, list(rows)), index

    def _lay_out(self, groups: Sequence[Group], rows: list[tuple[int, View, str]]) -> SpanBatch:
        positions = [mrope_positions(group.prompt, self._image_token, self._merge) for group in groups]
        spans = [self.span_ids(text) for _, _, text in rows]
        lengths = [len(groups[g].prompt.input_ids) + len(span) for (g, _, _), span in zip(rows, spans, strict=True)]
        shape = (len(rows), max(lengths))
        input_ids = torch.full(shape, self._pad)
        token_kinds = torch.full(shape, PADDING)
        position_ids = torch.zeros(3, *shape, dtype=torch.long)
        for r, ((g, view, _), span) in enumerate(zip(rows, spans, strict=True)):
            prompt, stop = len(groups[g].prompt.input_ids), lengths[r]
            input_ids[r, :prompt], input_ids[r, prompt:stop] = groups[g].prompt.input_ids, torch.tensor(span)
            token_kinds[r, :prompt], token_kinds[r, prompt:stop] = PROMPT, VIEWS.index(view)
            position_ids[:, r, :prompt] = positions[g]
            position_ids[:, r, prompt:stop] = positions[g].max() + 1 + torch.arange(stop - prompt)
        return SpanBatch(
            input_ids,
            position_ids,
            token_kinds,
            torch.tensor(lengths),
            torch.tensor([VIEWS.index(view) for _, view, _ in rows]),
            (input_ids == self._image_token) & (token_kinds == PROMPT),
            *self._images([group.prompt for group in groups], [g for g, _, _ in rows]),
        )

    def _images(self, prompts: Sequence[Prompt], row_prompts: list[int]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Which image feature each image token of each row shows; the distinct images, end to end."""
        counts = [int((prompt.input_ids == self._image_token).sum()) for prompt in prompts]
        starts = [sum(counts[:g]) for g in range(len(prompts))]
        shown = [torch.arange(starts[g], starts[g] + counts[g]) for g in row_prompts]
        pixels = [prompt.pixel_values for prompt in prompts if prompt.pixel_values is not None]
        grids = [prompt.image_grid_thw for prompt in prompts if prompt.image_grid_thw is not None]
        return torch.cat(shown), torch.cat(pixels) if pixels else None, torch.cat(grids) if grids else None


def mrope_positions(prompt: Prompt, image_token: int, merge: int) -> Tensor:
    """Positions[3, P] (time, height, width) of a prompt's tokens, as Qwen3-VL counts them.

    Text advances all three together; an image of h x w merged patches spreads over its rows and columns and advances
    by the longer side.
    """
    is_image = (prompt.input_ids == image_token).tolist()
    grids = iter([] if prompt.image_grid_thw is None else prompt.image_grid_thw.tolist())
    parts: list[Tensor] = []
    position = token = 0
    while token < len(is_image):
        if is_image[token]:
            time, height, width = next(grids)
            height, width = height // merge, width // merge
            grid = torch.stack(
                torch.meshgrid(torch.arange(time), torch.arange(height), torch.arange(width), indexing="ij")
            )
            parts.append(position + grid.flatten(1))
            token += time * height * width
            position += max(height, width)
        else:
            parts.append(torch.full((3, 1), position))
            token += 1
            position += 1
    return torch.cat(parts, dim=1)


def micro_batches(groups: Sequence[Group], encoder: SpanEncoder, max_tokens: int) -> Iterator[list[int]]:
    """Indices of groups that go through the model together: as many as fit max_tokens, at least one."""
    batch: list[int] = []
    total = 0
    for g, group in enumerate(groups):
        tokens = _group_tokens(group, encoder)
        if batch and total + tokens > max_tokens:
            yield batch
            batch, total = [], 0
        batch.append(g)
        total += tokens
    if batch:
        yield batch


def _group_tokens(group: Group, encoder: SpanEncoder) -> int:
    texts = {(view, spans[view]) for spans in (group.teacher, *_valid(group.students)) for view in VIEWS}
    return sum(len(group.prompt.input_ids) + len(encoder.span_ids(text)) for _, text in texts)


def _valid(students: Iterable[Spans | None]) -> Iterator[Spans]:
    return (spans for spans in students if spans is not None)
