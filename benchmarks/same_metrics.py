"""Check that a change of the code changes no metric: two steps of each stage, compared bit for bit.

    python benchmarks/same_metrics.py record FILE [--repository CHECKOUT]
    python benchmarks/same_metrics.py compare BEFORE AFTER

`record` runs sft, warmup, align, rlvr (grpo and dapo) and eval on the digits example with
`prism.reproducible=true`, and writes all metrics of all steps to FILE as JSON. It takes about ten
minutes on two cores. `--repository` names another checkout with its own `.venv`, such as a clone of
an older commit; keys that have been renamed since then get their old names.
`compare` prints the number of values that differ per run, and exits with 1 if there are any. Times
are not compared.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from verl_prism.config import RENAMED_KEYS

TIMES = ("timing_", "perf/", "actor/perf/", "train/mfu", "training/mfu")
ROLLOUT = (
    "prism.rollout.prompts_per_step=4",
    "prism.rollout.samples_per_prompt=4",
    "prism.optim.lr=1e-3",
)
SFT = ("prism.sft.examples_per_step=16", "prism.optim.lr=2e-3", "prism.optim.warmup_steps=10")
WARMUP = (
    "prism.discriminator.lr=1e-3",
    "prism.warmup.prompts=60",
    "prism.warmup.samples_per_prompt=2",
    "prism.warmup.pairs_per_step=16",
    "prism.warmup.mismatched_teachers=1",
)

Metrics = dict[str, Any]


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record")
    record.add_argument("file", type=Path)
    record.add_argument("--repository", type=Path, default=Path(__file__).parents[1])
    compare = commands.add_parser("compare")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "record":
        with tempfile.TemporaryDirectory() as root:
            runs = record_runs(options.repository.absolute(), Path(root))
        options.file.write_text(json.dumps(runs, indent=1, sort_keys=True))
        return 0
    return compare_runs(
        json.loads(options.before.read_text()), json.loads(options.after.read_text())
    )


def record_runs(repository: Path, root: Path) -> dict[str, list[Metrics]]:
    """Run every stage and return the metrics of each step, keyed by run."""
    digits = repository / "examples" / "digits"
    python = repository / ".venv" / "bin" / "python"
    execute(repository, python, digits / "data.py", "--out", root / "data")
    execute(
        repository, python, digits / "model.py", "--data", root / "data", "--out", root / "base"
    )

    def run(name: str, stage: str, *overrides: str) -> list[Metrics]:
        output = root / name
        folders = (f"prism.root={root}", f"prism.output={output}", "prism.reproducible=true")
        settings = old_keys(repository, [*folders, *overrides])
        execute(repository, python, "-m", "verl_prism.main", f"stage={stage}", *settings)
        return read_metrics(output)

    sft_policy = f"prism.policy={root}/sft/policy"
    runs: dict[str, list[Metrics]] = {}
    # The later runs need a policy that knows the format, which takes more than two steps.
    run("sft", "sft", "prism.steps=120", *SFT)
    runs["sft"] = run("sft-two", "sft", "prism.steps=2", *SFT)
    runs["warmup"] = run("warmup", "warmup", "prism.steps=2", *WARMUP)
    runs["align"] = run("align", "align", "prism.steps=2", *ROLLOUT)
    runs["rlvr grpo"] = run("grpo", "rlvr", sft_policy, "prism.steps=2", *ROLLOUT)
    runs["rlvr dapo"] = run("dapo", "rlvr", sft_policy, "algorithm=dapo", "prism.steps=2", *ROLLOUT)
    metrics = f"prism.eval.metrics={digits}/metrics.py:measure"
    run("eval", "eval", sft_policy, metrics, "prism.eval.max_questions=40")
    results = (root / "eval" / "results.json").read_text().replace(str(root), "ROOT")
    runs["eval"] = [json.loads(results)]
    return runs


def old_keys(repository: Path, overrides: list[str]) -> list[str]:
    """Replace keys that the checkout's config does not have yet by their old names."""
    config = (repository / "trainer_configs" / "prism.yaml").read_text()
    old_names = {new: old for old, new in RENAMED_KEYS.items()}
    translated = []
    for override in overrides:
        key, _, value = override.partition("=")
        if f" {key.rpartition('.')[2]}:" not in config:
            key = old_names[key]
        translated.append(f"{key}={value}")
    return translated


def execute(repository: Path, *command: Any) -> None:
    """Run a command in the root of a checkout."""
    subprocess.run([str(part) for part in command], cwd=repository, check=True)


def read_metrics(output: Path) -> list[Metrics]:
    """Return the metrics of each step of a run, without times."""
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [record["data"] for record in records if "data" in record]
    return [
        {key: value for key, value in step.items() if not key.startswith(TIMES)} for step in steps
    ]


def compare_runs(before: dict[str, list[Metrics]], after: dict[str, list[Metrics]]) -> int:
    """Print a line per run and every value that differs. Return the exit code."""
    differences = 0
    for name in sorted(before.keys() | after.keys()):
        steps = before.get(name, [])
        one = leaves(steps)
        other = leaves(after.get(name, []))
        keys = sorted(one.keys() | other.keys())
        differing = [key for key in keys if one.get(key) != other.get(key)]
        print(f"{name:12} {len(steps)} steps, {len(one)} values, {len(differing)} differ")
        for key in differing:
            print(f"    {key}: {one.get(key)} -> {other.get(key)}")
        differences += len(differing)
    return 1 if differences else 0


def leaves(node: Any, path: str = "") -> dict[str, str]:
    """Return the exact text of every value below `node`, keyed by its path. NaN equals NaN."""
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    else:
        return {path: repr(node)}
    found: dict[str, str] = {}
    for key, child in items:
        found |= leaves(child, f"{path}/{key}")
    return found


if __name__ == "__main__":
    sys.exit(main())
