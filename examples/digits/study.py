"""Is alignment worth its time? Trains an SFT policy on in several ways, per seed, and compares.

    python examples/digits/study.py --out outputs/study --seeds 0 1 2 3 4

The task is a row of three digits whose sum is even or odd: its answer can be guessed, so accuracy
alone does not show what a policy learned (README.md, "Other tasks"). Runs that are finished are
kept, and an unfinished one resumes, so the command can be stopped and started again. It writes
`study.json` and `study.md`: means over seeds, and differences from GRPO without alignment, paired
by seed. `--scale 0.1` makes a tenth of the steps after SFT, to try the command.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t

HERE = Path(__file__).parent
TASK = ("--task", "row", "--digits", "3", "--kinds", "parity")
SFT, WARMUP, ALIGNED, ALIGNED_GRPO = "SFT", "warmup", "aligned", "aligned_GRPO"
GRPO_UPDATES, GRPO_TIME = "GRPO_equal_updates", "GRPO_equal_time"
TEACHER_SFT, TEACHER_SFT_GRPO = "teacher_SFT", "teacher_SFT_GRPO"
BASELINES = (GRPO_UPDATES, GRPO_TIME)
MARKS = ("accuracy", "grounded", "perception", "reasoning", "greedy_accuracy")
ALIGN_STEPS, GRPO_STEPS = 45, 45
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Run:
    """A run of a stage. start: the run whose policy it starts from; None: the base model."""

    stage: str
    start: str | None
    steps: int
    options: tuple[str, ...] = ()


GRPO = ("algorithm=grpo", "prism.optim.lr=1e-4")
RUNS = {
    SFT: Run(
        "sft",
        None,
        600,
        ("prism.sft.examples_per_step=16", "prism.optim.lr=2e-3", "prism.optim.warmup_steps=35"),
    ),
    WARMUP: Run(
        "warmup",
        SFT,
        200,
        (
            "prism.discriminator.lr=1e-3",
            "prism.warmup.prompts=2000",
            "prism.warmup.samples_per_prompt=2",
            "prism.warmup.mismatched_teachers=2",
        ),
    ),
    ALIGNED: Run(
        "align",
        SFT,
        ALIGN_STEPS,
        (
            "prism.optim.lr=1e-4",
            "prism.discriminator.lr=2e-4",
            "prism.align.std_floor=1",
            "prism.align.credit=span",
        ),
    ),
    ALIGNED_GRPO: Run("rlvr", ALIGNED, GRPO_STEPS, GRPO),
    GRPO_UPDATES: Run("rlvr", SFT, ALIGN_STEPS + GRPO_STEPS, GRPO),
    GRPO_TIME: Run("rlvr", SFT, 0, GRPO),  # `equal_time_steps` sets its steps
    TEACHER_SFT: Run(
        "sft",
        SFT,
        150,
        ("prism.sft.examples_per_step=32", "prism.optim.lr=1e-3", "prism.optim.schedule=cosine"),
    ),
    TEACHER_SFT_GRPO: Run("rlvr", TEACHER_SFT, GRPO_STEPS, GRPO),
}


class Seed:
    """The runs of one seed, in a folder of their own."""

    def __init__(self, out: Path, seed: int, scale: float) -> None:
        self.root = out / f"seed-{seed}"
        self._seed = seed
        self._scale = scale

    def make(self) -> dict[str, Any]:
        """Make all runs that are not finished, and return the results of the evaluation."""
        data, base = self.root / "data", self.root / "base"
        seed = ("--seed", str(self._seed))
        if not (base / "config.json").exists():
            call(HERE / "data.py", "--out", data, *TASK, *seed)
            call(HERE / "model.py", "--data", data, "--out", base, *seed)
        for name, run in RUNS.items():
            self._make(name, run)
        return self._evaluate()

    def seconds(self, name: str) -> float:
        """Return the time of a finished run, without the runs before it."""
        return self._summary(name)["seconds"]

    def total_seconds(self, name: str) -> float:
        """Return the time from the SFT policy to this one."""
        run = RUNS[name]
        if name == SFT or run.start is None:
            return 0.0
        warmup = self.seconds(WARMUP) if name == ALIGNED else 0.0
        return self.seconds(name) + warmup + self.total_seconds(run.start)

    def _make(self, name: str, run: Run) -> None:
        folder = self._folder(name)
        if (folder / "summary.json").exists():
            return
        options = [f"prism.steps={self._steps(name, run)}", *run.options]
        if run.start is not None:
            options.append(f"prism.policy={self._folder(run.start)}/policy")
        if run.stage == "align":
            options.append(f"prism.discriminator.path={self._folder(WARMUP)}/discriminator")
        if name == TEACHER_SFT:
            options.append(f"prism.data.train={self.root}/data/train.parquet")
        self._prism(run.stage, folder, *options)

    def _steps(self, name: str, run: Run) -> int:
        if name == GRPO_TIME:
            return self._equal_time_steps()
        if name == SFT:
            return run.steps  # with fewer steps it does not know the format
        return max(2, round(self._scale * run.steps))

    def _equal_time_steps(self) -> int:
        """Return how many steps GRPO makes in the time of warm-up, alignment and its own GRPO."""
        grpo = self._summary(GRPO_UPDATES)
        return max(2, round(self.total_seconds(ALIGNED_GRPO) * grpo["steps"] / grpo["seconds"]))

    def _evaluate(self) -> dict[str, Any]:
        folder = self._folder("eval")
        policies = [name for name, run in RUNS.items() if run.stage != "warmup"]
        if not (folder / "summary.json").exists():
            named = ", ".join(f"{name}: {self._folder(name)}/policy" for name in policies)
            metrics = f"prism.eval.metrics={HERE / 'metrics.py'}:measure"
            self._prism("eval", folder, metrics, f"prism.eval.policies={{{named}}}")
        return json.loads((folder / "results.json").read_text())["policies"]

    def _prism(self, stage: str, folder: Path, *options: str) -> None:
        settings = ("model=digits", "hardware=cpu", "prism.resume=true", f"prism.root={self.root}")
        own = (f"prism.output={folder}", f"prism.seed={self._seed}")
        call("-m", "verl_prism.main", f"stage={stage}", *settings, *own, *options)

    def _summary(self, name: str) -> dict[str, Any]:
        return json.loads((self._folder(name) / "summary.json").read_text())

    def _folder(self, name: str) -> Path:
        return self.root / name.lower()


def call(*command: str | Path) -> None:
    """Run Python with these arguments; exit with its status if it fails."""
    done = subprocess.run([sys.executable, *map(str, command)])
    if done.returncode:
        sys.exit(done.returncode)


def summarize(seeds: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the means over seeds and the paired differences from both baselines.

    seeds: {seed: {policy: {mark: mean}}}.
    """
    names = list(next(iter(seeds.values())))
    summary: dict[str, Any] = {"seeds": list(seeds), "policies": {}, "differences": {}}
    for name in names:
        summary["policies"][name] = {
            mark: interval([policies[name][mark] for policies in seeds.values()])
            for mark in (*MARKS, "seconds")
        }
    for baseline in BASELINES:
        summary["differences"][baseline] = {
            mark: interval(
                [own[ALIGNED_GRPO][mark] - own[baseline][mark] for own in seeds.values()]
            )
            for mark in MARKS
        }
    return summary


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean, and half of the t interval over seeds; None for a single seed."""
    half = None
    if len(values) > 1:
        quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
        half = quantile * stdev(values) / math.sqrt(len(values))
    return {"mean": fmean(values), "half": half}


def markdown(summary: Mapping[str, Any]) -> str:
    """Return the tables of study.md."""
    titles = [mark.replace("_", " ") for mark in MARKS]
    lines = [
        f"Seeds {', '.join(map(str, summary['seeds']))}; rates in %, temperature 1 unless greedy, "
        "± the 95 % interval over seeds. Minutes are those after SFT.",
        "",
        f"| policy | {' | '.join(titles)} | minutes |",
        "|---|" + "---:|" * (len(MARKS) + 1),
    ]
    for name, marks in summary["policies"].items():
        cells = [cell(marks[mark], 100) for mark in MARKS]
        lines.append(f"| {name} | {' | '.join(cells)} | {cell(marks['seconds'], 1 / 60)} |")
    lines += [
        "",
        f"| {ALIGNED_GRPO} minus | {' | '.join(titles)} |",
        "|---|" + "---:|" * len(MARKS),
    ]
    for name, marks in summary["differences"].items():
        lines.append(f"| {name} | {' | '.join(cell(marks[mark], 100) for mark in MARKS)} |")
    return "\n".join(lines) + "\n"


def cell(found: Mapping[str, float | None], scale: float) -> str:
    """Return `mean ± half`, both times `scale`."""
    mean, half = found["mean"], found["half"]
    assert mean is not None
    return f"{scale * mean:.1f}" if half is None else f"{scale * mean:.1f} ±{scale * half:.1f}"


def main() -> None:
    """Make the runs of all seeds, and write and print the summary after each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps to make")
    arguments = parser.parse_args()
    found: dict[int, dict[str, Any]] = {}
    for number in arguments.seeds:
        seed = Seed(arguments.out.absolute(), number, arguments.scale)
        results = seed.make()
        found[number] = {}
        for name, marks in results.items():
            means = {mark: marks[mark]["mean"] for mark in MARKS}
            found[number][name] = means | {"seconds": seed.total_seconds(name)}
        summary = summarize(found)
        text = json.dumps({"by_seed": found, **summary}, indent=2)
        (arguments.out / "study.json").write_text(text + "\n")
        (arguments.out / "study.md").write_text(markdown(summary))
    print(markdown(summary))


if __name__ == "__main__":
    main()
