"""The stages in sequence, a few steps each, on real Ray, TransferQueue, FSDP2 and vLLM."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from logged import LOGGERS, assert_logged, by_step, wandb_metrics
from openai_endpoint import RIGHT, Endpoint
from report_page import unpacked

from verl_prism.discriminator import load_discriminator
from verl_prism.report.step_samples import read_samples
from verl_prism.run_folder import RunFolder

pytestmark = pytest.mark.integration


def assert_vllm_serves_the_actor(steps: list[dict]) -> None:
    """Check that vLLM and the actor give the same probabilities in every step."""
    for step in steps:
        assert step["actor/rollout_probs_diff"] < 1e-3
        assert "actor/ppo_kl" not in step  # the on-policy shortcut


def assert_vllm_serves_the_actor_by_verls_metrics(steps: list[dict]) -> None:
    """Check it by the metrics of verl's pass for the old log-probabilities."""
    for step in steps:
        assert step["training/rollout_actor_probs_pearson_corr"] > 0.9999
        assert step["training/rollout_probs_diff_max"] < 0.01


@pytest.fixture(scope="module")
def aligned(pipeline):
    """Alignment with the options that only a run can show; the second step has a fresh critic."""
    return pipeline.run(
        "align",
        "prism.steps=2",
        "prism.rollout.prompts_per_step=4",
        "prism.rollout.samples_per_prompt=4",
        "prism.optim.lr=1e-3",
        "prism.align.accuracy_weight=0.5",
        "prism.discriminator.replay_share=0.5",
        "prism.discriminator.restart_every=1",
        *LOGGERS,
    )


@pytest.mark.timeout(900)
def test_sft_learns_the_format(pipeline):
    summary = json.loads((pipeline.root / "warmup" / "summary.json").read_text())
    assert float(summary["metrics"]["invalid rollouts"]) < 60  # of 120


def test_align_updates_policy_and_discriminator(pipeline, aligned):
    assert len(aligned) == 2
    assert_vllm_serves_the_actor(aligned)
    valid = [16 - 16 * step["align/invalid"] for step in aligned]
    assert aligned[0]["discriminator/pairs"] == pytest.approx(valid[0])
    assert aligned[1]["discriminator/pairs"] == pytest.approx(sum(valid))  # with the first step's
    assert [step["discriminator/replay/groups"] for step in aligned] == [0, 4]
    for step in aligned:
        assert 0 <= step["align/accuracy"] <= 1
        assert step["discriminator/grad_norm"] > 0
        assert step["actor/grad_norm"] > 0
        assert step["align/advantage_std"] > 0


def test_loggers_get_the_demonstrations_that_sft_begins_with(pipeline):
    run = RunFolder(pipeline.root / "sft")
    samples = read_samples(run)
    assert_logged(run, {1: samples})
    rows = pq.read_table(pipeline.root / "data" / "sft.parquet").to_pylist()
    assert len({sample["row"] for sample in samples}) == 8
    for sample in samples:
        assert sample["response"] == rows[sample["row"]]["messages"][-1]["content"]


def test_loggers_get_metrics_and_scored_samples_of_the_warmup(pipeline):
    run = RunFolder(pipeline.root / "warmup")
    samples = read_samples(run)
    last = wandb_metrics(run)[5]
    heldout = {name: value for name, value in last.items() if name.startswith("heldout/")}
    assert {"heldout/perception/accuracy", "heldout/scrambled/reasoning/accuracy"} <= heldout.keys()
    assert_logged(run, by_step(samples), {5: heldout})
    assert any({"perception", "teacher_perception"} <= sample.keys() for sample in samples)
    (data,) = unpacked(run.report.read_text())["runs"]
    assert len(data["samples"]) == len(samples) == 5 * 8


def test_align_keeps_samples_for_its_report(pipeline, aligned):
    run = RunFolder(pipeline.root / "align")
    samples = read_samples(run)
    assert [sample["step"] for sample in samples] == [1] * 8 + [2] * 8
    assert_logged(run, by_step(samples))
    valid = [sample for sample in samples if not sample["fault"]]
    assert valid
    assert all({"perception", "reasoning", "advantage", "acc"} <= sample.keys() for sample in valid)
    (data,) = unpacked(run.report.read_text())["runs"]
    questions = {str(sample["row"]): sample for sample in samples}
    assert data["questions"].keys() == questions.keys()
    assert all(question["images"] for question in data["questions"].values())


def test_align_exports_a_policy_and_a_discriminator_that_load(pipeline, aligned):
    before = load_discriminator(pipeline.root / "warmup" / "discriminator")
    after = load_discriminator(pipeline.root / "align" / "discriminator")
    assert not before.heads["perception"].weight.equal(after.heads["perception"].weight)
    assert (pipeline.root / "align" / "policy" / "model.safetensors").is_file()


def test_rlvr_starts_from_the_aligned_policy(pipeline, aligned):
    steps = pipeline.run(
        "rlvr",
        "prism.steps=2",
        "prism.rollout.prompts_per_step=4",
        "prism.rollout.samples_per_prompt=4",
        "prism.optim.lr=1e-3",
        "prism.rollout.old_log_probs=always",
        *LOGGERS,
    )
    assert len(steps) == 2
    run = RunFolder(pipeline.root / "rlvr")
    assert_logged(run, by_step(read_samples(run)))
    assert_vllm_serves_the_actor_by_verls_metrics(steps)
    assert 0 < steps[0]["critic/score/mean"] < 1
    policies = (
        f"prism.eval.policies={{SFT: {pipeline.root}/sft/policy, RL: {pipeline.root}/rlvr/policy}}"
    )
    pipeline.run(
        "eval",
        policies,
        "prism.eval.metrics=examples/digits/metrics.py:measure",
        "prism.eval.max_questions=40",
        *LOGGERS,
    )
    run = RunFolder(pipeline.root / "eval")
    assert {"results.json", "results.md", "examples.png"} <= set(os.listdir(run.path))
    samples, metrics = first_samples(run, questions=range(0, 40, 5))
    assert_logged(run, {0: samples}, {0: metrics})


def first_samples(run: RunFolder, questions: range) -> tuple[list[dict], dict[str, float]]:
    """Return each policy's first samples of some questions, and its accuracy, from its files."""
    lines = [json.loads(line) for line in run.responses.read_text().splitlines()]
    samples = []
    for question in questions:
        for line in lines:
            if (line["question"], line["sample"]) == (question, 0):
                own = {"row": question, "policy": line["policy"], "response": line["text"]}
                samples.append(own | line["marks"])
    policies = json.loads(run.results.read_text())["policies"]
    accuracy = {f"{name}/accuracy": means["accuracy"]["mean"] for name, means in policies.items()}
    return samples, accuracy


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("placement", ["colocated", "pool"])
def test_align_on_two_ranks(pipeline, placement):
    """The discriminator is sharded over the actor's two ranks, or on a separate device.

    The three groups do not divide evenly among the two ranks.
    """
    ranks = ["prism.hardware.devices_per_node=2"]
    if placement == "pool":
        ranks = [
            f"prism.discriminator.placement={placement}",
            "prism.discriminator.restart_every=1",
            "prism.hardware.ray_gpus=2",
        ]
    steps = pipeline.run(
        "align",
        "prism.steps=2",
        "prism.rollout.prompts_per_step=3",
        "prism.rollout.samples_per_prompt=4",
        "prism.optim.lr=1e-3",
        *ranks,
    )
    assert_vllm_serves_the_actor(steps)
    assert all(
        step["discriminator/pairs"] + 12 * step["align/invalid"] == pytest.approx(12)
        for step in steps
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_gspo_with_a_judge_that_goes_down(pipeline):
    """The judge reviews answers in step 1 only; then the rules decide, and the metrics show it.

    Each step has two updates. The policy has changed by the second one, so GSPO's clip applies.
    """
    metrics = pipeline.root / "rlvr" / "metrics.jsonl"
    with Endpoint() as endpoint:
        endpoint.answer = lambda question: (
            503 if metrics.exists() and metrics.read_text() else RIGHT
        )
        metrics.unlink(missing_ok=True)
        judge = {"endpoint": endpoint.url, "model": "judge", "when_down": "unjudged", "retries": 0}
        steps = pipeline.run(
            "rlvr",
            "algorithm=gspo",
            f"prism.policy={pipeline.root}/sft/policy",
            "prism.steps=3",
            "prism.rollout.prompts_per_step=4",
            "prism.rollout.samples_per_prompt=4",
            "prism.optim.lr=1e-3",
            "actor_rollout_ref.actor.ppo_mini_batch_size=2",
            *(f"prism.reward.judge.{key}={value}" for key, value in judge.items()),
        )
    assert endpoint.requests
    assert steps[0]["reward/judged"] == 1.0
    assert steps[0]["reward/opinion/right"] > 0
    assert steps[0]["reward/acc"] == steps[0]["reward/format"]
    assert all(step["reward/judged"] == 1 - step["reward/opinion/down"] < 1 for step in steps[1:])
    # Nothing is clipped in a step without advantages, so not every step needs to clip.
    assert any(step["actor/pg_clipfrac"] > 0 for step in steps)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stage", ["sft", "warmup", "rlvr", "eval"])
def test_long_rows_are_left_out_and_the_users_reward_counts(pipeline, tmp_path, stage):
    """Every other row is too long. Each stage runs on the others, with a reward of the user's."""
    files = {}
    for name in ("sft", "train", "heldout"):
        source = pipeline.root / "data" / f"{name}.parquet"
        files[name] = write_long_rows(source, tmp_path / f"{name}.parquet", rows=48)
    (tmp_path / "own.py").write_text(
        "def reward(data_source, solution_str, ground_truth, extra_info):\n"
        "    return {'score': 0.25 + 0.5 * ('<answer>' in solution_str), 'seen': 1.0}\n"
    )
    output = tmp_path / stage
    steps = pipeline.run(
        stage,
        *(() if stage == "sft" else (f"prism.policy={pipeline.root}/sft/policy",)),
        f"prism.data.train={files['sft' if stage == 'sft' else 'train']}",
        f"prism.data.heldout={files['heldout']}",
        "prism.data.overlong=filter",
        "prism.steps=2",
        "prism.sft.examples_per_step=12",
        "prism.warmup.samples_per_prompt=2",
        "prism.rollout.prompts_per_step=4",
        "prism.rollout.samples_per_prompt=4",
        f"prism.reward.function={tmp_path}/own.py:reward",
        output=output,
    )
    skipped = json.loads((output / "skipped_rows.json").read_text())
    kind = "heldout" if stage == "eval" else "train"
    assert skipped[kind] == list(range(1, 48, 2))
    match stage:
        case "rlvr":
            assert steps[0]["reward/seen"] == 1.0
            assert 0.25 <= steps[0]["critic/score/min"] <= steps[0]["critic/score/max"] <= 0.75
        case "eval":
            results = json.loads((output / "results.json").read_text())
            assert results["questions"] == 24
            assert 0.25 < results["policies"]["policy"]["reward"]["mean"] <= 0.75
        case "warmup":
            assert len((output / "rollouts.jsonl").read_text().splitlines()) == 24


def write_long_rows(source: Path, target: Path, rows: int) -> Path:
    """Write the first rows of a file of the digits, every other one with a far longer question."""
    table = pq.read_table(source).slice(0, rows)
    column = "messages" if "messages" in table.column_names else "prompt"
    changed = table.to_pylist()
    for row in changed[1::2]:
        user = next(message for message in row[column] if message["role"] == "user")
        user["content"] += " sum" * 2000
    pq.write_table(pa.Table.from_pylist(changed, schema=table.schema), target)
    return target
