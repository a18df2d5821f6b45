import torch

from verl_prism.cpu.platform import PlatformCPU


def test_tensors_move_to_the_current_device():
    assert torch.zeros(1).to(PlatformCPU().current_device()).device.type == "cpu"


def test_the_device_module_has_what_verl_calls_on_torch_cuda():
    device = PlatformCPU().device_module
    assert device.memory_allocated() == device.max_memory_reserved() == 0
    assert device.mem_get_info() == (0, 0)
    assert device.get_device_name() == "CPU"
    for do_nothing in (
        device.empty_cache,
        device.synchronize,
        device.ipc_collect,
        device.reset_peak_memory_stats,
    ):
        assert do_nothing() is None
    device.set_device(0)


def test_the_generator_can_be_restored():
    device = PlatformCPU().device_module
    state = device.get_rng_state()
    first = torch.rand(3)
    device.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)


def test_other_attributes_are_those_of_torch_cpu():
    assert PlatformCPU().device_module.Stream is torch.cpu.Stream


def test_ranks_are_logical_gpus_and_weights_use_shared_memory():
    platform = PlatformCPU()
    assert platform.ray_resource_name() == "GPU"
    assert platform.communication_backend_name() == "gloo"
    assert not platform.is_ipc_supported()
    with platform.nvtx_range("step"):
        pass
