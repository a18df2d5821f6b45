"""A Qwen3-VL-MoE that scores a caption and a reasoning, each with a head of its own (paper, section 3.2).

Experts are what they are called: tokens of a caption choose among the perception experts, tokens of a reasoning among
the reasoning experts, and the prompt with its image among all of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification
from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import Qwen3VLMoeConfig
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import (
    Qwen3VLMoeModel,
    Qwen3VLMoePreTrainedModel,
    Qwen3VLMoeTextDecoderLayer,
    Qwen3VLMoeTextTopKRouter,
)

from verl_prism.discriminator.attention import PACKED, packing_for
from verl_prism.discriminator.batch import PROMPT, Pack
from verl_prism.discriminator.spans import VIEWS
from verl_prism.errors import UserError
from verl_prism.response import View

Routing = Literal["dedicated", "token", "dense"]
SHARED_HEAD = "shared"


class DiscriminatorConfig(Qwen3VLMoeConfig):
    """Qwen3-VL-MoE's config and how tokens find their experts.

    `routing="dedicated"` splits the experts evenly: the first half is perception's, the second reasoning's.
    `routing="token"` lets every token choose among all, and both views share one head (the published checkpoint).
    `routing="dense"` has no experts; `text_config.mlp_only_layers` then names every layer.
    """

    model_type = "prism_discriminator"

    routing: str = "dedicated"


@dataclass(frozen=True)
class Sets:
    """Which set each of T tokens belongs to, perception, reasoning or prompt, and which of E experts each set owns."""

    members: Tensor  # [sets, T] 1 or 0
    owned: Tensor  # [sets, E] bool
    of: Tensor  # [T] index of the set

    @classmethod
    def make(cls, token_kinds: Tensor, experts: int, routing: str) -> "Sets":
        owned = torch.ones(PROMPT + 1, experts, dtype=torch.bool, device=token_kinds.device)
        if routing == "dedicated":
            owned[VIEWS.index(View.PERCEPTION), experts // 2 :] = False
            owned[VIEWS.index(View.REASONING), : experts // 2] = False
        return cls(F.one_hot(token_kinds, PROMPT + 1).T.float(), owned, token_kinds)


class ViewRouter(Qwen3VLMoeTextTopKRouter):
    """The top-k router, restricted to the experts that a token's set owns."""

    def __init__(self, config):
        super().__init__(config)
        self.sets: Sets  # of the pack's tokens, given by the discriminator before each forward
        self.recording = False  # off in a checkpoint's second forward: what that keeps would outlive the backward pass
        self.probabilities: Tensor  # [T, E] of the last recorded forward, with their graph
        self.chosen: Tensor  # [T, top_k]

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`hidden_states[T, hidden]` to logits[T, E], weights[T, top_k], chosen[T, top_k]."""
        logits = F.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight).float()
        logits = logits.masked_fill(~self.sets.owned[self.sets.of], float("-inf"))
        probabilities = logits.softmax(-1)
        weights, chosen = probabilities.topk(self.top_k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        if self.recording:
            self.probabilities, self.chosen = probabilities, chosen
        return logits, weights.to(hidden_states.dtype), chosen

    def load(self) -> Tensor:
        """[sets, E]: the share of each set's choices that fell on each expert in the last forward."""
        choices = F.one_hot(self.chosen, self.num_experts).float().mean(1)
        return self._mean(choices)

    def balance_loss(self) -> Tensor:
        """The load-balancing loss of the last forward, within each set: 1 where the load is even.

        Switch Transformer's E · Σ_e f_e · P_e (arXiv 2101.03961, eq. 4), with f_e the share of choices that fell on
        expert e and P_e its mean probability, over the tokens of one set; the mean over sets, weighted by tokens.
        """
        losses = self.sets.owned.sum(-1) * (self.load() * self._mean(self.probabilities)).sum(-1)
        tokens = self.sets.members.sum(-1)
        return (losses * tokens).sum() / tokens.sum()

    def _mean(self, values: Tensor) -> Tensor:
        """[sets, E] of values[T, E]."""
        members = self.sets.members
        return members @ values / members.sum(-1, keepdim=True).clamp(min=1)


class TerminalDecoderLayer(Qwen3VLMoeTextDecoderLayer):
    """The last layer: as scores are read at terminal tokens, past attention it computes nothing for the others."""

    def forward(self, hidden_states: Tensor, terminals: Tensor, **kwargs) -> Tensor:
        """`hidden_states[1, T, hidden]` to [1, S, hidden], those at `terminals[S]`."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        scored = (hidden_states + attended).index_select(1, terminals)
        return scored + self.mlp(self.post_attention_layernorm(scored))


class PrismDiscriminatorForTokenClassification(Qwen3VLMoePreTrainedModel):
    """Scores of spans under their prompts and images."""

    config: DiscriminatorConfig
    _no_split_modules: ClassVar[list[str]] = [
        "Qwen3VLMoeTextDecoderLayer",
        "TerminalDecoderLayer",
        "Qwen3VLMoeVisionBlock",
    ]

    def __init__(self, config: DiscriminatorConfig):
        _check_routing(config)
        config.text_config._attn_implementation = (
            PACKED  # a pack means nothing to any other attention
        )
        super().__init__(config)
        self.model = Qwen3VLMoeModel(config)
        layers = self.model.language_model.layers
        layers[-1] = TerminalDecoderLayer(config.text_config, len(layers) - 1)
        if config.routing != "dense":
            for layer in layers:
                layer.mlp.gate = ViewRouter(config.text_config)
        names = [SHARED_HEAD] if config.routing == "token" else [view.value for view in VIEWS]
        self.heads = nn.ModuleDict(
            {name: nn.Linear(config.text_config.hidden_size, 1, bias=False) for name in names}
        )
        self.post_init()

    def forward(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """scores[S] in fp32, one per span of the pack, read at its terminal token; and the load-balancing loss."""
        assert self.config.text_config._attn_implementation == PACKED, (
            "a discriminator's text must attend by packs"
        )
        embeddings, deepstack = self._embed(pack)
        with self._recorded(pack) as routers:
            terminal = self.model.language_model(
                inputs_embeds=embeddings[None],
                position_ids=pack.position_ids[:, None],
                visual_pos_masks=pack.image_tokens[None] if deepstack is not None else None,
                deepstack_visual_embeds=deepstack,
                use_cache=False,
                packing=packing_for(pack.layout, embeddings.device),
                terminals=pack.terminals,
            ).last_hidden_state[0]
        losses = [router.balance_loss() for router in routers] or [terminal.new_zeros(())]
        return self._score(terminal, pack.views), torch.stack(losses).mean()

    @contextmanager
    def _recorded(self, pack: Pack) -> Iterator[list[ViewRouter]]:
        """The routers know the pack's sets, the last layer's those of its terminal tokens, and record what they do."""
        routers, experts = self.routers(), self.config.text_config.num_experts
        every, terminal = (
            Sets.make(kinds, experts, self.config.routing)
            for kinds in (pack.token_kinds, pack.views)
        )
        for router in routers:
            router.sets = terminal if router is routers[-1] else every
            router.recording = True
        yield routers
        for router in routers:
            router.recording = False

    def routers(self) -> list[ViewRouter]:
        """One per layer; none where there are no experts."""
        return [module for module in self.modules() if isinstance(module, ViewRouter)]

    def _embed(self, pack: Pack) -> tuple[Tensor, list[Tensor] | None]:
        """Embeddings[T, hidden] and the features that the first layers add at image tokens; each image encoded once."""
        embeddings = self.get_input_embeddings()(pack.input_ids)
        visual = self.model.visual
        pixels, grid = (pack.pixel_values, pack.image_grid_thw)
        if pixels is None or grid is None:
            pixels, grid = _blank_image(visual.config, embeddings.device)
        encoded = visual(pixels.to(visual.dtype), grid_thw=grid, return_dict=True)
        if pack.pixel_values is None:
            unused = sum(
                features.sum() for features in (encoded.pooler_output, *encoded.deepstack_features)
            )
            return embeddings + 0.0 * unused, None
        features = encoded.pooler_output.to(embeddings.dtype)
        return embeddings.masked_scatter(
            pack.image_tokens[:, None], features
        ), encoded.deepstack_features

    def _score(self, terminal: Tensor, views: Tensor) -> Tensor:
        """fp32 outside autocast: bf16 scores between 4 and 8 are 2^-5 apart, and normalization would amplify that."""
        with torch.autocast(terminal.device.type, enabled=False):
            weights: list[Tensor] = [head.get_parameter("weight") for head in self.heads.values()]
            per_head = F.linear(terminal.float(), torch.cat(weights).float())
            head = views if len(weights) > 1 else torch.zeros_like(views)
            return per_head.gather(-1, head[:, None]).sum(-1)  # not a view of it, as FSDP2 wants

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ViewRouter):
            module.weight.normal_(0.0, self.config.text_config.initializer_range)


def _check_routing(config: DiscriminatorConfig) -> None:
    text = config.text_config
    if config.routing not in get_args(Routing):
        raise UserError(
            f"routing={config.routing} in the discriminator's config is none of {get_args(Routing)}"
        )
    if config.routing == "dedicated" and (
        text.num_experts % 2 or text.num_experts // 2 < text.num_experts_per_tok
    ):
        raise UserError(
            f"dedicated routing splits the experts in two halves, each with at least num_experts_per_tok="
            f"{text.num_experts_per_tok} of them; num_experts={text.num_experts} cannot be split so"
        )
    if len(config.vision_config.deepstack_visual_indexes) >= text.num_hidden_layers:
        raise UserError(
            "the vision tower's features enter every text layer, and the last one must be free of them"
        )
    dense_layers = len(set(text.mlp_only_layers))
    if dense_layers != (text.num_hidden_layers if config.routing == "dense" else 0):
        raise UserError(
            f"routing={config.routing} with experts in {text.num_hidden_layers - dense_layers} of "
            f"{text.num_hidden_layers} layers: dense routing has them in none, the others in all (mlp_only_layers)"
        )


def _blank_image(vision, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixels and grid of the smallest image, for a pack without one.

    Ranks that share a sharded model must all run its vision tower, or those that do would wait for ever.
    """
    side = vision.spatial_merge_size
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return torch.zeros(side * side, values, device=device), torch.tensor(
        [[1, side, side]], device=device
    )


AutoConfig.register("prism_discriminator", DiscriminatorConfig)
AutoModel.register(DiscriminatorConfig, PrismDiscriminatorForTokenClassification)
AutoModelForTokenClassification.register(
    DiscriminatorConfig, PrismDiscriminatorForTokenClassification
)


def load_discriminator(
    folder: str | Path, dtype: torch.dtype = torch.float32, attention: str = "sdpa"
) -> PrismDiscriminatorForTokenClassification:
    """Load a discriminator whole.

    Args:
        attention: of the vision tower; text goes by packs (see `attention.py`).
    Raises:
        UserError: the folder is no discriminator, or a tensor is missing, unexpected or of another shape.
    """
    model, info = PrismDiscriminatorForTokenClassification.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation={"vision_config": attention},
        output_loading_info=True,
    )
    faults = [
        f"{fault.replace('_', ' ')}: {', '.join(map(str, sorted(info[fault], key=str)[:5]))}"
        for fault in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[fault]
    ]
    if faults:
        raise UserError(
            f"{folder} does not hold a whole discriminator ({'; '.join(faults)}); make one with stage=warmup"
        )
    return model
