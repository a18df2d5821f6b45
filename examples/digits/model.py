"""Build a tiny Qwen3-VL: random weights, a tokenizer trained on the task's texts, and a processor.

    python examples/digits/model.py --data outputs/digits/data --out outputs/digits/base --seed 0

`--size 100m` makes a larger one, for a GPU.

The result is a Hugging Face folder that transformers, verl and vLLM load like Qwen3-VL-4B.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.utils.logging import disable_progress_bar

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
VOCABULARY = 512
# A tag, a digit and a word are one piece each; a space before a digit or a word belongs to it. So
# no token crosses the boundary of a block, and every number is a sequence of digits.
PIECES = r"</?\p{L}+>| ?\d| ?\p{L}+| ?[^\s\p{L}\d<]+|\s+"
PATCH, MERGE = 8, 2  # a 64x32 image has 4x8 patches, and 2x2 patches are one token: 8 tokens


@dataclass(frozen=True)
class Size:
    """Sizes of a model."""

    hidden: int
    layers: int
    heads: int
    head_dim: int
    mrope_section: tuple[int, int, int]  # their sum is half of head_dim
    vision_hidden: int
    initial_std: float
    positions: int


SIZES = {
    # 1.4 M parameters. The head dimension is the smallest that vLLM's attention on CPU supports.
    # With the usual initial_std of 0.02, a model this narrow needs almost twice the steps.
    "tiny": Size(
        hidden=128,
        layers=2,
        heads=4,
        head_dim=32,
        mrope_section=(6, 5, 5),
        vision_hidden=128,
        initial_std=0.05,
        positions=4096,
    ),
    # Heads and positions as in Qwen3-VL, so that a GPU runs the same kernels.
    "100m": Size(
        hidden=1024,
        layers=8,
        heads=8,
        head_dim=128,
        mrope_section=(24, 20, 20),
        vision_hidden=256,
        initial_std=0.02,
        positions=262144,
    ),
}
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'video' -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- else -%}
{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def texts(data: Path) -> Iterator[str]:
    """Yield every message of the demonstrations."""
    table = pq.read_table(data / "sft.parquet", columns=["messages"])
    for messages in table["messages"].to_pylist():
        for message in messages:
            yield f"{message['role']}\n{message['content']}"


def build_tokenizer(data: Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which can encode and decode any text."""
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts(data), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS[1:],
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    """Return the processor. Images from 16x16 to 256x256 pixels are not resized."""
    vision = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": 16 * 16, "longest_edge": 256 * 256},
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**vision),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**vision),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, size: Size
) -> Qwen3VLForConditionalGeneration:
    """Return a model with random parameters."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": size.hidden,
        "intermediate_size": 3 * size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads // 2,
        "head_dim": size.head_dim,
        "max_position_embeddings": size.positions,
        "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": list(size.mrope_section),
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        "initializer_range": size.initial_std,
    }
    vision = {
        "depth": 2,
        "hidden_size": size.vision_hidden,
        "intermediate_size": 2 * size.vision_hidden,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": size.hidden,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
        "initializer_range": size.initial_std,
    }
    token_id = tokenizer.get_vocab()
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_id["<|image_pad|>"],
        video_token_id=token_id["<|video_pad|>"],
        vision_start_token_id=token_id["<|vision_start|>"],
        vision_end_token_id=token_id["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    return model


def main() -> None:
    """Write the model folder."""
    parser = argparse.ArgumentParser(description="Build a tiny Qwen3-VL with random weights.")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with sft.parquet; the tokenizer is trained on its texts",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder to write the model, tokenizer and processor into",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    arguments = parser.parse_args()
    tokenizer = build_tokenizer(arguments.data)
    model = build_model(tokenizer, arguments.seed, SIZES[arguments.size])
    disable_progress_bar()
    model.save_pretrained(arguments.out)
    build_processor(tokenizer).save_pretrained(arguments.out)
    print(f"{arguments.out}: {model.num_parameters():,} parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    main()
