"""What the launcher notices and reports, tested on processes with the names of Ray and vLLM."""

import os
import re
import resource
import sys

import pytest

import verl_prism.launcher.process_tree as process_module
import verl_prism.launcher.watch as watch_module
from verl_prism.compose import compose_run
from verl_prism.config import flatten
from verl_prism.errors import UserError
from verl_prism.launcher.console import StageConsole
from verl_prism.launcher.failure import failure_text
from verl_prism.launcher.process_tree import ProcessTree
from verl_prism.launcher.stacks import STACKS_VARIABLE
from verl_prism.launcher.watch import Watch
from verl_prism.run_folder import RunFolder

# Starts processes with the given names, and executes the given code.
DRIVER = """
import json, os, signal, subprocess, sys, time
from verl_prism.launcher.stacks import answer_requests
answer_requests()
output, names, act = sys.argv[1], sys.argv[2].split(), sys.argv[3]
started = [subprocess.Popen(["bash", "-c", 'exec -a "$0" sleep 300', name]) for name in names]
def report(step):
    with open(output + "/metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "data": {}}) + "\\n")
def kill(number):
    time.sleep(1)
    started[number].kill()
    started[number].wait()
def python(name, code):
    return subprocess.Popen([name, "-c", code], executable=sys.executable)
def wait_forever():
    time.sleep(300)
exec(act)
"""


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """Return a function that runs the driver and returns its status and the failure message."""
    monkeypatch.setattr(process_module, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(watch_module, "GRACE_SECONDS", 1.5)
    monkeypatch.setattr(watch_module, "POLL_SECONDS", 0.1)

    def run(names: str, act: str, stall_seconds: float | None = None) -> tuple[int, str]:
        _, prism = compose_run(["stage=align", f"prism.output={tmp_path}"])
        settings = dict(flatten(prism.model_dump(), "prism"))
        console = StageConsole("align", RunFolder(tmp_path), total_steps=3)
        stacks = tmp_path / "stacks"
        environment = {**os.environ, STACKS_VARIABLE: str(stacks)}
        command = [sys.executable, "-c", DRIVER, str(tmp_path), names, act]
        with console, ProcessTree(command, environment) as tree:
            watch = Watch(tree, console, stacks, on_ray=True, stall_seconds=stall_seconds)
            status = watch.wait()
        if status == 0:
            return status, ""
        return status, failure_text("align", status, console, watch, settings)

    return run


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ray::WorkerDict.actor_rollout_update_actor", "the policy worker (WorkerDict), process "),
        ("VLLM::EngineCore", "the vLLM engine (EngineCore), process "),
        ("ray::SomethingNew", "the SomethingNew, process "),
    ],
)
def test_a_run_that_waits_for_a_dead_process_is_stopped(outcome, name, message):
    status, text = outcome(f"{name} ray::PrismTaskRunner.run", "report(1); kill(0); wait_forever()")
    assert status == 1
    assert f"stage align failed: {message}" in text
    assert re.search(r"died in step 2; it held \d+ MiB\n", text)
    assert "PrismTaskRunner" not in text
    assert "the run did not end by itself within 2 s and was stopped" in text


def test_only_the_process_whose_death_ends_the_others_is_named(outcome):
    act = "report(1); time.sleep(1); [each.kill() for each in started]; "
    act += "[each.wait() for each in started]"
    status, text = outcome(
        "ray::PrismTaskRunner ray::WorkerDict ray::RewardLoopWorker", f"{act}; wait_forever()"
    )
    assert status == 1
    assert "the trainer (PrismTaskRunner)" in text
    assert "WorkerDict" not in text
    assert "RewardLoopWorker" not in text


def test_a_run_that_ends_by_itself_reports_its_errors_and_who_died(outcome):
    act = "report(1); kill(0); time.sleep(0.5); print('ValueError: lost it'); sys.exit(7)"
    status, text = outcome("ray::WorkerDict", act)
    assert status == 7
    assert "the policy worker (WorkerDict)" in text
    assert text.endswith("its last errors:\n  ValueError: lost it\n")
    assert "was stopped" not in text


def test_other_processes_may_end(outcome):
    """Idle workers, Ray functions and helpers may; before the first step every process may."""
    names = "ray::IDLE ray::some_function helper ray::PrismTaskRunner"
    assert outcome(
        names, "kill(3); time.sleep(1); report(1); [kill(n) for n in range(3)]; time.sleep(2)"
    ) == (0, "")


def test_a_forked_process_may_end(outcome):
    """A data loader worker, for example, has its parent's name."""
    fork = "import os, time; time.sleep(60) if os.fork() else time.sleep(2.5)"
    act = f"""
actor = python("ray::WorkerDict", {fork!r})
time.sleep(1.5)
report(1)
time.sleep(5)
assert actor.poll() is None
"""
    assert outcome("", act) == (0, "")


def test_after_the_last_step_all_processes_may_end(outcome):
    assert outcome("ray::WorkerDict", "report(3); kill(0); time.sleep(3)") == (0, "")


@pytest.mark.parametrize(
    ("before", "after", "status"),
    [
        ("global_step_1", "global_step_2", 0),
        ("global_step_1", "global_step_1", 1),
        ("global_step_2", "global_step_1", 1),
    ],
)
def test_after_an_early_end_all_processes_may_end(outcome, before, after, status):
    """If the last reported step was saved after the end was requested."""
    act = f"""
report(1)
time.sleep(1)
os.makedirs(output + "/checkpoints/{before}")
time.sleep(0.1)
open(output + "/end_requested", "w").close()
os.makedirs(output + "/checkpoints/{after}", exist_ok=True)
report(2)
kill(0)
time.sleep(3)
"""
    found, text = outcome("ray::WorkerDict", act)
    assert found == status
    assert ("(WorkerDict), process" in text) == bool(status)


def test_a_killed_stage_process_is_reported(outcome):
    status, text = outcome("", "report(1); os.kill(os.getpid(), signal.SIGKILL)")
    assert status == -9
    assert text.startswith(
        "stage align failed: the stage's own process was killed by SIGKILL\nlog in "
    )


def test_a_log_that_cannot_be_written_is_a_cause(outcome):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        status, text = outcome("", "report(1); print('x' * (3 << 20)); sys.exit(3)")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 3
    expected = r"stage align failed: \d+ bytes could not be written to .*/log.txt: File too large\n"
    assert re.match(expected, text)


def test_a_stall_shows_the_stacks_of_every_process(outcome, tmp_path):
    server = "from verl_prism.launcher.stacks import *; answer_requests(); time.sleep(300)"
    act = f"python('ray::vLLMHttpServer', {server!r}); report(1); wait_forever()"
    status, text = outcome("ray::WorkerDict", act, stall_seconds=4)
    assert status == 1
    assert "stage align failed: no progress for prism.stall_seconds=4." in text
    assert re.search(r"\n  policy worker \(WorkerDict\), process \d+: S \(sleeping\)", text)
    assert re.search(
        r"\n  vLLM server \(vLLMHttpServer\), process \d+: <string>:1 in <module>", text
    )
    log = (tmp_path / "log.txt").read_text()
    assert 'File "<string>", line 17 in wait_forever' in log


def test_progress_is_a_step_or_a_phase(outcome):
    act = """
report(1)
for _ in range(5):
    time.sleep(0.8)
    with open(output + "/metrics.jsonl", "a") as file:
        file.write(json.dumps({"note": "sampling"}) + "\\n")
"""
    assert outcome("", act, stall_seconds=2) == (0, "")


@pytest.mark.parametrize(("grows", "expected"), [(True, 0), (False, 1)])
def test_a_checkpoint_that_grows_is_progress(outcome, grows, expected):
    act = f"""
folder = output + "/checkpoints/unfinished/global_step_1/actor"
os.makedirs(folder)
report(1)
for _ in range(14):
    time.sleep(0.5)
    with open(folder + "/model.pt", "a" if {grows} else "w") as file:
        file.write("weights")
"""
    status, text = outcome("", act, stall_seconds=2)
    assert status == expected
    assert ("no progress" in text) == bool(expected)


def test_a_user_error_in_any_process_is_raised(outcome):
    line = "(RewardLoopWorker pid=7) verl_prism.errors.UserError: the judge is down. Start it"
    error = "(AgentLoopWorkerTQ pid=8) ERROR: Error in _run_prompt for uid"
    noise = f"for n in range(20): print({error!r}, n)"
    with pytest.raises(UserError, match=r"^the judge is down\. Start it$"):
        outcome("", f"report(1); print({line!r}, flush=True)\n{noise}\nsys.exit(1)")
