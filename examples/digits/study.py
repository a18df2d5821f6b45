"""Is alignment worth its time? Per seed, continues from one SFT policy in several ways.

    python examples/digits/study.py --seeds 1 2 3 4 5
    python examples/digits/study.py --seeds 1 2 3 --options
    python examples/digits/study.py --seeds 1 --policies SFT aligned span_credit

The task is a row of three digits (README.md), with two kinds of questions: what the sum is, and
whether it is even or odd. The demonstrations and the teacher's texts have both. RL asks only the
second, so half of the wrong responses are rewarded; the arms with "sums" ask only the first.
Policies are tested on both.

Each run is resumed if it was stopped, and kept if it is finished. The results of a seed are written
to `--results`, which the repository keeps; seeds found there are not trained again, unless policies
are added: all of a seed's policies start from one SFT run. The command then writes study.md and
study.png from all seeds in that folder.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study_report import (
    ALIGNED,
    ALIGNED_DAPO,
    ALIGNED_GRPO,
    ALIGNED_GRPO_SUMS,
    ALIGNED_GSPO,
    ALIGNED_LONGER,
    DPO,
    DPO_GRPO,
    GRPO_SUMS,
    GRPO_TIME,
    GRPO_UPDATES,
    MARKS,
    SFT,
    TEACHER_SFT,
    TEACHER_SFT_ALIGNED,
    TEACHER_SFT_GRPO,
    measures,
    write_report,
)

HERE = Path(__file__).parent
TASK = ("--task", "row", "--digits", "3", "--kinds", "parity", "sum")
ASKED, OTHER = "parity", "sum"  # the kind of questions that RL asks, and the other kind
WARMUP, SAMPLES, HARD_SAMPLES = "warmup", "samples", "samples_hard"
HARD_NEGATIVES = "hard_negatives"  # instead of a stage: a script that adds to samples
ALIGN_STEPS, GRPO_STEPS = 45, 45
# Steps that GRPO makes in the time of warm-up, alignment and 45 steps of GRPO. On two idle cores
# these take 15 minutes, and GRPO starts in 2.5 minutes and makes a step in 5.2 s: 144 steps. A
# number, not a clock, so that a busy host does not change the comparison.
EQUAL_TIME_STEPS = 150
TRAIN_POLICY = ("sft", "align", "rlvr", "dpo")
CURVE_STEPS = 15  # between two points of a learning curve


@dataclass(frozen=True)
class Run:
    """A run of a stage.

    start: the run whose policy it starts from; None: the base model.
    discriminator: the run whose discriminator it starts from, if it needs one.
    samples: the run whose samples it learns from, if it does.
    continues: the run of which it makes further steps; its steps are counted from that run's start.
    asks: the kind of questions that RL asks.
    """

    stage: str
    start: str | None
    steps: int
    options: tuple[str, ...] = ()
    discriminator: str | None = None
    samples: str | None = None
    continues: str | None = None
    asks: str = ASKED

    @property
    def others(self) -> list[str]:
        """The runs besides `start` that have to be made before."""
        needed = (self.discriminator, self.samples, self.continues)
        return [name for name in needed if name is not None]


SFT_OPTIONS = (
    "prism.sft.examples_per_step=16",
    "prism.optim.lr=2e-3",
    "prism.optim.warmup_steps=35",
)
TEACHER_OPTIONS = (
    "prism.sft.examples_per_step=32",
    "prism.optim.lr=1e-3",
    "prism.optim.schedule=cosine",
)
# The best of five on sums of seed 2: with beta=0.1 or lr=3e-4, the policy loses the format.
DPO_OPTIONS = (
    "prism.dpo.responses_per_prompt=1",
    "prism.dpo.beta=0.5",
    "prism.optim.lr=1e-4",
)
WARMUP_OPTIONS = (
    "prism.discriminator.lr=5e-4",
    "prism.warmup.prompts=2000",
    "prism.warmup.samples_per_prompt=2",
    "prism.warmup.mismatched_teachers=2",
    "prism.warmup.pairs_per_step=64",
)
LIKELIHOOD = ("discriminator=likelihood",)
ALIGN_OPTIONS = ("prism.optim.lr=3e-4", "prism.discriminator.lr=2e-4")
RL_OPTIONS = (
    "prism.optim.lr=1e-4",
    f"trainer.test_freq={CURVE_STEPS}",
    "trainer.val_before_train=true",
)


def warmup(*options: str, steps: int = 200, start: str = SFT, samples: str | None = None) -> Run:
    """Return a warm-up with these options, and with these samples if they are given."""
    return Run("warmup", start, steps, (*WARMUP_OPTIONS, *options), samples=samples)


def align(*options: str, start: str = SFT, discriminator: str = WARMUP) -> Run:
    """Return an alignment with these options."""
    return Run("align", start, ALIGN_STEPS, (*ALIGN_OPTIONS, *options), discriminator)


def rl(
    start: str,
    steps: int,
    algorithm: str = "grpo",
    continues: str | None = None,
    asks: str = ASKED,
) -> Run:
    """Return RL on questions of one kind: the answer to `ASKED` can be guessed."""
    options = (f"algorithm={algorithm}", *RL_OPTIONS)
    return Run("rlvr", start, steps, options, continues=continues, asks=asks)


MAIN = {
    SFT: Run("sft", None, 600, SFT_OPTIONS),
    WARMUP: warmup(*LIKELIHOOD),
    ALIGNED: align(*LIKELIHOOD),
    ALIGNED_GRPO: rl(ALIGNED, GRPO_STEPS),
    GRPO_UPDATES: rl(SFT, ALIGN_STEPS + GRPO_STEPS),
    GRPO_TIME: rl(SFT, EQUAL_TIME_STEPS, continues=GRPO_UPDATES),
    GRPO_SUMS: rl(SFT, ALIGN_STEPS + GRPO_STEPS, asks=OTHER),
    ALIGNED_GRPO_SUMS: rl(ALIGNED, GRPO_STEPS, asks=OTHER),
    TEACHER_SFT: Run("sft", SFT, 150, TEACHER_OPTIONS),
    TEACHER_SFT_GRPO: rl(TEACHER_SFT, GRPO_STEPS),
    "warmup_teacher": warmup(*LIKELIHOOD, start=TEACHER_SFT),
    TEACHER_SFT_ALIGNED: align(*LIKELIHOOD, start=TEACHER_SFT, discriminator="warmup_teacher"),
    SAMPLES: Run("sample", SFT, 0, ("prism.rollout.samples_per_prompt=1",)),
    DPO: Run("dpo", SFT, 128, DPO_OPTIONS, samples=SAMPLES),
    DPO_GRPO: rl(DPO, GRPO_STEPS),
}
# Alignments that differ from `aligned` in one thing each, what they need, and other RL after it.
OPTIONS = {
    "warmup_head": warmup(),
    "head": align(discriminator="warmup_head"),
    "head_slow": align("prism.discriminator.lr=2e-5", discriminator="warmup_head"),
    "warmup_head_long": warmup("prism.warmup.prompts=4000", steps=800),
    "head_long": align(discriminator="warmup_head_long"),
    "slow": align(*LIKELIHOOD, "prism.discriminator.lr=2e-5"),
    "head_long_slow": align("prism.discriminator.lr=2e-5", discriminator="warmup_head_long"),
    "warmup_no_imitation": warmup(*LIKELIHOOD, "prism.discriminator.imitation_coef=0"),
    "no_imitation": align(
        *LIKELIHOOD, "prism.discriminator.imitation_coef=0", discriminator="warmup_no_imitation"
    ),
    "warmup_eight": warmup("discriminator=likelihood", "prism.discriminator.upcycle.experts=8"),
    "eight_experts": align(*LIKELIHOOD, discriminator="warmup_eight"),
    "warmup_token": warmup(*LIKELIHOOD, "prism.discriminator.upcycle.routing=token"),
    "token_routing": align(*LIKELIHOOD, discriminator="warmup_token"),
    "warmup_dense": warmup(*LIKELIHOOD, "prism.discriminator.upcycle.routing=dense"),
    "dense": align(*LIKELIHOOD, discriminator="warmup_dense"),
    "warmup_short": warmup(*LIKELIHOOD, steps=1),
    "no_warmup": align(*LIKELIHOOD, discriminator="warmup_short"),
    "warmup_matched": warmup(*LIKELIHOOD, "prism.warmup.mismatched_teachers=0"),
    "no_mismatched": align(*LIKELIHOOD, discriminator="warmup_matched"),
    HARD_SAMPLES: Run(HARD_NEGATIVES, SFT, 0, samples=SAMPLES),
    "warmup_hard": warmup(*LIKELIHOOD, "prism.warmup.responses=file", samples=HARD_SAMPLES),
    "hard_negatives": align(*LIKELIHOOD, discriminator="warmup_hard"),
    "span_credit": align(*LIKELIHOOD, "prism.align.credit=span"),
    "std_floor_1": align(*LIKELIHOOD, "prism.align.std_floor=1"),
    "combined": align(*LIKELIHOOD, "prism.align.normalization=combined"),
    "quantile": align(*LIKELIHOOD, "prism.align.normalization=quantile"),
    "two_updates": align(*LIKELIHOOD, "prism.discriminator.updates_per_step=2"),
    "lr_1e-4": align(*LIKELIHOOD, "prism.optim.lr=1e-4"),
    "warmup_text": warmup(*LIKELIHOOD, "prism.discriminator.upcycle.images=false"),
    "text_only": align(*LIKELIHOOD, discriminator="warmup_text"),
    "replay": align(*LIKELIHOOD, "prism.discriminator.replay_share=0.5"),
    "restart_15": align(*LIKELIHOOD, "prism.discriminator.restart_every=15"),
    "accuracy_term": align(*LIKELIHOOD, "prism.align.accuracy_weight=0.5"),
    "aligned_again": align(*LIKELIHOOD),  # the order of rollouts is not fixed, so it differs
    ALIGNED_LONGER: Run(
        "align", SFT, 2 * ALIGN_STEPS, (*ALIGN_OPTIONS, *LIKELIHOOD), WARMUP, continues=ALIGNED
    ),
    ALIGNED_DAPO: rl(ALIGNED, GRPO_STEPS, "dapo"),
    ALIGNED_GSPO: rl(ALIGNED, GRPO_STEPS, "gspo"),
}


def needed(names: Iterable[str]) -> dict[str, Run]:
    """Return these runs and those that they start from, in the order in which they are made."""
    everything = MAIN | OPTIONS
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        run = everything[name]
        found.add(name)
        waiting += run.others
        if run.start is not None:
            waiting.append(run.start)
    return {name: run for name, run in everything.items() if name in found}


def policies_of(runs: Mapping[str, Run]) -> list[str]:
    """Return the runs that make a policy."""
    return [name for name, run in runs.items() if run.stage in TRAIN_POLICY]


class Seed:
    """The runs of one seed, in a folder of their own."""

    def __init__(self, out: Path, seed: int, runs: Mapping[str, Run], scale: float = 1.0) -> None:
        self.root = out / f"seed-{seed}"
        self._seed = seed
        self._runs = runs
        self._scale = scale

    def make(self) -> dict[str, Any]:
        """Make all runs that are not finished, and return the results of the seed."""
        self._write_data()
        for name, run in self._runs.items():
            self._make(name, run)
        marks = {kind: self._evaluate(kind) for kind in (ASKED, OTHER)}
        policies = {}
        curves = {}
        for name in policies_of(self._runs):
            means = {}
            for kind, found in marks.items():
                means[kind] = {mark: found[name][mark]["mean"] for mark in MARKS}
            policies[name] = means | {
                "measures": measures(marks[OTHER][name]),
                "updates": self._total_updates(name),
                "seconds": self.total_seconds(name),
            }
            if self._runs[name].stage == "rlvr":
                curves[name] = self._curve(name)
        return {"policies": policies, "curves": curves}

    def total_seconds(self, name: str) -> float:
        """Return the time from the SFT policy to this one."""
        made = [each for each in needed([name]) if each != SFT]
        return sum(self._seconds(each) for each in made)

    def _total_updates(self, name: str) -> int:
        """Return the number of the policy's updates after SFT."""
        run = self._runs[name]
        if name == SFT or run.start is None:
            return 0
        return int(self._summary(name)["steps"]) + self._total_updates(run.start)

    def _seconds(self, name: str) -> float:
        """Return the time of a run; if it continues another, only of its own steps."""
        continued = self._runs[name].continues
        if continued is None:
            return float(self._summary(name)["seconds"])
        first = self._summary(continued)["steps"]
        own = [record for record in self._step_records(name) if record["step"] > first]
        return sum(_step_seconds(record) for record in own)

    def _write_data(self) -> None:
        seed = ("--seed", str(self._seed))
        for kind in (OTHER, ASKED):
            folder = self._data(kind)
            if not (folder / "sft.parquet").exists():
                kinds = ("--rl-kinds", kind, "--heldout-kinds", kind)
                call(HERE / "data.py", "--out", folder, *TASK, *kinds, *seed)
        base = self.root / "base"
        if not (base / "config.json").exists():
            call(HERE / "model.py", "--data", self._data(ASKED), "--out", base, *seed)

    def _data(self, kind: str) -> Path:
        """Return the data whose RL and held-out questions are of this kind; the rest is equal."""
        return self.root / ("data" if kind == ASKED else f"data_{kind}")

    def _make(self, name: str, run: Run) -> None:
        folder = self._folder(name)
        if (folder / "summary.json").exists():
            return
        if run.stage == HARD_NEGATIVES:
            self._add_hard_negatives(run, folder)
            return
        if run.continues is not None and not folder.exists():
            self._copy(self._folder(run.continues), folder)
        options = list(run.options)
        if run.stage != "sample":
            options.append(f"prism.steps={self._steps(name, run)}")
        if run.start is not None:
            options.append(f"prism.policy={self._folder(run.start)}/policy")
        if run.discriminator is not None:
            warm = self._folder(run.discriminator)
            options.append(f"prism.discriminator.path={warm}/discriminator")
        if run.samples is not None:
            options.append(f"prism.data.train={self._samples(run.samples)}")
        if run.stage == "rlvr":
            options.append(f"prism.data.train={self._data(run.asks)}/rl.parquet")
            options.append(f"prism.data.heldout={self._data(OTHER)}/heldout.parquet")
        if name == TEACHER_SFT or run.stage == "sample":
            options.append(f"prism.data.train={self._data(ASKED)}/train.parquet")
        self._prism(run.stage, folder, *options)

    def _add_hard_negatives(self, run: Run, folder: Path) -> None:
        assert run.samples is not None
        samples = self._samples(run.samples)
        started = time.monotonic()
        out = ("--out", folder / samples.name)
        call(HERE / "hard_negatives.py", "--samples", samples, *out, "--seed", str(self._seed))
        summary = {"steps": 0, "seconds": time.monotonic() - started}
        (folder / "summary.json").write_text(json.dumps(summary))

    def _samples(self, name: str) -> Path:
        return self._folder(name) / "samples.parquet"

    def _steps(self, name: str, run: Run) -> int:
        if name == SFT:
            return run.steps  # with fewer steps it does not know the format
        return max(1, round(self._scale * run.steps))

    def _copy(self, source: Path, target: Path) -> None:
        """Copy a finished run, so that it resumes in the copy."""
        shutil.copytree(source, target)
        (target / "summary.json").unlink()

    def _evaluate(self, kind: str) -> dict[str, Any]:
        """Return the marks of each policy on held-out questions of this kind."""
        names = policies_of(self._runs)
        digest = hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]
        folder = self._folder(f"eval_{kind}_{digest}")  # other policies, another evaluation
        if not (folder / "summary.json").exists():
            named = ", ".join(f"{name}: {self._folder(name)}/policy" for name in names)
            self._prism(
                "eval",
                folder,
                f"prism.data.heldout={self._data(kind)}/heldout.parquet",
                f"prism.eval.metrics={HERE / 'metrics.py'}:measure",
                f"prism.eval.policies={{{named}}}",
            )
        results: dict[str, Any] = json.loads((folder / "results.json").read_text())["policies"]
        return results

    def _curve(self, name: str) -> list[dict[str, float]]:
        """Return greedy accuracy on held-out sums, from time to time.

        updates, seconds: since the SFT policy.
        """
        start = self._runs[name].start
        assert start is not None
        steps = self._step_records(name)
        training = sum(_step_seconds(record) for record in steps)
        seconds = self.total_seconds(name) - training  # when the first step starts
        curve = []
        for record in steps:
            seconds += _step_seconds(record)
            accuracy = _validation(record["data"])
            if accuracy is not None:
                updates = self._total_updates(start) + record["step"]
                curve.append({"updates": updates, "seconds": seconds, "accuracy": accuracy})
        return curve

    def _step_records(self, name: str) -> list[dict[str, Any]]:
        """Return the metrics of each step of a run."""
        lines = (self._folder(name) / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return [record for record in records if "step" in record]

    def _prism(self, stage: str, folder: Path, *options: str) -> None:
        settings = ("model=digits", "hardware=cpu", "prism.resume=true", f"prism.root={self.root}")
        own = (f"prism.output={folder}", f"prism.seed={self._seed}")
        call("-m", "verl_prism.main", f"stage={stage}", *settings, *own, *options)

    def _summary(self, name: str) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self._folder(name) / "summary.json").read_text())
        return summary

    def _folder(self, name: str) -> Path:
        return self.root / name.lower()


def _step_seconds(record: dict[str, Any]) -> float:
    seconds: float = record["data"].get("timing_s/step", 0.0)  # the record of step 0 has none
    return seconds


def _validation(data: dict[str, float]) -> float | None:
    """Return the accuracy of a validation, if the step had one."""
    for name, value in data.items():
        if name.startswith("val-") and "/acc/mean" in name:
            return value
    return None


def call(*command: str | Path) -> None:
    """Run Python with these arguments; exit with its status if it fails."""
    done = subprocess.run([sys.executable, *map(str, command)])
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    """Make the runs of all seeds, and write the report after each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=Path("outputs/study"), help="folder of all runs")
    add("--results", type=Path, default=HERE / "study", help="folder of the seeds' results")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    add("--options", action="store_true", help="also align with other options, one at a time")
    everything = policies_of(MAIN | OPTIONS)
    add("--policies", nargs="+", choices=everything, metavar="NAME", help="only these")
    add("--scale", type=float, default=1.0, help="share of the steps to make, except SFT's")
    arguments = parser.parse_args()
    default = everything if arguments.options else policies_of(MAIN)
    wanted = set(arguments.policies or default)
    arguments.results.mkdir(parents=True, exist_ok=True)
    for number in arguments.seeds:
        file = arguments.results / f"seed-{number}.json"
        known = set(json.loads(file.read_text())["policies"]) if file.exists() else set()
        if not wanted <= known:
            runs = needed(wanted | known)
            seed = Seed(arguments.out.absolute(), number, runs, arguments.scale)
            file.write_text(json.dumps(seed.make(), indent=2) + "\n")
        print(write_report(arguments.results))


if __name__ == "__main__":
    main()
