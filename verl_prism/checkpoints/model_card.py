"""What a published folder says of itself: README.md, filled from the run."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from verl_prism.checkpoints.fingerprint import decisive_settings
from verl_prism.config import Prism

CARD = "README.md"
PACKAGES = ("verl_prism", "verl", "torch", "transformers", "vllm", "ray")

Part = Literal["policy", "discriminator"]


def write_card(
    folder: Path, prism: Prism, part: Part, base: Path, figures: Mapping[str, float | str]
) -> None:
    """base: the folder that `part` was trained from."""
    loader = PackageLoader("verl_prism.checkpoints", package_path="")
    template = Environment(
        loader=loader, undefined=StrictUndefined, keep_trailing_newline=True
    ).get_template("model_card.md.jinja")
    settings = {key: _shown(prism, value) for key, value in decisive_settings(prism).items()}
    card = template.render(
        prism=prism,
        part=part,
        base=_shown(prism, base),
        data=_shown(prism, prism.data.train),
        figures=figures,
        settings=settings,
        versions=_versions(),
    )
    (folder / CARD).write_text(card, encoding="utf-8")


def _shown(prism: Prism, value: object) -> object:
    """A path without what it says of the machine: from the pipeline's folder on or, outside of it, its last parts."""
    path = Path(str(value))
    if not path.is_absolute():
        return value
    return (
        str(path.relative_to(prism.root))
        if path.is_relative_to(prism.root)
        else "/".join(path.parts[-2:])
    )


def _versions() -> dict[str, str]:
    installed = {
        package.metadata["Name"].lower().replace("-", "_")
        for package in importlib.metadata.distributions()
    }
    return {name: importlib.metadata.version(name) for name in PACKAGES if name in installed}
