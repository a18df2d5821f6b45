"""Ray on several "hosts", each a process of this one with a raylet, ports and a folder of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Starts Ray on two hosts as the launcher does, says so and, for each line of stdin, who is lost.
SCRIPT = """
import json, os, sys
from pathlib import Path
from verl_prism.cluster.nodes import RayNodes
from verl_prism.compose import compose_run
from verl_prism.errors import UserError

shell, seconds, logs, *overrides = sys.argv[1:]
_, prism = compose_run(overrides)
try:
    with RayNodes(["a", "b"], shell, overrides, prism, Path(logs), float(seconds)) as nodes:
        import ray
        ray.init(nodes.address, log_to_driver=False)
        names = ("VERL_PLATFORM", "RAY_TMPDIR", "VLLM_RPC_BASE_PATH", "PRISM_HOST", "FROM_LAUNCHER")
        where = ray.remote(num_gpus=1)(lambda: __import__("time").sleep(2) or {n: os.environ.get(n) for n in names})
        print(json.dumps(ray.get([where.remote(), where.remote()])), flush=True)
        ray.shutdown()
        for _ in sys.stdin:
            print(json.dumps(nodes.lost()), flush=True)
except UserError as error:
    print(json.dumps(str(error)))
"""


class Script:
    """The script above; each answer is a line of JSON."""

    def __init__(self, shell, logs, seconds=120):
        overrides = ["stage=align", "prism.hardware.nodes=2"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, shell, str(seconds), str(logs), *overrides],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"FROM_LAUNCHER": "yes"},
        )

    def answer(self):
        return json.loads(self.process.stdout.readline())

    def ask(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()


@pytest.fixture
def script(tmp_path):
    started = []

    def start(*arguments):
        started.append(Script(*arguments))
        return started[-1]

    yield start
    for script in started:
        script.process.kill()


def descendants(process):
    return psutil.Process(process.pid).children(recursive=True)


def wait_until_gone(processes):
    deadline = time.monotonic() + 40
    while running := [
        p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE
    ]:
        assert time.monotonic() < deadline, running
        time.sleep(0.2)


def test_workers_on_each_host_have_the_runs_environment_and_a_folder_of_their_own(script, tmp_path):
    nodes = script("bash -c 'echo Welcome to {host}; PRISM_HOST={host} exec \"$@\"' --", tmp_path)
    found = nodes.answer()
    assert {worker["PRISM_HOST"] for worker in found} == {"a", "b"}
    assert all(
        worker["VERL_PLATFORM"] == "cpu" and worker["FROM_LAUNCHER"] == "yes" for worker in found
    )
    scratch = {worker["RAY_TMPDIR"] for worker in found}
    assert len(scratch) == 2 and scratch == {worker["VLLM_RPC_BASE_PATH"] for worker in found}
    ours = {process.pid for process in descendants(nodes.process)}
    sockets = [socket for socket in psutil.net_connections("tcp") if socket.pid in ours]
    listening = {socket.laddr.port for socket in sockets if socket.status == psutil.CONN_LISTEN}
    assert listening and not listening & {6379, 8265, 10001}, "the ports that Ray takes by default"

    processes = descendants(nodes.process)
    nodes.process.stdin.close()
    assert nodes.process.wait(timeout=60) == 0
    wait_until_gone(processes)
    assert not [folder for folder in scratch if os.path.exists(folder)]


def test_a_launcher_that_is_killed_leaves_nothing_on_any_host(script, tmp_path):
    nodes = script("env PRISM_HOST={host}", tmp_path)
    scratch = {worker["RAY_TMPDIR"] for worker in nodes.answer()}
    processes = descendants(nodes.process)
    nodes.process.kill()
    wait_until_gone(processes)
    assert not [folder for folder in scratch if os.path.exists(folder)]


def test_a_host_that_was_stopped_is_told_from_one_that_failed(script, tmp_path):
    nodes = script("env PRISM_HOST={host}", tmp_path)
    nodes.answer()
    assert nodes.ask() == {}
    agents = [
        p
        for p in psutil.Process(nodes.process.pid).children()
        if "verl_prism.cluster.node" in p.cmdline()
    ]
    assert len(agents) == 2
    agents[1].send_signal(signal.SIGTERM)
    while not (lost := nodes.ask()):
        time.sleep(0.2)
    assert lost == {"b": 143}
    raylet = next(p for p in agents[0].children(recursive=True) if p.name() == "raylet")
    raylet.kill()
    while len(lost := nodes.ask()) < 2:
        time.sleep(0.2)
    assert lost["a"] == 1


def test_a_head_that_cannot_be_reached_is_named_with_its_log(script, tmp_path):
    said = script("ls /no/such/{host}", tmp_path).answer()
    assert said == f"Ray's head on a did not start within 120 s; see {tmp_path}/a.log"
    assert "/no/such/a" in (tmp_path / "a.log").read_text()


def test_a_host_that_does_not_come_is_waited_for_until_the_deadline(script, tmp_path):
    shell = "bash -c 'if [[ {host} == b ]]; then cat; else exec \"$@\"; fi' --"
    said = script(shell, tmp_path, 40).answer()
    assert said == f"Ray has 1 of 2 nodes after 40 s; the hosts' logs are in {tmp_path}"
