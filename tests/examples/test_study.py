"""The study's order of runs, its equal time, its resume and its tables, without training."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
spec = importlib.util.spec_from_file_location("digits_study", DIGITS / "study.py")
study = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


class Stages:
    """In place of the stages: each step takes two seconds, and a run can fail once."""

    def __init__(self, fails: str = ""):
        self.commands: list[list[str]] = []
        self.fails = fails

    def __call__(self, *command):
        words = [str(word) for word in command]
        options = dict(word.split("=", 1) for word in words if "=" in word)
        self.commands.append(words)
        if "verl_prism.main" not in words:
            folder = Path(words[words.index("--out") + 1])
            folder.mkdir(parents=True)
            (folder / "config.json").touch()
            return
        folder = Path(options["prism.output"])
        if folder.name == self.fails:
            self.fails = ""
            sys.exit(1)
        folder.mkdir(parents=True)
        steps = int(options.get("prism.steps", 0))
        (folder / "summary.json").write_text(json.dumps({"steps": steps, "seconds": 2.0 * steps}))
        if options["stage"] == "eval":
            names = [part.split(":")[0].strip("{ ") for part in options[POLICIES].split(",")]
            results = {name: {key: {"mean": 0.5} for key in study.MARKS} for name in names}
            (folder / "results.json").write_text(json.dumps({"policies": results}))

    def outputs(self) -> list[str]:
        found = [word for command in self.commands for word in command]
        return [Path(word).name for word in found if word.startswith("prism.output=")]


POLICIES = "prism.eval.policies"


def test_grpo_gets_as_much_time_as_warmup_alignment_and_grpo(monkeypatch, tmp_path):
    stages = Stages()
    monkeypatch.setattr(study, "call", stages)
    seed = study.Seed(tmp_path, 0, 1.0)
    assert set(seed.make()) == set(study.RUNS) - {study.WARMUP}
    warmup, align, grpo = (study.RUNS[name].steps for name in ("warmup", "aligned", "aligned_GRPO"))
    summary = json.loads((tmp_path / "seed-0" / "grpo_equal_time" / "summary.json").read_text())
    assert summary["steps"] == warmup + align + grpo
    assert seed.total_seconds(study.GRPO_TIME) == seed.total_seconds(study.ALIGNED_GRPO)
    assert seed.total_seconds(study.SFT) == 0


def test_equal_updates_are_those_of_alignment_and_grpo():
    align, grpo = study.RUNS[study.ALIGNED], study.RUNS[study.ALIGNED_GRPO]
    assert study.RUNS[study.GRPO_UPDATES].steps == align.steps + grpo.steps


def test_finished_runs_are_kept(monkeypatch, tmp_path):
    stages = Stages(fails="aligned")
    monkeypatch.setattr(study, "call", stages)
    with pytest.raises(SystemExit):
        study.Seed(tmp_path, 0, 1.0).make()
    assert stages.outputs() == ["sft", "warmup", "aligned"]
    stages.commands.clear()
    study.Seed(tmp_path, 0, 1.0).make()
    assert stages.outputs()[0] == "aligned"
    stages.commands.clear()
    study.Seed(tmp_path, 0, 1.0).make()
    assert stages.commands == []


def policies(accuracy: dict[str, float]) -> dict:
    return {name: dict.fromkeys((*study.MARKS, "seconds"), mean) for name, mean in accuracy.items()}


def test_differences_are_paired_by_seed():
    seeds = {
        0: policies({"aligned_GRPO": 0.6, "GRPO_equal_updates": 0.5, "GRPO_equal_time": 0.6}),
        1: policies({"aligned_GRPO": 0.9, "GRPO_equal_updates": 0.8, "GRPO_equal_time": 0.7}),
    }
    summary = study.summarize(seeds)
    found = summary["differences"]["GRPO_equal_updates"]["accuracy"]
    assert found["mean"] == pytest.approx(0.1)
    assert found["half"] == pytest.approx(0, abs=1e-12)
    found = summary["differences"]["GRPO_equal_time"]["accuracy"]
    assert found["mean"] == pytest.approx(0.1)
    assert found["half"] == pytest.approx(12.706 * 0.1, rel=1e-3)  # t(0.975, 1) · 0.1414 / √2
    assert "| GRPO_equal_updates | 10.0 ±0.0 |" in study.markdown(summary)


def test_a_single_seed_has_no_interval():
    names = ("aligned_GRPO", "GRPO_equal_updates", "GRPO_equal_time")
    summary = study.summarize({3: policies(dict.fromkeys(names, 0.25))})
    assert summary["policies"]["aligned_GRPO"]["accuracy"] == {"mean": 0.25, "half": None}
    assert "| aligned_GRPO | 25.0 |" in study.markdown(summary)
