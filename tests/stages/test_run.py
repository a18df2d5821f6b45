"""The stage's own process: the outcome that it leaves for the launcher."""

import json

from omegaconf import OmegaConf

from verl_prism.compose import compose_run
from verl_prism.errors import EndedEarly, UserError
from verl_prism.run_folder import RunFolder
from verl_prism.stages import run


def outcome(monkeypatch, tmp_path, stage_function, *overrides: str) -> tuple[int, dict]:
    """Return the exit status and the outcome of a process with `stage_function` as its stage."""
    config, _ = compose_run(["stage=rlvr", f"prism.output={tmp_path}", *overrides])
    folder = RunFolder(tmp_path)
    OmegaConf.save(config, folder.config)
    monkeypatch.setattr(run, "run_stage", stage_function)
    status = run.main(folder.config)
    return status, json.loads(folder.outcome.read_text())


def test_metrics_are_left_for_the_summary(monkeypatch, tmp_path):
    left = outcome(monkeypatch, tmp_path, lambda config, prism: {"loss": "2 -> 1"})
    assert left == (0, {"metrics": {"loss": "2 -> 1"}})


def test_an_early_end_leaves_the_saved_step(monkeypatch, tmp_path):
    def end(config, prism):
        raise EndedEarly(7)

    assert outcome(monkeypatch, tmp_path, end) == (0, {"saved_step": 7})


def test_a_user_error_is_left_without_the_secret_that_it_names(monkeypatch, tmp_path):
    def fail(config, prism):
        raise UserError(f"the judge at {prism.reward.judge.endpoint} refuses every request")

    endpoint = "http://me:planted-1@judge/v1"
    judge = [f"prism.reward.judge.endpoint='{endpoint}'", "prism.reward.judge.model=m"]
    left = outcome(monkeypatch, tmp_path, fail, *judge)
    assert left == (
        2,
        {"error": "the judge at http://[redacted]@judge/v1 refuses every request"},
    )
