"""The step at the size of Qwen3-VL-2B with 4 experts: time, memory and recompilations."""

import gc
import random
import statistics
from dataclasses import replace
from typing import Any

import torch
from torch._dynamo import utils as dynamo

from verl_prism.discriminator import (
    DiscriminatorStep,
    Group,
    Ranks,
    StepSettings,
    group_sizes,
    process_group,
    shard,
)
from verl_prism.gpu_check.device import allocated_gib, now, peak_gib, reset_peak
from verl_prism.gpu_check.peaks import peak_of
from verl_prism.gpu_check.precision import checkpoint_activations, random_model
from verl_prism.gpu_check.problem import (
    QUICK,
    QWEN3_VL_2B,
    Setting,
    make_groups,
    step_flops,
)
from verl_prism.gpu_check.record import Options, Record
from verl_prism.gpu_check.sides import Problem, Side, build_model, make_side
from verl_prism.gpu_check.small import SMALL, make_step

# Sizes of a micro-batch, the default first. The next is tried if the device runs out of memory.
DEFAULT_TOKENS = StepSettings().micro_batch_tokens
TOKEN_LIMITS = tuple(DEFAULT_TOKENS // parts for parts in (1, 2, 4, 8))
REPEATS = 3  # timed steps after one warm-up step
LEARNING_RATE = 1e-6
QUICK_SHARE = 16  # by which --quick shortens texts
KERNELS = 20  # of a profile
KERNEL_NAME = 100  # characters
STEPS = 20  # of changing lengths
SETTLED = 10  # steps after which nothing should be compiled any more


def size_setting(
    options: Options, prompt: int, caption: int, reasoning: int, image_side: int
) -> Setting:
    """Return the setting of a shape: lengths in tokens, the side of the image in patches."""
    if not options.quick:
        full = replace(QWEN3_VL_2B, device=options.device, image_side=image_side)
        return _with_lengths(full, prompt, caption, reasoning)
    tiny = replace(QUICK, device=options.device, checkpointing=True)
    shorter = [length // QUICK_SHARE for length in (prompt, caption, reasoning)]
    return _with_lengths(tiny, max(shorter[0], QUICK.prompt), *shorter[1:])


def _with_lengths(setting: Setting, prompt: int, caption: int, reasoning: int) -> Setting:
    return replace(setting, prompt=prompt, caption=caption, reasoning=reasoning)


def measure_size(
    options: Options, record: Record, prompt: int, caption: int, reasoning: int, image_side: int
) -> None:
    """Time steps of one group, and record the peak memory and the model FLOPs utilization."""
    setting = size_setting(options, prompt, caption, reasoning, image_side)
    groups = make_groups(setting, setting.students[0])
    flops = step_flops(setting, groups)["ours"]
    record.add(
        students=setting.students[0],
        image_patches=setting.image_side**2,
        tokens=sum(group_sizes(group).tokens(range(len(group.students))) for group in groups),
        step_tflop=round(flops / 1e12, 3),
    )
    with process_group(options.device) as ranks:
        for tokens in TOKEN_LIMITS:
            if _fits(setting, groups, tokens, ranks, options, record):
                break
            gc.collect()
        else:
            raise torch.OutOfMemoryError(f"even packs of {TOKEN_LIMITS[-1]} tokens do not fit")
    seconds = statistics.median(record.values["seconds"])
    record.add(median_seconds=seconds, tokens_per_second=round(record.values["tokens"] / seconds))
    record.add(**utilization(flops / seconds, options.device))


def _fits(
    setting: Setting,
    groups: list[Group],
    tokens: int,
    ranks: Ranks,
    options: Options,
    record: Record,
) -> bool:
    """Measure with micro-batches of `tokens` tokens, and return whether they fit into memory.

    The model is made anew, because running out of memory leaves a sharded one in an unknown state.
    """
    reset_peak(options.device)
    record.add(micro_batch_tokens=tokens)
    try:
        model = random_model(setting)
        checkpoint_activations(model)
        shard(model, ranks, torch.bfloat16)
        record.add(parameters=sum(each.numel() for each in model.parameters()))
        record.add(model_gib=allocated_gib(options.device))
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        step = make_step(model, optimizer, ranks, tokens, options.work)
        _time_steps(step, groups, options, record)
        with record.part("profile"):
            record.add(milliseconds=_profile(step, groups, options.device))
    except torch.OutOfMemoryError as failure:
        seen = record.values.get("out_of_memory", {})
        record.add(out_of_memory={**seen, str(tokens): str(failure).split(". ")[0]})
        return False
    return True


def _time_steps(
    step: DiscriminatorStep, groups: list[Group], options: Options, record: Record
) -> None:
    seconds: list[float] = []
    for number in range(1 + REPEATS):
        start = now(options.device)
        result = step(groups)
        seconds.append(round(now(options.device) - start, 4))
        record.require(f"step {number + 1} is finite", result.nonfinite, False)
        record.add(first_step_seconds=seconds[0], seconds=seconds[1:])
        record.add(loss=result.metrics.get("loss"), peak_gib=peak_gib(options.device))
    if options.device == "cuda":
        record.add(reserved_gib=round(torch.cuda.max_memory_reserved() / 2**30, 2))


def _profile(step: DiscriminatorStep, groups: list[Group], device: str) -> dict[str, float]:
    """Return the milliseconds of one step in its slowest kernels; on a CPU, operators."""
    on_gpu = device == "cuda"
    activity = (
        torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    )
    with torch.profiler.profile(activities=[activity]) as profiler:
        step(groups)
        now(device)
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    microseconds = {row.key[:KERNEL_NAME]: getattr(row, field) for row in profiler.key_averages()}
    slowest = sorted(microseconds, key=lambda name: -microseconds[name])[:KERNELS]
    return {name: round(microseconds[name] / 1000, 2) for name in slowest}


def utilization(flops_per_second: float, device: str) -> dict[str, Any]:
    """Return the model TFLOP/s, and their share of the device's peak if it is known."""
    result: dict[str, Any] = {"model_tflops": float(f"{flops_per_second / 1e12:.4g}")}
    if device == "cuda":
        peak = peak_of(torch.cuda.get_device_name())
        result["peak_tflops"] = None if peak is None else peak.tflops
        if peak is not None:
            result["mfu"] = round(flops_per_second / 1e12 / peak.tflops, 4)
    return result


def count_recompilations(options: Options, record: Record) -> None:
    """Count what is compiled in steps whose groups, responses and lengths change."""
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch._logging.set_logs(recompiles=True)
    setting = replace(SMALL, device=options.device, hidden=512, head_dim=128, vision_hidden=256)
    model = random_model(setting)
    checkpoint_activations(model)
    graphs: list[int] = []
    seconds: list[float] = []
    with process_group(options.device) as ranks:
        shard(model, ranks, torch.bfloat16)
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
        step = make_step(model, optimizer, ranks, 8192, options.work)
        for number in range(STEPS):
            groups = changing_groups(setting, number, options.quick)
            start = now(options.device)
            step(groups)
            seconds.append(round(now(options.device) - start, 3))
            graphs.append(dynamo.counters["stats"]["unique_graphs"])
            record.add(seconds=seconds, graphs=graphs)
    record.add(recompilations=graphs[-1] - graphs[0])
    late = graphs[-1] - graphs[SETTLED - 1]
    record.check(f"compiled after step {SETTLED}", late, 0)


def changing_groups(setting: Setting, number: int, quick: bool) -> list[Group]:
    """Return the groups of a step, which differ from those of other steps in every size."""
    rng = random.Random(number)
    share = QUICK_SHARE if quick else 1
    side = 2 * rng.randint(2, 16 // min(share, 4))
    lengths = (rng.randint(200, 1500), rng.randint(20, 300), rng.randint(50, 900))
    prompt, caption, reasoning = (max(length // share, 2) for length in lengths)
    shape = replace(
        setting, groups=rng.randint(1, 3), image_side=side, prompt=prompt + side**2, seed=number
    )
    return make_groups(_with_lengths(shape, shape.prompt, caption, reasoning), rng.randint(2, 8))


def compare_reference(options: Options, record: Record) -> None:
    """Time a step of the published algorithm and of ours, with the same weights and groups.

    Weights and activations are bf16 on both sides (fp32 if quick), and routing is by token.
    """
    setting = size_setting(options, 800, 300, 700, 34)
    problem = Problem.make(setting, setting.students[0])
    models = {name: build_model(setting, name) for name in ("ours", "reference")}
    models["reference"].load_state_dict(models["ours"].state_dict(), assign=True)
    sides = {name: make_side(setting, model) for name, model in models.items()}
    seconds: dict[str, list[float]] = {"ours": [], "reference": []}
    losses = {}
    for name, side in sides.items():
        start = now(options.device)
        _, losses[name] = side.accumulate(problem)
        side.optimizer.zero_grad()
        record.add(**{f"first_{name}_seconds": round(now(options.device) - start, 3)})
    error = abs(losses["ours"] - losses["reference"]) / losses["reference"]
    record.check("loss", error, 1e-5 if options.quick else 2e-2)
    for _ in range(2):
        for name, side in sides.items():
            seconds[name].append(_step_seconds(side, problem, options.device))
            record.add(seconds=seconds)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    record.add(gain=round(medians["reference"] / medians["ours"], 2))


def _step_seconds(side: Side, problem: Problem, device: str) -> float:
    start = now(device)
    side.step(problem)
    return round(now(device) - start, 4)
