"""Estimated times against operations that torch counts, a simulated batch, and arithmetic."""

from collections.abc import Sequence
from functools import cache

import pyarrow.parquet as pq
import pytest
import torch
from qwen3_vl import QWEN
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from verl_prism.compose import compose_run
from verl_prism.discriminator import FlopModel
from verl_prism.discriminator.spans import VIEWS, tokenize_spans
from verl_prism.doctor.__main__ import CHECKS, findings, main
from verl_prism.doctor.devices import Gpu as VisibleGpu
from verl_prism.doctor.finding import GIB, Case
from verl_prism.doctor.lengths import ASSUMED, Lengths, mean_lengths
from verl_prism.doctor.sizes import sizes_of, upcycled
from verl_prism.doctor.time_checks import two_digits
from verl_prism.doctor.time_estimate import (
    DISCRIMINATOR,
    OFFLOAD,
    ROLLOUT,
    UPDATE,
    Gpu,
    Model,
    TimeModel,
    stage_time,
)
from verl_prism.gpu_check.peaks import Peak, peak_of
from verl_prism.response import parse_response

H100 = Gpu(Peak(989, 3.35), 80 * GIB)
FLOPS_PER_SECOND = 0.35 * 989e12
BYTES_PER_SECOND = 0.6 * 3.35e12
# Of Qwen3-VL-4B, counted by hand in test_sizes.py: 36 layers, and the output layer.
MULTIPLIED = 36 * 100_930_816 + 388_956_160
CACHE_BYTES = 36 * 2 * 8 * 128 * 2  # of one token


@cache
def time_model(*overrides: str, lengths: Lengths = ASSUMED) -> TimeModel:
    """Return a run of Qwen3-VL-4B on eight H100."""
    _, prism = compose_run(["model=qwen3_vl_4b", "hardware=8xh100", *overrides])
    policy = Model(sizes_of(QWEN["4b"]), FlopModel.of_policy(QWEN["4b"]))
    discriminator = None
    if prism.stage in ("warmup", "align"):
        config = upcycled(QWEN["2b"], prism.discriminator.upcycle)
        discriminator = Model(sizes_of(config), FlopModel.of(config))
    return TimeModel(prism, policy, discriminator, lengths, H100)


def test_operations_of_a_policy_equal_those_that_torch_counts(dense_folder, prompt):
    model = AutoModelForImageTextToText.from_pretrained(
        dense_folder, attn_implementation="eager", dtype=torch.float32
    )
    inputs = {
        "input_ids": prompt.input_ids[None],
        "pixel_values": prompt.pixel_values,
        "image_grid_thw": prompt.image_grid_thw,
        "mm_token_type_ids": (prompt.input_ids == model.config.image_token_id).int()[None],
    }
    with FlopCounterMode(display=False) as forward:
        logits = model(**inputs).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    flops = FlopModel.of_policy(model.config)
    tokens = len(prompt.input_ids)
    patches = prompt.image_grid_thw.prod().item()
    # Eager attention also computes the pairs above the diagonal.
    masked = flops.layers * flops.pair * tokens**2 / 2
    expected = flops.span(0, tokens) + masked + flops.image(patches)
    pixels = 2 * prompt.pixel_values.numel() * model.config.vision_config.hidden_size
    assert forward.get_total_flops() == pytest.approx(expected, rel=0.005)
    # Pixels have no gradient.
    assert backward.get_total_flops() == pytest.approx(2 * expected - pixels, rel=0.005)


TEXT = Lengths(prompt=1000, images=0, perception=400, reasoning=1600)


def test_a_step_of_sft_is_eight_operations_per_parameter_and_token():
    """With attention, which adds 8 % at 3,000 tokens: 4 passes x 2 x 4096 x 3000 x 36 layers."""
    seconds = stage_time(time_model("stage=sft", lengths=TEXT)).step_seconds
    per_token = 8 * MULTIPLIED + 4 * 2 * 4096 * 3000 * 36
    assert seconds == pytest.approx(16 * 3000 * per_token / 8 / FLOPS_PER_SECOND, rel=0.001)


def test_a_frozen_image_encoder_has_no_backward_pass():
    frozen = time_model("stage=sft").update(8)
    trained = time_model("stage=sft", "prism.sft.freeze_vision=false").update(8)
    without = time_model("stage=sft", lengths=Lengths(1000, 0, 400, 1600)).update(8)
    assert trained - without == pytest.approx(4 * (frozen - without))


def test_adapters_save_the_gradients_of_weights():
    full = time_model("stage=rlvr", lengths=TEXT).update(8)
    adapters = time_model("stage=rlvr", "prism.lora.rank=32", lengths=TEXT).update(8)
    assert adapters == pytest.approx(0.75 * full)


def test_old_log_probs_are_a_fifth_pass():
    usual = stage_time(time_model("stage=rlvr")).parts
    always = stage_time(time_model("stage=rlvr", "prism.rollout.old_log_probs=always")).parts
    assert always[UPDATE] == pytest.approx(5 / 4 * usual[UPDATE])
    assert always[ROLLOUT] == usual[ROLLOUT]


def simulated_decoding(lengths: Sequence[int], prompt: int, slots: int) -> float:
    """Return the seconds in which one engine decodes responses, token by token."""
    waiting = list(lengths)
    running: list[list[int]] = []  # the tokens so far, and in the end
    seconds = 0.0
    while waiting or running:
        while waiting and len(running) < slots:
            running.append([0, waiting.pop()])
        cached = sum(prompt + done for done, _ in running)
        nbytes = 2 * MULTIPLIED + CACHE_BYTES * cached
        seconds += nbytes / BYTES_PER_SECOND + 0.003
        for response in running:
            response[0] += 1
        running = [response for response in running if response[0] < response[1]]
    return seconds


@pytest.mark.parametrize(("requests", "slots"), [(8, 256), (64, 256), (64, 16)])
def test_a_rollout_takes_as_long_as_a_simulated_one(requests, slots):
    """An engine's requests, whose lengths are spread evenly, in an order that mixes them."""
    model = time_model("stage=rlvr", f"prism.hardware.max_num_seqs={slots}", lengths=TEXT)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(requests, generator=generator).tolist()
    lengths = [round(4000 * (place + 0.5) / requests) for place in order]
    reading = requests * 1000 * 2 * MULTIPLIED / FLOPS_PER_SECOND
    expected = simulated_decoding(lengths, 1000, slots) + reading
    assert model.rollout(8 * requests) == pytest.approx(expected, rel=0.1)


def test_tensor_parallel_engines_read_half_of_the_weights_each():
    """Twice as many requests for each of half as many engines: only reading weights is saved."""
    single = time_model("stage=rlvr").rollout(512)
    double = time_model("stage=rlvr", "prism.hardware.tensor_parallel_size=2").rollout(512)
    assert double == pytest.approx(single - 4000 * MULTIPLIED / BYTES_PER_SECOND, rel=0.01)


def test_the_discriminators_groups_go_to_the_devices_as_planned():
    four = time_model("stage=align").discriminator_step(4, 16)
    eight = time_model("stage=align").discriminator_step(8, 16)
    alone = time_model("stage=align", "prism.hardware.devices_per_node=1")
    assert eight == pytest.approx(alone.discriminator_step(1, 16))
    assert eight / 2 < four < 0.6 * eight  # halves of groups repeat the prompt and the teacher


def test_a_group_costs_its_tokens_once():
    """Two of four experts see each token; 1,000 + 17 x 2,000 tokens, without attention's pairs."""
    model = time_model("stage=align", "prism.hardware.devices_per_node=1", lengths=TEXT)
    attention = 2048 * 128 * (2 * 16 + 2 * 8)
    experts = 2 * 3 * 2048 * 6144
    linear = 8 * 35_000 * 28 * (attention + experts)
    pairs = 8 * 2048 * 28 * (1000 * 34_000 + 1000**2 / 2 + 17 * (400**2 + 1600**2) / 2)
    expected = (linear + pairs) / FLOPS_PER_SECOND
    assert model.discriminator_step(1, 16) == pytest.approx(expected, rel=0.05)


def test_settings_of_the_discriminator_multiply_its_time():
    usual = stage_time(time_model("stage=align")).parts[DISCRIMINATOR]

    def ratio(*overrides: str) -> float:
        return stage_time(time_model("stage=align", *overrides)).parts[DISCRIMINATOR] / usual

    assert ratio("prism.discriminator.updates_per_step=2") == pytest.approx(9 / 4)
    assert ratio("prism.discriminator.gradient_penalty=0.1") == pytest.approx(2)
    assert ratio("prism.discriminator.replay_share=0.5") > 1.5


def test_offloading_moves_weights_and_moments_both_ways():
    """12 bytes of each of 4.44 and 5.30 billion parameters, an eighth on each device."""
    parts = stage_time(time_model("stage=align")).parts
    moved = 2 * 12 * (4_437_815_808 + 5_298_659_328) / 8
    assert parts[OFFLOAD] == pytest.approx(500 * moved / 10e9)
    kept = stage_time(time_model("stage=align", "prism.hardware.offload=false")).parts
    assert OFFLOAD not in kept


def test_the_warm_up_samples_once():
    sampled = stage_time(time_model("stage=warmup"))
    from_file = stage_time(time_model("stage=warmup", "prism.warmup.responses=file"))
    rollout = time_model("stage=warmup").rollout(4167 * 16)
    assert sampled.parts[ROLLOUT] == rollout
    assert sampled.parts[DISCRIMINATOR] == from_file.parts[DISCRIMINATOR]
    assert ROLLOUT not in from_file.parts


def test_preference_optimization_reads_each_pair_once_more_for_the_reference():
    seconds = stage_time(time_model("stage=dpo", lengths=TEXT)).step_seconds
    per_token = 10 * MULTIPLIED + 5 * 2 * 4096 * 3000 * 36
    assert seconds == pytest.approx(64 * 3000 * per_token / 8 / FLOPS_PER_SECOND, rel=0.001)


def test_gpu_hours_count_all_devices():
    pool = ("prism.discriminator.placement=pool", "prism.discriminator.pool_devices=4")
    estimate = stage_time(time_model("stage=align", *pool, "prism.steps=10"))
    assert estimate.devices == 12
    assert estimate.gpu_hours == pytest.approx(10 * estimate.step_seconds * 12 / 3600)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", (989, 3.35)),
        ("NVIDIA H100 PCIe", (756, 2.0)),
        ("NVIDIA H200", (989, 4.8)),
        ("NVIDIA A100-SXM4-80GB", (312, 2.039)),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_peaks(name, peak):
    assert peak_of(name) == peak


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "0.012"), (3.14, "3.1"), (28.4, "28"), (1234.0, "1,200")]
)
def test_two_digits(value, text):
    assert two_digits(value) == text


@pytest.fixture
def case(dense_folder, discriminator_folder, digits_folder, tmp_path):
    """Make the case of a run on the digits, with eight training rows."""
    rows = pq.read_table(digits_folder / "data" / "train.parquet").slice(0, 8)
    pq.write_table(rows, tmp_path / "train.parquet")

    def make(*overrides: str, response_tokens: int | None = None) -> Case:
        paths = [
            f"prism.policy={dense_folder}",
            f"prism.discriminator.path={discriminator_folder}",
            f"prism.discriminator.upcycle.base={dense_folder}",
            f"prism.data.train={tmp_path}/train.parquet",
            f"prism.data.heldout={tmp_path}/train.parquet",
            f"prism.root={tmp_path}",
        ]
        return Case(*compose_run([*paths, *overrides]), response_tokens)

    return make


def test_lengths_are_measured_where_the_stage_reads_them(case, rows, prompts, tokenizer):
    lengths, text = mean_lengths(case("stage=align"))
    assert lengths.prompt == pytest.approx(sum(len(each.input_ids) for each in prompts) / 8)
    patches = sum(each.image_grid_thw.prod().item() for each in prompts)
    assert lengths.images == pytest.approx(patches / 4 / 8)
    teachers = [tokenize_spans(parse_response(row["teacher_response"]), tokenizer) for row in rows]
    for view, measured in zip(VIEWS, (lengths.perception, lengths.reasoning), strict=True):
        assert measured == pytest.approx(sum(len(spans[view]) - 1 for spans in teachers) / 8)
    assert "(measured)" in text
    assert "(the teacher's, measured)" in text


def test_lengths_of_stage_rlvr_are_measured_given_and_assumed(case):
    wide = "prism.data.max_response_tokens=1000"
    lengths, text = mean_lengths(case("stage=rlvr", wide, response_tokens=300))
    assert (lengths.perception, lengths.reasoning) == (60, 240)
    assert text.endswith("responses of 300 (given)")
    lengths, text = mean_lengths(case("stage=rlvr", wide))
    assert lengths.response == 1000  # of 2,000 that are assumed
    assert text.endswith("(assumed)")


def test_lengths_are_assumed_without_data(case):
    lengths, text = mean_lengths(
        case("stage=align", "prism.data.train=absent.parquet", "model=qwen3_vl_4b")
    )
    assert lengths == ASSUMED
    assert "measured" not in text


def test_demonstrations_are_measured_whole(case, digits_folder):
    sft = case("stage=sft", f"prism.data.train={digits_folder}/data/sft.parquet")
    lengths, _ = mean_lengths(sft)
    assert 0 < lengths.sequence == lengths.prompt <= sft.inputs.splits["train"].longest


def texts(case: Case) -> list[str]:
    found = findings(CHECKS["time"], case)
    assert {finding.level for finding in found} == {"ok"}, found
    return [finding.text for finding in found]


def test_the_doctor_says_how_long_a_stage_takes(case, monkeypatch):
    gpu = VisibleGpu("NVIDIA H100 80GB HBM3", 80 * GIB, 0, (9, 0), "580.65.06")
    monkeypatch.setattr("verl_prism.doctor.time_checks.visible_gpus", lambda: [gpu])
    time, assumptions = texts(case("stage=align", "hardware=8xh100", "prism.steps=500"))
    assert time.startswith("about ")
    assert " GPU hours (500 steps x " in time
    assert " s on 8 x NVIDIA H100 80GB HBM3; an estimate, not measured: " in time
    assert "rollout" in time
    assert "35 % of the peak FLOP/s, 60 % of the memory bandwidth, prompts of" in assumptions
    epochs = case("stage=align", "hardware=8xh100", "prism.epochs=8")
    assert "(4 steps x" in texts(epochs)[0]  # 8 x 8 rows, 16 prompts per step


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["stage=align"], "no estimate for CPUs"),
        (["stage=sample", "hardware=8xh100"], "no estimate for stage sample"),
        (
            ["stage=rlvr", "hardware=8xh100", "algorithm=opd_whitebox"],
            "no estimate for runs with a white-box teacher",
        ),
        (
            ["stage=align", "hardware=8xh100", "prism.epochs=1", "prism.data.train=absent"],
            "no estimate: prism.epochs is set, and the rows cannot be counted",
        ),
    ],
)
def test_no_estimate(case, overrides, reason):
    if "algorithm=opd_whitebox" in overrides:
        overrides = [*overrides, "prism.algorithm.distillation.teacher=/teacher"]
    assert texts(case(*overrides)) == [reason]


def test_an_unknown_gpu_has_no_estimate(case, monkeypatch):
    gpu = VisibleGpu("NVIDIA GeForce RTX 3090", 24 * GIB, 0, (8, 6), "580.65.06")
    monkeypatch.setattr("verl_prism.doctor.time_checks.visible_gpus", lambda: [gpu])
    (text,) = texts(case("stage=align", "hardware=cuda"))
    assert text == "no estimate: the peak speeds of NVIDIA GeForce RTX 3090 are not known"


def test_a_wrong_length_is_refused(capsys):
    assert main(["stage=align", "--response-tokens=long"]) == 2
    assert "--response-tokens=long: write a number of tokens" in capsys.readouterr().err
