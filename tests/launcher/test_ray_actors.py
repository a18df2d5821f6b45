"""A Ray actor that dies unseen by the parent of the stage, as on another node."""

import subprocess
import sys
import tempfile

import pytest

DRIVER = """
import os, sys, time
from pathlib import Path
import ray
import verl_prism.launcher.ray_actors as actors
actors.POLL_SECONDS, actors.GRACE_SECONDS = 0.5, 1.0

class Worker:
    def wait(self):
        time.sleep(300)

ray.init(num_cpus=4, include_dashboard=False, _temp_dir=sys.argv[1], log_to_driver=False)
with actors.watched_actors(Path(sys.argv[2])):
    for name in ("helper", "agent_loop_worker_0", "agent_loop_worker_1"):
        worker = ray.remote(num_cpus=1)(Worker).options(name=name).remote()
        ray.get(worker.__ray_ready__.remote())
        if name == "helper":
            ray.kill(worker)
            time.sleep(3)
    Path(sys.argv[2]).write_text("a step")
    time.sleep(2)
    if sys.argv[3] == "kill":
        ray.kill(worker)
    time.sleep(5)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("act", "status"), [("kill", 1), ("end", 0)])
def test_a_run_that_waits_for_a_dead_actor_is_ended(act, status, tmp_path):
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:  # a socket's path must be short
        command = [sys.executable, "-c", DRIVER, scratch, str(tmp_path / "metrics.jsonl"), act]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == status
    message = "ActorDied: agent_loop_worker_1 of this run died, and the run waits for it\n"
    assert (message in done.stderr) == (act == "kill")
