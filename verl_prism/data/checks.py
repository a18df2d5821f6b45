"""What is wrong with a run's inputs, found in seconds: before Ray starts and before torch is imported.

Every check raises UserError that names the file or the row and says how to mend it.
"""

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from tokenizers import Tokenizer

from verl_prism.config import ON_RAY, Prism
from verl_prism.data.schema import HELDOUT_COLUMNS, TRAIN_COLUMNS
from verl_prism.errors import UserError
from verl_prism.response import View, parse_response
from verl_prism.token_spans import is_byte_level

TEACHER = "prism.algorithm.distillation.teacher"
GPU_FILES = (
    Path("/dev/nvidiactl"),
    Path("/dev/kfd"),
    Path("/dev/dxg"),
)  # NVIDIA, AMD, Windows' Linux


def check_inputs(prism: Prism) -> None:
    """All that `prism.stage` will read, and the device that it will run on."""
    check_device(prism)
    check_nodes(prism)
    check_files(prism)


def check_files(prism: Prism) -> None:
    """Models and data."""
    for key, folder in model_folders(prism).items():
        check_model_folder(key, folder)
    check_same_tokens(prism)
    check_byte_level(prism)
    for key, path, columns in data_files(prism):
        check_columns(key, path, columns)
        check_images(path)
        check_answers(path)
    if "teacher_response" in TRAIN_COLUMNS[prism.stage]:
        check_teacher(prism)


def model_folders(prism: Prism) -> dict[str, Path]:
    """Config key to folder, for each Hugging Face folder that the stage loads."""
    match prism.stage:
        case "eval":
            return {
                f"prism.eval.policies.{name}": folder
                for name, folder in prism.eval.policies.items()
            }
        case "warmup":
            return {
                "prism.policy": prism.policy,
                "prism.discriminator.upcycle.base": prism.discriminator.upcycle.base,
            }
        case "align":
            return {
                "prism.policy": prism.policy,
                "prism.discriminator.path": prism.discriminator.path,
            }
        case "rlvr" if prism.algorithm.distillation.enable:
            return {"prism.policy": prism.policy, TEACHER: prism.algorithm.distillation.teacher}
    return {"prism.policy": prism.policy}


def data_files(prism: Prism) -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    """Config key, file and the columns it must have."""
    for key, path, columns in (
        ("prism.data.train", prism.data.train, TRAIN_COLUMNS[prism.stage]),
        ("prism.data.heldout", prism.data.heldout, HELDOUT_COLUMNS[prism.stage]),
    ):
        if columns:
            yield key, path, columns


def check_device(prism: Prism) -> None:
    """A GPU's device file, where the run is to be on this host."""
    if (
        prism.hardware.device == "cuda"
        and prism.hardware.ray_address is None
        and not any(map(Path.exists, GPU_FILES))
    ):
        raise UserError("hardware=cuda, but this host has no GPU; hardware=cpu runs without one")


def check_nodes(prism: Prism) -> None:
    """Several are for the stages on Ray, and for a Ray that was started on them: its own is of this host alone."""
    given = f"prism.hardware.nodes={prism.hardware.nodes}"
    if prism.hardware.nodes > 1 and prism.stage not in ON_RAY:
        raise UserError(f"{given}: stage {prism.stage} runs on one node")
    if prism.hardware.nodes > 1 and prism.hardware.ray_address is None:
        raise UserError(
            f"{given} wants a Ray that was started on all of them: python -m verl_prism.cluster --hosts=… starts it, "
            "or prism.hardware.ray_address names one that is there"
        )


def check_model_folder(key: str, folder: Path) -> None:
    """A Hugging Face folder: config, weights, tokenizer and image processor."""
    if not folder.is_dir():
        raise UserError(
            f"{key}={folder}: no such folder; it should hold a Hugging Face model (config, weights, …)"
        )
    parts = {
        "config": ("config.json",),
        "weights": ("model.safetensors", "model.safetensors.index.json"),
        "tokenizer": ("tokenizer.json",),
        "image processor": ("processor_config.json", "preprocessor_config.json"),
    }
    for part, names in parts.items():
        if not any((folder / name).is_file() for name in names):
            raise UserError(f"{key}={folder}: no {part} there (looked for {' or '.join(names)})")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        for shard in sorted(set(json.loads(index.read_text())["weight_map"].values())):
            if not (folder / shard).is_file():
                raise UserError(f"{key}={folder}: {index.name} names {shard}, which is not there")


def check_columns(key: str, path: Path, columns: Iterable[str]) -> None:
    if not path.is_file():
        raise UserError(f"{key}={path}: no such file")
    try:
        present = pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise UserError(f"{key}={path}: not a parquet file ({error})") from None
    missing = [column for column in columns if column not in present]
    if missing:
        raise UserError(
            f"{key}={path}: no column {', '.join(missing)}; it has {', '.join(present)}"
        )
    if pq.read_metadata(path).num_rows == 0:
        raise UserError(f"{key}={path}: no rows")


def check_images(path: Path) -> None:
    """Each image opens, and each row has as many as its messages have `<image>`."""
    text = next(name for name in ("messages", "prompt") if name in pq.read_schema(path).names)
    for number, row in _rows(path, [text, "images"]):
        placeholders = sum(message["content"].count("<image>") for message in row[text])
        images = row["images"] or []
        if placeholders != len(images):
            raise UserError(
                f"{path}, row {number}: {placeholders} <image> in {text}, but {len(images)} in images"
            )
        for image in images:
            _check_image(f"{path}, row {number}", image)


def _check_image(place: str, image: dict[str, Any]) -> None:
    try:
        with Image.open(io.BytesIO(image["bytes"])) as opened:
            opened.verify()
    except (UnidentifiedImageError, OSError, SyntaxError, TypeError, KeyError) as error:
        raise UserError(f"{place}: unreadable image ({error})") from None


def check_answers(path: Path) -> None:
    """Further gold answers stand where verl hands them to the reward function, and are a list of texts."""
    schema = pq.read_schema(path)
    kinds = {
        name: schema.field(name).type
        for name in ("reward_model", "extra_info")
        if name in schema.names
    }
    holders = [
        name
        for name, kind in kinds.items()
        if pa.types.is_struct(kind) and kind.get_field_index("equivalent_answers") >= 0
    ]
    for number, row in _rows(path, holders) if holders else ():
        place = f"{path}, row {number}: equivalent_answers"
        for holder in holders:
            answers = row[holder]["equivalent_answers"] if row[holder] is not None else None
            if answers is not None and holder == "reward_model":
                raise UserError(
                    f"{place} stands in reward_model, of which verl hands on ground_truth alone; "
                    "move it to extra_info"
                )
            if answers is not None and not (
                isinstance(answers, list) and all(isinstance(a, str) for a in answers)
            ):
                raise UserError(f"{place}={answers!r} in extra_info is no list of texts")


def check_teacher(prism: Prism) -> None:
    """Each teacher response is in the response format, and each of its views within the discriminator's limit."""
    tokenizer = _tokenizer(prism.policy)
    tokenizer.encode_special_tokens = (
        True  # as the discriminator reads a text: what spells a special token is text
    )
    limits = {
        View.PERCEPTION: ("max_perception_tokens", prism.discriminator.max_perception_tokens),
        View.REASONING: ("max_reasoning_tokens", prism.discriminator.max_reasoning_tokens),
    }
    for number, row in _rows(prism.data.train, ["teacher_response"]):
        place = f"{prism.data.train}, row {number}: teacher_response"
        if row["teacher_response"] is None:
            raise UserError(f"{place} is empty; every question needs the teacher's answer")
        response = parse_response(row["teacher_response"])
        if not response.valid:
            raise UserError(
                f"{place} is not in the format <caption>…</caption><think>…</think><answer>…</answer>: "
                f"{response.fault}"
            )
        for view, (key, limit) in limits.items():
            length = len(tokenizer.encode(response.view_text(view), add_special_tokens=False).ids)
            if length > limit:
                raise UserError(
                    f"{place}: its {view} is {length} tokens, over prism.discriminator.{key}={limit}; "
                    "raise the limit or leave the row out"
                )


def check_same_tokens(prism: Prism) -> None:
    """The model beside the policy, a discriminator or a white-box teacher, reads the same tokens: it is given them."""
    folders = model_folders(prism)
    if prism.stage == "eval" or len(set(folders.values())) == 1:
        return
    (key, folder), (other_key, other_folder) = folders.items()
    vocabulary, other = (
        _tokenizer(path).get_vocab(with_added_tokens=True) for path in (folder, other_folder)
    )
    if differing := sorted(vocabulary.items() ^ other.items(), key=lambda item: item[1]):
        token = differing[0][0]
        raise UserError(
            f"{key}={folder} and {other_key}={other_folder} have different tokenizers: {token!r} is "
            f"{_number(vocabulary, token)} in the first and {_number(other, token)} in the second; "
            "start both from one base model"
        )


def check_byte_level(prism: Prism) -> None:
    """Stage align finds the views in a response's tokens by their bytes."""
    if prism.stage == "align" and not is_byte_level(_tokenizer(prism.policy)):
        raise UserError(
            f"prism.policy={prism.policy}: its tokenizer is no byte-level BPE, so the views cannot be found among a "
            "response's tokens; choose a policy with one, such as Qwen3-VL"
        )


def _number(vocabulary: dict[str, int], token: str) -> str:
    return f"token {vocabulary[token]}" if token in vocabulary else "no token"


def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _rows(path: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row number and row, a batch at a time: image files are larger than memory should hold."""
    number = 0
    for batch in pq.ParquetFile(path).iter_batches(batch_size=256, columns=columns):
        for row in batch.to_pylist():
            yield number, row
            number += 1
