"""A run's configuration from `trainer_configs/`, verl's own configs and the command line, in about a second."""

import difflib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_prism.config import Prism, parse_prism
from verl_prism.errors import UserError

GROUPS = ("stage", "algorithm", "model", "hardware")


def compose_run(overrides: Sequence[str]) -> tuple[DictConfig, Prism]:
    """The whole configuration, interpolations resolved, and its typed node `prism`.

    `overrides` are Hydra's: `stage=sft`, `prism.steps=100`, `trainer.save_freq=10`. Raises UserError.
    """
    OmegaConf.register_new_resolver("verl_config_dir", verl_config_dir, replace=True)
    OmegaConf.register_new_resolver(
        "when", lambda condition, value: value if condition else None, replace=True
    )
    try:
        with initialize_config_dir(str(trainer_configs_dir()), version_base="1.3"):
            config = _compose([re.sub(r"^model=", "model@_global_=", item) for item in overrides])
        prism = parse_prism(config.prism)
        config.prism = prism.model_dump(mode="json")  # absolute paths, for verl's keys too
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_plain(error)) from None
    return config, prism


def _compose(overrides: list[str]) -> DictConfig:
    parsed = OverridesParser.create().parse_overrides(overrides)
    choices = {item.key_or_group.removesuffix("@_global_"): item for item in parsed}
    for group in GROUPS:
        _check_choice(group, str(choices[group].value()) if group in choices else None)
    try:
        return compose("prism", overrides=overrides)
    except HydraException:
        without_values = compose(
            "prism", overrides=[str(choices[g].input_line) for g in GROUPS if g in choices]
        )
        known = list(dotted_keys(OmegaConf.to_container(without_values)))
        for item in parsed:
            key = item.key_or_group.removesuffix("@_global_")
            if not (item.is_add() or item.is_force_add() or key in GROUPS or key in known):
                raise UserError(f"unknown key {key}{_suggestion(key, known)}") from None
        raise


def _check_choice(group: str, choice: str | None) -> None:
    known = sorted(file.stem for file in (trainer_configs_dir() / group).glob("*.yaml"))
    if choice is None and group == "stage":
        raise UserError(f"say which stage to run: stage={'|'.join(known)}")
    if choice is not None and choice not in known:
        raise UserError(f"unknown {group} {choice}; {group}= is one of {', '.join(known)}")


def trainer_configs_dir() -> Path:
    """The folder `trainer_configs`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "trainer_configs"
    return installed if installed.is_dir() else package.parent / "trainer_configs"


def verl_config_dir() -> str:
    """verl's folder of configurations, found without importing verl (which would import torch: seconds)."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("verl is not installed in this environment: pip install verl==0.9.1")
    return str(Path(spec.submodule_search_locations[0]) / "trainer" / "config")


def dotted_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key of nested dictionaries, branches included, as `a.b.c`."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield f"{prefix}{key}"
            yield from dotted_keys(child, f"{prefix}{key}.")


def _suggestion(key: str, known: list[str]) -> str:
    """The nearest key in the same part of the config or, where none is near, the names that stand beside it.

    The last name counts twice: it is the path that one forgets.
    """

    def likeness(other: str) -> float:
        whole = difflib.SequenceMatcher(None, key, other).ratio()
        last = difflib.SequenceMatcher(
            None, key.rpartition(".")[2], other.rpartition(".")[2]
        ).ratio()
        return whole + last

    root = key.partition(".")[0]
    near = [other for other in known if other.partition(".")[0] == root] or [*known, *GROUPS]
    nearest = max(near, key=likeness)
    if likeness(nearest) > 1.3:
        return f"; did you mean {nearest}?"
    parent = key.rpartition(".")[0]
    siblings = [
        other.rpartition(".")[2] for other in known if parent and other.rpartition(".")[0] == parent
    ]
    return f"; {parent} has {', '.join(siblings)}" if siblings else ""


def _plain(error: Exception) -> str:
    """What Hydra says, without its search path and its advice to type `+`."""
    text = f"{error}\n{error.__cause__ or ''}".split("Config search path:")[0]
    lines = [line.strip() for line in text.splitlines()]
    return "\n".join(
        line
        for line in lines
        if line and not re.match("To append|full_key|object_type|See https", line)
    )
