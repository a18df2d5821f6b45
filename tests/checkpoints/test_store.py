"""Checkpoints are atomic, and a run resumes from its own newest complete checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from verl_prism.checkpoints.fingerprint import checkpoint_store, fingerprint
from verl_prism.checkpoints.model_card import ModelCard
from verl_prism.checkpoints.resume import checkpoint_to_resume, resume_notes
from verl_prism.checkpoints.store import Checkpoint
from verl_prism.compose import compose_run
from verl_prism.config import Prism
from verl_prism.errors import EndedEarly, UserError
from verl_prism.launcher.launch import is_complete, kept_text, prepare_output
from verl_prism.launcher.oom import DEVICE_KEYS
from verl_prism.report.metrics import join_records, keep_steps, read_records
from verl_prism.run_folder import RunFolder

SHARD = "model_world_size_1_rank_0.pt"


@pytest.fixture
def compose(tmp_path):
    """Compose the config of stage align in this test's folder."""
    (tmp_path / "train.parquet").write_text("rows")

    def make(*overrides: str) -> Prism:
        own = (
            f"prism.root={tmp_path}",
            f"prism.data.train={tmp_path / 'train.parquet'}",
            "prism.steps=20",
        )
        return compose_run(["stage=align", *own, "prism.optim.lr=1e-5", *overrides])[1]

    return make


@pytest.fixture
def run(compose) -> RunFolder:
    return RunFolder(compose().output)


def save(prism: Prism, step: int) -> Path:
    """Save a checkpoint as verl does, with a few bytes in place of tensors."""
    store = checkpoint_store(prism)
    for part in ("actor", "discriminator"):
        folder = store.unfinished(step) / part
        folder.mkdir(parents=True)
        (folder / SHARD).write_text(f"{part} at {step}")
    return store.publish(step)


def newest_step(prism: Prism) -> int | None:
    checkpoint, _ = checkpoint_store(prism).newest()
    return checkpoint.step if checkpoint else None


def find(prism: Prism) -> tuple[Checkpoint | None, list[str]]:
    return checkpoint_to_resume(checkpoint_store(prism), prism.stage, prism.steps)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def log(run: RunFolder, *steps: int) -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    lines = [f'{{"step": {n}, "data": {{"loss": {n}.5}}}}\n' for n in steps]
    run.metrics.write_text("".join(lines))


def test_a_published_checkpoint_is_found_and_named_by_the_pointer(compose, run):
    store = checkpoint_store(compose())
    assert store.newest() == (None, [])
    folder = save(compose(), 5)
    checkpoint, damaged = store.newest()
    assert (checkpoint.folder, checkpoint.step, damaged) == (folder, 5, [])
    assert (run.checkpoints / "latest_checkpointed_iteration.txt").read_text() == "5"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"][f"actor/{SHARD}"] == len("actor at 5")


def test_the_most_recent_checkpoints_are_kept(compose, run):
    prism = compose("prism.keep_checkpoints=2")
    for step in (5, 10, 15):
        save(prism, step)
    assert names(run.checkpoints) == {
        "global_step_10",
        "global_step_15",
        "latest_checkpointed_iteration.txt",
    }


def test_an_unfinished_checkpoint_is_not_found(compose):
    prism = compose()
    save(prism, 5)
    (checkpoint_store(prism).unfinished(10) / "actor").mkdir(parents=True)
    assert newest_step(prism) == 5


def remove_shard(folder: Path) -> None:
    (folder / "actor" / SHARD).unlink()


def truncate_shard(folder: Path) -> None:
    (folder / "actor" / SHARD).write_text("a")


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def truncate_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_shard, "rank_0.pt is missing"),
        (truncate_shard, "has 1 of 11 bytes"),
        (remove_manifest, "manifest.json is missing"),
        (truncate_manifest, "manifest.json is not readable"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_by_name_and_replaced_later(
    compose, run, damage: Callable[[Path], None], message
):
    prism = compose("prism.keep_checkpoints=2", "prism.resume=true")
    for step in (5, 10):
        save(prism, step)
    broken = run.checkpoints / "global_step_10"
    damage(broken)
    checkpoint, damaged = find(prism)
    assert checkpoint.step == 5
    assert damaged[0].startswith(str(broken))
    assert damaged[0].endswith(message)
    assert resume_notes(run, checkpoint, damaged) == [
        f"skipping a damaged checkpoint: {damaged[0]}",
        f"resuming from step 5 of {checkpoint.folder}",
    ]
    save(prism, 10)
    checkpoint, damaged = find(prism)
    assert (checkpoint.step, damaged) == (10, [])


def test_with_only_damaged_checkpoints_the_user_decides(compose):
    prism = compose("prism.resume=true")
    (save(prism, 5) / "manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"no checkpoint is complete: .*global_step_5: manifest.json is missing"
    ):
        find(prism)


def test_without_a_checkpoint_the_run_starts_from_scratch_and_says_so(compose, run):
    assert find(compose("prism.resume=true")) == (None, [])
    assert resume_notes(run, None, []) == [], "nothing has run here yet"
    run.path.mkdir(parents=True)
    run.log.touch()
    note = f"no checkpoint in {run.checkpoints}; starting from scratch"
    assert resume_notes(run, None, []) == [note]
    run.rollouts.touch()
    assert resume_notes(run, None, []) == [f"keeping the responses in {run.rollouts}"]


def test_a_rank_that_wrote_to_another_disk_is_named(compose):
    prism = compose("prism.hardware.nodes=2")
    with pytest.raises(
        UserError, match=r"model_world_size_2_rank_0.pt is missing: a rank wrote it to another disk"
    ):
        save(prism, 5)
    assert newest_step(prism) is None


def test_a_checkpoint_of_a_different_run_is_refused(compose, tmp_path):
    save(compose(), 5)
    with pytest.raises(UserError) as refused:
        find(
            compose("prism.seed=3", "prism.discriminator.margin=1", "prism.rollout.temperature=0.5")
        )
    for change in (
        "prism.seed=3 (was 0)",
        "prism.discriminator.margin=1.0 (was 0.0)",
        "prism.rollout.temperature=0.5",
    ):
        assert change in str(refused.value)
    (tmp_path / "train.parquet").write_text("other rows")
    with pytest.raises(UserError, match=r"prism.data.train, its bytes=10 \(was 4\)"):
        find(compose())


def weights(folder: Path, content: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(content)
    return folder


def test_a_checkpoint_of_another_policy_in_the_same_folder_is_refused(compose, run, tmp_path):
    policy = weights(tmp_path / "policy", b"first")
    prism = compose(f"prism.policy={policy}")
    save(prism, 20)
    run.policy.mkdir()
    assert is_complete(prism, run, find(prism)[0])
    weights(policy, b"later")
    with pytest.raises(UserError, match=r"prism\.policy, its weights=\w+ \(was \w+\)\. Use the"):
        find(prism)


def test_a_copy_of_the_policy_can_be_resumed_with(compose, tmp_path):
    save(compose(f"prism.policy={weights(tmp_path / 'policy', b'same')}"), 5)
    copy = weights(tmp_path / "copy", b"same")
    assert find(compose(f"prism.policy={copy}"))[0].step == 5
    weights(copy, b"else")
    with pytest.raises(UserError, match=rf"prism\.policy={copy} \(was .*policy\)"):
        find(compose(f"prism.policy={copy}"))


def test_the_weights_of_the_discriminator_are_compared_too(compose, tmp_path):
    folder = weights(tmp_path / "warm", b"first")
    prism = compose(f"prism.discriminator.path={folder}")
    save(prism, 5)
    assert find(prism)[0].step == 5
    weights(folder, b"later")
    with pytest.raises(UserError, match=r"prism\.discriminator\.path, its weights="):
        find(prism)


def test_weights_that_one_side_does_not_know_are_not_compared(compose, tmp_path):
    policy = weights(tmp_path / "policy", b"first")
    prism = compose(f"prism.policy={policy}")
    folder = save(prism, 5)
    (policy / "model.safetensors").unlink()
    assert find(prism)[0].step == 5
    weights(policy, b"first")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["settings"]["prism.policy, its weights"]  # as older versions saved it
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert find(prism)[0].step == 5


def test_a_checkpoint_with_old_key_names_is_found(compose):
    folder = save(compose(), 5)
    manifest = json.loads((folder / "manifest.json").read_text())
    settings = manifest["settings"]
    settings["prism.align.normalisation"] = settings.pop("prism.align.normalization")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert find(compose())[0].step == 5


def test_steps_can_be_added_if_the_learning_rate_does_not_depend_on_them(compose):
    save(compose(), 5)
    assert find(compose("prism.steps=40", "prism.checkpoint_every=1"))[0].step == 5
    with pytest.raises(UserError, match=r"global_step_5 is beyond prism.steps=4"):
        find(compose("prism.steps=4"))


def test_a_cosine_schedule_keeps_its_number_of_steps(compose):
    save(compose("prism.optim.schedule=cosine"), 5)
    with pytest.raises(UserError, match=r"prism.steps=40 \(was 20\)"):
        find(compose("prism.optim.schedule=cosine", "prism.steps=40"))


def test_a_different_number_of_ranks_is_refused_with_a_command_that_helps(compose):
    folder = save(compose(), 5)
    with pytest.raises(UserError) as refused:
        find(compose("prism.hardware.devices_per_node=2"))
    message = str(refused.value)
    assert "(actor 1, discriminator 1; this run has actor 2, discriminator 2)" in message
    command = f"python -m verl_prism.checkpoints.reshard {folder} --world-size"
    assert message.endswith(f"{command} 2")
    pool = (
        "prism.discriminator.placement=pool",
        "prism.discriminator.pool_devices=3",
        "prism.hardware.ray_gpus=4",
    )
    with pytest.raises(UserError) as refused:
        find(compose(*pool))
    assert str(refused.value).endswith(f"{command} actor=1,discriminator=3")


def test_a_run_is_complete_when_its_last_step_is_saved_and_its_policy_exported(compose, run):
    prism = compose("prism.resume=true")
    save(prism, 20)
    checkpoint, _ = find(prism)
    assert checkpoint_store(prism).last(prism.steps) == checkpoint.folder
    assert not is_complete(prism, run, checkpoint)
    run.policy.mkdir()
    assert is_complete(prism, run, checkpoint)
    assert not is_complete(compose("prism.steps=30"), run, checkpoint)


@pytest.mark.parametrize("stage", ["sft", "warmup", "align", "rlvr"])
def test_settings_to_lower_when_a_gpu_is_out_of_memory_may_change(compose, stage):
    """Except the number of loader workers: the position in the data is saved for each of them."""
    advised = {f"prism.{key}" for keys in DEVICE_KEYS.values() for key in keys}
    compared = advised & fingerprint(compose(f"stage={stage}")).keys()
    assert compared <= {"prism.hardware.dataloader_workers"}


def test_a_run_that_was_ended_before_its_first_checkpoint_has_no_last_one(compose, run):
    run.path.mkdir(parents=True)
    run.end_request.touch()
    with pytest.raises(EndedEarly) as end:
        checkpoint_store(compose()).last(20)
    assert end.value.step == 0


def test_a_run_that_ended_early_has_no_last_checkpoint(compose):
    save(compose(), 5)
    with pytest.raises(EndedEarly) as end:
        checkpoint_store(compose()).last(20)
    assert end.value.step == 5


def test_starting_from_scratch_keeps_earlier_checkpoints_until_a_new_one_is_saved(compose, run):
    prism = compose()
    save(prism, 5)
    prepare_output(prism, run, None)
    assert newest_step(prism) is None
    assert "global_step_5" in names(run.replaced_checkpoints)
    checkpoint_store(prism).unfinished(1).mkdir(parents=True)
    prepare_output(prism, run, None)
    assert "global_step_5" in names(run.replaced_checkpoints), "the second run has saved none"
    save(prism, 2)
    assert newest_step(prism) == 2
    assert not run.replaced_checkpoints.exists()


def test_starting_from_scratch_keeps_the_earlier_result(compose, run):
    prism = compose()
    run.policy.mkdir(parents=True)
    (run.policy / "config.json").write_text("first")
    run.discriminator_settings.write_text("{}")
    prepare_output(prism, run, None)
    assert not run.policy.exists()
    assert not run.discriminator_settings.exists()
    prepare_output(prism, run, None)
    assert (run.replaced(run.policy) / "config.json").read_text() == "first"
    run.policy.mkdir()
    prepare_output(prism, run, None)
    assert names(run.replaced(run.policy)) == set(), "the later result replaces it"


def test_what_a_stopped_run_leaves(compose, run):
    prism = compose()
    assert kept_text(prism, run).startswith("no checkpoint was saved yet")
    run.path.mkdir(exist_ok=True)
    run.rollouts.touch()  # of a warm-up that has made no step
    sampled = "prism.resume=true continues with the responses that were sampled"
    assert kept_text(prism, run) == sampled
    save(prism, 5)
    assert kept_text(prism, run) == "prism.resume=true continues from the checkpoint of step 5"


def test_a_run_cannot_start_from_checkpoints_that_it_would_overwrite(compose, run):
    prism = compose()
    folder = save(prism, 5) / "actor" / "huggingface"
    with pytest.raises(UserError, match=r"would overwrite prism.policy, which it starts from"):
        prepare_output(compose(f"prism.policy={folder}"), run, None)
    assert newest_step(prism) == 5


def test_a_resumed_run_has_each_step_once_in_its_metrics(compose, run):
    """verl logs step 3 after it has saved it. Steps 4 and 5 are repeated."""
    prism = compose()
    log(run, 1, 2)
    folder = save(prism, 3)
    log(run, 1, 2, 3, 4, 5)
    with open(run.metrics, "a") as metrics:
        metrics.write('{"step": 6, "da')
    prepare_output(prism, run, checkpoint_store(prism).newest()[0])
    assert [record["step"] for record in read_records(run)] == [1, 2, 3, 4, 5]
    log(run, 4, 5, 6)
    save(prism, 6)
    checkpoint, _ = checkpoint_store(prism).newest()
    keep_steps(run, checkpoint.metrics, 6)
    assert not folder.exists()
    log(run, 7)
    join_records(run)
    steps = [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6, 7]
    assert not run.earlier_metrics.exists()


def test_a_model_card_describes_the_run_but_not_the_machine(compose, tmp_path):
    prism = compose(
        f"prism.policy={tmp_path / 'sft' / 'policy'}",
        "prism.discriminator.path=/home/me/models/warm",
    )
    ModelCard.of(prism, "policy", prism.policy, {"invalid": "0.5 -> 0.1"}).write(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "Started from `sft/policy`, trained for 20 steps on `train.parquet`, seed 0." in card
    assert "| invalid | 0.5 -> 0.1 |" in card
    assert "| verl | 0.9.1 |" in card
    assert "| prism.discriminator.path | models/warm |" in card
    assert str(tmp_path) not in card
    assert "/home" not in card


def test_a_run_that_starts_again_is_not_shown_as_complete(compose, run):
    prism = compose()
    run.path.mkdir(exist_ok=True)
    earlier = (run.summary, run.report, run.step_samples)
    for file in earlier:
        file.write_text("of the earlier run")
    prepare_output(prism, run, None)
    assert not any(file.exists() for file in earlier)
