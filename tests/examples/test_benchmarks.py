"""Published rows of the benchmarks become our rows: tiny files in the published columns."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_files import (
    CHOICE,
    HALLUSION,
    MMMU,
    NUMBER,
    PUBLISHED,
    STANDARD,
    STEP,
    TEXT,
    VERSE,
    VISION,
    VISTA_METADATA,
    picture,
    png,
    write,
)

from verl_prism.errors import UserError
from verl_prism.rewards.grader.grading import grade

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import convert  # noqa: E402
from sets import BENCHMARKS as SETS  # noqa: E402


def converted(tmp_path: Path, name: str, rows: list[dict], columns: dict | None = None) -> list:
    source = write(tmp_path / "published.parquet", columns or PUBLISHED[name], rows)
    report = convert.convert(name, [source], tmp_path / "out.parquet", "Answer in the format.")
    assert report.written + report.left_out.total() == report.read == len(rows)
    return pq.read_table(tmp_path / "out.parquet").to_pylist()


def user_text(row: dict) -> str:
    system, user = row["prompt"]
    assert system == {"role": "system", "content": "Answer in the format."}
    assert user["role"] == "user"
    assert user["content"].count("<image>") == len(row["images"])
    return user["content"]


def images(row: dict) -> list[bytes]:
    return [image["bytes"] for image in row["images"]]


def accepts(row: dict, answer: str) -> bool:
    equivalents = row["extra_info"]["equivalent_answers"]
    return grade(answer, row["reward_model"]["ground_truth"], equivalents)


def test_mathvista(tmp_path):
    choice, number = converted(tmp_path, "mathvista", [CHOICE, NUMBER])
    assert user_text(choice) == "<image>\n" + CHOICE["query"]
    assert images(choice) == [png(1)]
    assert choice["id"] == "mathvista-7"
    assert choice["data_source"] == "mathvista"
    assert choice["reward_model"] == {"style": "rule", "ground_truth": "B"}
    assert choice["extra_info"]["options"] == ["4", "5"]
    assert choice["extra_info"]["skills"] == ["algebraic", "logical"]
    assert [accepts(choice, text) for text in ("B", "(B) 5", "5")] == [True, True, True]
    assert [accepts(choice, text) for text in ("A", "A. 5", "4")] == [False, False, False]
    assert number["extra_info"]["index"] == 1
    assert number["reward_model"]["ground_truth"] == "1.2"
    assert accepts(number, "1.2 cm")


def test_mathverse(tmp_path):
    text_only = {**VERSE, "sample_index": "2", "problem_version": "Text Only", "image": None}
    with_image, without = converted(tmp_path, "mathverse", [VERSE, text_only])
    assert user_text(with_image) == "<image>\nGive the letter."
    assert images(with_image) == [png(3)]
    assert with_image["reward_model"]["ground_truth"] == "C"
    assert with_image["extra_info"]["problem_version"] == "Vision Only"
    assert user_text(without) == "Give the letter."


def test_mathvision(tmp_path):
    base = {"id": "1", "decoded_image": picture(8), "subject": "algebra", "level": 3}
    choice = {**base, "question": "Which? <image1>", "options": ["1", "2"], "answer": "B"}
    free = {**base, "id": "2", "question": "How many?", "options": [], "answer": "12"}
    choice, free = converted(tmp_path, "mathvision", [choice, free])
    assert user_text(choice) == (
        "<image>\nWhich? <image1>\nChoices: A. 1\nB. 2\n"
        "Answer the question with the option's letter from the given choices directly."
    )
    assert accepts(choice, "2")
    assert not accepts(choice, "1")
    assert choice["extra_info"]["level"] == "3"
    assert user_text(free) == "<image>\nHow many?"
    assert free["reward_model"]["ground_truth"] == "12"


def test_wemath(tmp_path):
    (row,) = converted(tmp_path, "wemath", [STEP])
    assert user_text(row) == "<image>\nHow wide?\nA. 30;B. 60; C. No correct answer"
    assert row["id"] == "wemath-2steps_9-2steps_1"
    assert images(row) == [png(7)]
    facts = {"problem": "2steps_9", "key": "2steps_1", "concept": "Angles"}
    assert row["extra_info"] == {"index": 0, "equivalent_answers": [], **facts}


def test_mmmu_puts_each_image_where_it_is_mentioned(tmp_path):
    (row,) = converted(tmp_path, "mmmu", [MMMU])
    assert user_text(row) == (
        "Compare <image> and <image>.\nA. <image>\nB. it's 4\nC. none\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert images(row) == [png(4), png(5), png(5)]
    assert row["extra_info"]["subject"] == "Art_Theory"
    assert row["extra_info"]["domain"] == "Art and Design"
    assert accepts(row, "it's 4")
    assert not accepts(row, "I cannot tell")  # the published parser would choose at random


def test_mmmu_open_questions(tmp_path):
    base = {**MMMU, "question_type": "open", "options": "[]"}
    one = {**base, "answer": "24"}
    several = {**base, "id": "validation_Math_4", "answer": "['24/7', '3.429']"}
    one, several = converted(tmp_path, "mmmu", [one, several])
    assert user_text(one) == (
        "Compare <image> and <image>.\n\nAnswer the question using a single word or phrase."
    )
    assert one["extra_info"]["equivalent_answers"] == []
    assert several["reward_model"]["ground_truth"] == "24/7"
    assert several["extra_info"]["equivalent_answers"] == ["3.429"]


def test_mmmu_pro_has_two_settings_and_ten_options(tmp_path):
    options = [f"option {number}" for number in range(8)] + ["<image 2>", "45 N"]
    base = {"id": "test_Art_1", "options": repr(options), "subject": "Art", "answer": "J"}
    question = {**base, "question": "Which?", "image_1": picture(1), "image_2": picture(2)}
    standard = write(tmp_path / "a.parquet", STANDARD, [question])
    vision = write(tmp_path / "b.parquet", VISION, [{**base, "image": picture(3)}])
    report = convert.convert("mmmu_pro", [standard, vision], tmp_path / "out.parquet", "System.")
    assert dict(report.notes) == {"an image that the text does not mention is not shown": 1}
    first, second = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert first["prompt"][1]["content"].endswith(
        "H. option 7\nI. <image>\nJ. 45 N\n\n"
        "Answer with the option letter from the given choices directly."
    )
    assert images(first) == [png(2)]
    for answer, right in (("J", True), ("J. 45 N", True), ("A. 45 N", False), ("I", False)):
        assert accepts(first, answer) is right
    assert second["prompt"][1]["content"] == (
        "<image>\nAnswer with the option letter from the given choices directly."
    )
    assert images(second) == [png(3)]
    assert [row["extra_info"]["setting"] for row in (first, second)] == ["standard", "vision"]
    assert [row["extra_info"]["index"] for row in (first, second)] == [0, 1]


def test_hallusion_bench(tmp_path):
    no = {**HALLUSION, "question_id": "1", "gt_answer": "0"}
    yes, no = converted(tmp_path, "hallusion_bench", [HALLUSION, no])
    assert user_text(yes) == "<image>\nIs it red?"
    assert yes["id"] == "hallusion_bench-VD-figure-0-0-0"
    for answer, right in (("Yes.", True), ("Yes, it is.", True), ("true", True), ("No", False)):
        assert accepts(yes, answer) is right
        assert accepts(no, answer) is (answer == "No")


def test_rows_without_a_gold_answer_or_image_are_counted(tmp_path):
    rows = [
        CHOICE,
        {**CHOICE, "pid": "9", "answer": ""},
        {**CHOICE, "pid": "10", "answer": None},
        {**CHOICE, "pid": "11", "decoded_image": None},
        {**CHOICE, "pid": "12", "query": "Look at <image>."},
    ]
    source = write(tmp_path / "published.parquet", PUBLISHED["mathvista"], rows)
    report = convert.convert("mathvista", [source], tmp_path / "out.parquet", "System.")
    assert list(report.lines()) == [
        "5 rows read",
        "1 rows written",
        "left out: 2 (no gold answer)",
        "left out: 1 (no image in column decoded_image)",
        "left out: 1 (query contains <image>, which stands for an image in our rows)",
    ]
    unusable = write(tmp_path / "unusable.parquet", PUBLISHED["mathvista"], rows[1:])
    with pytest.raises(UserError, match="no row can be used"):
        convert.convert("mathvista", [unusable], tmp_path / "none.parquet", "System.")
    assert not (tmp_path / "none.parquet").exists()


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("mathvista", {**CHOICE, "answer": "6"}, "row 0: column 'answer' is '6', which is none"),
        ("mathvista", {**CHOICE, "query": None}, "row 0: column 'query' is null"),
        ("mathvista", {**CHOICE, "metadata": None}, "row 0: column 'metadata' is null"),
        ("mmmu", {**MMMU, "answer": "D"}, "'answer' is 'D', but the options are A, B, C"),
        ("mmmu", {**MMMU, "options": "4"}, "column 'options' is '4', but should be the text"),
        ("mmmu", {**MMMU, "id": "3"}, "column 'id' is '3', but should be like"),
        ("mmmu", {**MMMU, "question": "<image 9>"}, "mentions image_9"),
        ("wemath", {**STEP, "key": "4steps_1"}, "column 'key' is '4steps_1', but should be one of"),
        ("hallusion_bench", {**HALLUSION, "gt_answer": "2"}, "'gt_answer' is '2', but should be"),
    ],
)
def test_an_unusual_value_is_an_error_with_its_place(tmp_path, name, row, message):
    with pytest.raises(UserError, match=message) as error:
        converted(tmp_path, name, [row])
    assert "published.parquet, row 0" in str(error.value)
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_missing_column_is_an_error(tmp_path, name):
    for dropped in SETS[name].forms[0]:
        column = dropped.split(".")[0]
        columns = {key: kind for key, kind in PUBLISHED[name].items() if key != column}
        with pytest.raises(UserError, match=f"published.parquet: no column '{column}"):
            converted(tmp_path, name, [], columns)


def test_a_column_of_another_type_is_an_error(tmp_path):
    for column in ("answer", "choices", "decoded_image"):
        columns = {**PUBLISHED["mathvista"], column: pa.int64()}
        with pytest.raises(UserError, match=f"column '{column}' is int64, but should be"):
            converted(tmp_path, "mathvista", [], columns)
    fields = {**VISTA_METADATA, "skills": TEXT}
    columns = {**PUBLISHED["mathvista"], "metadata": pa.struct(fields)}
    with pytest.raises(UserError, match=r"column 'metadata.skills' is string"):
        converted(tmp_path, "mathvista", [], columns)


def test_the_same_file_twice_is_an_error(tmp_path):
    source = write(tmp_path / "published.parquet", PUBLISHED["wemath"], [STEP])
    with pytest.raises(UserError, match="row 0: 2steps_9-2steps_1 occurs twice"):
        convert.convert("wemath", [source, source], tmp_path / "out.parquet", "System.")


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, BENCHMARKS / "convert.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command_finds_the_split_in_a_downloaded_folder(tmp_path):
    folder = tmp_path / "mathvista"
    (folder / "data").mkdir(parents=True)
    write(folder / "data" / "testmini-00000-of-00001.parquet", PUBLISHED["mathvista"], [CHOICE])
    write(folder / "data" / "test-00000-of-00001.parquet", PUBLISHED["mathvista"], [NUMBER])
    for source in (folder, folder / "data"):
        done = run("mathvista", "--source", source, "--out", tmp_path / "out.parquet")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[:2] == ["1 rows read", "1 rows written"]
        assert "note: the published split testmini has 1000 rows" in done.stdout
    (row,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert row["id"] == "mathvista-7"
    assert row["prompt"][0]["content"].startswith("You are a helpful assistant")
    other = run(
        "mathvista", "--source", folder, "--split", "dev", "--out", tmp_path / "dev.parquet"
    )
    assert other.returncode == 1
    assert "no file data/dev-*.parquet" in other.stderr
    assert "data/test-00000-of-00001.parquet" in other.stderr
    assert "hf download --repo-type dataset AI4Math/MathVista" in other.stderr


def test_the_command_prints_how_to_download():
    done = run("mmmu_pro", "--hub", "new/home")
    assert done.stdout.splitlines()[0] == (
        "hf download --repo-type dataset new/home "
        '--include "standard (10 options)/test-*.parquet" --include "vision/test-*.parquet" '
        "--local-dir downloads/mmmu_pro"
    )
