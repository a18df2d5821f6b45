"""Write the estimated GPU hours of hardware=8xh100 into docs/running.md, for each model and stage.

python scripts/cost_table.py
"""

from pathlib import Path

from generated_tables import filled
from memory_table import DEVICE, MODELS
from qwen3_vl import QWEN

from verl_prism.compose import compose_run
from verl_prism.config import Prism
from verl_prism.discriminator.costs import FlopModel
from verl_prism.doctor.lengths import ASSUMED, Lengths
from verl_prism.doctor.sizes import sizes_of, upcycled
from verl_prism.doctor.time_checks import two_digits
from verl_prism.doctor.time_estimate import Gpu, Model, StageTime, TimeModel, stage_time
from verl_prism.gpu_check.peaks import PEAKS

PAGE = Path(__file__).parents[1] / "docs" / "running.md"
STAGES = ("sft", "warmup", "align", "rlvr")
RESPONSES = (1000, 4000)  # tokens of other mean lengths
H100 = Gpu(PEAKS["H100"], DEVICE)


def table() -> str:
    """Return the Markdown table: a line per stage, a column per model."""
    lines = ["| stage | steps | 2B | 4B | 8B |", "|---|---:|---:|---:|---:|"]
    policies = {
        model: Model(sizes_of(QWEN[model]), FlopModel.of_policy(QWEN[model])) for model in MODELS
    }
    runs = {model: [run(stage, model) for stage in STAGES] for model in MODELS}
    assumed = {model: times(runs[model], policies[model], ASSUMED) for model in MODELS}
    for number, stage in enumerate(STAGES):
        columns = [assumed[model][number] for model in MODELS]
        cells = [f"{hours([each])} ({two_digits(each.step_seconds)} s)" for each in columns]
        lines.append(f"| {stage} | {columns[0].steps:,} | {' | '.join(cells)} |")
    lines.append(total("**all stages**", list(assumed.values())))
    for tokens in RESPONSES:
        lengths = ASSUMED.with_response(tokens)
        other = [times(runs[model], policies[model], lengths) for model in MODELS]
        lines.append(total(f"*with responses of {tokens:,} tokens*", other))
    return "\n".join(lines) + "\n"


def run(stage: str, model: str) -> Prism:
    """Return the settings of a preset."""
    return compose_run([f"stage={stage}", f"model=qwen3_vl_{model}", "hardware=8xh100"])[1]


def times(runs: list[Prism], policy: Model, lengths: Lengths) -> list[StageTime]:
    """Return the time of each stage of one model."""
    return [
        stage_time(TimeModel(prism, policy, discriminator(prism), lengths, H100)) for prism in runs
    ]


def discriminator(prism: Prism) -> Model | None:
    """Return the discriminator, whose base is Qwen3-VL-2B."""
    if prism.stage not in ("warmup", "align"):
        return None
    config = upcycled(QWEN["2b"], prism.discriminator.upcycle)
    return Model(sizes_of(config), FlopModel.of(config))


def total(label: str, models: list[list[StageTime]]) -> str:
    """Return a line with the GPU hours of all stages of each model."""
    cells = " | ".join(hours(stages) for stages in models)
    return f"| {label} | | {cells} |"


def hours(stages: list[StageTime]) -> str:
    """Format the GPU hours of stages together."""
    return two_digits(sum(stage.gpu_hours for stage in stages))


def page() -> str:
    """Return the text of docs/running.md with a table that is up to date."""
    return filled(PAGE.read_text(encoding="utf-8"), "time", table())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
