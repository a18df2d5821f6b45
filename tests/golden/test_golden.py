"""Training behaves as it did: committed curves, and changes of one line that they must show."""

import importlib.util
import inspect
import json
import sys
import textwrap
from pathlib import Path

import pytest

from verl_prism.alignment.advantage import alignment_advantage, normalize_groups
from verl_prism.discriminator.loss import pairwise_loss
from verl_prism.discriminator.model import ViewRouter
from verl_prism.discriminator.update import backward_groups
from verl_prism.trainer.on_policy import on_policy_loss

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("trajectories", HERE / "trajectories.py")
trajectories = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(trajectories)

GOLDEN = json.loads((HERE / "curves.json").read_text(encoding="utf-8"))
# Other processors round differently; four steps keep that small.
TOLERANCE = {"rel": 2e-3, "abs": 2e-5}


@pytest.fixture(scope="module")
def problem(dense_folder, digits_folder):
    return trajectories.Problem(dense_folder, digits_folder / "data" / "train.parquet")


@pytest.fixture(scope="module")
def curves(problem):
    return trajectories.all_curves(problem)


def differing(found: dict[str, list[float]], golden: dict[str, list[float]]) -> set[str]:
    """The names of metrics that differ."""
    names = found.keys() ^ golden.keys()
    for name in found.keys() & golden.keys():
        if found[name] != pytest.approx(golden[name], **TOLERANCE):
            names.add(name)
    return names


def test_all_curves_are_compared(curves):
    assert curves.keys() == GOLDEN.keys()


@pytest.mark.parametrize("name", GOLDEN)
def test_training_follows_the_committed_curve(curves, name):
    assert differing(curves[name], GOLDEN[name]) == set()


def changed(function, old: str, new: str):
    """The code of a function in which one line is another."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1
    names = dict(function.__globals__)
    exec(source.replace(old, new), names)
    return names[function.__name__].__code__


CHANGES = {
    "loss: the sign": (pairwise_loss, "F.softplus(-ahead)", "F.softplus(ahead)", "warmup"),
    "loss: half the regularization": (
        pairwise_loss,
        "settings.score_regularization / 4",
        "settings.score_regularization / 8",
        "warmup",
    ),
    "loss: no balance": (
        backward_groups,
        "settings.balance_coef * balance",
        "0.0 * balance",
        "warmup, eight experts",
    ),
    "routing: weights that do not sum to 1": (
        ViewRouter.forward,
        "weights = weights / weights.sum(-1, keepdim=True)",
        "weights = 1.0 * weights",
        "warmup, eight experts",
    ),
    "routing: experts of the other view": (
        ViewRouter.forward,
        "~self.sets.owned[self.sets.of]",
        "~self.sets.owned[self.sets.of].flip(-1)",
        "warmup, eight experts",
    ),
    "advantage: no division by the spread": (
        normalize_groups,
        "centered / _spread(centered, valid).clamp(min=std_floor)",
        "1.0 * centered",
        "align",
    ),
    "advantage: no penalty": (alignment_advantage, "-format_penalty)", "0.0)", "align"),
    "policy: old log-probabilities of vLLM": (
        on_policy_loss,
        "old_log_prob=log_prob.detach()",
        "old_log_prob=old_log_prob",
        "align",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_one_line_shows(problem, monkeypatch, change):
    function, old, new, name = CHANGES[change]
    monkeypatch.setattr(function, "__code__", changed(function, old, new))
    if name == "align":
        found = trajectories.align_curve(problem)
    elif name == "warmup":
        found = trajectories.warmup_curve(problem)
    else:
        found = trajectories.warmup_curve(problem, "discriminator=eight_experts")
    assert differing(found, GOLDEN[name])
