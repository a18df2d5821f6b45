"""Warm-up: before the game the discriminator learns, offline, to tell the teacher's texts from the policy's.

The policy answers training prompts; each valid answer is paired with the teacher's. Held-out prompts show whether the
discriminator learnt what distinguishes the two or the pairs by heart.
"""

import json
import logging
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch
from transformers import AutoProcessor, get_cosine_schedule_with_warmup

from verl_prism.config import Prism
from verl_prism.discriminator.batch import Group, SpanEncoder
from verl_prism.discriminator.loss import LossWeights, pair_metrics, pair_sums
from verl_prism.discriminator.model import load_discriminator
from verl_prism.discriminator.pairs import WarmupGroups, add_swapped_teachers, view_limits, warmup_groups
from verl_prism.discriminator.upcycling import upcycle
from verl_prism.discriminator.update import backward_groups, score_groups, valid_pairs
from verl_prism.errors import UserError
from verl_prism.report.metrics import MetricsLog
from verl_prism.response import View

logger = logging.getLogger(__name__)
Report = Callable[[int, dict[str, float]], None]

LR_WARMUP_SHARE = 0.1


def train_discriminator(prism: Prism, groups: WarmupGroups, report: Report) -> dict[str, float]:
    """Upcycle, train for `prism.steps` steps, save to `<output>/discriminator`; returns the held-out metrics.

    Raises:
        UserError: there are no pairs to train on.
        FloatingPointError: a score is not finite; nothing is saved.
    """
    if not groups.train:
        raise UserError(f"none of {groups.rollouts} rollouts of {prism.policy} is in the format; fine-tune it first")
    settings, target = prism.discriminator, prism.output / "discriminator"
    upcycling = settings.upcycle
    upcycle(
        upcycling.base,
        target,
        experts=upcycling.experts,
        experts_per_token=upcycling.experts_per_token,
        routing=upcycling.routing,
        noise=upcycling.noise,
        seed=prism.seed,
    )
    model = load_discriminator(target, attention=prism.hardware.attention).to(prism.hardware.device).train()
    processor = AutoProcessor.from_pretrained(target)
    encoder = SpanEncoder(processor.tokenizer, model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(LR_WARMUP_SHARE * prism.steps), prism.steps)
    weights = LossWeights(settings.score_regularisation, settings.balance_coef)
    training = add_swapped_teachers(groups.train, prism.warmup.swapped_teachers, prism.seed)
    batches = _Batches(training, prism.warmup.pairs_per_step, prism.seed)
    for step in range(1, prism.steps + 1):
        batch = batches.next()
        scores = backward_groups(
            model, encoder, batch, weights, settings.micro_batch_tokens,
            pairs=valid_pairs(batch), device=prism.hardware.device,
        )  # fmt: skip
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        report(step, pair_metrics(pair_sums(scores)) | {"grad_norm": norm.item(), "lr": schedule.get_last_lr()[0]})
    model.eval()
    heldout = score_groups(model, encoder, groups.heldout, settings.micro_batch_tokens, prism.hardware.device)
    model.save_pretrained(target)
    return pair_metrics(pair_sums(heldout))


class _Batches:
    """Groups with about so many valid pairs, shuffled anew each time round."""

    def __init__(self, groups: Sequence[Group], pairs: int, seed: int):
        self._groups, self._pairs, self._random = list(groups), pairs, random.Random(seed)
        self._order: list[Group] = []

    def next(self) -> list[Group]:
        batch: list[Group] = []
        while valid_pairs(batch) < self._pairs:
            if not self._order:
                self._order = self._random.sample(self._groups, len(self._groups))
            batch.append(self._order.pop())
        return batch


def run_warmup(prism: Prism) -> dict[str, float | str]:
    """The stage `warmup`: sample the policy, pair, train, and say how well unseen pairs are told apart."""
    with MetricsLog(prism.output) as log:
        rows, rollouts = _rollouts(prism, log)
        log.note("pairing")
        processor, limits = AutoProcessor.from_pretrained(prism.policy), view_limits(prism.discriminator)
        groups = warmup_groups(processor, rows, rollouts, limits, prism.warmup.heldout_fraction)
        heldout = train_discriminator(prism, groups, log.step)
    return _figures(groups, heldout)


def _rollouts(prism: Prism, log: MetricsLog) -> tuple[list[dict], list[list[str]]]:
    """The first `warmup.prompts` rows of the training data and the policy's answers, also written to rollouts.jsonl."""
    from verl_prism.sampling import PolicySampler

    log.note("starting vLLM")
    rows = pq.read_table(prism.data.train).slice(0, prism.warmup.prompts).to_pylist()
    with PolicySampler(prism.policy, prism.hardware, prism.seed) as sampler:
        responses = sampler.sample(
            rows,
            samples=prism.warmup.samples_per_prompt,
            temperature=prism.rollout.temperature,
            top_p=prism.rollout.top_p,
            max_tokens=prism.data.max_response_tokens,
            on_progress=lambda done, total: log.note(f"sampling the policy {done}/{total}"),
        )
    answers = [[response.text for response in group] for group in responses]
    _write_jsonl(prism.output / "rollouts.jsonl", answers)
    return rows, answers


def _write_jsonl(path: Path, items: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")


def _figures(groups: WarmupGroups, heldout: dict[str, float]) -> dict[str, float | str]:
    """Held-out accuracy per view. Ties, where the policy wrote what the teacher wrote, are counted apart."""
    figures: dict[str, float | str] = {}
    for view in View:
        ties = heldout[f"{view.value}/ties"]
        if ties < 1:
            decided = (heldout[f"{view.value}/accuracy"] - 0.5 * ties) / (1 - ties)
            figures[f"held-out {view.value} accuracy"] = f"{decided:.2f} ({ties:.0%} ties)"
    return figures | {"pairs": str(valid_pairs(groups.train)), "invalid rollouts": str(groups.invalid)}
