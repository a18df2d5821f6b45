"""Sparse upcycling: a dense Qwen3-VL becomes a discriminator whose experts all start as its MLP.

Without noise the result computes what the dense model computes: a token's expert weights add up to one.
"""

import logging
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from verl_prism.discriminator.model import DiscriminatorConfig, PrismDiscriminatorForTokenClassification, Routing
from verl_prism.errors import UserError

logger = logging.getLogger(__name__)


def upcycle(
    dense: str | Path,
    target: str | Path,
    *,
    experts: int = 4,
    experts_per_token: int = 2,
    routing: Routing = "dedicated",
    noise: float = 0.0,
    seed: int = 0,
) -> None:
    """Write a discriminator to `target`, made from the dense Qwen3-VL in `dense`.

    Args:
        noise: standard deviation of the noise on each expert, relative to that of the weight it is added to.
    Raises:
        UserError: `dense` is no Qwen3-VL, or the experts cannot be split as `routing` wants.
    """
    source = Qwen3VLForConditionalGeneration.from_pretrained(dense, dtype=torch.float32)
    if source.config.model_type != "qwen3_vl":
        raise UserError(
            f"{dense} holds a {source.config.model_type}; a discriminator is upcycled from a dense qwen3_vl"
        )
    torch.manual_seed(seed)
    model = PrismDiscriminatorForTokenClassification(_config(source.config, experts, experts_per_token, routing))
    tensors = {name.removeprefix("model."): tensor for name, tensor in source.model.state_dict().items()}
    missing, unexpected = model.model.load_state_dict(_upcycled(tensors, experts, noise), strict=False)
    assert not unexpected and all(name.endswith("mlp.gate.weight") for name in missing), (missing, unexpected)
    model.save_pretrained(target)
    AutoProcessor.from_pretrained(dense).save_pretrained(target)
    logger.info("upcycled %s into %d experts at %s", dense, experts, target)


def _config(dense, experts: int, experts_per_token: int, routing: Routing) -> DiscriminatorConfig:
    text = dense.text_config.to_dict()
    return DiscriminatorConfig(
        text_config=text
        | {
            "model_type": "qwen3_vl_moe_text",
            "num_experts": experts,
            "num_experts_per_tok": experts_per_token,
            "moe_intermediate_size": text["intermediate_size"],
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        vision_config=dense.vision_config.to_dict() | {"model_type": "qwen3_vl_moe"},
        image_token_id=dense.image_token_id,
        video_token_id=dense.video_token_id,
        vision_start_token_id=dense.vision_start_token_id,
        vision_end_token_id=dense.vision_end_token_id,
        tie_word_embeddings=dense.tie_word_embeddings,
        routing=routing,
        architectures=[PrismDiscriminatorForTokenClassification.__name__],
    )


def _upcycled(dense: dict[str, Tensor], experts: int, noise: float) -> dict[str, Tensor]:
    """The dense model's tensors with every `mlp.{gate,up,down}_proj` replicated into experts."""
    result = {name: tensor for name, tensor in dense.items() if ".mlp." not in name or name.startswith("visual.")}
    for name in dense:
        if name.startswith("language_model.") and name.endswith(".mlp.gate_proj.weight"):
            mlp = name.removesuffix(".gate_proj.weight")
            gate_up = torch.cat([dense[f"{mlp}.gate_proj.weight"], dense[f"{mlp}.up_proj.weight"]])
            result[f"{mlp}.experts.gate_up_proj"] = _replicate(gate_up, experts, noise)
            result[f"{mlp}.experts.down_proj"] = _replicate(dense[f"{mlp}.down_proj.weight"], experts, noise)
    return result


def _replicate(weight: Tensor, experts: int, noise: float) -> Tensor:
    copies = weight.expand(experts, *weight.shape).clone()
    return copies + noise * weight.std() * torch.randn_like(copies) if noise else copies
