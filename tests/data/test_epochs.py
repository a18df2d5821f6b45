"""Epochs and steps."""

import pytest

from verl_prism.compose import compose_run
from verl_prism.data.epochs import epochs_of, steps_of
from verl_prism.errors import UserError


@pytest.mark.parametrize(
    ("stage", "epochs", "rows", "steps"),
    [
        ("sft", 2, 160, 20),
        ("sft", 1, 161, 11),
        ("align", 3, 160, 30),
        ("rlvr", 0.5, 160, 5),
        ("rlvr", 0.001, 160, 1),
        # 160 x 0.9 rows for training, 4 pairs each
        ("warmup", 1, 160, 36),
    ],
)
def test_steps_of_epochs(stage, epochs, rows, steps):
    sizes = ("prism.sft.examples_per_step=16", "prism.rollout.prompts_per_step=16")
    warmup = ("prism.warmup.samples_per_prompt=4", "prism.warmup.pairs_per_step=16")
    _, prism = compose_run([f"stage={stage}", f"prism.epochs={epochs}", *sizes, *warmup])
    assert steps_of(prism, rows) == steps
    longer = prism.model_copy(update={"steps": 10 * steps, "epochs": None})
    assert epochs_of(longer, rows) == pytest.approx(10 * epochs, rel=0.11) or rows * epochs < 1


def test_pairs_with_mismatched_teachers_fill_steps_too():
    sizes = ("prism.warmup.samples_per_prompt=4", "prism.warmup.pairs_per_step=16")
    _, prism = compose_run(["stage=warmup", *sizes, "prism.warmup.mismatched_teachers=2"])
    assert steps_of(prism, 160) == 54  # 160 x 0.9 rows for training, 6 pairs each


def test_epochs_and_steps_together_are_refused():
    with pytest.raises(UserError, match="both set the length of the run; give one"):
        compose_run(["stage=sft", "prism.epochs=1", "prism.steps=3"])


@pytest.mark.parametrize("stage", ["sft", "warmup", "dpo"])
def test_steps_replace_the_epochs_of_a_stage(stage):
    assert compose_run([f"stage={stage}"])[1].epochs == 1
    prism = compose_run([f"stage={stage}", "prism.steps=3"])[1]
    assert (prism.steps, prism.epochs) == (3, None)


def test_an_evaluation_has_no_epochs():
    with pytest.raises(UserError, match="stage eval does not train"):
        compose_run(["stage=eval", "prism.epochs=1"])
