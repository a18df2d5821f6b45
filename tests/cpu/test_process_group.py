import pytest
import torch.distributed as dist

from verl_prism.cpu.process_group import accept_repeated_backends

TWICE = "cpu:gloo,cpu:gloo"


@pytest.fixture
def init_process_group():
    original = dist.init_process_group
    accept_repeated_backends()
    yield dist.init_process_group
    dist.init_process_group = original


def test_torch_still_refuses_a_repeated_device():
    with pytest.raises(ValueError, match="Duplicate device type"):
        dist.distributed_c10d.BackendConfig(dist.Backend(TWICE))


def test_a_repeated_pair_gives_one_gloo_group(init_process_group, tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    init_process_group(TWICE, rank=0, world_size=1, store=store)
    try:
        assert dist.get_backend_config() == "cpu:gloo"
    finally:
        dist.destroy_process_group()


def test_two_backends_for_one_device_are_still_refused(init_process_group, tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    with pytest.raises(ValueError, match="Duplicate device type"):
        init_process_group("cpu:gloo,cpu:nccl", rank=0, world_size=1, store=store)


def test_patching_twice_wraps_once(init_process_group):
    accept_repeated_backends()
    assert dist.init_process_group is init_process_group
