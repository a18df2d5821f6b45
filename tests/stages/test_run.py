"""The stage's own process: what it leaves for the launcher."""

import json

from omegaconf import OmegaConf

from verl_prism.compose import compose_run
from verl_prism.errors import UserError
from verl_prism.stages import run


def test_a_mistake_is_left_for_the_launcher_without_the_secret_that_it_names(monkeypatch, tmp_path):
    endpoint = "http://me:planted-1@judge/v1"
    judge = [f"prism.reward.judge.endpoint='{endpoint}'", "prism.reward.judge.model=m"]
    config, _ = compose_run(["stage=rlvr", f"prism.output={tmp_path}", *judge])
    OmegaConf.save(config, tmp_path / "config.yaml")

    def refused(config, prism):
        raise UserError(f"the judge at {prism.reward.judge.endpoint} refuses every request")

    monkeypatch.setattr(run, "run_stage", refused)
    assert run.main(tmp_path / "config.yaml") == 2
    left = json.loads((tmp_path / "outcome.json").read_text())
    assert left == {"mistake": "the judge at http://[redacted]@judge/v1 refuses every request"}
