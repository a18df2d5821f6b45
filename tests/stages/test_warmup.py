"""The warm-up without vLLM, its rollouts written by hand: it resumes, and runs on two ranks, with the same result."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from verl_prism.checkpoints.fingerprint import checkpoint_store
from verl_prism.checkpoints.resume import checkpoint_to_resume
from verl_prism.compose import compose_run
from verl_prism.discriminator import load_discriminator
from verl_prism.errors import EndedEarly, UserError
from verl_prism.report.metrics import MetricsLog, keep_steps, read_records
from verl_prism.run_folder import RunFolder
from verl_prism.stages.warmup import (
    run_warmup,
    shuffled_batches,
)

PROMPTS = 12


@pytest.fixture
def compose(digits_folder, tmp_path, monkeypatch):
    """From overrides and a name, the config of a warm-up on the digits, in a folder of that name."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def make(*overrides: str, name: str = "run"):
        (tmp_path / name).mkdir(exist_ok=True)
        small = (
            "prism.steps=4",
            f"prism.warmup.prompts={PROMPTS}",
            "prism.warmup.samples_per_prompt=2",
        )
        folders = (f"prism.root={digits_folder}", f"prism.policy={digits_folder / 'base'}")
        own = (
            f"prism.output={tmp_path / name}",
            "prism.warmup.pairs_per_step=6",
            "prism.warmup.swapped_teachers=1",
        )
        rates = (
            "prism.discriminator.lr=1e-3",
            "prism.discriminator.upcycle.noise=0.1",
            "prism.checkpoint_every=2",
        )
        return compose_run(["stage=warmup", *small, *folders, *own, *rates, *overrides])[1]

    return make


@pytest.fixture
def sampled(monkeypatch):
    """Answers in the place of vLLM's: for each prompt one in the format and, for most, one that is not."""

    def sample(prism, log):
        rows = pq.read_table(prism.data.train).slice(0, PROMPTS).to_pylist()
        answers = [
            [
                "<caption>A 1 and a 2.</caption><think>They sum up.</think><answer>3</answer>",
                "no format",
            ][: 1 + (g % 3)]
            for g in range(len(rows))
        ]
        text = "".join(json.dumps(texts) + "\n" for texts in answers)
        (prism.output / "rollouts.jsonl").write_text(text)

    monkeypatch.setattr("verl_prism.stages.warmup.sample_policy", sample)


def weights(prism) -> dict[str, torch.Tensor]:
    return load_file(prism.output / "discriminator" / "model.safetensors")


def records(prism) -> list[dict]:
    return read_records(RunFolder(prism.output))


def find_checkpoint(prism):
    """Return the checkpoint that the launcher finds."""
    checkpoint, _ = checkpoint_to_resume(checkpoint_store(prism), prism.stage, prism.steps)
    return checkpoint


def resume(prism) -> dict:
    """What the launcher and the stage's process do."""
    checkpoint = find_checkpoint(prism)
    run = RunFolder(prism.output)
    keep_steps(run, checkpoint.metrics, checkpoint.step)
    run.metrics.unlink()
    return run_warmup(prism)


class Stopped(Exception):
    pass


def stop_after(monkeypatch, steps: int):
    """As if the process had been killed when it logged step `steps`."""
    log = MetricsLog.step

    def step(self, number, metrics):
        if number == steps + 1:
            raise Stopped
        log(self, number, metrics)

    monkeypatch.setattr(MetricsLog, "step", step)


@pytest.mark.usefixtures("sampled")
def test_it_trains_and_leaves_a_discriminator_that_loads(compose):
    prism = compose()
    figures = run_warmup(prism)
    load_discriminator(prism.output / "discriminator")
    assert {"held-out perception accuracy", "held-out reasoning accuracy"} <= figures.keys()
    assert figures["invalid rollouts"] == "8"
    steps = [record["data"] for record in records(prism) if "step" in record]
    assert len(steps) == 4 and all(step["nonfinite"] == 0 for step in steps)
    left = {path.name for path in prism.output.iterdir()}
    assert left == {"discriminator", "rollouts.jsonl", "metrics.jsonl"}, (
        "no state, no upcycled model"
    )


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_a_resumed_run_ends_with_the_parameters_of_one_that_was_not_stopped(
    compose, monkeypatch, penalty
):
    option = f"prism.discriminator.gradient_penalty={penalty}"
    whole, stopped = compose(option, name="whole"), compose(option, name="stopped")
    expected_figures = run_warmup(whole)
    with monkeypatch.context() as context, pytest.raises(Stopped):
        stop_after(context, 3)
        run_warmup(stopped)
    assert not (stopped.output / "discriminator").exists()
    assert [folder.name for folder in (stopped.output / "checkpoints").glob("global_step_*")] == [
        "global_step_2"
    ]
    monkeypatch.setattr(
        "verl_prism.stages.warmup.sample_policy", lambda *_: pytest.fail("sampled again")
    )
    resumed = compose(option, "prism.resume=true", name="stopped")
    assert resume(resumed) == expected_figures
    expected, found = weights(whole), weights(resumed)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    first, last = (
        [record for record in records(prism) if "step" in record] for prism in (whole, resumed)
    )
    assert first == last


@pytest.mark.usefixtures("sampled")
def test_two_ranks_train_as_one(compose):
    """With the optimizer's steps so small that rounding noise in tiny gradients does not show in the parameters."""
    options = ("prism.discriminator.balance_coef=0", "prism.discriminator.lr=1e-5", "prism.steps=2")
    one, two = (
        compose(*options, name="one"),
        compose(*options, "prism.hardware.devices_per_node=2", name="two"),
    )
    assert run_warmup(one) == run_warmup(two)
    for mine, theirs in zip(
        *([r["data"] for r in records(p) if "step" in r] for p in (one, two)), strict=True
    ):
        for name in ("pairs", "loss", "perception/margin", "reasoning/loss", "grad_norm"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name
    expected, found = weights(one), weights(two)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=2e-5, rtol=1e-5)


def test_without_a_rollout_in_the_format_it_says_so_from_whichever_rank(compose, monkeypatch):
    prism = compose("prism.hardware.devices_per_node=2")
    (prism.output / "rollouts.jsonl").write_text(
        (json.dumps(["nothing", "of the kind"]) + "\n") * PROMPTS
    )
    monkeypatch.setattr("verl_prism.stages.warmup.sample_policy", lambda *_: None)
    with pytest.raises(
        UserError, match=r"none of 24 rollouts of .*base is in the format; fine-tune it first"
    ):
        run_warmup(prism)


@pytest.mark.usefixtures("sampled")
def test_with_nothing_to_resume_it_starts_anew(compose):
    run_warmup(compose("prism.resume=true"))
    assert (compose().output / "discriminator").exists()


@pytest.mark.usefixtures("sampled")
def test_other_settings_are_not_resumed_and_named(compose, monkeypatch):
    with monkeypatch.context() as context, pytest.raises(Stopped):
        stop_after(context, 2)
        run_warmup(compose())
    with pytest.raises(UserError) as refused:
        find_checkpoint(
            compose("prism.seed=7", "prism.warmup.pairs_per_step=5", "prism.discriminator.margin=1")
        )
    for change in (
        "prism.seed=7 (was 0)",
        "prism.warmup.pairs_per_step=5 (was 6)",
        "prism.discriminator.margin=1.0",
    ):
        assert change in str(refused.value)
    find_checkpoint(compose("prism.checkpoint_every=1", "prism.discriminator.placement=pool"))
    (compose().output / "rollouts.jsonl").unlink()
    with pytest.raises(
        UserError,
        match=r"rollouts.jsonl is missing, and .*global_step_2 needs it. Start from scratch",
    ):
        find_checkpoint(compose("prism.resume=true"))


@pytest.mark.usefixtures("sampled")
def test_asked_to_end_it_saves_the_step_and_goes_on_from_there(compose, monkeypatch):
    whole, stopped = (
        compose("prism.checkpoint_every=9", name="whole"),
        compose("prism.checkpoint_every=9"),
    )
    run_warmup(whole)
    RunFolder(stopped.output).end_request.touch()
    with pytest.raises(EndedEarly) as end:
        run_warmup(stopped)
    assert end.value.step == 1 and not (stopped.output / "discriminator").exists()
    RunFolder(stopped.output).end_request.unlink()
    resume(compose("prism.checkpoint_every=9", "prism.resume=true"))
    expected, found = weights(whole), weights(stopped)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.usefixtures("sampled")
def test_numbers_that_stay_not_finite_stop_it_and_nothing_is_published(compose):
    with pytest.raises(
        FloatingPointError, match=r"not finite in 2 steps in a row.*nonfinite-.-rank0.pt"
    ):
        run_warmup(
            compose(
                "prism.discriminator.max_nonfinite=2",
                "prism.discriminator.lr=1e30",
                "prism.steps=40",
            )
        )
    assert not (compose().output / "discriminator").exists()


def test_several_nodes_are_refused(compose):
    with pytest.raises(
        UserError, match=r"prism.hardware.nodes=2: the warm-up runs on the devices of one node"
    ):
        run_warmup(compose("prism.hardware.nodes=2"))


def test_batches_hold_every_group_once_before_any_twice(prompts):
    from verl_prism.discriminator.batch import Group

    groups = [Group(prompt, {}, [{}, None, {}]) for prompt in prompts]
    batches = shuffled_batches(groups, pairs=4, seed=0)
    once = [group for _ in range(len(groups) // 2) for group in next(batches)]
    assert {id(group) for group in once} == {id(group) for group in groups}
    again = shuffled_batches(groups, pairs=4, seed=0)
    assert [id(group) for group in next(again)] == [id(group) for group in once[:2]]
