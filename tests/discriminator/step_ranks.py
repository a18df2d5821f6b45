"""Run by test_ranks.py under torchrun: one sharded step, whose gradients are kept."""

import sys

import pyarrow.parquet as pq
import torch
from transformers import AutoProcessor

from verl_prism.discriminator import (
    DiscriminatorStep,
    Group,
    LossSettings,
    Optimization,
    Prompt,
    Ranks,
    StepSettings,
    load_discriminator,
    process_group,
    shard,
    tokenize_spans,
)
from verl_prism.response import parse_response
from verl_prism.stages.warmup_data import encode_row

TEACHER = ("Left a 7, right a 8.", "15")
STUDENTS = [("A 1.", "3"), ("Two digits, I think, and the left one is a 4.", "5")]
CASES = {
    "all alike": [],
    "one rank without an image": [1, 3],
    "one rank without a valid pair": [1, 3],
    "a rank without a group": [1, 2, 3],
    "not finite on one rank": [3],
}


def build_groups(folder, train, case: str) -> list[Group]:
    """Four groups, of which the second rank of two gets the second and the fourth."""
    processor = AutoProcessor.from_pretrained(folder)
    prompts = [encode_row(processor, row) for row in pq.read_table(train).slice(0, 4).to_pylist()]
    words = processor.tokenizer.encode(
        "What is the sum of the two digits?", add_special_tokens=False
    )

    def spans(caption: str, answer: str):
        text = f"<caption>{caption}</caption><think>{caption}</think><answer>{answer}</answer>"
        return tokenize_spans(parse_response(text), processor.tokenizer)

    teacher = spans(*TEACHER)
    students = [spans(*student) for student in STUDENTS]
    groups = [Group(prompt, teacher, students) for prompt in prompts]
    for g in CASES[case]:
        match case:
            case "one rank without an image":
                groups[g] = Group(Prompt(torch.tensor(words)), teacher, students)
            case "one rank without a valid pair":
                groups[g] = Group(prompts[g], teacher, [None, None])
            case "not finite on one rank":
                groups[g].prompt.pixel_values[0, 0] = torch.nan
    return groups[:1] if case == "a rank without a group" else groups


def run(folder, train, case: str, ranks: Ranks) -> dict:
    model = load_discriminator(folder).train()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name:
                parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    if ranks.world_size > 1:
        shard(model, ranks, torch.float32)
    kept = {}

    def keep() -> float:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                kept[name] = (
                    parameter.grad.full_tensor() if ranks.world_size > 1 else parameter.grad.clone()
                )
        return torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()

    step = DiscriminatorStep(
        model,
        StepSettings(micro_batch_tokens=100, loss=LossSettings(balance_coef=0.0)),
        Optimization(keep, model.zero_grad),
        ranks,
        folder,
    )
    result = step(build_groups(folder, train, case)[ranks.rank :: ranks.world_size])
    return {"gradients": kept, "metrics": result.metrics}


def main(folder: str, train: str, file: str) -> None:
    with process_group("cpu") as ranks:
        results = {case: run(folder, train, case, ranks) for case in CASES}
        results["shared"] = ranks.share(range(5), lambda item: (item, ranks.rank))
        if ranks.rank == 0:
            torch.save(results, file)


main(*sys.argv[1:])
