"""verl's platform `cpu`: one logical device per rank, gloo, no memory accounting."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


def _constant(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


class CpuDevice(ModuleType):
    """`torch.cpu` with the part of the `torch.cuda` interface that verl calls."""

    memory_allocated = staticmethod(_constant(0))
    max_memory_allocated = staticmethod(_constant(0))
    memory_reserved = staticmethod(_constant(0))
    max_memory_reserved = staticmethod(_constant(0))
    mem_get_info = staticmethod(_constant((0, 0)))
    reset_peak_memory_stats = staticmethod(_constant(None))
    empty_cache = staticmethod(_constant(None))
    ipc_collect = staticmethod(_constant(None))
    synchronize = staticmethod(_constant(None))
    set_device = staticmethod(_constant(None))
    is_available = staticmethod(_constant(True))
    device_count = staticmethod(_constant(1))
    # Not an index: verl passes it to `Tensor.to`.
    current_device = staticmethod(_constant("cpu"))
    # verl's FLOPs counter calls this on every device module except torch.cpu itself.
    get_device_name = staticmethod(_constant("CPU"))
    # Resuming from a checkpoint restores the device's generator.
    get_rng_state = staticmethod(torch.get_rng_state)
    set_rng_state = staticmethod(torch.set_rng_state)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)


class PlatformCPU(PlatformBase):
    """Selected by `VERL_PLATFORM=cpu` only; verl never detects it."""

    device_name = "cpu"
    vendor_name = "cpu"
    device_module = CpuDevice("verl_prism_cpu_device")

    def is_available(self) -> bool:
        """Return True: a CPU is always there."""
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        """Return whether the platform is selected."""
        return os.environ.get("VERL_PLATFORM") == "cpu"

    def current_device(self) -> str:  # type: ignore[override]
        """Return the device for `Tensor.to`; it has no index."""
        return self.device_module.current_device()

    def device_count(self) -> int:
        """Return 1."""
        return self.device_module.device_count()

    def set_device(self, device_index: int) -> None:
        """There is one device."""

    def synchronize(self, device_index: int | None = None) -> None:
        """CPU work is done when the call returns."""

    def manual_seed(self, seed: int) -> None:
        """Seed torch."""
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        """Seed torch."""
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """There is no caching allocator."""

    def empty_cache(self) -> None:
        """There is no caching allocator."""

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        """Return no compute capability."""
        return None, None

    def communication_backend_name(self) -> str:
        """Return the backend of process groups."""
        return "gloo"

    def visible_devices_envvar(self) -> str:
        """Return a variable that verl may set; nothing reads it on CPU."""
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        """Mark nothing: there is no device profiler."""
        yield

    def profiler_start(self) -> None:
        """There is no device profiler."""

    def profiler_stop(self) -> None:
        """There is no device profiler."""

    def ray_resource_name(self) -> str:
        """Return GPU: ranks are logical GPUs of Ray, which verl's placement groups request."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        """Return no variables."""
        return []

    def is_ipc_supported(self) -> bool:
        """Return False: the actor sends weights to vLLM through POSIX shared memory."""
        return False

    def cudart(self) -> None:
        """Return no CUDA runtime."""
        return None


def register_platform() -> None:
    """Make `VERL_PLATFORM=cpu` known to verl."""
    PlatformRegistry.register(platform="cpu")(PlatformCPU)
