"""The warm-up on hand-written rollouts, without vLLM: training, resuming, two ranks, failures."""

import json
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from unittest.mock import MagicMock

import pytest
import torch
from logged import by_step
from mixed_images import write_mixed_images
from safetensors.torch import load_file

from verl_prism.checkpoints.fingerprint import checkpoint_store
from verl_prism.checkpoints.resume import checkpoint_to_resume
from verl_prism.checkpoints.store import Checkpoint
from verl_prism.compose import compose_run
from verl_prism.discriminator import load_discriminator
from verl_prism.errors import EndedEarly, UserError
from verl_prism.launcher.launch import is_complete
from verl_prism.report.metrics import MetricsLog, keep_steps, read_records
from verl_prism.report.step_samples import read_samples
from verl_prism.rollout.journal import settings_file
from verl_prism.rollout.sampling import Sample
from verl_prism.run_folder import RunFolder
from verl_prism.stages.warmup import make_discriminator, run_warmup
from verl_prism.stages.warmup_data import WarmupData

PROMPTS = 12
VALID = "<caption>A 1 and a 2.</caption><think>They sum up.</think><answer>3</answer>"


@pytest.fixture
def compose(digits_folder, tmp_path, monkeypatch):
    """Compose the config of a warm-up on the digits, with its output in a folder of this name."""
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
            "prism.warmup.mismatched_teachers=1",
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
    """Replace vLLM: each prompt gets a valid response and, for most prompts, an invalid one."""

    def respond(number: int) -> list[str]:
        return [VALID, "no format"][: 1 + (number % 3)]

    replace_vllm(monkeypatch, respond)


def replace_vllm(monkeypatch, respond) -> None:
    """Let `respond(number)` write the responses to a row."""

    def sample(job, rows, missing):
        for number in missing:
            samples = [Sample(text, tokens=1, truncated=False) for text in respond(number)]
            yield [(number, samples)]

    monkeypatch.setattr("verl_prism.stages.sampling.sample_rows", sample)


def weights(prism) -> dict[str, torch.Tensor]:
    return load_file(prism.output / "discriminator" / "model.safetensors")


def assert_equal_weights(one, other) -> None:
    expected = weights(one)
    found = weights(other)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def steps(prism) -> list[dict]:
    """The metrics of each step."""
    records = read_records(RunFolder(prism.output))
    return [record["data"] for record in records if "step" in record]


def find_checkpoint(prism) -> Checkpoint | None:
    """Return the checkpoint that the launcher finds."""
    checkpoint, _ = checkpoint_to_resume(checkpoint_store(prism), prism.stage, prism.steps)
    return checkpoint


def resume(prism) -> dict:
    """Resume like the launcher and the stage's process."""
    checkpoint = find_checkpoint(prism)
    run = RunFolder(prism.output)
    keep_steps(run, checkpoint.metrics, checkpoint.step)
    run.metrics.unlink()
    return run_warmup(prism)


class Stopped(Exception):
    pass


def run_and_kill(monkeypatch, prism, last: int) -> None:
    """Run the stage, and raise in place of logging the step after `last`, as if it were killed."""
    log_step = MetricsLog.step

    def step(self, number, metrics):
        if number == last + 1:
            raise Stopped
        log_step(self, number, metrics)

    with monkeypatch.context() as context:
        context.setattr(MetricsLog, "step", step)
        with pytest.raises(Stopped):
            run_warmup(prism)


@pytest.mark.usefixtures("sampled")
def test_it_trains_and_writes_a_discriminator_that_loads(compose):
    prism = compose()
    summary = run_warmup(prism)
    load_discriminator(prism.output / "discriminator")
    assert {"held-out perception accuracy", "held-out reasoning accuracy"} <= summary.keys()
    assert "images scrambled" in summary["held-out perception accuracy"]
    assert summary["invalid rollouts"] == "8"
    assert [step["nonfinite"] for step in steps(prism)] == [0, 0, 0, 0]
    left = {path.name for path in prism.output.iterdir()}
    assert left == {
        "discriminator",
        "discriminator.settings.json",
        "rollouts.jsonl",
        "rollouts.settings.json",
        "metrics.jsonl",
        "step_samples.jsonl",
    }, "no state is left"


@pytest.mark.usefixtures("sampled")
def test_a_finished_run_is_complete_with_the_same_settings_only(compose):
    prism = compose("prism.steps=1")
    run = RunFolder(prism.output)
    run_warmup(prism)
    assert is_complete(prism, run, find_checkpoint(prism))
    changed = compose("prism.steps=2", "prism.discriminator.lr=1e-4", "prism.seed=7")
    with pytest.raises(UserError) as refused:
        is_complete(changed, run, None)
    assert str(refused.value) == (
        f"prism.resume=true, but {run.discriminator} was saved with different settings: "
        "prism.discriminator.lr=0.0001 (was 0.001), prism.seed=7 (was 0), "
        "prism.steps=2 (was 1). Use the same settings, or start from scratch without resume"
    )
    run.discriminator_settings.unlink()
    assert is_complete(changed, run, None), "an older version kept no settings"


@pytest.mark.usefixtures("sampled")
def test_samples_have_the_scores_of_both(compose):
    """All of a step's responses are kept here, so their margins are those of the metrics."""
    prism = compose(
        "prism.warmup.mismatched_teachers=0",
        "prism.warmup.pairs_per_step=4",
        "prism.samples_per_step=100",
    )
    run_warmup(prism)
    samples = by_step(read_samples(RunFolder(prism.output)))
    assert samples.keys() == {1, 2, 3, 4}
    for number, step in enumerate(steps(prism), 1):
        valid = [sample for sample in samples[number] if not sample["fault"]]
        assert len(valid) == step["pairs"]
        for view in ("perception", "reasoning"):
            margins = [sample[f"teacher_{view}"] - sample[view] for sample in valid]
            assert sum(margins) / len(margins) == pytest.approx(step[f"{view}/margin"], abs=1e-5)
        invalid = [sample for sample in samples[number] if sample["fault"]]
        assert all(sample["response"] == "no format" for sample in invalid)
        assert not any("perception" in sample for sample in invalid)


@pytest.mark.usefixtures("sampled")
def test_mismatched_teachers_are_no_samples(compose):
    prism = compose("prism.samples_per_step=100", "prism.steps=1")
    run_warmup(prism)
    samples = read_samples(RunFolder(prism.output))
    assert {sample["response"] for sample in samples} == {VALID, "no format"}


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_a_resumed_run_equals_an_uninterrupted_one(compose, monkeypatch, penalty):
    option = f"prism.discriminator.gradient_penalty={penalty}"
    whole = compose(option, name="whole")
    expected_summary = run_warmup(whole)
    stopped = compose(option, name="stopped")
    run_and_kill(monkeypatch, stopped, 3)
    assert not (stopped.output / "discriminator").exists()
    checkpoints = [path.name for path in (stopped.output / "checkpoints").glob("global_step_*")]
    assert checkpoints == ["global_step_2"]

    replace_vllm(monkeypatch, lambda number: pytest.fail("sampled again"))
    resumed = compose(option, "prism.resume=true", name="stopped")
    assert resume(resumed) == expected_summary
    assert_equal_weights(whole, resumed)
    assert steps(whole) == steps(resumed)


@pytest.mark.usefixtures("sampled")
def test_two_ranks_train_like_one(compose):
    """The learning rate is so small that rounding in tiny gradients does not show in parameters."""
    options = ("prism.discriminator.balance_coef=0", "prism.discriminator.lr=1e-5", "prism.steps=2")
    one = compose(*options, name="one")
    ranks = ("prism.hardware.devices_per_node=2", "prism.hardware.dataloader_workers=1")
    two = compose(*options, *ranks, name="two")
    assert run_warmup(one) == run_warmup(two)
    for mine, theirs in zip(steps(one), steps(two), strict=True):
        for name in ("pairs", "loss", "perception/margin", "reasoning/loss", "grad_norm"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name
    expected = weights(one)
    found = weights(two)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=2e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("sampled")
def test_two_ranks_continue_from_a_checkpoint_of_one(compose, monkeypatch):
    options = ("prism.discriminator.balance_coef=0", "prism.discriminator.lr=1e-5")
    whole = compose(*options, name="whole")
    run_warmup(whole)
    run_and_kill(monkeypatch, compose(*options, name="stopped"), 3)
    two = compose(
        *options, "prism.resume=true", "prism.hardware.devices_per_node=2", name="stopped"
    )
    resume(two)
    for mine, theirs in zip(steps(whole), steps(two), strict=True):
        for name in ("pairs", "loss", "perception/margin", "grad_norm", "lr"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name


def test_without_a_valid_rollout_any_rank_reports_it(compose, monkeypatch):
    replace_vllm(monkeypatch, lambda number: ["nothing", "of the kind"])
    message = r"none of 24 rollouts of .*base is in the format; fine-tune it first"
    with pytest.raises(UserError, match=message):
        run_warmup(compose("prism.hardware.devices_per_node=2"))


@pytest.mark.usefixtures("sampled")
def test_with_nothing_to_resume_it_starts_from_scratch(compose):
    run_warmup(compose("prism.resume=true"))
    assert (compose().output / "discriminator").exists()


@pytest.mark.usefixtures("sampled")
def test_responses_to_other_rows_are_not_paired(compose, monkeypatch):
    """An earlier version sampled the first rows."""
    run_and_kill(monkeypatch, compose(), 2)
    settings = settings_file(RunFolder(compose().output).rollouts)
    saved = json.loads(settings.read_text())
    del saved["digest of the rows' numbers"]
    settings.write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"digest of the rows' numbers=[0-9a-f]+ \(was None\)"):
        resume(compose("prism.resume=true"))


@pytest.mark.usefixtures("sampled")
def test_changed_settings_are_named_and_not_resumed(compose, monkeypatch):
    run_and_kill(monkeypatch, compose(), 2)
    changed = compose(
        "prism.seed=7", "prism.warmup.pairs_per_step=5", "prism.discriminator.margin=1"
    )
    with pytest.raises(UserError) as refused:
        find_checkpoint(changed)
    for change in (
        "prism.seed=7 (was 0)",
        "prism.warmup.pairs_per_step=5 (was 6)",
        "prism.discriminator.margin=1.0",
    ):
        assert change in str(refused.value)
    find_checkpoint(compose("prism.checkpoint_every=1", "prism.discriminator.placement=pool"))
    (compose().output / "rollouts.jsonl").unlink()
    with pytest.raises(UserError, match=r"rollouts\.jsonl.*global_step_2"):
        find_checkpoint(compose("prism.resume=true"))


@pytest.mark.usefixtures("sampled")
def test_an_early_end_saves_the_step_and_can_be_resumed(compose, monkeypatch):
    options = ("prism.checkpoint_every=9",)
    whole = compose(*options, name="whole")
    run_warmup(whole)
    stopped = compose(*options)
    log_step = MetricsLog.step

    def log_and_request_end(self, number, metrics):
        log_step(self, number, metrics)
        RunFolder(stopped.output).end_request.touch()

    with monkeypatch.context() as context:
        context.setattr(MetricsLog, "step", log_and_request_end)
        with pytest.raises(EndedEarly) as end:
            run_warmup(stopped)
    assert end.value.step == 1
    assert not (stopped.output / "discriminator").exists()
    RunFolder(stopped.output).end_request.unlink()
    resume(compose(*options, "prism.resume=true"))
    assert_equal_weights(whole, stopped)


@pytest.mark.usefixtures("sampled")
def test_too_many_nonfinite_steps_stop_it_and_nothing_is_exported(compose):
    prism = compose(
        "prism.discriminator.max_nonfinite=2", "prism.discriminator.lr=1e30", "prism.steps=40"
    )
    message = r"not finite in 2 steps in a row.*nonfinite-.-rank0.pt"
    with pytest.raises(FloatingPointError, match=message):
        run_warmup(prism)
    assert not (prism.output / "discriminator").exists()


@pytest.mark.usefixtures("sampled")
def test_worker_processes_prepare_the_same_shares(compose):
    one = compose("prism.steps=2", name="one")
    two = compose("prism.steps=2", "prism.hardware.dataloader_workers=2", name="two")
    assert run_warmup(one) == run_warmup(two)
    assert_equal_weights(one, two)


@dataclass(frozen=True)
class OneOf:
    """A rank without a process group, which computes the shares of all."""

    rank: int
    world_size: int

    def share(self, items, function):
        return [function(item) for item in items]


def test_ranks_share_every_student_of_prompts_with_any_number_of_images(compose, digits_folder):
    """Rows with null, no or two images. Each rank decodes the images of its own groups only."""
    prism = compose("prism.warmup.mismatched_teachers=0", "prism.warmup.pairs_per_step=22")
    source = digits_folder / "data" / "train.parquet"
    mixed = write_mixed_images(source, prism.output / "mixed.parquet", PROMPTS)
    data = prism.data.model_copy(update={"train": mixed})
    prism = prism.model_copy(update={"data": data})
    make_discriminator(
        RunFolder(prism.output).upcycled, prism.discriminator.upcycle, 0, MagicMock()
    )
    rollouts = [[VALID, "no format", VALID]] * PROMPTS
    images = Counter()
    for rank in range(3):
        [share] = islice(WarmupData(prism, rollouts, OneOf(rank, 3)).train_shares(0), 1)
        assert sum(len(part.members) for pack in share.plan for part in pack) == sum(
            len(group.students) for group in share.groups
        )
        for group in share.groups:
            grid = group.prompt.image_grid_thw
            images[0 if grid is None else len(grid)] += len(group.students)
    in_heldout = WarmupData(prism, rollouts, OneOf(0, 3)).index.heldout
    assert len(in_heldout) == 1
    assert images.total() == 3 * (PROMPTS - 1)
    assert set(images) == {0, 1, 2}
