"""Checks of a run's inputs that take seconds: before Ray starts and before torch is imported.

Every check raises UserError that names the file or the row, and the fix.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from tokenizers import Tokenizer

from verl_prism.config import Discriminator, Hardware, Prism
from verl_prism.data.rows import parquet_files
from verl_prism.data.schema import HELDOUT_COLUMNS, TRAIN_COLUMNS
from verl_prism.errors import UserError
from verl_prism.hub_cache import missing_bytes
from verl_prism.response import View, parse_response
from verl_prism.token_spans import is_byte_level

GPU_FILES = (
    Path("/dev/nvidiactl"),  # NVIDIA
    Path("/dev/kfd"),  # AMD
    Path("/dev/dxg"),  # Windows Subsystem for Linux
)


def check_inputs(prism: Prism) -> None:
    """Check everything that `prism.stage` reads, and the nodes that it runs on."""
    check_nodes(prism.hardware)
    check_files(prism)


def check_files(prism: Prism) -> None:
    """Check the model folders and the data files."""
    folders = model_folders(prism)
    for key, folder in folders.items():
        check_model_folder(key, folder)
    if prism.stage != "eval":  # its policies run one after the other
        check_same_tokens(folders)
    check_byte_level(prism)
    for key, path, columns in data_files(prism):
        check_columns(key, path, columns)
        check_images(path)
        check_answers(path)
    if "teacher_response" in TRAIN_COLUMNS[prism.stage]:
        for file in parquet_files("prism.data.train", prism.data.train):
            check_teacher(file, prism.policy, prism.discriminator)


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


def data_files(prism: Prism) -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    """Yield config key, path and required columns of each data file that the stage reads."""
    splits = (
        ("prism.data.train", prism.data.train, TRAIN_COLUMNS[prism.stage]),
        ("prism.data.heldout", prism.data.heldout, HELDOUT_COLUMNS[prism.stage]),
    )
    for key, source, columns in splits:
        if columns:
            for file in parquet_files(key, source):
                yield key, file, columns


def check_device(hardware: Hardware) -> None:
    """Check that this host has a GPU, and the attention kernel, if the run is to use them here."""
    if hardware.device == "cpu" or hardware.ray_address is not None:
        return
    if not has_gpu():
        raise UserError("hardware=cuda, but this host has no GPU; hardware=cpu runs without one")
    if hardware.attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise UserError(
            "prism.hardware.attention=flash_attention_2, but flash-attn is not installed; set "
            "prism.hardware.attention=sdpa, or install it as docs/running.md says"
        )


def has_gpu() -> bool:
    """Return whether this host has a GPU with a driver."""
    return any(map(Path.exists, GPU_FILES))


def check_nodes(hardware: Hardware) -> None:
    """Check that a run on several nodes has a Ray that spans them."""
    if hardware.nodes > 1 and hardware.ray_address is None:
        raise UserError(
            f"prism.hardware.nodes={hardware.nodes} needs a Ray that runs on all of them: "
            "python -m verl_prism.cluster --hosts=... starts it, or set prism.hardware.ray_address "
            "to one that is running"
        )


def check_model_folder(key: str, folder: Path) -> None:
    """Check that a Hugging Face folder has config, weights, tokenizer and image processor.

    Weights that are still to be downloaded from the Hub are not expected.
    """
    if not folder.is_dir():
        raise UserError(
            f"{key}={folder}: no such folder; "
            "it should hold a Hugging Face model (config, weights, …)"
        )
    parts = {
        "config": ("config.json",),
        "weights": ("model.safetensors", "model.safetensors.index.json"),
        "tokenizer": ("tokenizer.json",),
        "image processor": ("processor_config.json", "preprocessor_config.json"),
    }
    downloaded = missing_bytes(folder) == 0
    if not downloaded:
        del parts["weights"]
    for part, names in parts.items():
        if not any((folder / name).is_file() for name in names):
            raise UserError(f"{key}={folder}: no {part} there (looked for {' or '.join(names)})")
    index = folder / "model.safetensors.index.json"
    if index.is_file() and downloaded:
        for shard in sorted(set(json.loads(index.read_text())["weight_map"].values())):
            if not (folder / shard).is_file():
                raise UserError(f"{key}={folder}: {index.name} names {shard}, which is missing")


def check_columns(key: str, path: Path, columns: Iterable[str]) -> None:
    """Check that a parquet file has rows and these columns."""
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
    """Check that every image can be read, and that each row has one per `<image>` in its text."""
    text = next(name for name in ("messages", "prompt") if name in pq.read_schema(path).names)
    for number, row in _rows(path, [text, "images"]):
        placeholders = sum(message["content"].count("<image>") for message in row[text])
        images = row["images"] or []
        if placeholders != len(images):
            raise UserError(
                f"{path}, row {number}: {placeholders} <image> in {text}, "
                f"but {len(images)} in images"
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
    """Check that `equivalent_answers` is a list of texts, and in the column that verl passes on."""
    schema = pq.read_schema(path)
    columns = [
        name
        for name in ("reward_model", "extra_info")
        if name in schema.names and _has_equivalent_answers(schema.field(name).type)
    ]
    if not columns:
        return
    for number, row in _rows(path, columns):
        for column in columns:
            if row[column] is not None:
                place = f"{path}, row {number}: equivalent_answers"
                _check_equivalent_answers(place, column, row[column]["equivalent_answers"])


def _has_equivalent_answers(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("equivalent_answers") >= 0


def _check_equivalent_answers(place: str, column: str, answers: Any) -> None:
    if answers is None:
        return
    if column == "reward_model":
        raise UserError(
            f"{place} is in reward_model, from which verl passes on only ground_truth; "
            "move it to extra_info"
        )
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{place}={answers!r} in extra_info is not a list of texts")


def check_teacher(path: Path, policy: Path, limits: Discriminator) -> None:
    """Check that each teacher response is in the response format, and its views within `limits`.

    The tokenizer of `policy` counts the tokens.
    """
    tokenizer = _tokenizer(policy)
    # The discriminator reads the text of a special token as ordinary text.
    tokenizer.encode_special_tokens = True
    max_tokens = {
        View.PERCEPTION: ("max_perception_tokens", limits.max_perception_tokens),
        View.REASONING: ("max_reasoning_tokens", limits.max_reasoning_tokens),
    }
    for number, row in _rows(path, ["teacher_response"]):
        place = f"{path}, row {number}: teacher_response"
        if row["teacher_response"] is None:
            raise UserError(f"{place} is empty; every question needs the teacher's response")
        response = parse_response(row["teacher_response"])
        if not response.valid:
            raise UserError(
                f"{place} is not in the format "
                f"<caption>…</caption><think>…</think><answer>…</answer>: {response.fault}"
            )
        for view, (key, limit) in max_tokens.items():
            length = len(tokenizer.encode(response.view_text(view), add_special_tokens=False).ids)
            if length > limit:
                raise UserError(
                    f"{place}: its {view} is {length} tokens long, over "
                    f"prism.discriminator.{key}={limit}; raise the limit or remove the row"
                )


def check_same_tokens(folders: Mapping[str, Path]) -> None:
    """Check that the models at `folders`, one or two, have the same vocabulary.

    A discriminator or a white-box teacher is given the policy's tokens.
    """
    if len(set(folders.values())) == 1:
        return
    (key, folder), (other_key, other_folder) = folders.items()
    vocabulary = _tokenizer(folder).get_vocab(with_added_tokens=True)
    other = _tokenizer(other_folder).get_vocab(with_added_tokens=True)
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
    if prism.stage == "align" and not is_byte_level(_tokenizer(prism.policy)):
        raise UserError(
            f"prism.policy={prism.policy}: its tokenizer is not a byte-level BPE, so the views "
            "cannot be found among a response's tokens; choose a policy that has one, such as "
            "Qwen3-VL"
        )


def _token_id(vocabulary: Mapping[str, int], token: str) -> str:
    return f"token {vocabulary[token]}" if token in vocabulary else "no token"


def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _rows(path: Path, columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and content of each row. One batch at a time is in memory."""
    number = 0
    for batch in pq.ParquetFile(path).iter_batches(batch_size=256, columns=columns):
        for row in batch.to_pylist():
            yield number, row
            number += 1
