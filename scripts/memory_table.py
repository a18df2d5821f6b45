"""Write the estimated memory of hardware=8xh100 into docs/running.md, for each model and stage.

python scripts/memory_table.py
"""

from pathlib import Path

from generated_tables import filled
from qwen3_vl import QWEN

from verl_prism.compose import compose_run
from verl_prism.config import Prism
from verl_prism.doctor.finding import GIB
from verl_prism.doctor.memory_estimate import DeviceMemory, host_memory, phases
from verl_prism.doctor.sizes import Sizes, sizes_of, upcycled

PAGE = Path(__file__).parents[1] / "docs" / "running.md"
STAGES = ("sft", "warmup", "align", "rlvr", "eval")
MODELS = ("2b", "4b", "8b")
DEVICE = 80 * GIB


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
    return sizes_of(upcycled(QWEN["2b"], prism.discriminator.upcycle))


def page() -> str:
    """Return the text of docs/running.md with a table that is up to date."""
    return filled(PAGE.read_text(encoding="utf-8"), "memory", table())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
