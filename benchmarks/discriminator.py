"""Time one discriminator step against the reference algorithm, and check that gradients agree.

    make bench
    python benchmarks/discriminator.py --students 4 8 --hidden 512

It runs on the CPU. On a GPU, `python -m verl_prism.gpu_check --steps reference` compares the two.

One step is the scores for the policy's reward, the gradient and the optimizer's step. All sides get
the same groups, and sides that compute the same have the same weights. Seconds are medians of
interleaved steps after one warm-up step. Memory is the growth of the peak over the built model
during one step in a new process. The exit code is 1 if, in fp32, the loss, a score or a gradient
differs by more than 1e-5.
"""

import argparse
import gc
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded

import torch
import transformers
from rich import box
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor, nn

from verl_prism.gpu_check.problem import CPU, QUICK, Setting, real_tokens, step_flops
from verl_prism.gpu_check.sides import (
    SIDES,
    Problem,
    Side,
    build_model,
    build_sides,
    make_side,
)

TOLERANCE = 1e-5  # in fp32, relative to the largest entry
LABELS = {"reference": "reference", "ours": "ours, token", "dedicated": "ours, by view"}  # routing


@contextmanager
def counted(model: nn.Module) -> Iterator[dict[str, int]]:
    """Images that go through the vision tower, and tokens (padding too) through the text model."""
    work = {"images": 0, "tokens": 0}

    def see(module, args, inputs) -> None:
        work["images"] += len(inputs["grid_thw"])

    def read(module, args, inputs) -> None:
        work["tokens"] += inputs["inputs_embeds"].shape[:-1].numel()

    hooks = [
        model.model.visual.register_forward_pre_hook(see, with_kwargs=True),
        model.model.language_model.register_forward_pre_hook(read, with_kwargs=True),
    ]
    yield work
    for hook in hooks:
        hook.remove()


def warm_up(
    sides: dict[str, Side], problem: Problem
) -> tuple[dict[str, dict[str, int]], dict[str, Any]]:
    """Make one step of each side. Return its work, and the difference before weights change."""
    work, results = {}, {}
    for name, side in sides.items():
        with counted(side.model) as work[name]:
            results[name] = side.accumulate(problem)
    difference = compare(sides, results)
    for side in sides.values():
        side.optimizer.step()
        side.optimizer.zero_grad()
    return work, difference


def compare(sides: dict[str, Side], results: dict[str, tuple[Tensor, float]]) -> dict[str, Any]:
    (scores, loss), (our_scores, our_loss) = results["reference"], results["ours"]
    ours = dict(sides["ours"].model.named_parameters())
    gradients = {
        name: relative_difference(parameter.grad, ours[name].grad)
        for name, parameter in sides["reference"].model.named_parameters()
    }
    worst = max(gradients, key=lambda name: gradients[name])
    return {
        "loss": abs(loss - our_loss) / abs(loss),
        "scores": relative_difference(scores, our_scores),
        "gradient": gradients[worst],
        "gradient_of": worst,
    }


def relative_difference(expected: Tensor | None, actual: Tensor | None) -> float:
    """Return the largest difference of an entry, relative to the largest entry.

    Two missing gradients do not differ.
    """
    if expected is None or actual is None:
        return 0.0 if expected is actual else float("inf")
    difference = (expected - actual).abs().max().item()
    return difference / expected.abs().max().item() if difference else 0.0


def time_steps(sides: dict[str, Side], problem: Problem) -> dict[str, list[float]]:
    """Seconds of each step, the sides taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(problem.setting.repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            side.step(problem)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(s: Setting, name: str, students: int) -> int:
    """Return the growth of the peak memory during one step, in bytes. Call it in a new process."""
    problem = Problem.make(s, students)
    side = make_side(s, build_model(s, name))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = process_memory("VmRSS")
    side.step(problem)
    return process_memory("VmHWM") - before


def process_memory(entry: str) -> int:
    """Bytes of an entry of this process's status: VmRSS, resident memory, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


def peak_memories(s: Setting) -> dict[int, dict[str, int]]:
    """By N and side. Each in a fresh process, before this one takes memory of the device."""
    fresh = multiprocessing.get_context(
        "forkserver"
    )  # forks from a process that has imported torch and done nothing
    fresh.set_forkserver_preload(["verl_prism.discriminator.update", "rich.table"])

    def of_one_step(name: str, students: int) -> int:
        with ProcessPoolExecutor(1, fresh) as process:
            return process.submit(peak_memory, s, name, students).result()

    return {
        students: {name: of_one_step(name, students) for name in SIDES} for students in s.students
    }


def measure(
    s: Setting, sides: dict[str, Side], students: int, memory: dict[str, int]
) -> dict[str, Any]:
    """Return one row of results: the measurements of each side, and their ratios."""
    problem = Problem.make(s, students)
    work, difference = warm_up(sides, problem)
    seconds = time_steps(sides, problem)
    tokens = real_tokens(problem.samples, s.groups)
    flops = step_flops(s, problem.groups)
    row: dict[str, Any] = {"students": students, "real_tokens": tokens, "difference": difference}
    for name in sides:
        median = statistics.median(seconds[name])
        work_of_step = flops["reference" if name == "reference" else "ours"]
        row[name] = {
            "seconds": seconds[name],
            "median_seconds": median,
            "ratio": statistics.median(seconds["reference"]) / median,
            "image_encodings_per_group": work[name]["images"] / s.groups,
            "token_efficiency": tokens / work[name]["tokens"],
            "peak_memory_bytes": memory[name],
            "flops": work_of_step,
            "flops_per_second": work_of_step / median,
        }
    return row


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def results_table(rows: list[dict[str, Any]]) -> Table:
    table = Table("N", Column("algorithm", no_wrap=True), box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("seconds", "ratio", "images", "tokens", "memory", "GFLOP", "GFLOP/s"):
        table.add_column(heading, justify="right")
    for row in rows:
        for name in SIDES:
            side = row[name]
            table.add_row(
                str(row["students"]) if name == SIDES[0] else "",
                LABELS[name],
                f"{side['median_seconds']:.3f}",
                f"{side['ratio']:.1f}x",
                f"{side['image_encodings_per_group']:g}",
                f"{side['token_efficiency']:.3f}",
                f"{side['peak_memory_bytes'] / 2**20:.0f} MiB",
                f"{side['flops'] / 1e9:.0f}",
                f"{side['flops_per_second'] / 1e9:.0f}",
                end_section=name == SIDES[-1],
            )
    return table


def print_report(report: dict[str, Any], console: Console) -> None:
    s = report["setting"]
    versions = report["versions"]
    console.print(
        f"One discriminator step of {s['groups']} group(s) of N students: prompt {s['prompt']} "
        f"tokens with its image, caption {s['caption']}, reasoning {s['reasoning']}; "
        f"{report['parameters'] / 1e6:.1f} M parameters in {s['dtype']}, {s['optimizer']}; "
        f"{report['device']}, {report['threads']} thread(s), "
        f"torch {versions['torch']}, transformers {versions['transformers']}"
    )
    console.print(results_table(report["rows"]))
    for row in report["rows"]:
        far = row["difference"]
        console.print(
            f"N={row['students']}: the largest differences, relative to the largest entry, are "
            f"{far['loss']:.1e} in loss, {far['scores']:.1e} in scores and {far['gradient']:.1e} "
            f"in gradients (of {far['gradient_of']})"
        )
    if report["agree"] is False:
        console.print(f"[red]more than the {report['tolerance']:.0e} allowed[/red]")


def parse(arguments: list[str] | None) -> tuple[Setting, Path, bool]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds")
    parser.add_argument(
        "--profile", action="store_true", help="print where the time of a step of ours goes"
    )
    parser.add_argument("--json", type=Path, default=Path("outputs/bench/discriminator.json"))
    for field in (each for each in fields(Setting) if each.name != "device"):
        flag = f"--{field.name.replace('_', '-')}"
        several = isinstance(field.default, tuple)
        if isinstance(field.default, bool):
            parser.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS
            )
        else:
            kind = int if several else type(field.default)
            parser.add_argument(
                flag, type=kind, nargs="+" if several else None, default=argparse.SUPPRESS
            )
    options = vars(parser.parse_args(arguments))
    path = options.pop("json")
    profile = options.pop("profile")
    preset = QUICK if options.pop("quick") else CPU
    given = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    return replace(preset, **given), path, profile


def print_profile(side: Side, problem: Problem, console: Console) -> None:
    with torch.profiler.profile() as profiler:
        side.step(problem)
    averages = profiler.key_averages()
    console.print(averages.table(sort_by="self_cpu_time_total", row_limit=25), soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    s, path, profile = parse(arguments)
    console = Console()
    memory = peak_memories(s)
    sides = build_sides(s)
    rows = [measure(s, sides, students, memory[students]) for students in s.students]
    exact = s.dtype == "float32"
    agree = all(
        row["difference"][of] <= TOLERANCE for row in rows for of in ("loss", "scores", "gradient")
    )
    report = {
        "device": processor(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "parameters": sum(parameter.numel() for parameter in sides["ours"].model.parameters()),
        "setting": asdict(s),
        "tolerance": TOLERANCE if exact else None,
        "agree": agree if exact else None,
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print_report(report, console)
    console.print(f"written to {path}")
    if profile:
        print_profile(sides["ours"], Problem.make(s, s.students[-1]), console)
    return 1 if exact and not agree else 0


if __name__ == "__main__":
    sys.exit(main())
