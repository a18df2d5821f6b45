"""Compose a run's config from `trainer_configs/`, verl's own configs and the command line."""

import difflib
import importlib.util
import re
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_prism.config import Prism, check_not_renamed, flatten, parse_prism
from verl_prism.errors import UserError
from verl_prism.owned_keys import check_owned_keys

GROUPS = ("stage", "algorithm", "model", "hardware", "discriminator")
SIMILAR = 1.3  # similarity, in [0, 2], from which a known key is suggested for an unknown one


def compose_run(
    overrides: Sequence[str],
    find_models: Callable[[Prism], Prism] = lambda prism: prism,
    steps: int | None = None,
) -> tuple[DictConfig, Prism]:
    """Return the whole config, with interpolations resolved, and its typed node `prism`.

    overrides: Hydra's: `stage=sft`, `prism.steps=100`, `trainer.test_freq=10`.
    find_models: replaces hub ids of models with folders; by default they stay.
    steps: replaces `prism.steps`, once `prism.epochs` and the number of rows are known.

    Takes about a second. Raises UserError that names the key.
    """
    OmegaConf.register_new_resolver("verl_config_dir", verl_config_dir, replace=True)
    OmegaConf.register_new_resolver(
        "when", lambda condition, value: value if condition else None, replace=True
    )
    OmegaConf.register_new_resolver("sum", lambda *numbers: sum(numbers), replace=True)
    try:
        with initialize_config_dir(str(trainer_configs_dir()), version_base="1.3"):
            config = _compose([re.sub(r"^model=", "model@_global_=", item) for item in overrides])
        if steps is not None:
            config.prism.steps = steps
        _make_root_absolute(config)
        prism = find_models(parse_prism(config.prism))
        config.prism = prism.model_dump(mode="json")  # verl's keys get absolute paths too
        OmegaConf.resolve(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_message(error)) from None
    return config, prism


def _make_root_absolute(config: DictConfig) -> None:
    """Make `prism.root` absolute, and thereby all paths below it: none of them is a hub id."""
    node = config.prism
    if OmegaConf.is_dict(node) and isinstance(node.root, str):
        node.root = str(Path(node.root).expanduser().absolute())


def trainer_configs_dir() -> Path:
    """Return `trainer_configs`: in the installed package, or next to it in a checkout."""
    package = Path(__file__).parent
    installed = package / "trainer_configs"
    return installed if installed.is_dir() else package.parent / "trainer_configs"


def verl_config_dir() -> str:
    """Return verl's config folder without importing verl, which would import torch."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("verl is not installed in this environment: pip install verl==0.9.1")
    return str(Path(spec.submodule_search_locations[0]) / "trainer" / "config")


def _compose(overrides: list[str]) -> DictConfig:
    overrides = [_quoted(item) for item in overrides]
    parsed = OverridesParser.create().parse_overrides(overrides)
    by_key = {item.key_or_group.removesuffix("@_global_"): item for item in parsed}
    for key in by_key:
        check_not_renamed(key)
    for group in GROUPS:
        _check_choice(group, str(by_key[group].value()) if group in by_key else None)
    if {"prism.steps", "prism.epochs"} <= by_key.keys():
        raise UserError("prism.steps and prism.epochs both set the length of the run; give one")
    if "prism.steps" in by_key:
        overrides.append("prism.epochs=null")  # some stages have epochs by default
    choices = [str(by_key[group].input_line) for group in GROUPS if group in by_key]
    try:
        config = compose("prism", overrides=overrides)
        if any(key not in GROUPS and not key.startswith("prism") for key in by_key):
            check_owned_keys(compose("prism", overrides=choices), config)
        return config
    except HydraException:
        known = _known_keys(compose("prism", overrides=choices))
        for key, item in by_key.items():
            added = item.is_add() or item.is_force_add()
            if not added and key not in GROUPS and key not in known:
                raise UserError(f"unknown key {key}{_suggestion(key, known)}") from None
        raise


def _quoted(item: str) -> str:
    """Quote the value of an override that Hydra's grammar cannot read, such as `/data/a (1)=b`."""
    parser = OverridesParser.create()
    key, equals, value = item.partition("=")
    try:
        if not parser.parse_override(item).is_sweep_override():
            return item
    except HydraException:
        pass
    if not equals or not value or value[0] in "[{'\"":
        return item
    escaped = value.replace("'", "\\'")
    return f"{key}='{escaped}'"


def _check_choice(group: str, choice: str | None) -> None:
    known = sorted(file.stem for file in (trainer_configs_dir() / group).glob("*.yaml"))
    if choice is None and group == "stage":
        raise UserError(f"choose the stage to run: stage={'|'.join(known)}")
    if choice is not None and choice not in known:
        raise UserError(f"unknown {group} {choice}; {group}= is one of {', '.join(known)}")


def _known_keys(config: DictConfig) -> list[str]:
    """Return the dotted keys of all leaves and branches, in the order of the config."""
    keys: dict[str, None] = {}
    for leaf, _ in flatten(OmegaConf.to_container(config)):
        keys |= dict.fromkeys(accumulate(leaf.split("."), "{}.{}".format))
    return list(keys)


def _suggestion(key: str, known: list[str]) -> str:
    """Suggest the most similar key with the same root or, if none is similar, list the siblings."""
    root = key.partition(".")[0]
    candidates = [other for other in known if other.partition(".")[0] == root]
    nearest = max(candidates or [*known, *GROUPS], key=lambda other: _similarity(key, other))
    if _similarity(key, nearest) > SIMILAR:
        return f"; did you mean {nearest}?"
    parent = key.rpartition(".")[0]
    if not parent:
        return ""
    siblings = []
    for other in known:
        branch, _, name = other.rpartition(".")
        if branch == parent:
            siblings.append(name)
    return f"; {parent} has {', '.join(siblings)}" if siblings else ""


def _similarity(key: str, other: str) -> float:
    """Return a number in [0, 2].

    The last part of the key counts twice, because users tend to forget the path before it.
    """
    whole = difflib.SequenceMatcher(None, key, other).ratio()
    last = difflib.SequenceMatcher(None, key.rpartition(".")[2], other.rpartition(".")[2]).ratio()
    return whole + last


def _message(error: Exception) -> str:
    """Return Hydra's message without its search path and its advice to add a `+`."""
    text = f"{error}\n{error.__cause__ or ''}".split("Config search path:")[0]
    lines = [line.strip() for line in text.splitlines()]
    noise = re.compile("To append|full_key|object_type|See https")
    return "\n".join(line for line in lines if line and not noise.match(line))
