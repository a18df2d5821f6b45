"""The check survives every fault of a step, and its report is complete on disk at any time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from verl_prism.gpu_check import steps
from verl_prism.gpu_check.__main__ import main
from verl_prism.gpu_check.runner import Plan, run_steps
from verl_prism.gpu_check.steps import STEPS, Host, Step

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def step(name: str, seconds: int = 60, needs=(), arguments=()) -> Step:
    return Step(name, f"faulty_steps:{name}", seconds, needs, arguments)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run steps of `faulty_steps` and return the results by name, and the report."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(HERE)]))

    def run(*chosen: Step, device="cuda", seconds=60.0):
        shown = []
        plan = Plan(chosen, device, True, seconds, tmp_path / "folder" / "report.json")
        report = run_steps(plan, shown.append)
        assert json.loads(plan.file.read_text()) == report
        assert shown == report["steps"]
        return {result["name"]: result for result in report["steps"]}, report

    return run


def test_a_step_that_fails_never_stops_the_next(run):
    names = ("raises", "dies", "leaves", "missing", "cannot_be_called", "skips", "works")
    results, report = run(*map(step, names))
    assert report["complete"]
    statuses = {name: result["status"] for name, result in results.items()}
    assert statuses == dict.fromkeys(names[:5], "fail") | {"skips": "skip", "works": "pass"}
    assert results["raises"]["error"][-1].endswith("an illegal memory access was encountered")
    assert results["raises"]["values"] == {"measured": 1}
    assert results["dies"]["reason"] == "ended by signal 11"
    assert "about to die" in results["dies"]["error"]
    assert results["leaves"]["reason"] == "the process ended without a result"
    assert "has no attribute 'missing'" in results["missing"]["error"][-1]
    assert results["skips"]["reason"] == "there is no base model"
    assert results["works"]["values"] == {"device": "cuda", "quick": True}


def test_a_step_that_hangs_is_killed_with_its_children_and_shows_where(run):
    results, _ = run(step("hangs", seconds=4), step("works"))
    result = results["hangs"]
    assert (result["status"], result["reason"]) == ("fail", "no end after 4 s")
    assert any("in hangs" in line for line in result["error"])
    assert result["values"]["measured"] == 1
    child = result["values"]["child"]
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert results["works"]["status"] == "pass"


def test_parts_of_a_step_fail_one_by_one(run):
    results, _ = run(step("fails_in_parts"))
    result = results["fails_in_parts"]
    assert result["reason"] == "failed: first kernel, second kernel"
    first, second, third = result["checks"]
    assert first["error"][-1] == "ValueError: out of resource: shared memory"
    assert [second["pass"], third["pass"]] == [False, True]


def test_a_step_without_time_is_skipped(run):
    results, report = run(step("works"), seconds=10.0)
    assert results["works"]["reason"] == "no time left of 10 s"
    assert report["complete"]


def test_auto_uses_the_cpu_if_there_is_no_gpu(run):
    environment = Step("environment", "faulty_steps:describe", 60, (), (0,))
    needs_gpu = Step("gpu", "faulty_steps:works", 60, (steps.a_gpu,))
    results, report = run(environment, step("works"), needs_gpu, device="auto")
    assert report["device"] == "cpu"
    assert results["works"]["values"]["device"] == "cpu"
    assert results["gpu"]["reason"] == "needs a CUDA device"


def test_needs():
    gpu, cpu = Host("cuda", False, 1), Host("cpu", False, 0)
    assert not steps.a_gpu(gpu)
    assert "--quick" in steps.a_gpu_unless_quick(cpu)
    assert not steps.a_gpu_unless_quick(Host("cpu", True, 0))
    assert "there is 1" in steps.two_devices(gpu)
    assert not steps.two_devices(Host("cuda", False, 2))
    assert not steps.two_devices(Host("cuda", False, None))
    assert not steps.stage_packages(cpu)


def test_a_killed_check_leaves_the_report_of_the_steps_before(tmp_path):
    file = tmp_path / "report.json"
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from verl_prism.gpu_check.runner import Plan, run_steps\n"
        "from verl_prism.gpu_check.steps import Step\n"
        "steps = [Step(n, f'faulty_steps:{n}', 60) for n in ('works', 'hangs', 'works')]\n"
        f"run_steps(Plan(steps, 'cuda', True, 60.0, Path({str(file)!r})))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}
    check = subprocess.Popen([sys.executable, script], env=environment)
    deadline = time.monotonic() + 60
    while not (file.exists() and len(json.loads(file.read_text())["steps"]) == 2):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    check.send_signal(signal.SIGKILL)
    check.wait()
    report = json.loads(file.read_text())
    assert not report["complete"]
    assert [result["status"] for result in report["steps"]] == ["pass", "running"]


def test_every_step_exists_and_the_first_parts_come_first():
    names = [each.name for each in STEPS]
    assert len(set(names)) == len(names)
    assert names[0] == "environment"
    assert names[-1] == "stage-eval"
    for each in STEPS:
        module, function = each.function.split(":")
        file = ROOT / Path(*module.split(".")).with_suffix(".py")
        assert f"def {function}(" in file.read_text()


def test_an_unknown_step_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--steps", "speed"])
    assert "invalid choice: 'speed'" in capsys.readouterr().err
