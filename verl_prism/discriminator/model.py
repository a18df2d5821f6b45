"""A Qwen3-VL-MoE that scores a caption and a reasoning, each with a head of its own (paper, section 3.2).

Experts are what they are called: tokens of a caption choose among the perception experts, tokens of a reasoning among
the reasoning experts, and the prompt with its image among all of them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import (
    Qwen3VLMoeModel,
    Qwen3VLMoePreTrainedModel,
    Qwen3VLMoeTextTopKRouter,
)

from verl_prism.discriminator.batch import PROMPT, VIEWS, SpanBatch
from verl_prism.errors import UserError
from verl_prism.response import View

Routing = Literal["dedicated", "token"]


class DiscriminatorConfig(Qwen3VLMoeConfig):
    """Qwen3-VL-MoE's config and how tokens find their experts.

    `routing="dedicated"` splits the experts evenly: the first half is perception's, the second reasoning's.
    `routing="token"` lets every token choose among all.
    """

    model_type = "prism_discriminator"

    routing: str = "dedicated"


class ViewRouter(Qwen3VLMoeTextTopKRouter):
    """The top-k router, restricted to the experts that a token's view owns."""

    def __init__(self, config, routing: str):
        super().__init__(config)
        self.routing = routing
        self.tokens: Tensor  # [tokens] the kind of each token, set by the discriminator before each forward
        self.probabilities: Tensor  # [tokens, experts] of the last forward, with their graph
        self.chosen: Tensor  # [tokens, top_k]

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`hidden_states[tokens, hidden]` to logits[tokens, experts], weights[tokens, top_k], chosen[tokens, top_k]."""
        logits = F.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight).float()
        logits = logits.masked_fill(~self._owned(), float("-inf"))
        self.probabilities = logits.softmax(-1)
        weights, self.chosen = self.probabilities.topk(self.top_k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights.to(hidden_states.dtype), self.chosen

    def _owned(self) -> Tensor:
        """[tokens, experts]: True where the token's view may use the expert."""
        owned = torch.ones(len(VIEWS) + 2, self.num_experts, dtype=torch.bool, device=self.tokens.device)
        if self.routing == "dedicated":
            half = self.num_experts // 2
            owned[VIEWS.index(View.PERCEPTION), half:] = False
            owned[VIEWS.index(View.REASONING), :half] = False
        return owned[self.tokens]

    def balance_loss(self) -> Tensor:
        """The load-balancing loss of the last forward, within each set of experts: 1 where the load is even.

        Switch Transformer's E · Σ_e f_e · P_e (arXiv 2101.03961, eq. 4), with f_e the share of choices that fell on
        expert e and P_e its mean probability, over the tokens of one set; the mean over sets, weighted by tokens.
        """
        losses, counts = [], []
        owned, choices = self._owned(), F.one_hot(self.chosen, self.num_experts).float().mean(1)
        for kind in (PROMPT, *range(len(VIEWS))):
            members = self.tokens == kind
            count = members.sum()
            share = choices[members].sum(0) / count.clamp(min=1)
            probability = self.probabilities[members].sum(0) / count.clamp(min=1)
            experts = owned[members][:1].sum()
            losses.append(experts * (share * probability).sum())
            counts.append(count)
        weights = torch.stack(counts).float()
        return (torch.stack(losses) * weights).sum() / weights.sum()


class PrismDiscriminatorForTokenClassification(Qwen3VLMoePreTrainedModel):
    """Scores of spans under their prompts and images."""

    config: DiscriminatorConfig

    def __init__(self, config: DiscriminatorConfig):
        super().__init__(config)
        text = config.text_config
        if config.routing not in get_args(Routing):
            raise UserError(f"routing={config.routing} in the discriminator's config is none of {get_args(Routing)}")
        if config.routing == "dedicated" and (text.num_experts % 2 or text.num_experts // 2 < text.num_experts_per_tok):
            raise UserError(
                f"dedicated routing splits the experts in two halves, each with at least num_experts_per_tok="
                f"{text.num_experts_per_tok} of them; num_experts={text.num_experts} cannot be split so"
            )
        self.model = Qwen3VLMoeModel(config)
        for layer in self.model.language_model.layers:
            layer.mlp.gate = ViewRouter(text, config.routing)
        self.heads = nn.ModuleDict({view.value: nn.Linear(text.hidden_size, 1, bias=False) for view in VIEWS})
        self.post_init()

    def forward(self, batch: SpanBatch) -> tuple[Tensor, Tensor]:
        """scores[R] in fp32, one per row of the batch, read at its terminal token; and the load-balancing loss."""
        embeddings, deepstack = self._embed(batch)
        for router in self.routers():
            router.tokens = batch.token_kinds.flatten()
        hidden = self.model.language_model(
            inputs_embeds=embeddings,
            position_ids=batch.position_ids,
            attention_mask=None,  # rows are padded on the right, and attention is causal
            visual_pos_masks=batch.image_tokens if deepstack is not None else None,
            deepstack_visual_embeds=deepstack,
            use_cache=False,
        ).last_hidden_state
        terminal = hidden[torch.arange(len(hidden), device=hidden.device), batch.lengths - 1]
        balance = torch.stack([router.balance_loss() for router in self.routers()]).mean()
        return self._score(terminal, batch.views), balance

    def routers(self) -> Iterator[ViewRouter]:
        return (layer.mlp.gate for layer in self.model.language_model.layers)

    def _embed(self, batch: SpanBatch) -> tuple[Tensor, list[Tensor] | None]:
        """Embeddings[R, L, hidden]; each image is encoded once, however many rows show it."""
        embeddings = self.get_input_embeddings()(batch.input_ids)
        if batch.pixel_values is None:
            return embeddings, None
        visual = self.model.visual
        encoded = visual(batch.pixel_values.to(visual.dtype), grid_thw=batch.image_grid_thw, return_dict=True)
        features = encoded.pooler_output[batch.image_features].to(embeddings.dtype)
        embeddings = embeddings.masked_scatter(batch.image_tokens[..., None].expand_as(embeddings), features)
        return embeddings, [level[batch.image_features] for level in encoded.deepstack_features]

    def _score(self, terminal: Tensor, views: Tensor) -> Tensor:
        """fp32 outside autocast: bf16 scores between 4 and 8 are 2^-5 apart, and normalisation would amplify that."""
        with torch.autocast(terminal.device.type, enabled=False):
            weights: list[Tensor] = [self.heads[view.value].get_parameter("weight") for view in VIEWS]
            per_view = F.linear(terminal.float(), torch.cat(weights).float())
            return per_view.gather(-1, views[:, None]).sum(-1)  # not a view of it, as FSDP2 wants

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ViewRouter):
            module.weight.normal_(0.0, self.config.text_config.initializer_range)


AutoConfig.register("prism_discriminator", DiscriminatorConfig)
AutoModel.register(DiscriminatorConfig, PrismDiscriminatorForTokenClassification)
AutoModelForTokenClassification.register(DiscriminatorConfig, PrismDiscriminatorForTokenClassification)


def load_discriminator(
    folder: str | Path, dtype: torch.dtype = torch.float32, attention: str = "sdpa"
) -> PrismDiscriminatorForTokenClassification:
    """Load a discriminator whole.

    Raises:
        UserError: the folder is no discriminator, or a tensor is missing, unexpected or of another shape.
    """
    model, info = PrismDiscriminatorForTokenClassification.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, output_loading_info=True
    )
    faults = [f"{fault.replace('_', ' ')}: {', '.join(map(str, sorted(info[fault], key=str)[:5]))}"
              for fault in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[fault]]  # fmt: skip
    if faults:
        raise UserError(
            f"{folder} does not hold a whole discriminator ({'; '.join(faults)}); make one with stage=warmup"
        )
    return model
