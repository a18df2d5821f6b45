"""Run a script or a module as if only the discriminator's dependencies were installed.

python isolated.py one_step.py …
python isolated.py verl_prism.discriminator …
"""

import runpy
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.machinery import ModuleSpec

from packaging.requirements import Requirement

DEPENDENCIES = ("torch", "transformers", "safetensors", "numpy", "Pillow")
OURS = {"discriminator", "gpu_check", "response", "files", "errors", "sharding"}


def closure(names: Iterator[str]) -> set[str]:
    """The distributions with these names and everything that they require."""
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if distribution.name in found:
            continue
        found.add(distribution.name)
        requirements = map(Requirement, distribution.requires or [])
        queue += [
            each.name
            for each in requirements
            if each.marker is None or each.marker.evaluate({"extra": ""})
        ]
    return found


class OnlyDependencies:
    """A finder that finds the standard library, the dependencies and the allowed parts of ours."""

    def __init__(self, finders: list):
        self._finders = finders
        distributions = closure(DEPENDENCIES)
        self._allowed = {*sys.stdlib_module_names, "verl_prism"}
        for package, names in metadata.packages_distributions().items():
            if distributions.intersection(names):
                self._allowed.add(package)

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        if package not in self._allowed and not package.startswith("_sysconfigdata"):
            return None
        if package == "verl_prism" and rest and rest.split(".")[0] not in OURS:
            return None
        for finder in self._finders:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None

    def find_distributions(self, context: metadata.DistributionFinder.Context) -> Iterator:
        for finder in self._finders:
            if hasattr(finder, "find_distributions"):
                yield from finder.find_distributions(context)


def main() -> None:
    del sys.argv[0]
    sys.meta_path[:] = [OnlyDependencies(list(sys.meta_path))]
    program = sys.argv[0]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
