"""The model card of an exported folder: README.md, rendered from the run's settings and metrics."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from verl_prism.checkpoints.fingerprint import fingerprint
from verl_prism.config import DataFiles, Prism
from verl_prism.hub_cache import hub_name

CARD = "README.md"
PACKAGES = ("verl_prism", "verl", "torch", "transformers", "vllm", "ray")

Part = Literal["policy", "discriminator"]


@dataclass(frozen=True)
class ModelCard:
    """What the model card says.

    model: name of the model. part: which part of the run the folder contains.
    base: the folder that training started from. A model from the Hub is shown by its name.
    root: paths below it are shown relative to it.
    """

    part: Part
    model: str
    stage: str
    steps: int
    seed: int
    base: Path
    data: DataFiles
    root: Path
    settings: Mapping[str, Any]
    metrics: Mapping[str, float | str]

    @classmethod
    def of(
        cls, prism: Prism, part: Part, base: Path, metrics: Mapping[str, float | str]
    ) -> "ModelCard":
        """Return the card for a part of a run."""
        return cls(
            part=part,
            model=prism.model.name,
            stage=prism.stage,
            steps=prism.steps,
            seed=prism.seed,
            base=base,
            data=prism.data.train,
            root=prism.root,
            settings=fingerprint(prism),
            metrics=metrics,
        )

    def write(self, folder: Path) -> None:
        """Write the card into an exported folder."""
        environment = Environment(
            loader=PackageLoader("verl_prism.checkpoints", package_path=""),
            undefined=StrictUndefined,
            keep_trailing_newline=True,
        )
        text = environment.get_template("model_card.md.jinja").render(
            card=self,
            base=hub_name(self.base) or self._anonymous(self.base),
            data=self._anonymous(self.data),
            settings={key: self._anonymous(value) for key, value in self.settings.items()},
            versions=_versions(),
        )
        (folder / CARD).write_text(text, encoding="utf-8")

    def _anonymous(self, value: object) -> object:
        """Shorten absolute paths, so that the card reveals nothing about the machine."""
        if isinstance(value, list | tuple):
            return ", ".join(str(self._anonymous(item)) for item in value)
        path = Path(str(value))
        if not path.is_absolute():
            return value
        if path.is_relative_to(self.root):
            return str(path.relative_to(self.root))
        return "/".join(path.parts[-2:])


def _versions() -> dict[str, str]:
    installed = set()
    for package in importlib.metadata.distributions():
        installed.add(package.metadata["Name"].lower().replace("-", "_"))
    return {name: importlib.metadata.version(name) for name in PACKAGES if name in installed}
