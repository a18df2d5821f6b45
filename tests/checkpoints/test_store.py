"""Checkpoints are whole or not there, and a run goes on from the newest whole one, if it is its own."""

import json
from pathlib import Path

import pytest

from verl_prism.checkpoints.model_card import write_card
from verl_prism.checkpoints.resume import checkpoint_to_resume, finished, starting_point
from verl_prism.checkpoints.store import (
    checkpoints_folder,
    last_checkpoint,
    newest_checkpoint,
    publish,
    replaced_folder,
    unfinished_folder,
)
from verl_prism.compose import compose_run
from verl_prism.errors import EndedEarly, UserError
from verl_prism.launcher.launch import clear_output
from verl_prism.report.metrics import EARLIER, METRICS, join_records, keep_steps, read_records


@pytest.fixture
def compose(tmp_path):
    """From overrides, the config of stage align in a folder of this test's."""
    (tmp_path / "train.parquet").write_text("rows")

    def make(*overrides: str, stage: str = "align"):
        own = (
            f"prism.root={tmp_path}",
            f"prism.data.train={tmp_path / 'train.parquet'}",
            "prism.steps=20",
        )
        return compose_run([f"stage={stage}", *own, "prism.optim.lr=1e-5", *overrides])[1]

    return make


def save(prism, step: int) -> Path:
    """As verl does, with a few bytes in the place of tensors."""
    for part in ("actor", "discriminator"):
        folder = unfinished_folder(prism) / f"global_step_{step}" / part
        folder.mkdir(parents=True)
        (folder / "model_world_size_1_rank_0.pt").write_text(f"{part} at {step}")
    return publish(prism, step)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def log(prism, *steps: int, file: str = METRICS):
    prism.output.mkdir(parents=True, exist_ok=True)
    (prism.output / file).write_text(
        "".join(f'{{"step": {n}, "data": {{"loss": {n}.5}}}}\n' for n in steps)
    )


def test_what_is_published_is_found_and_the_pointer_names_it(compose):
    prism = compose()
    assert newest_checkpoint(prism) == (None, [])
    folder = save(prism, 5)
    checkpoint, damaged = newest_checkpoint(prism)
    assert (checkpoint.folder, checkpoint.step, damaged) == (folder, 5, [])
    assert (checkpoints_folder(prism) / "latest_checkpointed_iteration.txt").read_text() == "5"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"]["actor/model_world_size_1_rank_0.pt"] == len("actor at 5")


def test_so_many_stay_as_are_wanted(compose):
    prism = compose("prism.keep_checkpoints=2")
    for step in (5, 10, 15):
        save(prism, step)
    assert names(checkpoints_folder(prism)) == {
        "global_step_10",
        "global_step_15",
        "latest_checkpointed_iteration.txt",
    }


def test_a_half_one_is_none(compose):
    prism = compose()
    save(prism, 5)
    (unfinished_folder(prism) / "global_step_10" / "actor").mkdir(parents=True)
    assert newest_checkpoint(prism)[0].step == 5


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda folder: (folder / "actor" / "model_world_size_1_rank_0.pt").unlink(),
            "rank_0.pt is not there",
        ),
        (
            lambda folder: (folder / "actor" / "model_world_size_1_rank_0.pt").write_text("a"),
            "has 1 bytes of 11",
        ),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is not there"),
        (
            lambda folder: (folder / "manifest.json").write_text("{"),
            "manifest.json is not readable",
        ),
    ],
)
def test_a_damaged_one_is_passed_over_by_name_and_replaced_by_the_next(compose, damage, said):
    prism = compose("prism.keep_checkpoints=2", "prism.resume=true")
    for step in (5, 10):
        save(prism, step)
    damage(checkpoints_folder(prism) / "global_step_10")
    checkpoint, damaged = checkpoint_to_resume(prism)
    assert checkpoint.step == 5
    assert damaged[0].startswith(str(checkpoints_folder(prism) / "global_step_10")) and damaged[
        0
    ].endswith(said)
    lines = starting_point(prism, checkpoint, damaged)
    assert lines == [
        f"damaged, not gone on from: {damaged[0]}",
        f"going on from step 5 of {checkpoint.folder}",
    ]
    save(prism, 10)
    assert newest_checkpoint(prism)[0].step == 10 and newest_checkpoint(prism)[1] == []


def test_where_only_damaged_ones_are_left_a_person_decides(compose):
    prism = compose("prism.resume=true")
    (save(prism, 5) / "manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"no checkpoint is complete: .*global_step_5: manifest.json is not there"
    ):
        checkpoint_to_resume(prism)


def test_where_there_is_none_the_run_starts_anew_and_says_so(compose):
    prism = compose("prism.resume=true")
    assert checkpoint_to_resume(prism) == (None, [])
    said = f"nothing to go on from in {checkpoints_folder(prism)}: starting anew"
    assert starting_point(prism, None, []) == [said]


def test_a_rank_whose_files_are_elsewhere_is_named(compose):
    prism = compose("prism.hardware.nodes=2")
    with pytest.raises(
        UserError,
        match=r"model_world_size_2_rank_0.pt was written elsewhere: prism.output has to be",
    ):
        save(prism, 5)
    assert newest_checkpoint(prism)[0] is None


def test_another_run_is_not_gone_on_from(compose, tmp_path):
    save(compose(), 5)
    with pytest.raises(UserError) as refused:
        checkpoint_to_resume(
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
        checkpoint_to_resume(compose())


def test_steps_may_be_added_where_the_learning_rate_does_not_depend_on_them(compose):
    save(compose(), 5)
    assert checkpoint_to_resume(compose("prism.steps=40", "prism.checkpoint_every=1"))[0].step == 5
    with pytest.raises(UserError, match=r"global_step_5 is beyond prism.steps=4"):
        checkpoint_to_resume(compose("prism.steps=4"))


def test_a_cosine_ends_where_it_was_to_end(compose):
    save(compose("prism.optim.schedule=cosine"), 5)
    with pytest.raises(UserError, match=r"prism.steps=40 \(was 20\)"):
        checkpoint_to_resume(compose("prism.optim.schedule=cosine", "prism.steps=40"))


def test_another_number_of_ranks_is_refused_with_a_command_that_helps(compose):
    folder = save(compose(), 5)
    with pytest.raises(UserError) as refused:
        checkpoint_to_resume(compose("prism.hardware.devices_per_node=2"))
    said = str(refused.value)
    assert "(actor 1, discriminator 1; this run has actor 2, discriminator 2)" in said
    assert "without its optimizer state, learning-rate schedule and place in the data" in said
    assert f"python -m verl_prism.main stage=align prism.policy={folder}/actor/huggingface" in said
    assert f"prism.discriminator.path={folder}/discriminator/huggingface prism.output=" in said


def test_a_run_that_made_its_last_step_is_finished_once_its_policy_is_there(compose):
    prism = compose("prism.resume=true")
    save(prism, 20)
    checkpoint, _ = checkpoint_to_resume(prism)
    policy = prism.output / "policy"
    assert last_checkpoint(prism) == checkpoint.folder and not finished(prism, checkpoint, policy)
    policy.mkdir()
    assert finished(prism, checkpoint, policy)
    assert not finished(compose("prism.steps=30"), checkpoint, policy)


def test_a_run_that_ended_early_has_no_result(compose):
    save(compose(), 5)
    with pytest.raises(EndedEarly) as end:
        last_checkpoint(compose())
    assert end.value.step == 5


def test_starting_anew_keeps_the_earlier_checkpoints_until_there_is_a_new_one(compose):
    prism = compose()
    save(prism, 5)
    clear_output(prism, None)
    assert newest_checkpoint(prism)[0] is None and names(replaced_folder(prism)) >= {
        "global_step_5"
    }
    (unfinished_folder(prism) / "global_step_1").mkdir(parents=True)
    clear_output(prism, None)
    assert names(replaced_folder(prism)) >= {"global_step_5"}, (
        "the second run has nothing to put in its place"
    )
    save(prism, 2)
    assert newest_checkpoint(prism)[0].step == 2 and not replaced_folder(prism).exists()


def test_a_run_is_not_started_from_the_checkpoints_that_it_puts_aside(compose):
    prism = compose()
    folder = save(prism, 5) / "actor" / "huggingface"
    with pytest.raises(
        UserError, match=r"the stage would write over prism.policy, which it starts from"
    ):
        clear_output(compose(f"prism.policy={folder}"), None)
    assert newest_checkpoint(prism)[0].step == 5


def test_a_resumed_run_has_each_step_once_in_its_metrics(compose):
    """verl logs step 3 after it has saved; steps 4 and 5 are made again."""
    prism = compose()
    log(prism, 1, 2)
    folder = save(prism, 3)
    log(prism, 1, 2, 3, 4, 5)
    with open(prism.output / METRICS, "a") as metrics:
        metrics.write('{"step": 6, "da')
    clear_output(prism, newest_checkpoint(prism)[0])
    assert [record["step"] for record in read_records(prism.output)] == [1, 2, 3, 4, 5]
    log(prism, 4, 5, 6)
    save(prism, 6)
    keep_steps(prism.output, checkpoints_folder(prism) / "global_step_6" / METRICS, 6)
    assert not folder.exists()
    log(prism, 7)
    join_records(prism.output)
    steps = [json.loads(line)["step"] for line in (prism.output / METRICS).read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6, 7] and not (prism.output / EARLIER).exists()


def test_a_model_card_tells_the_run_and_nothing_of_the_machine(compose, tmp_path):
    prism = compose(
        f"prism.policy={tmp_path / 'sft' / 'policy'}",
        "prism.discriminator.path=/home/me/models/warm",
    )
    write_card(tmp_path, prism, "policy", prism.policy, {"invalid": "0.5 -> 0.1"})
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "Started from `sft/policy`, trained for 20 steps on `train.parquet`, seed 0." in card
    assert "| invalid | 0.5 -> 0.1 |" in card and "| verl | 0.9.1 |" in card
    assert "| prism.discriminator.path | models/warm |" in card
    assert str(tmp_path) not in card and "/home" not in card
