"""Weights of two runs on one host go through two sockets."""

import asyncio
import tempfile
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from verl.workers.rollout.vllm_rollout import bucketed_weight_transfer
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import (
    BucketedWeightReceiver,
    BucketedWeightSender,
)

from verl_prism.cpu.worker_extension import CpuWorkerExtension
from verl_prism.weight_transfer import own_socket
from verl_prism.worker_extension import vLLMColocateWorkerExtension

OF_VERL = "ipc:///tmp/rl-colocate-zmq-01000000-replica-0-rank-0.sock"  # of any run's first job


def send(address: str, weight: torch.Tensor) -> None:
    sender = BucketedWeightSender(address, bucket_size_mb=1, use_shm=True)
    asyncio.run(sender.async_send_weights(iter([("weight", weight)])))


def receive(address: str) -> torch.Tensor:
    received = {}

    def keep(weights, is_last):
        received.update({name: tensor.clone() for name, tensor in weights})

    BucketedWeightReceiver(address, torch.device("cpu"), use_shm=True).receive_weights(keep)
    return received["weight"]


def in_thread(function, *arguments) -> Future:
    """Return the future result. The thread does not keep the test from ending."""
    future: Future = Future()

    def settle() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=settle, daemon=True).start()
    return future


def wait_for(address: str, sent: Future) -> None:
    while not Path(address.removeprefix("ipc://")).exists():
        assert not sent.done(), sent.exception()


def test_two_runs_can_send_at_the_same_time(monkeypatch):
    """Both senders are there before the first receiver."""
    device = SimpleNamespace(synchronize=lambda: None, empty_cache=lambda: None)
    monkeypatch.setattr(bucketed_weight_transfer, "get_torch_device", lambda: device)
    monkeypatch.setattr(bucketed_weight_transfer, "is_support_ipc", lambda: False)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        runs = []
        for number, folder in enumerate((one, two)):
            monkeypatch.setenv("RAY_TMPDIR", folder)
            address = own_socket(OF_VERL)
            weight = torch.full((4,), float(number))
            runs.append((address, weight, in_thread(send, address, weight)))
            wait_for(address, runs[-1][2])
        received = [in_thread(receive, address) for address, _, _ in runs]
        for (_, weight, sent), arrived in zip(runs, received, strict=True):
            assert torch.equal(arrived.result(timeout=60), weight)
            sent.result(timeout=60)


@pytest.mark.parametrize("folder", [None, "/no/such/folder"])
def test_in_a_shared_ray_the_job_tells_runs_apart(monkeypatch, folder):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    if folder is not None:
        monkeypatch.setenv("RAY_TMPDIR", folder)
    assert own_socket(OF_VERL) == OF_VERL


def test_the_receiver_uses_the_socket_of_the_run(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(vLLMColocateWorkerExtension, "_get_zmq_handle", lambda self: OF_VERL)
    extension = object.__new__(CpuWorkerExtension)
    assert extension._get_zmq_handle() == own_socket(OF_VERL) != OF_VERL
