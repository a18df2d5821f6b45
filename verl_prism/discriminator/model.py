"""A Qwen3-VL-MoE that scores a caption and a reasoning (paper, section 3.2).

Caption tokens choose among the perception experts, reasoning tokens among the reasoning experts,
and the tokens of the prompt with its image among all experts. A score comes from a head per view,
as in the paper, or is the likelihood of the span.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
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
Scoring = Literal["head", "likelihood"]
SHARED_HEAD = "shared"
LIKELIHOOD_SCALE = 10.0  # a score is this many times the mean log-likelihood of a span's tokens
LIKELIHOOD_TOKENS = 1024  # whose logits over the vocabulary are in memory at a time


class DiscriminatorConfig(Qwen3VLMoeConfig):
    """The config of Qwen3-VL-MoE, how tokens are routed to experts, and what a score is.

    - `routing="dedicated"`: the first half of the experts is for perception, the second for
      reasoning.
    - `routing="token"`: every token chooses among all experts, and both views share one head, as in
      the published checkpoint.
    - `routing="dense"`: there are no experts, and `text_config.mlp_only_layers` lists every layer.
    - `scoring="head"`: a linear head reads the score at the terminal token of the span.
    - `scoring="likelihood"`: the score is LIKELIHOOD_SCALE times the mean log-likelihood of the
      span's tokens, the terminal token included, under the output layer of the dense model.
    - `images=False`: prompts are scored without their images.
    """

    model_type = "prism_discriminator"

    routing: str = "dedicated"
    scoring: str = "head"
    images: bool = True


@dataclass(frozen=True)
class Sets:
    """The sets (perception, reasoning, prompt) of T tokens, and which of E experts each may use."""

    members: Tensor  # [sets, T] 1 or 0
    owned: Tensor  # [sets, E] bool
    of: Tensor  # [T] index of each token's set

    @classmethod
    def make(cls, token_kinds: Tensor, experts: int, routing: str) -> "Sets":
        """Make the sets of token_kinds[T], whose values are as in `Pack`."""
        owned = torch.ones(PROMPT + 1, experts, dtype=torch.bool, device=token_kinds.device)
        if routing == "dedicated":
            owned[VIEWS.index(View.PERCEPTION), experts // 2 :] = False
            owned[VIEWS.index(View.REASONING), : experts // 2] = False
        return cls(F.one_hot(token_kinds, PROMPT + 1).T.float(), owned, token_kinds)


class ViewRouter(Qwen3VLMoeTextTopKRouter):
    """The top-k router, restricted to the experts of each token's set."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.sets: Sets  # of the pack's tokens; the discriminator sets it before each forward pass
        # Off in the second forward pass of gradient checkpointing: tensors kept there would stay
        # in memory after the backward pass.
        self.recording = False
        self.probabilities: Tensor  # [T, E] of the last recorded forward pass, with their graph
        self.chosen: Tensor  # [T, top_k]

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits[T, E], weights[T, top_k], chosen[T, top_k] of hidden_states[T, hidden]."""
        logits = F.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight).float()
        logits = logits.masked_fill(~self.sets.owned[self.sets.of], float("-inf"))
        probabilities = logits.softmax(-1)
        weights, chosen = probabilities.topk(self.top_k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        if self.recording:
            self.probabilities, self.chosen = probabilities, chosen
        return logits, weights.to(hidden_states.dtype), chosen

    def load(self) -> Tensor:
        """Return [sets, E], each expert's share of a set's choices in the last forward pass.

        A set that owns only top_k experts uses all of them for each token. Its load is always even,
        so it is given as 0.
        """
        choices = F.one_hot(self.chosen, self.num_experts).float().mean(1)
        routed = self.sets.owned.sum(-1, keepdim=True) > self.top_k
        return routed * self._mean(choices)

    def balance_loss(self) -> Tensor:
        """Return the load-balancing loss of the last forward pass.

        It is E · Σ_e f_e · P_e of the Switch Transformer (arXiv 2101.03961, eq. 4) for each set,
        which is 1 for an even load. f_e is the share of choices of expert e, and P_e its mean
        probability, over the tokens of the set. The result is the mean over sets, weighted by their
        tokens. A set without a choice counts as 0, not as a constant 1.
        """
        losses = self.sets.owned.sum(-1) * (self.load() * self._mean(self.probabilities)).sum(-1)
        tokens = self.sets.members.sum(-1)
        return (losses * tokens).sum() / tokens.sum()

    def _mean(self, values: Tensor) -> Tensor:
        """Return the mean [sets, E] of values[T, E] over the tokens of each set."""
        members = self.sets.members
        return members @ values / members.sum(-1, keepdim=True).clamp(min=1)


class LastDecoderLayer(Qwen3VLMoeTextDecoderLayer):
    """The last layer. After attention it computes only the positions that are read for scores."""

    def forward(self, hidden_states: Tensor, read: Tensor, **kwargs: Any) -> Tensor:
        """Return the output [1, R, hidden] at read[R] of hidden_states[1, T, hidden]."""
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        scored = (hidden_states + attended).index_select(1, read)
        return scored + self.mlp(self.post_attention_layernorm(scored))


class PrismDiscriminatorForTokenClassification(Qwen3VLMoePreTrainedModel):
    """Scores spans, given their prompts and images."""

    config: DiscriminatorConfig
    _no_split_modules: ClassVar[list[str]] = [
        "Qwen3VLMoeTextDecoderLayer",
        "LastDecoderLayer",
        "Qwen3VLMoeVisionBlock",
    ]

    def __init__(self, config: DiscriminatorConfig):
        _check_config(config)
        config.text_config._attn_implementation = PACKED  # no other attention understands packs
        super().__init__(config)
        self.model = Qwen3VLMoeModel(config)
        layers = self.model.language_model.layers
        layers[-1] = LastDecoderLayer(config.text_config, len(layers) - 1)
        if config.routing != "dense":
            for layer in layers:
                layer.mlp.gate = ViewRouter(config.text_config)
        hidden = config.text_config.hidden_size
        self.heads = nn.ModuleDict(
            {name: nn.Linear(hidden, 1, bias=False) for name in head_names(config)}
        )
        self.lm_head: nn.Linear | None = None
        if config.scoring == "likelihood" and not config.tie_word_embeddings:
            self.lm_head = nn.Linear(hidden, config.text_config.vocab_size, bias=False)
        self.post_init()

    def forward(self, pack: Pack) -> tuple[Tensor, Tensor]:
        """Return scores[S] of the pack's spans in float32, and the load-balancing loss."""
        attention = self.config.text_config._attn_implementation
        assert attention == PACKED, "a discriminator's text must attend by packs"
        embeddings, deepstack = self._embed(pack)
        if self.config.scoring == "head":
            read, views = pack.terminals, pack.views
        else:
            read, views = pack.predictors, pack.views[pack.owners]
        with self._recorded(pack, views) as routers:
            states = self.model.language_model(
                inputs_embeds=embeddings[None],
                position_ids=pack.position_ids[:, None],
                visual_pos_masks=pack.image_tokens[None] if deepstack is not None else None,
                deepstack_visual_embeds=deepstack,
                use_cache=False,
                packing=packing_for(pack.layout, embeddings.device),
                read=read,
            ).last_hidden_state[0]
        losses = [router.balance_loss() for router in routers] or [states.new_zeros(())]
        score = self._heads if self.config.scoring == "head" else self._likelihoods
        return score(states, pack), torch.stack(losses).mean()

    @contextmanager
    def _recorded(self, pack: Pack, views: Tensor) -> Iterator[list[ViewRouter]]:
        """Give the routers the sets of the pack's tokens, and let them record their choices.

        The last layer's router sees only the positions that are read, for the spans of views[R].
        """
        routers = self.routers()
        experts = self.config.text_config.num_experts
        token_sets = Sets.make(pack.token_kinds, experts, self.config.routing)
        read_sets = Sets.make(views, experts, self.config.routing)
        for router in routers:
            router.sets = read_sets if router is routers[-1] else token_sets
            router.recording = True
        yield routers
        for router in routers:
            router.recording = False

    def routers(self) -> list[ViewRouter]:
        """Return the router of each layer, or none if there are no experts."""
        return [module for module in self.modules() if isinstance(module, ViewRouter)]

    def _embed(self, pack: Pack) -> tuple[Tensor, list[Tensor] | None]:
        """Return embeddings[T, hidden], and the features that the first layers add at image tokens.

        Each image is encoded once.
        """
        embeddings = self.get_input_embeddings()(pack.input_ids)
        visual = self.model.visual
        pixels = pack.pixel_values
        grid = pack.image_grid_thw
        if pixels is None or grid is None:
            pixels, grid = _blank_image(visual.config, embeddings.device)
        encoded = visual(pixels.to(visual.dtype), grid_thw=grid, return_dict=True)
        if pack.pixel_values is None:
            features = (encoded.pooler_output, *encoded.deepstack_features)
            return embeddings + 0.0 * sum(each.sum() for each in features), None
        image_tokens = pack.image_tokens[:, None]
        image_features = encoded.pooler_output.to(embeddings.dtype)
        return embeddings.masked_scatter(image_tokens, image_features), encoded.deepstack_features

    def _heads(self, terminal: Tensor, pack: Pack) -> Tensor:
        """Return scores[S] of terminal[S, hidden], computed in float32.

        In bfloat16, scores between 4 and 8 are 2^-5 apart, which normalization would amplify.
        """
        weights: list[Tensor] = [head.get_parameter("weight") for head in self.heads.values()]
        per_head = F.linear(terminal.float(), torch.cat(weights).float())
        head = pack.views if len(weights) > 1 else torch.zeros_like(pack.views)
        return per_head.gather(-1, head[:, None]).sum(-1)  # FSDP2 needs a copy here, not a view

    def _likelihoods(self, states: Tensor, pack: Pack) -> Tensor:
        """Return scores[S] of states[K, hidden], those before each token of the spans.

        Logits over the vocabulary are computed for some tokens at a time, and again in the backward
        pass.
        """
        output = self.get_input_embeddings() if self.lm_head is None else self.lm_head
        tokens = pack.input_ids[pack.token_kinds != PROMPT]
        parts = [
            checkpoint(_log_likelihoods, *part, output.weight, use_reentrant=False)
            for part in zip(
                states.split(LIKELIHOOD_TOKENS), tokens.split(LIKELIHOOD_TOKENS), strict=True
            )
        ]
        log_likelihoods = torch.cat(parts)
        sums = log_likelihoods.new_zeros(len(pack.views)).index_add(0, pack.owners, log_likelihoods)
        return LIKELIHOOD_SCALE * sums / pack.owners.bincount()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ViewRouter):
            module.weight.normal_(0.0, self.config.text_config.initializer_range)


def head_names(config: DiscriminatorConfig) -> list[str]:
    """Return the names of the heads: one per view, a shared one, or none."""
    if config.scoring == "likelihood":
        return []
    return [SHARED_HEAD] if config.routing == "token" else [view.value for view in VIEWS]


def _log_likelihoods(states: Tensor, tokens: Tensor, weight: Tensor) -> Tensor:
    """Return log p[K] of tokens[K], of logits states[K, hidden] @ weight[V, hidden].T."""
    return -F.cross_entropy(F.linear(states, weight).float(), tokens, reduction="none")


def _check_config(config: DiscriminatorConfig) -> None:
    """Raise UserError if the scoring is unknown, or experts and layers do not fit the routing."""
    text = config.text_config
    if config.scoring not in get_args(Scoring):
        raise UserError(
            f"scoring={config.scoring} in the discriminator's config must be one of "
            f"{get_args(Scoring)}"
        )
    if config.routing not in get_args(Routing):
        raise UserError(
            f"routing={config.routing} in the discriminator's config must be one of "
            f"{get_args(Routing)}"
        )
    if config.routing == "dedicated" and (
        text.num_experts % 2 or text.num_experts // 2 < text.num_experts_per_tok
    ):
        raise UserError(
            "dedicated routing needs two equal halves of at least num_experts_per_tok="
            f"{text.num_experts_per_tok} experts, but num_experts={text.num_experts}"
        )
    if len(config.vision_config.deepstack_visual_indexes) >= text.num_hidden_layers:
        raise UserError(
            "vision_config.deepstack_visual_indexes adds image features to every text layer, but "
            "the last text layer must have none: use fewer indexes or more text layers"
        )
    dense_layers = len(set(text.mlp_only_layers))
    if dense_layers != (text.num_hidden_layers if config.routing == "dense" else 0):
        raise UserError(
            f"routing={config.routing} with experts in {text.num_hidden_layers - dense_layers} of "
            f"{text.num_hidden_layers} layers: dense routing needs experts in no layer, any other "
            "routing in all layers (text_config.mlp_only_layers)"
        )


def _blank_image(vision: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return pixels and grid of the smallest image, for a pack without an image.

    Ranks that share a sharded model must all run the vision tower. Otherwise some would wait
    forever for the others.
    """
    side = vision.spatial_merge_size
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.zeros(side * side, values, device=device)
    return pixels, torch.tensor([[1, side, side]], device=device)


AutoConfig.register("prism_discriminator", DiscriminatorConfig)
AutoModel.register(DiscriminatorConfig, PrismDiscriminatorForTokenClassification)
AutoModelForTokenClassification.register(
    DiscriminatorConfig, PrismDiscriminatorForTokenClassification
)


def load_discriminator(
    folder: str | Path, dtype: torch.dtype = torch.float32, attention: str = "sdpa"
) -> PrismDiscriminatorForTokenClassification:
    """Load a discriminator.

    Args:
        attention: attention of the vision tower. The text always uses `packed_attention`.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    model, info = PrismDiscriminatorForTokenClassification.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation={"vision_config": attention},
        output_loading_info=True,
    )
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            keys = sorted(map(str, info[kind]))[:5]
            problems.append(f"{kind.replace('_', ' ')}: {', '.join(keys)}")
    if problems:
        raise UserError(
            f"{folder} is not a complete discriminator ({'; '.join(problems)}); make one with "
            "stage=warmup"
        )
    return model
