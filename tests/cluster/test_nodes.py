"""Ray on two "hosts", which are processes of this host with their own raylet, ports and folder."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Starts Ray on two hosts as the launcher does, and prints the environment of a worker on each. Then
# prints the lost hosts for each line of stdin.
SCRIPT = """
import json, os, sys, time
from pathlib import Path
from verl_prism.cluster.nodes import RayNodes
from verl_prism.errors import UserError

NAMES = ("VERL_PLATFORM", "RAY_TMPDIR", "VLLM_RPC_BASE_PATH", "PRISM_HOST", "FROM_LAUNCHER")


def variables():
    time.sleep(2)  # so that the other worker runs on the other host
    return {name: os.environ.get(name) for name in NAMES}


shell, seconds, logs, *overrides = sys.argv[1:]
try:
    with RayNodes(
        ["a", "b"],
        shell=shell,
        overrides=overrides,
        devices_per_node=1,
        devices=2,
        logs=Path(logs),
        timeout=float(seconds),
    ) as nodes:
        import ray

        ray.init(nodes.address, log_to_driver=False)
        worker = ray.remote(num_gpus=1)(variables)
        print(json.dumps(ray.get([worker.remote(), worker.remote()])), flush=True)
        ray.shutdown()
        for _ in sys.stdin:
            print(json.dumps(nodes.lost()), flush=True)
except UserError as error:
    print(json.dumps(str(error)))
"""


class Script:
    """The script above. Each answer is a line of JSON."""

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
    while any(map(is_alive, processes)):
        assert time.monotonic() < deadline, [process for process in processes if is_alive(process)]
        time.sleep(0.2)


def is_alive(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_each_host_has_the_launchers_environment_and_its_own_folder_and_ports(script, tmp_path):
    nodes = script("bash -c 'echo Welcome to {host}; PRISM_HOST={host} exec \"$@\"' --", tmp_path)
    found = nodes.answer()
    assert {worker["PRISM_HOST"] for worker in found} == {"a", "b"}
    for worker in found:
        assert worker["VERL_PLATFORM"] == "cpu"
        assert worker["FROM_LAUNCHER"] == "yes"
    scratch = {worker["RAY_TMPDIR"] for worker in found}
    assert len(scratch) == 2
    assert scratch == {worker["VLLM_RPC_BASE_PATH"] for worker in found}
    ours = {process.pid for process in descendants(nodes.process)}
    sockets = [socket for socket in psutil.net_connections("tcp") if socket.pid in ours]
    listening = {socket.laddr.port for socket in sockets if socket.status == psutil.CONN_LISTEN}
    assert listening
    assert not listening & {6379, 8265, 10001}, "Ray's default ports"

    processes = descendants(nodes.process)
    nodes.process.stdin.close()
    assert nodes.process.wait(timeout=60) == 0
    wait_until_gone(processes)
    assert not [folder for folder in scratch if os.path.exists(folder)]


def test_a_killed_launcher_leaves_nothing_on_any_host(script, tmp_path):
    nodes = script("env PRISM_HOST={host}", tmp_path)
    scratch = {worker["RAY_TMPDIR"] for worker in nodes.answer()}
    processes = descendants(nodes.process)
    nodes.process.kill()
    wait_until_gone(processes)
    assert not [folder for folder in scratch if os.path.exists(folder)]


def test_a_stopped_host_differs_from_a_failed_one(script, tmp_path):
    nodes = script("env PRISM_HOST={host}", tmp_path)
    nodes.answer()
    assert nodes.ask() == {}
    children = psutil.Process(nodes.process.pid).children()
    agents = [child for child in children if "verl_prism.cluster.node" in child.cmdline()]
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


def test_an_unreachable_head_is_named_with_its_log(script, tmp_path):
    message = script("ls /no/such/{host}", tmp_path).answer()
    expected = "Ray's head on a ended with status 2 before it had started"
    assert message == f"{expected}; see {tmp_path}/a.log"
    assert "/no/such/a" in (tmp_path / "a.log").read_text()


def test_a_missing_host_is_awaited_until_the_timeout(script, tmp_path):
    shell = "bash -c 'if [[ {host} == b ]]; then cat; else exec \"$@\"; fi' --"
    message = script(shell, tmp_path, 40).answer()
    assert message == f"Ray has 1 of 2 nodes after 40 s; see {tmp_path}"
