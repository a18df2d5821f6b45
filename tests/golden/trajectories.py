"""Short training curves on fixed texts: warm-up, alignment, and RL by each algorithm.

They use the losses, advantages, routing and settings of real runs, with plain loops around them.
The texts are made by the digits example, so no sampling can change the curves. To accept a change
of training behavior on purpose, write the file again and look at its difference:

    python tests/golden/trajectories.py BASE TRAIN.parquet tests/golden/curves.json
"""

import json
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
from verl.utils.config import omega_conf_to_dataclass

from verl_prism.alignment.advantage import spread_over_tokens
from verl_prism.alignment.trainer import policy_advantage
from verl_prism.compose import compose_run
from verl_prism.discriminator import (
    DiscriminatorStep,
    Group,
    Optimization,
    Ranks,
    StepSettings,
    load_discriminator,
    upcycle,
)
from verl_prism.discriminator.spans import Spans, tokenize_spans
from verl_prism.response import parse_response
from verl_prism.rewards.score import compute_score
from verl_prism.stages.warmup_data import encode_row
from verl_prism.trainer.on_policy import take_shortcut

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "digits"))
from tasks import NoisyPair, Question

GROUPS, STUDENTS, STEPS = 2, 4, 4
VLLM_OFFSET = 0.01  # of vLLM's log-probabilities from the actor's
INVALID = "<caption>A 3.</caption><answer>3</answer>"

Curves = dict[str, list[float]]


@dataclass(frozen=True)
class Answered:
    """A row and the texts of its students; the last one is invalid."""

    row: dict[str, Any]
    texts: list[str]


class Problem:
    """The fixed texts of every step, and the models that start from the base model."""

    def __init__(self, base: Path, train: Path) -> None:
        self.base = base
        self.processor = AutoProcessor.from_pretrained(base)
        self.tokenizer = self.processor.tokenizer
        rows = pq.read_table(train).slice(0, GROUPS * STEPS).to_pylist()
        self._answered = [self._answer(row) for row in rows]

    def step(self, number: int) -> list[Answered]:
        """Return the prompts of a step."""
        return self._answered[number * GROUPS : (number + 1) * GROUPS]

    def group(self, answered: Answered) -> Group:
        """Return the discriminator's group of a prompt."""
        students = [self._spans(text) for text in answered.texts]
        teacher = self._spans(answered.row["teacher_response"])
        assert teacher is not None
        return Group(encode_row(self.processor, answered.row), teacher, students)

    def _answer(self, row: dict[str, Any]) -> Answered:
        asked = row["extra_info"]
        rng = random.Random(asked["index"])
        question = Question("sum", tuple(asked["digits"]))
        texts = [NoisyPair().broad(question, rng) for _ in range(STUDENTS - 1)]
        return Answered(row, [*texts, INVALID])

    def _spans(self, text: str) -> Spans | None:
        response = parse_response(text)
        return tokenize_spans(response, self.tokenizer) if response.valid else None


class Learner:
    """A model with AdamW."""

    def __init__(self, model: torch.nn.Module, lr: float, weight_decay: float, clip: float) -> None:
        self.model = model.train()
        self._clip = clip
        self._optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay)

    def step(self) -> float:
        """Change the parameters by their gradients, and return the norm of the gradients."""
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip).item()
        self._optimizer.step()
        return norm

    def clear(self) -> None:
        """Delete the gradients."""
        self._optimizer.zero_grad()


class Policy(Learner):
    """The policy, which scores given texts."""

    def __init__(self, problem: Problem, config: Any) -> None:
        optim = config.actor_rollout_ref.actor.optim
        model = Qwen3VLForConditionalGeneration.from_pretrained(problem.base)
        super().__init__(model, 1e-3, optim.weight_decay, optim.clip_grad)
        self._problem = problem

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a response, with the end of the turn."""
        tokenizer = self._problem.tokenizer
        return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]

    def log_probs(self, answered: Sequence[Answered]) -> Tensor:
        """Return log_probs[R, T] of all texts, padded with 0."""
        prompts = [encode_row(self._problem.processor, each.row) for each in answered]
        start = len(prompts[0].input_ids)
        assert all(len(prompt.input_ids) == start for prompt in prompts)
        rows = []
        for prompt, each in zip(prompts, answered, strict=True):
            responses = [torch.tensor(self.tokens(text)) for text in each.texts]
            rows += [torch.cat([prompt.input_ids, response]) for response in responses]
        ids = pad_sequence(rows, batch_first=True)
        mask = _mask([len(row) for row in rows])
        copies = len(answered[0].texts)
        logits = self.model(
            input_ids=ids,
            attention_mask=mask.long(),
            pixel_values=torch.cat([prompt.pixel_values.repeat(copies, 1) for prompt in prompts]),
            image_grid_thw=torch.cat([p.image_grid_thw.repeat(copies, 1) for p in prompts]),
            mm_token_type_ids=(ids == self.model.config.image_token_id).int(),
        ).logits[:, start - 1 : -1]
        own = logits.log_softmax(-1).gather(-1, ids[:, start:, None])[..., 0]
        return own * mask[:, start:]


def make_discriminator(problem: Problem, prism: Any) -> DiscriminatorStep:
    """Return the step of a new discriminator, as the warm-up starts with it."""
    folder = Path(tempfile.mkdtemp())
    settings = prism.discriminator
    upcycle(problem.base, folder, **settings.upcycle.model_dump(exclude={"base"}))
    model = load_discriminator(folder)
    learner = Learner(model, 3e-4, settings.weight_decay, settings.grad_clip)
    return DiscriminatorStep(
        model,
        StepSettings.from_mapping(settings.model_dump()),
        Optimization(learner.step, learner.clear),
        Ranks("cpu"),
        folder,
    )


def warmup_curve(problem: Problem, *overrides: str) -> Curves:
    """Return the metrics of the discriminator in training."""
    _, prism = compose_run(["stage=warmup", *overrides])
    step = make_discriminator(problem, prism)
    curves: Curves = defaultdict(list)
    for number in range(STEPS):
        result = step([problem.group(each) for each in problem.step(number)])
        _append(curves, result.metrics)
    return dict(curves)


def align_curve(problem: Problem, *overrides: str) -> Curves:
    """Return the metrics of the game: the discriminator's step, advantages, the policy's step."""
    config, prism = compose_run(["stage=align", *overrides])
    take_shortcut(config)
    discriminator = make_discriminator(problem, prism)
    policy = Policy(problem, config)
    curves: Curves = defaultdict(list)
    for number in range(STEPS):
        answered = problem.step(number)
        result = discriminator([problem.group(each) for each in answered])
        advantage = policy_advantage(prism.align, result.scores.student, result.scores.valid)
        lengths = [len(policy.tokens(text)) for each in answered for text in each.texts]
        tokens = spread_over_tokens(advantage, lengths, None)
        padded = pad_sequence(tokens, batch_first=True)
        with torch.no_grad():
            old = policy.log_probs(answered) + VLLM_OFFSET
        update = _update(policy, config, answered, padded, old, lengths)
        spread = {"advantage_std": advantage.values.std().item()}
        _append(curves, result.metrics | spread | update)
    return dict(curves)


def rlvr_curve(problem: Problem, algorithm: str) -> Curves:
    """Return the metrics of RL with two updates on each batch, so that ratios matter."""
    config, prism = compose_run(["stage=rlvr", f"algorithm={algorithm}"])
    policy = Policy(problem, config)
    estimate = get_adv_estimator_fn(config.algorithm.adv_estimator)
    curves: Curves = defaultdict(list)
    for number in range(STEPS):
        answered = problem.step(number)
        lengths = [len(policy.tokens(text)) for each in answered for text in each.texts]
        mask = _mask(lengths)
        scores = torch.tensor(
            [_reward(prism, each, text) for each in answered for text in each.texts]
        )
        rewards = torch.zeros_like(mask)
        rewards[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = scores
        advantages, _ = estimate(
            token_level_rewards=rewards,
            response_mask=mask,
            index=np.repeat(np.arange(GROUPS), STUDENTS),
            norm_adv_by_std_in_grpo=config.algorithm.norm_adv_by_std_in_grpo,
        )
        with torch.no_grad():
            old = policy.log_probs(answered)
        for _ in range(2):
            update = _update(policy, config, answered, advantages, old, lengths)
            _append(curves, update | {"score": scores.mean().item()})
    return dict(curves)


def _reward(prism: Any, answered: Answered, text: str) -> float:
    gold = answered.row["reward_model"]["ground_truth"]
    weights = {
        "accuracy_weight": prism.reward.accuracy_weight,
        "format_weight": prism.reward.format_weight,
    }
    return float(compute_score("digits", text, gold, **weights)["score"])


def _update(
    policy: Policy,
    config: Any,
    answered: Sequence[Answered],
    advantages: Tensor,
    old: Tensor,
    lengths: Sequence[int],
) -> dict[str, float]:
    """Make one update of the policy with verl's loss."""
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    loss, _ = get_policy_loss_fn(actor.policy_loss.loss_mode)(
        old_log_prob=old,
        log_prob=policy.log_probs(answered),
        advantages=advantages,
        response_mask=_mask(lengths),
        loss_agg_mode=actor.loss_agg_mode,
        config=actor,
    )
    policy.clear()
    loss.backward()
    return {"policy_loss": loss.item(), "policy_grad_norm": policy.step()}


def _mask(lengths: Sequence[int]) -> Tensor:
    return (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float()


def _append(curves: Curves, metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        curves[name].append(value)


def all_curves(problem: Problem) -> dict[str, Curves]:
    """Return the curves of every stage and option that has one."""
    return {
        "warmup": warmup_curve(problem),
        "warmup, likelihood": warmup_curve(problem, "discriminator=likelihood"),
        "warmup, eight experts": warmup_curve(problem, "discriminator=eight_experts"),
        "align": align_curve(problem),
        "align, combined": align_curve(problem, "prism.align.normalization=combined"),
        "grpo": rlvr_curve(problem, "grpo"),
        "dapo": rlvr_curve(problem, "dapo"),
        "gspo": rlvr_curve(problem, "gspo"),
    }


if __name__ == "__main__":
    base_folder, train_file, curves_file = map(Path, sys.argv[1:])
    found = all_curves(Problem(base_folder, train_file))
    curves_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
