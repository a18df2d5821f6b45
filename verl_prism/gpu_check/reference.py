"""The reference discriminator step, with one forward pass per text.

`benchmarks/discriminator.py` and the GPU check compare ours with it. It is written from the
description of the public implementation. For every sample (a prompt, a student's response, the
teacher's response) it

1. scores the student's caption and reasoning for the policy's reward: two forward passes of a
   single text, without gradients;
2. updates: per micro-batch, four forward passes with gradients (student caption, student reasoning,
   teacher caption, teacher reasoning), whose graphs all live until the one backward pass. The
   teacher's texts are computed again for every sample.

Every forward pass includes the prompt and its image. The model is the one of transformers, with its
attention and routers. No code of this project is involved.

Four differences from the public implementation make it faster, or make loss and gradients
comparable: responses are not decoded and searched for spans, positions follow the image grid, the
head has no dropout and scores are not clamped, and a pair has the same weight in every micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeConfig

from verl_prism.discriminator import Prompt

VIEWS = ("caption", "reasoning")


@dataclass(frozen=True)
class Sample:
    """A prompt with the tokens[L] of a response's and the teacher's spans, terminals included."""

    prompt: Prompt
    student: dict[str, Tensor]
    teacher: dict[str, Tensor]


class ReferenceDiscriminator(nn.Module):
    """A token-routed Qwen3-VL-MoE of transformers and one head, with the tensor names of ours."""

    def __init__(self, config: Qwen3VLMoeConfig, dtype: torch.dtype):
        super().__init__()
        self.model = AutoModel.from_config(config, dtype=dtype, attn_implementation="sdpa")
        self.heads = nn.ModuleDict(
            {"shared": nn.Linear(config.text_config.hidden_size, 1, bias=False, dtype=dtype)}
        )

    def forward(self, prompts: Sequence[Prompt], spans: Sequence[Tensor]) -> Tensor:
        """Return scores[R] in fp32 of R texts, each with its prompt, read at the last token."""
        rows = [
            torch.cat([prompt.input_ids, span]) for prompt, span in zip(prompts, spans, strict=True)
        ]
        # Padding is on the right, where causal attention does not see it.
        input_ids = pad_sequence(rows, batch_first=True)
        hidden = self.model(
            input_ids=input_ids,
            pixel_values=_join([prompt.pixel_values for prompt in prompts]),
            image_grid_thw=_join([prompt.image_grid_thw for prompt in prompts]),
            mm_token_type_ids=(input_ids == self.model.config.image_token_id).int(),
            use_cache=False,
        ).last_hidden_state
        last = torch.stack([states[len(row) - 1] for states, row in zip(hidden, rows, strict=True)])
        weight = self.heads["shared"].get_parameter("weight")
        return F.linear(last.float(), weight.float())[:, 0]


def _join(parts: Sequence[Tensor | None]) -> Tensor:
    return torch.cat([part for part in parts if part is not None])


@torch.no_grad()
def score(model: ReferenceDiscriminator, samples: Sequence[Sample]) -> Tensor:
    """Return the students' scores[views, samples]: two forward passes of one text per sample."""
    return torch.cat(
        [
            torch.stack([model([sample.prompt], [sample.student[view]]) for view in VIEWS])
            for sample in samples
        ],
        dim=1,
    )


def backward(
    model: ReferenceDiscriminator,
    samples: Sequence[Sample],
    score_regularization: float,
    micro_batch: int = 1,
) -> float:
    """Accumulate the gradient over all samples, `micro_batch` at a time. Return the loss."""
    total = 0.0
    for start in range(0, len(samples), micro_batch):
        members = samples[start : start + micro_batch]
        prompts = [sample.prompt for sample in members]
        student = {
            view: model(prompts, [sample.student[view] for sample in members]) for view in VIEWS
        }
        teacher = {
            view: model(prompts, [sample.teacher[view] for sample in members]) for view in VIEWS
        }
        pair = sum(-F.logsigmoid(teacher[view] - student[view]).sum() for view in VIEWS)
        squares = sum((teacher[view].square() + student[view].square()).sum() for view in VIEWS)
        loss = (pair + score_regularization * squares / 4) / len(samples)
        loss.backward()
        total += loss.item()
    return total
