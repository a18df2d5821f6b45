"""The configs of Qwen3-VL-Instruct with 2, 4 and 8 billion parameters, as far as sizes go."""

from transformers import Qwen3VLConfig

VISION = {
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_heads": 16,
    "in_channels": 3,
    "num_position_embeddings": 2304,
}
SMALL_VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}
LARGE_VISION = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}


def qwen3_vl(
    hidden: int, mlp: int, layers: int, heads: int, tied: bool, vision: dict
) -> Qwen3VLConfig:
    text = {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "head_dim": 128,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "vocab_size": 151936,
        "tie_word_embeddings": tied,
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=VISION | vision | {"out_hidden_size": hidden},
        tie_word_embeddings=tied,
    )


QWEN = {
    "2b": qwen3_vl(2048, 6144, 28, 16, True, SMALL_VISION),
    "4b": qwen3_vl(2560, 9728, 36, 32, True, SMALL_VISION),
    "8b": qwen3_vl(4096, 12288, 36, 32, False, LARGE_VISION),
}
