"""A tiny checkpoint in the published layout scores as in transformers 4.57 after conversion."""

import json
import shutil
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import Qwen3VLForConditionalGeneration

from verl_prism.discriminator import load_discriminator
from verl_prism.discriminator.__main__ import main
from verl_prism.discriminator.batch import Group, GroupEncoder
from verl_prism.discriminator.published import convert_published
from verl_prism.discriminator.shards import PROCESSOR_FILES
from verl_prism.discriminator.spans import VIEWS, tokenize_spans
from verl_prism.errors import UserError
from verl_prism.response import parse_response

RESPONSE = parse_response("<caption> a 3 </caption><think> 3 </think><answer> 3 </answer>")
E, TOP_K, LAYERS, H = 4, 2, 2, 128
MLP = "language_model.layers.{}.mlp"


class Mixture(nn.Module):
    """A layer's experts as transformers 4.57 computes them, token by token."""

    def __init__(self, tensors, mlp):
        super().__init__()
        self.router = tensors[f"{mlp}.gate.weight"]  # [E, h]
        self.gate_up_proj = tensors[f"{mlp}.experts.gate_up_proj"]  # [E, h, 2f]
        self.down_proj = tensors[f"{mlp}.experts.down_proj"]  # [E, f, h]

    def forward(self, hidden):
        return torch.stack([self.mix(x) for x in hidden[0]])[None]

    def mix(self, x):
        weights, chosen = F.softmax(self.router @ x, dim=-1, dtype=torch.float).topk(TOP_K)
        weights = weights / weights.sum()
        return sum(w * self.expert(x, e) for w, e in zip(weights, chosen.tolist(), strict=True))

    def expert(self, x, e):
        gate, up = (x @ self.gate_up_proj[e]).chunk(2, -1)
        return (up * F.silu(gate)) @ self.down_proj[e]


@dataclass
class Published:
    """What the folder will hold; tests alter it before it is written."""

    dense_folder: object
    folder: object
    tensors: dict  # named without a prefix
    intermediate: int  # f
    head: torch.Tensor  # [1, h]
    prefix: str = "model."
    extra: dict = field(default_factory=dict)  # further tensors, under their full names
    value_head: object = None  # the content of value_head.pt

    def write(self):
        self.folder.mkdir()
        named = {f"{self.prefix}{name}": tensor for name, tensor in self.tensors.items()}
        save_file(named | self.extra, self.folder / "model.safetensors", metadata={"format": "pt"})
        if self.value_head is not None:
            torch.save(self.value_head, self.folder / "value_head.pt")
        for file in PROCESSOR_FILES:
            if (self.dense_folder / file).exists():
                shutil.copy(self.dense_folder / file, self.folder)
        config = config_457(
            json.loads((self.dense_folder / "config.json").read_text()), self.intermediate
        )
        (self.folder / "config.json").write_text(json.dumps(config))
        return self.folder


def config_457(dense, intermediate):
    """The config as transformers 4.57 writes it, rope_theta and rope_scaling apart."""
    rope = dense["text_config"].pop("rope_parameters")
    text = dense["text_config"] | {
        "model_type": "qwen3_vl_moe_text",
        "moe_intermediate_size": intermediate,
        "num_experts": E,
        "num_experts_per_tok": TOP_K,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": 0.01,
        "rope_theta": rope.pop("rope_theta"),
        "rope_scaling": rope,
    }
    return dense | {
        "model_type": "qwen3_vl_moe",
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "transformers_version": "4.57.0",
        "text_config": text,
        "vision_config": dense["vision_config"] | {"model_type": "qwen3_vl_moe"},
    }


def make_published(dense_folder, folder, intermediate=96):
    torch.manual_seed(0)
    dense = load_file(dense_folder / "model.safetensors")
    tensors = {
        name.removeprefix("model."): t for name, t in dense.items() if name.startswith("model.")
    }
    tensors = {
        name: t for name, t in tensors.items() if ".mlp." not in name or name.startswith("visual.")
    }
    for mlp in map(MLP.format, range(LAYERS)):
        tensors[f"{mlp}.gate.weight"] = torch.randn(E, H)
        tensors[f"{mlp}.experts.gate_up_proj"] = 0.05 * torch.randn(E, H, 2 * intermediate)
        tensors[f"{mlp}.experts.down_proj"] = 0.05 * torch.randn(E, intermediate, H)
    head = torch.randn(1, H)
    return Published(
        dense_folder, folder, tensors, intermediate, head, extra={"v_head.1.weight": head}
    )


@pytest.fixture
def published(dense_folder, tmp_path):
    return make_published(dense_folder, tmp_path / "published")


@torch.no_grad()
def scores_457(published, prompt, spans):
    """hidden[last] @ head of prompt with image + span, for each span."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(published.dense_folder).model
    for i, layer in enumerate(model.language_model.layers):
        layer.mlp = Mixture(published.tensors, MLP.format(i))
    scores = []
    for span in spans:
        ids = torch.cat([prompt.input_ids, torch.tensor(span)])[None]
        hidden = model(
            input_ids=ids,
            pixel_values=prompt.pixel_values,
            image_grid_thw=prompt.image_grid_thw,
            mm_token_type_ids=(ids == model.config.image_token_id).long(),
        ).last_hidden_state
        scores.append(hidden[0, -1] @ published.head[0])
    return torch.stack(scores)


@torch.no_grad()
def scores_of(folder, prompt, tokenizer):
    discriminator = load_discriminator(folder)
    encoder = GroupEncoder(discriminator.config)
    spans = tokenize_spans(RESPONSE, tokenizer)
    pack, _ = encoder.pack([encoder.encode(Group(prompt, spans, []))])
    return discriminator(pack)[0], [spans[view] for view in VIEWS]


# gate_up_proj is square if f = 64, down_proj if f = 128. The layout is the published one anyway.
@pytest.mark.parametrize("intermediate", [96, 64, 128])
def test_converted_checkpoint_scores_like_transformers_4_57(
    dense_folder, tmp_path, prompt, tokenizer, intermediate
):
    published = make_published(dense_folder, tmp_path / "published", intermediate)
    convert_published(published.write(), tmp_path / "target")
    scores, spans = scores_of(tmp_path / "target", prompt, tokenizer)
    expected = scores_457(published, prompt, spans)
    assert prompt.pixel_values is not None
    assert (expected[0] - expected[1]).abs() > 1e-3
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "model.model.", "wrapped.model."])
def test_prefix_of_a_wrapper_and_lm_head_are_dropped(published, tmp_path, prefix):
    convert_published(published.write(), tmp_path / "plain")
    published.folder, published.prefix = tmp_path / "wrapped", prefix
    published.extra[f"{prefix.removesuffix('model.')}lm_head.weight"] = torch.zeros(512, H)
    convert_published(published.write(), tmp_path / "target", max_shard_size="500KB")
    plain, unwrapped = (
        load_discriminator(tmp_path / name).state_dict() for name in ("plain", "target")
    )
    torch.testing.assert_close(unwrapped, plain, rtol=0, atol=0)


def test_result_has_token_routing_and_one_head(published, tmp_path):
    convert_published(published.write(), tmp_path / "target")
    discriminator = load_discriminator(tmp_path / "target")
    assert discriminator.config.routing == "token"
    assert torch.equal(discriminator.heads["shared"].weight, published.head)


@pytest.mark.parametrize("places", [("safetensors",), ("file",), ("safetensors", "file")])
def test_head_is_found_in_both_places(published, tmp_path, places):
    published.extra = {"v_head.1.weight": published.head} if "safetensors" in places else {}
    published.value_head = {"v_head.summary.weight": published.head} if "file" in places else None
    convert_published(published.write(), tmp_path / "target")
    assert torch.equal(
        load_discriminator(tmp_path / "target").heads["shared"].weight, published.head
    )


def two_heads(published):
    published.value_head = {"v_head.summary.weight": published.head + 1e-3}


def no_head(published):
    published.extra = {}


def other_key(published):
    published.value_head = {"summary.weight": published.head}


def biased(published):
    published.value_head = {
        "v_head.summary.weight": published.head,
        "v_head.summary.bias": torch.zeros(1),
    }


def arbitrary_object(published):
    published.value_head = {"v_head.summary.weight": MLP.format}


def narrow_head(published):
    published.extra = {"v_head.1.weight": torch.zeros(1, H - 1)}


def new_layout(published):
    for name, tensor in published.tensors.items():
        if ".experts." in name:
            published.tensors[name] = tensor.transpose(1, 2).contiguous()


def lost_router(published):
    del published.tensors[f"{MLP.format(1)}.gate.weight"]


def other_tensor(published):
    published.extra["score.weight"] = torch.zeros(1, H)


def two_prefixes(published):
    published.extra["ema.visual.pos_embed.weight"] = torch.zeros(64, H)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (two_heads, r"heads that differ \(v_head\.1\.weight, value_head\.pt\)"),
        (
            no_head,
            r"has no head: neither v_head\.1\.weight in its safetensors nor a value_head\.pt",
        ),
        (
            other_key,
            r"value_head\.pt contains \['summary\.weight'\], but \['v_head\.summary\.weight'\] is",
        ),
        (
            biased,
            r"value_head\.pt contains \['v_head\.summary\.weight', 'v_head\.summary\.bias'\], but",
        ),
        (arbitrary_object, r"value_head\.pt cannot be read as tensors"),
        (narrow_head, r"of another shape: v_head\.1\.weight \[1, 127\], not \[1, 128\]"),
        (
            new_layout,
            r"another shape: language_model\.layers\.0\.mlp\.experts\.down_proj \[4, 128, 96\]",
        ),
        (lost_router, r"missing: language_model\.layers\.1\.mlp\.gate\.weight\)"),
        (other_tensor, r"unexpected: score\.weight\)"),
        (two_prefixes, r"more than one model: .*ema\.visual\.pos_embed\.weight"),
    ],
)
def test_unexpected_checkpoint_is_rejected_by_name(published, tmp_path, change, message):
    change(published)
    with pytest.raises(UserError, match=message):
        convert_published(published.write(), tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_dense_model_is_rejected(dense_folder, tmp_path):
    with pytest.raises(UserError, match="is a qwen3_vl, but a qwen3_vl_moe is needed"):
        convert_published(dense_folder, tmp_path / "target")


def test_command_converts(published, tmp_path, capsys):
    assert main(["convert", str(published.write()), str(tmp_path / "target")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'target'}: discriminator of ")
    load_discriminator(tmp_path / "target")
