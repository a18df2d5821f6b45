"""Write the estimated memory of hardware=8xh100 into docs/running.md, for each model and stage.

python scripts/memory_table.py
"""

from pathlib import Path

from transformers import Qwen3VLConfig

from verl_prism.compose import compose_run
from verl_prism.config import Prism
from verl_prism.doctor.finding import GIB
from verl_prism.doctor.memory_estimate import DeviceMemory, host_memory, phases
from verl_prism.doctor.sizes import Sizes, sizes_of, upcycled_config

PAGE = Path(__file__).parents[1] / "docs" / "running.md"
BEGIN, END = "<!-- begin memory -->\n", "<!-- end memory -->\n"
STAGES = ("sft", "warmup", "align", "rlvr", "eval")
MODELS = ("2b", "4b", "8b")
DEVICE = 80 * GIB


def qwen3_vl(
    hidden: int, mlp: int, layers: int, heads: int, tied: bool, vision: dict[str, object]
) -> Qwen3VLConfig:
    """Return the config of Qwen3-VL-Instruct, as far as it decides about sizes."""
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
    vision = vision | {"num_position_embeddings": 2304, "out_hidden_size": hidden}
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


SMALL = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "deepstack_visual_indexes": [5, 11, 17],
}
LARGE = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "deepstack_visual_indexes": [8, 16, 24],
}
QWEN = {
    "2b": qwen3_vl(2048, 6144, 28, 16, True, SMALL),
    "4b": qwen3_vl(2560, 9728, 36, 32, True, SMALL),
    "8b": qwen3_vl(4096, 12288, 36, 32, False, LARGE),
}


def table() -> str:
    """Return the Markdown table: a line per phase of a stage, a column per model, all in GiB."""
    policies = {model: sizes_of(config) for model, config in QWEN.items()}
    lines = ["| stage | phase of a step | 2B | 4B | 8B |", "|---|---|---:|---:|---:|"]
    for stage in STAGES:
        columns = [estimates(stage, model, policies[model]) for model in MODELS]
        for name in columns[0]:
            cells = " | ".join(column[name] for column in columns)
            lines.append(f"| {stage} | {name} | {cells} |")
    return "\n".join(lines) + "\n"


def estimates(stage: str, model: str, policy: Sizes) -> dict[str, str]:
    """Return the memory of each phase in GiB, the sequences in vLLM's cache, and host memory."""
    _, prism = compose_run([f"stage={stage}", f"model=qwen3_vl_{model}", "hardware=8xh100"])
    discriminator = discriminator_sizes(prism)
    result = {}
    for phase in phases(prism, policy, discriminator, DEVICE):
        result[phase.name] = f"{phase.total / GIB:.0f}"
    if stage != "sft":
        sequences = DeviceMemory(prism.hardware, prism.data).cached_sequences(policy, DEVICE)
        result["*longest sequences in vLLM's cache*"] = f"{sequences:.0f}"
    if stage != "eval":
        host = host_memory(prism, policy, discriminator)
        result["*host memory of a node*"] = f"{host / GIB:.0f}"
    return result


def discriminator_sizes(prism: Prism) -> Sizes | None:
    """Return the sizes of the discriminator, whose base is Qwen3-VL-2B."""
    if prism.stage not in ("warmup", "align"):
        return None
    return sizes_of(upcycled_config(QWEN["2b"], prism.discriminator.upcycle))


def page() -> str:
    """Return the text of docs/running.md with a table that is up to date."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
