import importlib.util
import io
import random
import re
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


sys.path.insert(0, str(DIGITS))


def load(name: str) -> ModuleType:
    """Import a script of the example, which is not a package."""
    spec = importlib.util.spec_from_file_location(f"digits_{name}", DIGITS / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


data, metrics, tasks = load("data"), load("metrics"), load("tasks")
COUNTS = {"broad": 400, "teacher": 40, "train": 60, "heldout": 60}
SMALL = data.Plan(**COUNTS)
KINDS = ("sum", "parity", "choice", "largest", "count")
ROW = data.Plan(
    task="row",
    drift=tasks.BiasedRow(),
    digits=4,
    kinds=KINDS,
    rl_kinds=("parity",),
    heldout_kinds=("count", "largest"),
    gold=5,
    **COUNTS,
)


@pytest.fixture(scope="module")
def files() -> dict:
    return data.build(SMALL, seed=0)


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("digits")
    for name, rows in files.items():
        pq.write_table(pa.Table.from_pylist(rows), path / f"{name}.parquet")
    return path


@pytest.fixture(scope="module")
def row_files() -> dict:
    return data.build(ROW, seed=0)


def asked(task: str, kind: str, digits, options: str = "") -> dict:
    return {"extra_info": {"task": task, "kind": kind, "digits": digits, "options": options}}


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
    assert perception == pytest.approx(1 - SMALL.drift.wrong_digit, abs=0.07)
    assert reasoning == pytest.approx(1 - SMALL.drift.wrong_sum, abs=0.08)


def test_wrong_sum_is_off_by_one_and_never_negative():
    rng = random.Random(0)
    for _ in range(300):
        question = tasks.Question("sum", (0, 0))
        response = parse_response(SMALL.drift.broad(question, rng))
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
    row = asked("pair", "sum", [3, 5])
    assert metrics.measure(response, row) == {"perception": perception, "reasoning": reasoning}


def test_measure_of_an_invalid_response():
    row = asked("pair", "sum", np.array([3, 5]))
    assert metrics.measure(parse_response("8"), row) == {"perception": False, "reasoning": None}


def test_the_files_have_the_kinds_that_are_asked_for(row_files):
    kinds = {name: {row["extra_info"]["kind"] for row in rows} for name, rows in row_files.items()}
    assert kinds["sft"] == kinds["train"] == set(KINDS)
    assert kinds["heldout"] == {"count", "largest"}
    assert kinds["rl"] == {"parity"}
    assert len(row_files["rl"]) == 5
    assert all(row in row_files["train"] for row in row_files["rl"])


def test_more_gold_answers_than_questions_are_refused():
    with pytest.raises(SystemExit, match="only 0 of 60 training questions are of the kinds count"):
        data.build(data.Plan(rl_kinds=("count",), gold=5, **COUNTS), seed=0)


def test_the_teacher_of_rows_is_right_and_grounded(row_files):
    for row in row_files["train"]:
        response = parse_response(row["teacher_response"])
        assert response.answer == row["reward_model"]["ground_truth"]
        marks = {"perception": True, "reasoning": True, "grounded": True}
        assert metrics.measure(response, row) == marks


def test_the_gold_answers_equal_a_count_by_hand(row_files):
    for row in row_files["train"]:
        digits = row["extra_info"]["digits"]
        options = row["extra_info"]["options"].split()
        expected = {
            "sum": str(sum(digits)),
            "parity": ["even", "odd"][sum(digits) % 2],
            "largest": str(sorted(digits)[-1]),
            "count": str(len([digit for digit in digits if digit >= 5])),
        }
        if options:
            expected["choice"] = "ABCD"[options.index(str(sum(digits)))]
        assert row["reward_model"]["ground_truth"] == expected[row["extra_info"]["kind"]]


def test_broad_rows_are_misread_with_a_bias():
    rng = random.Random(0)
    drift = tasks.BiasedRow(misread=0.65, wrong_digit=0, drop_carry=0, wrong_step=0)
    responses = [drift.broad(tasks.Question("sum", (4, 2)), rng) for _ in range(2000)]
    captions = [parse_response(response).caption for response in responses]
    assert set(captions) == {"Digits 4, 2.", "Digits 9, 2."}
    assert captions.count("Digits 9, 2.") / 2000 == pytest.approx(0.65, abs=0.05)
    assert "<think>9 + 2 = 11.</think><answer>11</answer>" in responses[0] + responses[1]


def test_broad_rows_drop_carries():
    rng = random.Random(0)
    drift = tasks.BiasedRow(misread=0, wrong_digit=0, drop_carry=0.5, wrong_step=0)
    responses = [drift.broad(tasks.Question("parity", (6, 7, 1)), rng) for _ in range(2000)]
    thinks = [parse_response(response).think for response in responses]
    dropped = "6 + 7 = 3. 3 + 1 = 4."
    assert set(thinks) == {"6 + 7 = 13. 13 + 1 = 14.", dropped}
    assert thinks.count(dropped) / 2000 == pytest.approx(0.5, abs=0.05)


def test_a_hard_negative_has_one_wrong_digit_and_one_wrong_sum():
    rng = random.Random(0)
    for _ in range(300):
        digits = tuple(rng.choices(range(10), k=4))
        response = parse_response(
            tasks.BiasedRow().nearly_right(tasks.Question("sum", digits), rng)
        )
        named = [int(digit) for digit in re.findall(r"\d", response.caption)]
        assert sum(a != b for a, b in zip(named, digits, strict=True)) == 1
        steps = re.findall(r"(\d+) \+ (\d+) = (\d+)\.", response.think)
        assert [int(step[1]) for step in steps] == list(digits[1:])
        assert int(steps[0][0]) == digits[0]
        assert [step[2] for step in steps[:-1]] == [step[0] for step in steps[1:]]
        wrong = [step for step in steps if int(step[0]) + int(step[1]) != int(step[2])]
        assert len(wrong) == 1
        assert response.answer == steps[-1][2]


def test_hard_negatives_are_added_to_the_policys_responses(tmp_path, monkeypatch):
    rows = data.build(ROW, seed=0)["train"]
    sums = [row for row in rows if row["extra_info"]["kind"] == "sum"]
    samples, out = tmp_path / "samples.parquet", tmp_path / "hard" / "samples.parquet"
    given = [row | {"student_responses": [row["teacher_response"]]} for row in sums]
    pq.write_table(pa.Table.from_pylist(given), samples)
    arguments = ["hard_negatives.py", "--samples", str(samples), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    load("hard_negatives").main()
    written = pq.read_table(out)
    assert written.schema == pq.read_schema(samples)
    for row in written.to_pylist():
        own, added = row["student_responses"]
        assert own == row["teacher_response"]
        assert added != own


@pytest.mark.parametrize("kind", KINDS)
def test_broad_rows_are_valid_and_answer_from_their_last_step(kind):
    rng = random.Random(0)
    for _ in range(200):
        digits = tuple(rng.choices(range(10), k=3))
        question = tasks.draw_question(kind, digits, rng)
        response = parse_response(tasks.BiasedRow().broad(question, rng))
        assert response.valid
        last = int("".join(filter(str.isdigit, response.think.split()[-1])))
        assert response.answer == question.answer(last)


@pytest.mark.parametrize(
    ("caption", "think", "answer", "reasoning", "grounded"),
    [
        ("Digits 3, 8, 4.", "3 + 8 = 11. 11 + 4 = 15.", "odd", True, True),
        ("Digits 3, 8, 6.", "3 + 8 = 11. 11 + 6 = 17.", "odd", True, False),
        ("Digits 3, 8, 4.", "3 + 8 = 13. 13 + 4 = 17.", "odd", False, False),
        ("Digits 3, 8, 4.", "3 + 8 = 11. 11 + 4 = 15.", "even", False, False),
        ("Digits 3, 8, 4.", "9 + 2 = 11. 11 + 4 = 15.", "odd", False, False),
        ("Digits 3, 8.", "3 + 8 = 11.", "odd", None, False),
    ],
)
def test_a_guessed_answer_is_not_grounded(caption, think, answer, reasoning, grounded):
    response = parse_response(
        f"<caption>{caption}</caption><think>{think}</think><answer>{answer}</answer>"
    )
    marks = metrics.measure(response, asked("row", "parity", [3, 8, 4]))
    assert marks["reasoning"] is reasoning
    assert marks["grounded"] is grounded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--digits", "3"], "--task pair has two digits"),
        (["--kinds", "parity"], "--task pair has two digits"),
        (["--task", "row", "--digits", "1"], "at least two"),
        (["--task", "row", "--drift", "misreads=1"], "write one of misread, wrong_digit"),
        (["--task", "row", "--drift", "misread=1.5"], "from 0 to 1"),
        (["--task", "row", "--drift", "misread"], "from 0 to 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(monkeypatch, tmp_path, options, message):
    out = tmp_path / "data"
    monkeypatch.setattr(sys, "argv", ["data.py", "--out", str(out), *options])
    with pytest.raises(SystemExit, match=message):
        data.main()
    assert not out.exists()


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
