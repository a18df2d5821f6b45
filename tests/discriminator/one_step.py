"""Train one step of a tiny discriminator with an image, built from scratch.

Needs only torch, transformers, safetensors, numpy and Pillow:

    PYTHONPATH=. python tests/discriminator/one_step.py float32 bfloat16
"""

import math
import platform
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast

from verl_prism.discriminator import (
    DiscriminatorConfig,
    DiscriminatorStep,
    Group,
    Optimization,
    Prompt,
    Ranks,
    StepSettings,
    load_discriminator,
    process_group,
    shard,
    tokenize_spans,
)
from verl_prism.response import parse_response

SPECIAL = ("<|im_end|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
SIDE = 4  # of the image, in patches of 16 x 16 pixels


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE without merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0])


def make_config(tokenizer: PreTrainedTokenizerFast) -> DiscriminatorConfig:
    rope = {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": rope,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 16,
        "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
    }
    ids = [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL[1:]]
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    tokens = dict(zip(names, ids, strict=True))
    return DiscriminatorConfig(text_config=text, vision_config=vision, **tokens)


def make_group(tokenizer: PreTrainedTokenizerFast) -> Group:
    text = f"<|vision_start|>{'<|image_pad|>' * (SIDE // 2) ** 2}<|vision_end|>What is the sum?"
    prompt = Prompt(
        torch.tensor(tokenizer.encode(text, add_special_tokens=False)),
        torch.randn(SIDE**2, 3 * 2 * 16**2),
        torch.tensor([[1, SIDE, SIDE]]),
    )

    def spans(answer: int):
        text = f"<caption>Digits.</caption><think>I add.</think><answer>{answer}</answer>"
        return tokenize_spans(parse_response(text), tokenizer)

    return Group(prompt, teacher=spans(15), students=[spans(3), None, spans(7)])


def main(dtype: str, ranks: Ranks) -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = AutoModelForTokenClassification.from_config(make_config(tokenizer))
    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    model = load_discriminator(folder).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    shard(model, ranks, getattr(torch, dtype))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def update() -> float:
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).full_tensor().item()
        optimizer.step()
        return norm

    step = DiscriminatorStep(
        model,
        StepSettings(micro_batch_tokens=4096),
        Optimization(update, optimizer.zero_grad),
        ranks,
        Path(folder),
    )
    before = {name: tensor.full_tensor().clone() for name, tensor in model.named_parameters()}
    result = step([make_group(tokenizer)])
    after = {name: tensor.full_tensor() for name, tensor in model.named_parameters()}
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    loss = result.metrics["loss"]
    assert math.isfinite(loss)
    assert not result.nonfinite
    assert not unchanged, unchanged
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{versions}, transformers {transformers.__version__}, {dtype}: loss {loss:.4f}")


if __name__ == "__main__":
    with process_group("cpu") as ranks:
        for dtype in sys.argv[1:]:
            main(dtype, ranks)
