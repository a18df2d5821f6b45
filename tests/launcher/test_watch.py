"""Small trees of processes by the names of Ray's and vLLM's: what the parent of a stage notices, and what it says."""

import os
import re
import sys

import pytest

import verl_prism.launcher.process_tree as process_module
import verl_prism.launcher.watch as watch_module
from verl_prism.compose import compose_run
from verl_prism.errors import UserError
from verl_prism.launcher.console import StageConsole
from verl_prism.launcher.failure import failure_text
from verl_prism.launcher.process_tree import ProcessTree
from verl_prism.launcher.stacks import STACKS_VARIABLE
from verl_prism.launcher.watch import Watch

# Starts processes by the names given, reports its first step, and does what it is told.
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
def wait_for_ever():
    time.sleep(300)
exec(act)
"""


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """Runs the driver under a watch; returns its exit status and what a person is told of a failure."""
    monkeypatch.setattr(process_module, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(watch_module, "GRACE_SECONDS", 1.5)
    monkeypatch.setattr(watch_module, "POLL_SECONDS", 0.1)

    def run(names: str, act: str, *overrides: str) -> tuple[int, str]:
        _, prism = compose_run(["stage=align", f"prism.output={tmp_path}", *overrides])
        console = StageConsole("align", tmp_path, total_steps=3)
        stacks = tmp_path / "stacks"
        environment = {**os.environ, STACKS_VARIABLE: str(stacks)}
        with (
            console,
            ProcessTree(
                [sys.executable, "-c", DRIVER, str(tmp_path), names, act], environment
            ) as tree,
        ):
            watch = Watch(tree, console, prism, stacks)
            status = watch.wait()
        return status, failure_text(prism, status, console, watch) if status else ""

    return run


@pytest.mark.parametrize(
    "name, told",
    [
        ("ray::WorkerDict.actor_rollout_update_actor", "the policy worker (WorkerDict), process "),
        ("VLLM::EngineCore", "the vLLM engine (EngineCore), process "),
        ("ray::SomethingNew", "the SomethingNew, process "),
    ],
)
def test_a_run_that_waits_for_a_dead_process_is_ended(outcome, name, told):
    status, text = outcome(
        f"{name} ray::PrismTaskRunner.run", "report(1); kill(0); wait_for_ever()"
    )
    assert status == 1
    assert f"stage align failed: {told}" in text
    assert re.search(r"died in step 2; it held \d+ MiB\n", text)
    assert "PrismTaskRunner" not in text
    assert "it did not end by itself within 2 s and was ended" in text


def test_who_took_the_others_along_is_named_alone(outcome):
    act = "report(1); time.sleep(1); [each.kill() for each in started]; [each.wait() for each in started]"
    status, text = outcome(
        "ray::PrismTaskRunner ray::WorkerDict ray::RewardLoopWorker", f"{act}; wait_for_ever()"
    )
    assert status == 1
    assert (
        "the trainer (PrismTaskRunner)" in text
        and "WorkerDict" not in text
        and "RewardLoopWorker" not in text
    )


def test_a_run_that_ends_by_itself_says_what_it_said_and_who_died(outcome):
    act = "report(1); kill(0); time.sleep(0.5); print('ValueError: lost it'); sys.exit(7)"
    status, text = outcome("ray::WorkerDict", act, "prism.stall_seconds=null")
    assert status == 7
    assert "the policy worker (WorkerDict)" in text and text.endswith(
        "its last errors:\n  ValueError: lost it\n"
    )
    assert "was ended" not in text


def test_processes_that_come_and_go_are_no_failure(outcome):
    """An idle worker of Ray, a function of Ray, a helper; and everything before the first step."""
    names = "ray::IDLE ray::some_function helper ray::PrismTaskRunner"
    assert outcome(
        names, "kill(3); time.sleep(1); report(1); [kill(n) for n in range(3)]; time.sleep(2)"
    ) == (0, "")


def test_what_a_process_has_forked_may_end(outcome):
    """A loader of data, say: it has its parent's name."""
    fork = "import os, time; time.sleep(60) if os.fork() else time.sleep(2.5)"
    act = f"""
actor = python("ray::WorkerDict", {fork!r})
time.sleep(1.5)
report(1)
time.sleep(5)
assert actor.poll() is None
"""
    assert outcome("", act) == (0, "")


def test_the_end_of_all_processes_after_the_last_step_is_no_failure(outcome):
    assert outcome("ray::WorkerDict", "report(3); kill(0); time.sleep(3)") == (0, "")


def test_a_stage_killed_itself_is_said_to_be(outcome):
    status, text = outcome("", "report(1); os.kill(os.getpid(), signal.SIGKILL)")
    assert status == -9
    assert text.startswith(
        "stage align failed: the stage's own process was killed by SIGKILL\nlog in "
    )


def test_a_stall_shows_where_every_process_stands(outcome, tmp_path):
    server = "from verl_prism.launcher.stacks import *; answer_requests(); time.sleep(300)"
    act = f"python('ray::vLLMHttpServer', {server!r}); report(1); wait_for_ever()"
    status, text = outcome("ray::WorkerDict", act, "prism.stall_seconds=4")
    assert status == 1
    assert "stage align failed: no progress for prism.stall_seconds=4." in text
    assert re.search(r"\n  policy worker \(WorkerDict\), process \d+: S \(sleeping\)", text)
    assert re.search(
        r"\n  vLLM server \(vLLMHttpServer\), process \d+: <string>:1 in <module>", text
    )
    log = (tmp_path / "log.txt").read_text()
    assert 'File "<string>", line 17 in wait_for_ever' in log


def test_progress_is_a_step_or_a_phase(outcome):
    act = """
report(1)
for _ in range(5):
    time.sleep(0.8)
    with open(output + "/metrics.jsonl", "a") as file:
        file.write(json.dumps({"note": "sampling"}) + "\\n")
"""
    assert outcome("", act, "prism.stall_seconds=2") == (0, "")


def test_a_mistake_found_in_any_process_is_the_users(outcome):
    line = "(RewardLoopWorker pid=7) verl_prism.errors.UserError: the judge is down. Start it"
    noise = "for n in range(20): print('(AgentLoopWorkerTQ pid=8) ERROR: Error in _run_prompt for uid', n)"
    with pytest.raises(UserError, match=r"^the judge is down\. Start it$"):
        outcome("", f"report(1); print({line!r}, flush=True)\n{noise}\nsys.exit(1)")
