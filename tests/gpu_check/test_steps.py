"""The steps of the discriminator on a CPU at tiny sizes, and the faults that they find."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from verl_prism.discriminator import shard
from verl_prism.gpu_check import attention, precision, sizes
from verl_prism.gpu_check.process import Task
from verl_prism.gpu_check.record import Options, Record
from verl_prism.gpu_check.steps import STEPS

TESTS = Path(__file__).parents[1]
FIRST_PART = [step for step in STEPS if not step.name.startswith("stage-")]


@pytest.fixture
def options(tmp_path):
    return Options("cpu", True, tmp_path, 60.0)


@pytest.fixture
def record(tmp_path):
    return Record(tmp_path / "record.json")


def failed(record: Record) -> list[str]:
    record.finish()
    return [check["name"] for check in record.checks if not check["pass"]]


def test_attention(options, record):
    attention.compare_attention(options, record)
    assert not failed(record)
    assert len(record.checks) == 16


def test_attention_without_the_prompt_is_found(options, record, monkeypatch):
    def own_segment_only(layout, device):
        ends = torch.tensor([segment.stop for segment in layout.segments])

        def visible(batch, head, query, key):
            same = torch.bucketize(query, ends, right=True) == torch.bucketize(
                key, ends, right=True
            )
            return same & (key <= query)

        tokens = int(ends[-1])
        return create_block_mask(visible, None, None, tokens, tokens, device=device)

    monkeypatch.setattr(attention, "flex_mask", own_segment_only)
    attention.compare_attention(options, record)
    names = failed(record)
    assert len(names) == 8
    assert all(name.startswith("flex") for name in names)


def test_experts_in_fp32_are_found(options, record, monkeypatch):
    monkeypatch.setattr(
        precision, "shard", lambda model, ranks, dtype: shard(model, ranks, torch.float32)
    )
    precision.watch_experts(options, record)
    assert failed(record) == ["dtypes in grouped_mm"]


def test_a_size_that_does_not_fit_is_tried_in_smaller_packs(options, record, monkeypatch):
    make_step = sizes.make_step

    def small_device(model, optimizer, ranks, tokens, folder):
        if tokens > 20000:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return make_step(model, optimizer, ranks, tokens, folder)

    monkeypatch.setattr(sizes, "make_step", small_device)
    sizes.measure_size(options, record, 800, 300, 700, 34)
    assert not failed(record)
    assert record.values["out_of_memory"] == dict.fromkeys(
        ["114688", "57344", "28672"], "CUDA out of memory"
    )
    assert record.values["micro_batch_tokens"] == 14336
    assert len(record.values["seconds"]) == 3
    assert record.values["model_tflops"] > 0
    assert record.values["milliseconds"]


def test_groups_that_change_in_every_size(options, record):
    sizes.count_recompilations(options, record)
    assert not failed(record)
    assert len(record.values["seconds"]) == 20


def test_both_algorithms_in_bf16(options, record, monkeypatch):
    monkeypatch.setattr(sizes, "QUICK", replace(sizes.QUICK, dtype="bfloat16"))
    sizes.compare_reference(options, record)
    assert record.checks[0]["value"] < 2e-2
    assert record.values["gain"] > 0


def test_a_size_that_fits_in_no_pack_fails(options, record, monkeypatch):
    def full_device(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(sizes, "make_step", full_device)
    with pytest.raises(torch.OutOfMemoryError, match="14336 tokens do not fit"):
        sizes.measure_size(options, record, 800, 300, 700, 34)


def test_the_real_size_is_that_of_qwen3_vl_2b_with_four_experts(tmp_path):
    full = Options("meta", False, tmp_path, 60.0)
    setting = sizes.size_setting(full, 4096, 600, 5400, 120)
    assert setting.image_tokens == 3600
    model = precision.random_model(setting)
    assert sum(each.numel() for each in model.parameters()) == pytest.approx(5.3e9, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("step", FIRST_PART, ids=lambda step: step.name)
def test_the_first_part_needs_only_torch_and_transformers(step, tmp_path):
    result = str(tmp_path / "result.json")
    task = Task(step.function, step.arguments, result, "cpu", True, str(tmp_path), 600.0)
    isolated = [sys.executable, TESTS / "discriminator" / "isolated.py"]
    done = subprocess.run(
        [*isolated, "verl_prism.gpu_check.process", task.command()[-1]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
