import importlib.util
import io
import random
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from verl_prism.response import parse_response

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def load(name: str) -> ModuleType:
    """Import a script of the example, which is not a package."""
    spec = importlib.util.spec_from_file_location(f"digits_{name}", DIGITS / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


data, metrics = load("data"), load("metrics")
SMALL = data.Mixture(broad=400, teacher=40, train=60, heldout=60)


@pytest.fixture(scope="module")
def files() -> dict:
    return data.build(SMALL, seed=0)


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("digits")
    for name, rows in files.items():
        pq.write_table(pa.Table.from_pylist(rows), path / f"{name}.parquet")
    return path


def response_of(row: dict):
    return parse_response(row["messages"][-1]["content"])


def test_build_is_deterministic_by_seed(files):
    assert data.build(SMALL, seed=0) == files
    assert data.build(SMALL, seed=1) != files


def test_no_scan_is_in_both_training_and_heldout(files):
    scans = {
        name: {scan for row in rows for scan in row["extra_info"]["scans"]}
        for name, rows in files.items()
    }
    assert not (scans["sft"] | scans["train"]) & scans["heldout"]
    pairs = [tuple(row["extra_info"]["scans"]) for name in ("sft", "train") for row in files[name]]
    assert len(pairs) == len(set(pairs))


def test_image_shows_the_two_scans(files):
    row = files["train"][0]
    pixels = np.asarray(Image.open(io.BytesIO(row["images"][0]["bytes"])).convert("L"))
    assert pixels.shape == (32, 64)
    scans = load_digits().images[row["extra_info"]["scans"]]
    assert np.array_equal((pixels[::4, ::4] / 255 * 16).round(), np.hstack(scans))


def test_teacher_is_right_and_demonstrations_are_valid(files):
    for row in files["train"]:
        response = parse_response(row["teacher_response"])
        assert metrics.measure(response, row) == {"perception": True, "reasoning": True}
        assert response.answer == row["reward_model"]["ground_truth"]
    assert all(response_of(row).valid for row in files["sft"])


def test_broad_demonstrations_have_the_given_error_rates(files):
    broad = [row for row in files["sft"] if row["extra_info"]["source"] == "broad"]
    measured = [metrics.measure(response_of(row), row) for row in broad]
    perception = np.mean([rates["perception"] for rates in measured])
    reasoning = np.mean([rates["reasoning"] for rates in measured])
    assert perception == pytest.approx(1 - SMALL.wrong_digit, abs=0.07)
    assert reasoning == pytest.approx(1 - SMALL.wrong_sum, abs=0.08)


def test_wrong_sum_is_off_by_one_and_never_negative():
    rng = random.Random(0)
    for _ in range(300):
        response = parse_response(data.broad_response((0, 0), SMALL, rng))
        named = [int(character) for character in response.caption if character.isdigit()]
        assert int(response.answer) >= 0
        assert abs(int(response.answer) - sum(named)) <= 1


@pytest.mark.parametrize(
    ("caption", "answer", "perception", "reasoning"),
    [
        ("Left a 3, right a 5.", "8", True, True),
        ("A 3 and a 5.", "8", True, True),
        ("Digits 3, 5.", "9", True, False),
        ("Digits 5, 3.", "8", False, True),
        ("Left a 3, right a 6.", "9", False, True),
        ("Left a 3, right a 6.", "8", False, False),
        ("Left a 3.", "8", False, None),
        ("Digits 3, 5, 5.", "8", False, None),
        ("Digits 35.", "8", False, None),
        ("Two digits.", "8", False, None),
        ("A 3 and a 5.", "08", True, False),
        ("A 3 and a 5.", "eight", True, False),
    ],
)
def test_measure(caption, answer, perception, reasoning):
    response = parse_response(
        f"<caption>{caption}</caption><think>So.</think><answer>{answer}</answer>"
    )
    row = {"extra_info": {"digits": [3, 5]}}
    assert metrics.measure(response, row) == {"perception": perception, "reasoning": reasoning}


def test_measure_of_an_invalid_response():
    row = {"extra_info": {"digits": np.array([3, 5])}}
    assert metrics.measure(parse_response("8"), row) == {"perception": False, "reasoning": None}


def test_model_folder_loads_and_fits_the_data(folder, tmp_path, monkeypatch):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    monkeypatch.setattr(sys, "argv", ["model.py", "--data", str(folder), "--out", str(tmp_path)])
    load("model").main()
    processor = AutoProcessor.from_pretrained(tmp_path)
    row = pq.read_table(folder / "train.parquet").to_pylist()[0]
    image = Image.open(io.BytesIO(row["images"][0]["bytes"]))
    question = row["prompt"][1]["content"].removeprefix("<image>")
    messages = [
        row["prompt"][0],
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=[text], images=[image], return_tensors="pt")
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 8]]
    assert inputs["input_ids"].shape[1] <= 48
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    length = inputs["input_ids"].shape[1]
    assert model(**inputs).logits.shape == (1, length, len(processor.tokenizer))
    assert model.generate(**inputs, max_new_tokens=2).shape[1] <= length + 2


def test_tokenizer_round_trips_and_keeps_blocks_apart(folder):
    tokenizer = load("model").build_tokenizer(folder)
    row = pq.read_table(folder / "train.parquet").to_pylist()[0]
    teacher = row["teacher_response"]
    tokens = tokenizer.tokenize(teacher)
    for text in (teacher, "x<y></CAPTION> é ①٣ 😀\n\n <caption", "  1234567890  "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    tags = [f"<{slash}{name}>" for name in ("caption", "think", "answer") for slash in ("", "/")]
    assert [token for token in tokens if token in tags] == tags
    assert len(tokenizer.tokenize(" 12")) == 2
    assert len(tokens) + 1 <= 36
    response = parse_response(teacher)
    by_block = []
    for block in response.blocks:
        by_block += tokenizer.tokenize(teacher[block.start : block.end])
    assert by_block == tokens
