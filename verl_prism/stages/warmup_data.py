"""The data of the warm-up: which rollouts form pairs, and each rank's share of a step.

A share is read, decoded and tokenized when its step is due, in worker processes. Every rank
tokenizes all texts of a step, because the plan needs their lengths, and decodes the images of its
share only.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, Dataset
from transformers import AutoProcessor, AutoTokenizer, ProcessorMixin

from verl_prism.config import Image, Prism
from verl_prism.data.images import (
    MODEL_LIMITS,
    ImageSettings,
    image_sizes,
    image_tokens,
    row_images,
)
from verl_prism.data.messages import chat_messages
from verl_prism.data.rows import train_rows
from verl_prism.discriminator import (
    DiscriminatorConfig,
    FlopModel,
    Group,
    GroupSizes,
    PairIndex,
    Part,
    Prompt,
    PromptTexts,
    RankPlan,
    Ranks,
    Spans,
    assign,
    count_rollouts,
    encode_prompt,
    index_pairs,
    local_plan,
    mismatched_teachers,
    prompt_text,
    rollout_spans,
    shuffled_batches,
    span_tokens,
    teacher_spans,
    view_limits,
)
from verl_prism.errors import UserError
from verl_prism.rollout.journal import JournalReader
from verl_prism.run_folder import RunFolder

Row = Mapping[str, Any]
RESPONSES = "student_responses"


@dataclass(frozen=True)
class Share:
    """What one rank computes in a step."""

    groups: list[Group]  # groups, or parts of groups; there may be none
    plan: RankPlan  # packs of these groups
    sources: list[Part]  # of each group: the number of its prompt, and its students there


class ShareReader(Dataset[Share]):
    """Reads this rank's share of a batch of prompts, `reader[prompts]`.

    With `mismatched`, each prompt gets more students: the teacher's answers to other prompts.
    """

    def __init__(
        self,
        prism: Prism,
        rollouts: Sequence[Sequence[str]],
        ranks: Ranks,
        mismatched: Mapping[int, Sequence[int | None]] | None = None,
    ) -> None:
        settings = prism.discriminator
        upcycled = RunFolder(prism.output).upcycled
        self._limits = view_limits(settings.max_perception_tokens, settings.max_reasoning_tokens)
        self._tokenizer = AutoTokenizer.from_pretrained(upcycled)
        self._processor = AutoProcessor.from_pretrained(prism.policy)
        self._image_limits = prism.image
        self._image_settings = ImageSettings.of(prism.image, prism.policy)
        self._prompts = train_rows(prism, ("prompt", "images"))
        self._teachers = train_rows(prism, ("teacher_response",))
        self._rollouts = rollouts
        self._mismatched = mismatched
        self._max_tokens = settings.micro_batch_tokens
        config = DiscriminatorConfig.from_pretrained(upcycled)
        self._flops = FlopModel.of(config)
        self._patches_per_token = config.vision_config.spatial_merge_size**2
        self._rank = ranks.rank
        self._world_size = ranks.world_size

    def __getitem__(self, prompts: Sequence[int]) -> Share:
        rows = [self._prompts[prompt] for prompt in prompts]
        teachers = [self._teacher(prompt) for prompt in prompts]
        students = [self._students(prompt) for prompt in prompts]
        sizes = []
        for row, teacher, spans in zip(rows, teachers, students, strict=True):
            sizes.append(self._sizes(row, teacher, spans))
        plans = assign(sizes, self._world_size, self._max_tokens, self._flops)
        held, plan = local_plan(plans[self._rank])
        groups = []
        for number, members in held:
            prompt = encode_row(self._processor, rows[number], self._image_limits)
            mine = [students[number][member] for member in members]
            groups.append(Group(prompt, teachers[number], mine))
        sources = [Part(prompts[number], members) for number, members in held]
        return Share(groups, plan, sources)

    def _teacher(self, prompt: int) -> Spans:
        return teacher_spans(self._teachers[prompt]["teacher_response"], self._tokenizer)

    def _students(self, prompt: int) -> list[Spans | None]:
        students = rollout_spans(self._rollouts[prompt], self._tokenizer, self._limits)
        if self._mismatched is not None:
            for other in self._mismatched[prompt]:
                students.append(None if other is None else self._teacher(other))
        return students

    def _sizes(self, row: Row, teacher: Spans, students: Sequence[Spans | None]) -> GroupSizes:
        """Return the sizes of a group without decoding its images."""
        images = [image_tokens(*size, self._image_settings) for size in image_sizes(row)]
        text = prompt_text(self._processor, chat_messages(row))
        # The text has one token for each image.
        tokens = len(self._processor.tokenizer.encode(text)) + sum(images) - len(images)
        return GroupSizes(
            prompt=tokens,
            images=tuple(self._patches_per_token * image for image in images),
            teacher=span_tokens(teacher),
            students=tuple(None if spans is None else span_tokens(spans) for spans in students),
        )


class WarmupData:
    """The pairs of the warm-up, as shares of one rank."""

    def __init__(self, prism: Prism, rollouts: Sequence[Sequence[str]], ranks: Ranks) -> None:
        """Find the pairs.

        Raises:
            UserError: there are no pairs to train on.
        """
        self._prism = prism
        self.rollouts = rollouts
        self._ranks = ranks
        self.index = self._index()
        if not self.index.train:
            raise UserError(
                f"none of {self.index.rollouts} rollouts of {prism.policy} is in the format; "
                "fine-tune it first"
            )

    @property
    def train_pairs(self) -> int:
        """Number of valid pairs to train on, without those with mismatched teachers."""
        return int(self.index.valid[list(self.index.train)].sum())

    def train_shares(self, first_step: int) -> Iterator[Share]:
        """Yield the shares of all steps after `first_step`.

        A batch depends only on the seed and the step.
        """
        warmup = self._prism.warmup
        seed = self._prism.seed
        others = mismatched_teachers(self.index, warmup.mismatched_teachers, seed)
        pairs = {}
        for prompt in self.index.train:
            added = sum(other is not None for other in others[prompt])
            pairs[prompt] = int(self.index.valid[prompt]) + added
        batches = shuffled_batches(self.index.train, pairs, warmup.pairs_per_step, seed)
        return self._shares(islice(batches, first_step, self._prism.steps), others)

    def heldout_shares(self) -> Iterator[Share]:
        """Yield the shares of the held-out prompts, a batch as large as a step's at a time."""
        return self._shares(self._heldout_batches(), None)

    def _heldout_batches(self) -> Iterator[list[int]]:
        batch: list[int] = []
        for prompt in self.index.heldout:
            batch.append(prompt)
            if self.index.valid[batch].sum() >= self._prism.warmup.pairs_per_step:
                yield batch
                batch = []
        if batch:
            yield batch

    def _shares(
        self,
        batches: Iterable[list[int]],
        mismatched: Mapping[int, Sequence[int | None]] | None,
    ) -> Iterator[Share]:
        reader = ShareReader(self._prism, self.rollouts, self._ranks, mismatched)
        workers = self._prism.hardware.dataloader_workers
        loader = DataLoader(
            reader,
            batch_size=None,
            sampler=batches,
            num_workers=workers,
            collate_fn=_unchanged,
            # In a rank that torch has spawned the default would spawn the workers too, and each of
            # them would import torch again.
            multiprocessing_context="fork" if workers else None,
        )
        return iter(loader)

    def _index(self) -> PairIndex:
        prism = self._prism
        settings = prism.discriminator
        teachers = train_rows(prism, ("teacher_response",))
        tokenizer = AutoTokenizer.from_pretrained(RunFolder(prism.output).upcycled)
        limits = view_limits(settings.max_perception_tokens, settings.max_reasoning_tokens)

        def count(prompt: int) -> PromptTexts:
            teacher = teachers[prompt]["teacher_response"]
            return count_rollouts(teacher, self.rollouts[prompt], tokenizer, limits)

        prompts = self._ranks.share(range(len(teachers)), count)
        return index_pairs(prompts, prism.warmup.heldout_fraction, prism.seed)


def policy_responses(prism: Prism) -> Sequence[Sequence[str]]:
    """Return the policy's responses to each prompt: as sampled by this run, or from the file."""
    if prism.warmup.responses == "sample":
        return JournalReader(RunFolder(prism.output).rollouts)
    return train_rows(prism, (RESPONSES,)).column(RESPONSES)


def encode_row(processor: ProcessorMixin, row: Row, limits: Image = MODEL_LIMITS) -> Prompt:
    """Tokenize the prompt of a row like the policy's rollout."""
    images = row_images(row, processor.image_processor.patch_size, limits)
    return encode_prompt(processor, chat_messages(row), images)


def _unchanged(share: Any) -> Any:
    return share
