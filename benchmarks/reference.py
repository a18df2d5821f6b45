"""The reference discriminator step: one text, one forward. What `discriminator.py` times and compares ours with.

Written from the description of the public implementation. For every sample (a prompt, one student's response, the
teacher's) it

1. scores the student's caption and its reasoning for the policy's reward: two forwards of a single text, no gradients;
2. updates: per micro-batch four forwards with gradients (student caption, student reasoning, teacher caption, teacher
   reasoning), whose graphs all live until the one backward. The teacher's texts are run anew for every sample.

Every forward has the prompt and its image in it. The model is transformers' own, with its own attention and routers:
nothing of this project is in its path.

Four things are left out, to its advantage in time, or because loss and gradients could not be compared with them:
responses are not decoded and searched for their spans, positions are those of the image grid and not of text alone,
the head has no dropout and scores are not clamped, and a pair weighs the same in every micro-batch.
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
    """Tokens[L] of one response's and the teacher's spans, by view and with the terminal token, under their prompt."""

    prompt: Prompt
    student: dict[str, Tensor]
    teacher: dict[str, Tensor]


class ReferenceDiscriminator(nn.Module):
    """A token-routed Qwen3-VL-MoE as transformers runs it, and one head. Its tensors are named as ours are."""

    def __init__(self, config: Qwen3VLMoeConfig, dtype: torch.dtype):
        super().__init__()
        self.model = AutoModel.from_config(config, dtype=dtype, attn_implementation="sdpa")
        self.heads = nn.ModuleDict(
            {"shared": nn.Linear(config.text_config.hidden_size, 1, bias=False, dtype=dtype)}
        )

    def forward(self, prompts: Sequence[Prompt], spans: Sequence[Tensor]) -> Tensor:
        """scores[R] in fp32 of R texts, each under its own prompt and image, read at its last token."""
        rows = [
            torch.cat([prompt.input_ids, span]) for prompt, span in zip(prompts, spans, strict=True)
        ]
        input_ids = pad_sequence(
            rows, batch_first=True
        )  # on the right, where causal attention does not look
        hidden = self.model(
            input_ids=input_ids,
            pixel_values=torch.cat([prompt.pixel_values for prompt in prompts]),
            image_grid_thw=torch.cat([prompt.image_grid_thw for prompt in prompts]),
            mm_token_type_ids=(input_ids == self.model.config.image_token_id).int(),
            use_cache=False,
        ).last_hidden_state
        last = torch.stack([states[len(row) - 1] for states, row in zip(hidden, rows, strict=True)])
        return F.linear(last.float(), self.heads["shared"].weight.float())[:, 0]


@torch.no_grad()
def score(model: ReferenceDiscriminator, samples: Sequence[Sample]) -> Tensor:
    """scores[views, samples] of the students, for the policy's reward: two forwards of a single text per sample."""
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
    """Accumulate the gradient of the loss over all samples, `micro_batch` of them at a time; returns the loss."""
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
