"""Checks of model folders: complete, readable, and with tokenizers that fit together."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from verl_prism.config import Prism, Stage
from verl_prism.errors import UserError
from verl_prism.hub_cache import missing_bytes
from verl_prism.run_folder import RunFolder
from verl_prism.token_spans import is_byte_level

PARTS = {
    "config": ("config.json",),
    "weights": ("model.safetensors", "model.safetensors.index.json"),
    "tokenizer": ("tokenizer.json",),
    "image processor": ("processor_config.json", "preprocessor_config.json"),
}
STAGES: tuple[Stage, ...] = ("sft", "warmup", "align", "rlvr", "dpo")


def check_models(prism: Prism) -> None:
    """Check the folders of all models that the stage loads."""
    folders = model_folders(prism)
    for key, folder in folders.items():
        check_model_folder(key, folder, prism.root)
    if prism.stage != "eval":  # its policies run one after the other
        check_same_tokens(folders)
    check_byte_level(prism)
    check_scoring(prism)
    for key, folder in sampled_folders(prism).items():
        check_positions(prism, key, folder)


def model_folders(prism: Prism) -> dict[str, Path]:
    """Return each Hugging Face folder that the stage loads, by its config key."""
    if prism.stage == "eval":
        return {f"prism.eval.policies.{name}": path for name, path in prism.eval.policies.items()}
    folders = {"prism.policy": prism.policy}
    if prism.stage == "warmup":
        folders["prism.discriminator.upcycle.base"] = prism.discriminator.upcycle.base
    elif prism.stage == "align":
        folders["prism.discriminator.path"] = prism.discriminator.path
    elif prism.stage == "rlvr" and prism.algorithm.distillation.enable:
        folders["prism.algorithm.distillation.teacher"] = prism.algorithm.distillation.teacher
    return folders


def check_model_folder(key: str, folder: Path, root: Path | None = None) -> None:
    """Check that a Hugging Face folder has config, weights, tokenizer and image processor.

    The headers of the weights are read, and compared with the sizes of their files. Weights that
    are still to be downloaded from the Hub are not expected.

    root: folder of the pipeline; a missing folder that one of its stages writes names that stage.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder; {_source(folder, root)}")
    downloaded = missing_bytes(folder) == 0
    for part, names in PARTS.items():
        if part == "weights" and not downloaded:
            continue
        present = [name for name in names if (folder / name).is_file()]
        if not present:
            raise UserError(f"{key}={folder}: no {part} there (looked for {' or '.join(names)})")
        if part != "weights" or present[0].endswith(".json"):
            read_json(f"{key}={folder}", folder / present[0])
    load_tokenizer(key, folder)
    if downloaded:
        _check_weights(f"{key}={folder}", folder)


def _source(folder: Path, root: Path | None) -> str:
    """Say which stage writes a folder, or what it should hold."""
    for stage in STAGES:
        if root is not None and folder == RunFolder(root / stage).result(stage):
            return f"stage={stage} writes it, so run python -m verl_prism.main stage={stage} first"
    return "it should hold a Hugging Face model (config, weights, …)"


def _check_weights(place: str, folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        _check_shard(place, folder / "model.safetensors")
        return
    weight_map = read_json(place, index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{place}: {index.name} has no weight_map; copy the file again")
    tensors: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        tensors.setdefault(shard, set()).add(tensor)
    for shard, expected in sorted(tensors.items()):
        if not (folder / shard).is_file():
            raise UserError(f"{place}: {index.name} names {shard}, which is missing")
        missing = expected - _check_shard(place, folder / shard)
        if missing:
            raise UserError(f"{place}: {shard} lacks {min(missing)}, which {index.name} names")


def _check_shard(place: str, file: Path) -> set[str]:
    """Return the names of the tensors in a safetensors file, after a check of the file's size."""
    size = file.stat().st_size
    try:
        with open(file, "rb") as content:
            header_bytes = int.from_bytes(content.read(8), "little")
            if header_bytes > size:
                raise ValueError("its header is incomplete")
            header = json.loads(content.read(header_bytes))
        header.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{place}: {file.name} is not a safetensors file ({error})") from None
    expected = 8 + header_bytes + end
    if size != expected:
        raise UserError(
            f"{place}: {file.name} has {size:,} bytes instead of {expected:,}, so it was not "
            "copied completely; copy it again"
        )
    return set(header)


def read_json(place: str, file: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{place}: {file.name} cannot be read: {error}; copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{place}: {file.name} is not a JSON object; copy it again")
    return content


def load_tokenizer(key: str, folder: Path) -> Tokenizer:
    """Return the tokenizer of a folder, without truncation and padding."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises no narrower type
        raise UserError(
            f"{key}={folder}: tokenizer.json cannot be read: {error}; copy it again"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_same_tokens(folders: Mapping[str, Path]) -> None:
    """Check that the models at `folders`, one or two, have the same vocabulary.

    A discriminator or a white-box teacher is given the policy's tokens.
    """
    if len(set(folders.values())) == 1:
        return
    (key, folder), (other_key, other_folder) = folders.items()
    vocabulary = load_tokenizer(key, folder).get_vocab(with_added_tokens=True)
    other = load_tokenizer(other_key, other_folder).get_vocab(with_added_tokens=True)
    differing = sorted(vocabulary.items() ^ other.items(), key=lambda item: item[1])
    if differing:
        token = differing[0][0]
        raise UserError(
            f"{key}={folder} and {other_key}={other_folder} have different tokenizers: {token!r} "
            f"is {_token_id(vocabulary, token)} in the first and {_token_id(other, token)} in the "
            "second; start both from the same base model"
        )


def check_byte_level(prism: Prism) -> None:
    """Require the tokenizer by whose bytes stage align finds the views of a response."""
    if prism.stage == "align" and not is_byte_level(load_tokenizer("prism.policy", prism.policy)):
        raise UserError(
            f"prism.policy={prism.policy}: its tokenizer is not a byte-level BPE, so the views "
            "cannot be found among a response's tokens; choose a policy that has one, such as "
            "Qwen3-VL"
        )


def sampled_folders(prism: Prism) -> dict[str, Path]:
    """Return the folder of each model that vLLM serves, by its config key."""
    if not prism.samples_policy:
        return {}
    folders = model_folders(prism).items()
    return {key: folder for key, folder in folders if not key.startswith("prism.discriminator.")}


def check_positions(prism: Prism, key: str, folder: Path) -> None:
    """Require that the longest prompt with the longest response has a place in the model."""
    config = read_json(f"{key}={folder}", folder / "config.json")
    text = config.get("text_config", config)
    positions = text.get("max_position_embeddings")  # None: transformers' default
    longest = prism.data.max_tokens
    if positions is not None and longest > positions:
        raise UserError(
            f"prism.data.max_prompt_tokens={prism.data.max_prompt_tokens} and "
            f"prism.data.max_response_tokens={prism.data.max_response_tokens} are {longest:,} "
            f"tokens, but {key}={folder} has {positions:,} positions; lower one of them"
        )


def check_scoring(prism: Prism) -> None:
    """Require that stage align names the scoring of its discriminator, and one that can imitate."""
    named = prism.discriminator.upcycle.scoring
    if prism.stage == "align":
        folder = prism.discriminator.path
        config = read_json(f"prism.discriminator.path={folder}", folder / "config.json")
        scoring = config.get("scoring", "head")  # checkpoints from before there was a choice
        if scoring != named:
            raise UserError(
                f"prism.discriminator.path={folder}: its scoring is {scoring}, but "
                f"prism.discriminator.upcycle.scoring is {named}: give discriminator=likelihood "
                "in both stages, warmup and align, or in none"
            )
    coef = prism.discriminator.imitation_coef
    if coef != 0 and named != "likelihood" and prism.stage in ("warmup", "align"):
        raise UserError(
            f"prism.discriminator.upcycle.scoring is {named}, but "
            f"prism.discriminator.imitation_coef={coef} needs likelihood: "
            "set imitation_coef=0, or give discriminator=likelihood"
        )


def _token_id(vocabulary: Mapping[str, int], token: str) -> str:
    return f"token {vocabulary[token]}" if token in vocabulary else "no token"
