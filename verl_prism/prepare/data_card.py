"""The data card: how a data set was made, as Markdown."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

CARD = "DATA_CARD.md"
PACKAGES = ("verl_prism", "pyarrow", "pillow", "tokenizers", "datasets", "openai", "vllm")
TEMPLATE = Path(__file__).with_name("data_card.md.jinja")


def card_markdown(card: Mapping[str, Any]) -> str:
    """Return the card as Markdown. card: the content of data_card.json."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(card=card)


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that make data."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
