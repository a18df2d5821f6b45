"""A run's processes talk only to each other, over loopback."""

import os
import re
import subprocess
import sys
import time

import psutil
import pytest

from verl_prism.compose import compose_run
from verl_prism.launcher.launch import environment
from verl_prism.launcher.network import network_environment
from verl_prism.run_folder import RunFolder

LIBRARIES = """
import ray
from huggingface_hub import constants
from ray._common.usage.usage_lib import usage_stats_enabled
from vllm import envs
from vllm.utils.network_utils import get_ip
print(usage_stats_enabled(), envs.VLLM_DO_NOT_TRACK)
print(constants.HF_HUB_DISABLE_TELEMETRY, constants.HF_HUB_OFFLINE)
print(ray.util.get_node_ip_address(), get_ip())
"""


def variables(tmp_path, *overrides: str) -> dict[str, str]:
    return environment(compose_run(["stage=align", *overrides])[1], tmp_path)


def test_libraries_send_no_statistics_and_use_loopback_as_the_address_of_the_host(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIBRARIES],
        env=variables(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["False True", "True False", "127.0.0.1 127.0.0.1"]


@pytest.mark.parametrize("cluster", ["prism.hardware.ray_address=auto", "prism.hardware.nodes=2"])
def test_a_cluster_keeps_its_own_network(cluster, tmp_path):
    loopback_only = network_environment(True, False, tmp_path).keys()
    always = network_environment(False, False, tmp_path).keys()
    assert always == {"RAY_USAGE_STATS_ENABLED", "DO_NOT_TRACK"}
    assert variables(tmp_path, cluster).keys() & loopback_only == always


def test_variables_of_the_user_take_precedence(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert variables(tmp_path)["HF_HUB_OFFLINE"] == "0"


def test_each_run_has_a_token_of_its_own(tmp_path):
    assert variables(tmp_path)["RAY_AUTH_TOKEN"] != variables(tmp_path)["RAY_AUTH_TOKEN"]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_listens_on_loopback_and_writes_no_secret(
    digits_folder, discriminator_folder, tmp_path
):
    """The exception is vLLM's engine, whose ranks meet in torch's store on every address."""
    secrets = {
        "WANDB_API_KEY": "planted-in-the-environment",
        "HF_TOKEN": "hf_plantedplantedplanted",
    }
    command = [
        "stage=align",
        "prism.steps=1",
        "prism.rollout.prompts_per_step=4",
        "prism.rollout.samples_per_prompt=4",
        f"prism.root={digits_folder}",
        f"prism.output={tmp_path}",
        f"prism.policy={digits_folder / 'base'}",
        f"prism.discriminator.path={discriminator_folder}",
        "prism.reward.judge.model=none",
        "prism.reward.judge.endpoint='http://me:planted-in-a-url@127.0.0.1/v1'",
        "++ray_kwargs.ray_init.runtime_env.env_vars.MY_TOKEN=planted-in-the-config",
    ]
    run = subprocess.Popen(
        [sys.executable, "-m", "verl_prism.main", *command], env=os.environ | secrets
    )
    listening = set()
    while run.poll() is None:
        listening |= listeners(run.pid)
        time.sleep(0.2)
    assert run.returncode == 0

    servers = {"gcs_server", "raylet", "ray::vLLMHttpServer", "ray::TransferQueueController"}
    assert servers <= {name for name, _, _ in listening}
    public = {(name, port) for name, address, port in listening if not address.startswith("127.")}
    assert [name for name, _ in public] == ["VLLM::EngineCore"]

    secret = re.compile(rb"planted|RAY_AUTH_TOKEN.{0,5}[0-9a-f]{64}")
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in written if secret.search(file.read_bytes())]
    log = RunFolder(tmp_path).log.read_text()
    assert "'MY_TOKEN': '[redacted]'" in log, "the run had the secret"


def listeners(pid: int) -> set[tuple[str, str, int]]:
    """Return name, address and port of each listening process, without a Ray actor's method."""
    found = set()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            name = (process.cmdline() or [process.name()])[0].rsplit("/", 1)[-1].split(".")[0]
            sockets = process.net_connections("inet")
        except psutil.Error:  # it has just ended
            continue
        for socket in sockets:
            if socket.status == psutil.CONN_LISTEN:
                found.add((name, socket.laddr.ip.removeprefix("::ffff:"), socket.laddr.port))
    return found
