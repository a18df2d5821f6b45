"""Run by test_ranks.py under torchrun: a step of the discriminator, sharded over the ranks; gradients are kept."""

import sys
from functools import partial

import pyarrow.parquet as pq
import torch
from transformers import AutoProcessor

from verl_prism.discriminator import load_discriminator
from verl_prism.discriminator.batch import Group, Prompt, SpanEncoder
from verl_prism.discriminator.loss import LossWeights
from verl_prism.discriminator.ranks import Ranks, gradient_sync, process_group, shard
from verl_prism.discriminator.step import DiscriminatorStep, Optimization, StepSettings
from verl_prism.response import View
from verl_prism.stages.warmup import encode_row


def spans(caption: str, answer: str):
    return {
        View.PERCEPTION: f"<caption>{caption}</caption>",
        View.REASONING: f"<think>{caption}</think><answer>{answer}</answer>",
    }


TEACHER = spans("Left a 7, right a 8.", "15")
STUDENTS = [spans("A 1.", "3"), spans("Two digits, I think, and the left one is a 4.", "5")]
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
    groups = [Group(prompt, TEACHER, STUDENTS) for prompt in prompts]
    for g in CASES[case]:
        match case:
            case "one rank without an image":
                groups[g] = Group(Prompt(torch.tensor(words)), TEACHER, STUDENTS)
            case "one rank without a valid pair":
                groups[g] = Group(prompts[g], TEACHER, [None, None])
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
    if ranks.size > 1:
        shard(model, ranks, torch.float32)
    kept = {}

    def keep() -> float:
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                kept[name] = (
                    parameter.grad.full_tensor() if ranks.size > 1 else parameter.grad.clone()
                )
        return torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()

    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    step = DiscriminatorStep(
        model,
        SpanEncoder(tokenizer, model.config),
        StepSettings(LossWeights(balance=0.0), max_tokens=100),
        Optimization(keep, model.zero_grad),
        ranks,
        folder,
        sync=partial(gradient_sync, model),
    )
    result = step(ranks.share(build_groups(folder, train, case)))
    return {"gradients": kept, "metrics": result.metrics}


def main(folder: str, train: str, file: str) -> None:
    with process_group("cpu") as ranks:
        results = {case: run(folder, train, case, ranks) for case in CASES}
        if ranks.rank == 0:
            torch.save(results, file)


main(*sys.argv[1:])
