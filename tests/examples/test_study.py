"""The study's order of runs, its resume and its report, without training."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
sys.path.insert(0, str(DIGITS))
spec = importlib.util.spec_from_file_location("digits_study", DIGITS / "study.py")
study = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)
import study_report as report  # noqa: E402 (found through the path above)

SETUP = 5.0  # seconds of a run besides its steps


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
            if folder.suffix:  # a file
                folder = folder.parent
            folder.mkdir(parents=True)
            for name in ("config.json", "sft.parquet"):
                (folder / name).touch()
            return
        folder = Path(options["prism.output"])
        if folder.name == self.fails:
            self.fails = ""
            sys.exit(1)
        made = 0
        if (folder / "made").exists():  # a copy of a run, which resumes
            made = int((folder / "made").read_text())
        folder.mkdir(parents=True, exist_ok=True)
        steps = int(options.get("prism.steps", 0))
        (folder / "made").write_text(str(steps))
        summary = {"steps": steps, "seconds": SETUP + 2.0 * (steps - made)}
        (folder / "summary.json").write_text(json.dumps(summary))
        if options["stage"] in ("align", "rlvr"):
            self.write_metrics(folder, steps, int(options.get("trainer.test_freq", 15)))
        if options["stage"] == "eval":
            self.write_results(folder, options)

    def write_metrics(self, folder: Path, steps: int, every: int) -> None:
        lines = ['{"note": "starting"}', json.dumps({"step": 0, "data": {VALIDATION: 0.1}})]
        for step in range(1, steps + 1):
            data = {"timing_s/step": 2.0}
            if step % every == 0:
                data[VALIDATION] = step / 100
            lines.append(json.dumps({"step": step, "data": data}))
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")

    def write_results(self, folder: Path, options: dict[str, str]) -> None:
        rate = 0.5 if options["prism.data.heldout"].endswith("/data/heldout.parquet") else 0.25
        names = [part.split(":")[0].strip("{ ") for part in options[POLICIES].split(",")]
        marks: dict = {name: {"mean": rate} for _, name in report.COLUMNS.values()}
        probe = {view: {"accuracy": {"mean": 0.75}} for view in ("perception", "reasoning")}
        marks |= {"pass_at_k": {"4": {"mean": 0.9}}, "teacher": {"probe": probe}}
        results = {"policies": dict.fromkeys(names, marks)}
        (folder / "results.json").write_text(json.dumps(results))

    def outputs(self) -> list[str]:
        found = [word for command in self.commands for word in command]
        return [Path(word).name for word in found if word.startswith("prism.output=")]


POLICIES = "prism.eval.policies"
VALIDATION = "val-core/digits/acc/mean@1"


@pytest.fixture
def stages(monkeypatch):
    stages = Stages()
    monkeypatch.setattr(study, "call", stages)
    return stages


def test_time_is_that_since_the_sft_policy(stages, tmp_path):
    policies = study.Seed(tmp_path, 0, study.MAIN).make()["policies"]
    assert set(policies) == set(study.policies_of(study.MAIN))
    assert policies[report.ALIGNED_GRPO]["seconds"] == 3 * SETUP + 2 * (200 + 45 + 45)
    assert policies[report.GRPO_TIME]["seconds"] == SETUP + 2 * study.EQUAL_TIME_STEPS
    assert policies[report.DPO]["seconds"] == 2 * SETUP + 2 * 128
    assert policies[report.SFT]["seconds"] == 0


def test_equal_updates_are_those_of_alignment_and_grpo(stages, tmp_path):
    policies = study.Seed(tmp_path, 0, study.MAIN).make()["policies"]
    assert policies[report.GRPO_UPDATES]["updates"] == policies[report.ALIGNED_GRPO]["updates"]


def test_questions_that_rl_asks_are_tested_apart_from_others(stages, tmp_path):
    policies = study.Seed(tmp_path, 0, study.MAIN).make()["policies"]
    assert policies["aligned"]["parity"]["accuracy"] == 0.5
    assert policies["aligned"]["sum"]["accuracy"] == 0.25


def test_a_curve_starts_after_the_runs_before(stages, tmp_path):
    curve = study.Seed(tmp_path, 0, study.MAIN).make()["curves"][report.ALIGNED_GRPO]
    assert [point["updates"] for point in curve] == [45, 60, 75, 90]
    assert [point["accuracy"] for point in curve] == [0.1, 0.15, 0.3, 0.45]
    before = 2 * SETUP + 2 * (200 + 45)
    assert [point["seconds"] - before - SETUP for point in curve] == [0, 30, 60, 90]


def test_finished_runs_are_kept(stages, tmp_path):
    stages.fails = "aligned"
    with pytest.raises(SystemExit):
        study.Seed(tmp_path, 0, study.MAIN).make()
    assert stages.outputs() == ["sft", "warmup", "aligned"]
    stages.commands.clear()
    study.Seed(tmp_path, 0, study.MAIN).make()
    assert stages.outputs()[0] == "aligned"
    stages.commands.clear()
    study.Seed(tmp_path, 0, study.MAIN).make()
    assert stages.commands == []


def test_each_option_starts_from_a_discriminator_of_its_own_or_the_common_one(stages, tmp_path):
    runs = study.MAIN | study.OPTIONS
    for run in runs.values():
        assert run.start is None or run.start in runs
        assert (run.discriminator is None) == (run.stage != "align")
        assert run.discriminator is None or runs[run.discriminator].stage == "warmup"
    results = study.Seed(tmp_path, 0, runs).make()
    text = report.markdown({0: results})
    assert "| no_warmup minus aligned | 0.0 |" in text
    assert "| aligned_GRPO (1 seed) | 90.0 | 75.0 | 75.0 |" in text


def test_rl_asks_the_kind_of_questions_of_its_arm(stages, tmp_path):
    study.Seed(tmp_path, 0, study.needed([report.GRPO_UPDATES, report.GRPO_SUMS])).make()
    asked = {}
    for words in stages.commands:
        options = dict(word.split("=", 1) for word in words if "=" in word)
        if options.get("stage") == "rlvr":
            data = Path(options["prism.data.train"]).parent
            asked[Path(options["prism.output"]).name] = data.name
    assert asked == {"grpo_equal_updates": "data", "grpo_sums": "data_sum"}
    for words in stages.commands:
        if words[0].endswith("data.py"):
            assert words[words.index("--rl-kinds") + 1] == words[words.index("--heldout-kinds") + 1]


def test_options_that_tie_keep_the_order_of_the_table():
    names = list(report.OPTIONS)
    tables = set()
    for shuffled in (names, names[::-1]):
        seeds = seeds_with({name: [0.5, 0.5] for name in ["aligned", *shuffled]})
        tables.add(report.options_markdown(seeds))
    assert len(tables) == 1


def test_results_are_kept_and_seeds_are_added(stages, tmp_path, monkeypatch, capsys):
    options = ["study.py", "--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", [*options, "--seeds", "3"])
    study.main()
    stages.commands.clear()
    monkeypatch.setattr(sys, "argv", [*options, "--seeds", "3", "5"])
    study.main()
    assert all("seed-5" in " ".join(command) for command in stages.commands)
    written = {path.name for path in (tmp_path / "results").iterdir()}
    assert written == {"seed-3.json", "seed-5.json", "study.md", "study.png"}
    assert "Seeds 3, 5." in capsys.readouterr().out


def test_added_policies_lose_no_result_of_a_seed(stages, tmp_path, monkeypatch):
    options = ["study.py", "--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    for name in ("aligned", "teacher_SFT"):
        monkeypatch.setattr(sys, "argv", [*options, "--seeds", "3", "--policies", name])
        study.main()
    results = json.loads((tmp_path / "results" / "seed-3.json").read_text())
    assert set(results["policies"]) == {"SFT", "aligned", "teacher_SFT"}


def test_chosen_policies_bring_the_runs_that_they_start_from(stages, tmp_path):
    runs = study.needed(["head"])
    assert list(runs) == ["SFT", "warmup_head", "head"]
    assert list(study.needed([report.DPO])) == ["SFT", "samples", "DPO"]
    assert report.GRPO_UPDATES in study.needed([report.GRPO_TIME])
    results = study.Seed(tmp_path, 0, runs).make()
    assert set(results["policies"]) == {"SFT", "head"}
    assert "| SFT |" in report.markdown({0: results})


def seeds_with(accuracies: dict[str, list[float]]) -> dict:
    """Return results of seeds 0, 1, … in which every mark of a policy is its accuracy."""
    found = {}
    for seed in range(len(next(iter(accuracies.values())))):
        policies = {}
        for name, values in accuracies.items():
            marks = {"accuracy", "greedy_accuracy", "grounded", "perception", "reasoning"}
            rates = dict.fromkeys(marks, values[seed])
            policies[name] = {"parity": rates, "sum": rates}
        found[seed] = {"policies": policies}
    return found


def test_differences_are_paired_by_seed():
    seeds = seeds_with({"a": [0.6, 0.9, 0.6], "b": [0.5, 0.8, 0.5], "c": [0.6, 0.7, 0.5]})
    same = report.differences(seeds, "a", "b")[0]
    assert same.mean == pytest.approx(0.1)
    assert same.half == pytest.approx(0, abs=1e-12)
    varied = report.differences(seeds, "a", "c")[0]
    assert varied.mean == pytest.approx(0.1)
    assert varied.half == pytest.approx(4.303 * 0.1 / 3**0.5, rel=1e-3)  # t(0.975, 2) · s / √3
    assert varied.cell(100) == "10.0 ±24.8"


def test_fewer_than_three_seeds_have_no_interval():
    assert report.Interval.of([0.2, 0.3]) == (0.25, None)
    assert report.Interval.of([0.25]).cell(100) == "25.0"
