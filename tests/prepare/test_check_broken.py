"""The command check names each broken row and its reason, and its fix drops only these."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prepare.broken_rows import (
    KINDS,
    RESPONSE,
    SCHEMA,
    broken_row,
    encoded,
    good_row,
    latin_1,
    noise,
    text_row,
)

from verl_prism.prepare.command import main

LIMITS = ("max_prompt_tokens=200", "max_response_tokens=900")


@pytest.fixture
def check(dense_folder, tmp_path, capsys):
    """Return a function that checks splits, and returns the exit code and what is wrong."""

    def run(*arguments: str, model: bool = False, **splits: pa.Table):
        files = {}
        for name, table in splits.items():
            files[name] = str(tmp_path / f"{name}.parquet")
            pq.write_table(table, files[name])
        given = [f"source={json.dumps(files)}", f"report={tmp_path}", f"fix={tmp_path / 'fixed'}"]
        limits = [*LIMITS, f"model={dense_folder}"] if model else []
        capsys.readouterr()
        code = main(["check", *given, *limits, "workers=0", *arguments])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        assert "Error" not in shown.err
        lines = (tmp_path / "problems.jsonl").read_text().splitlines()
        return code, [json.loads(line) for line in lines]

    return run


def table(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), SCHEMA)


def fixed(tmp_path, split: str = "train") -> pa.Table:
    return pq.read_table(tmp_path / "fixed" / f"{split}.parquet")


def rejected(tmp_path, split: str = "train") -> list[dict]:
    lines = (tmp_path / "fixed" / f"{split}.parquet.rejects.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def problems(found: list[dict]) -> list[dict]:
    return [line for line in found if line["level"] == "problem"]


def test_there_are_many_kinds():
    assert len(KINDS) >= 70


def test_good_rows_pass(check, tmp_path):
    rows = table(good_row(0), text_row(1), good_row(2), text_row(3))
    code, found = check(train=rows)
    assert (code, found) == (0, [])
    assert fixed(tmp_path).equals(rows)
    assert rejected(tmp_path) == []


def needs_model(kind: str) -> bool:
    """Return whether a kind is found only with a tokenizer."""
    return KINDS[kind][1].startswith(("over ", "control token"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_row_is_reported_and_left_out(check, tmp_path, kind):
    rows = table(good_row(0), broken_row(kind, 1), good_row(2))
    code, found = check(train=rows, model=needs_model(kind))
    assert code == 1
    wrong = problems(found)
    assert {line["row"] for line in wrong} == {1}
    assert {line["id"] for line in wrong} == {"row-1"}
    assert any(re.search(KINDS[kind][1], line["reason"]) for line in wrong), wrong
    assert all(line["file"].endswith("train.parquet") and line["text"] for line in wrong)
    assert fixed(tmp_path).equals(rows.take([0, 2]))
    assert [line["id"] for line in rejected(tmp_path)] == ["row-1"]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    kinds=st.lists(
        st.one_of(
            st.sampled_from(["good", "text", "same id", "same question"]),
            st.sampled_from(sorted(KINDS)),
        ),
        min_size=1,
        max_size=14,
    ),
    group=st.integers(1, 6),
)
def test_any_mixture_is_told_apart(check, tmp_path, kinds, group):
    rows: list[dict] = []
    good: list[int] = []
    for number, kind in enumerate(kinds):
        row = text_row(number) if kind == "text" else good_row(number)
        repeats = kind in ("same id", "same question") and bool(good)
        if kind in KINDS:
            row = broken_row(kind, number)
        elif repeats and kind == "same id":
            row["id"] = rows[good[0]]["id"]
        elif repeats:
            row = rows[good[-1]] | {"id": f"row-{number}", "teacher_response": RESPONSE + " "}
        if kind not in KINDS and not repeats:
            good.append(number)
        rows.append(row)
    source = tmp_path / "mixture.parquet"
    pq.write_table(table(*rows), source, row_group_size=group)
    model = any(needs_model(kind) for kind in kinds if kind in KINDS)
    code, found = check(f"source={{train: {source}}}", train=table(*rows), model=model)
    assert {line["row"] for line in problems(found)} == set(range(len(rows))) - set(good)
    assert code == (1 if len(good) < len(rows) else 0)
    assert fixed(tmp_path).equals(table(*rows).take(pa.array(good, pa.int64())))


def test_an_image_is_the_same_whatever_its_file(check):
    picture = noise(5)
    rows = [
        good_row(0) | {"images": [{"bytes": encoded(picture, "PNG", compress_level=level)}]}
        for level in (1, 9)
    ]
    rows += [
        good_row(0) | {"images": [{"bytes": encoded(picture, form)}]} for form in ("BMP", "TIFF")
    ]
    rows.append(good_row(0) | {"images": [{"bytes": encoded(picture, "WEBP", lossless=True)}]})
    rows = [row | {"id": str(number)} for number, row in enumerate(rows)]
    _, found = check(train=table(*rows))
    assert [line["row"] for line in problems(found)] == [1, 2, 3, 4]
    assert {line["reason"] for line in found} == {"same question and images as another row"}


def test_leaks_are_reported_in_the_later_split(check, tmp_path):
    train = table(good_row(0), text_row(1), good_row(2))
    shared = good_row(7) | {"images": good_row(2)["images"]}
    asked = text_row(1) | {"id": "other"}
    heldout = table(good_row(5), shared, asked, text_row(6))
    code, found = check(train=train, heldout=heldout)
    assert code == 1
    assert [(line["row"], line["id"]) for line in found] == [(1, "row-7"), (2, "other")]
    assert "train.parquet, row 2" in found[0]["text"]
    assert fixed(tmp_path).equals(train)
    assert fixed(tmp_path, "heldout").equals(heldout.take([0, 3]))


def test_a_broken_row_is_no_original(check):
    """A row is compared only with rows that are kept."""
    broken = good_row(0) | {"teacher_response": "9"}
    again = good_row(0)
    heldout = good_row(3) | {"images": good_row(1)["images"]}
    wrong = good_row(1) | {"data_source": None}
    _, found = check(train=table(broken, again, wrong), heldout=table(heldout))
    assert [(line["row"], line["reason"]) for line in found] == [
        (0, "response not in the format: block is missing"),
        (2, "data_source is not a string"),
    ]


def test_responses_to_one_question_are_different_demonstrations(check):
    only = ["id", "messages", "images"]
    other = good_row(0)
    other["messages"][-1] = {"role": "assistant", "content": RESPONSE.replace("9", "8")}
    rows = [good_row(0), other | {"id": "b"}, good_row(0) | {"id": "c"}]
    _, found = check(train=table(*rows).select(only))
    assert [(line["row"], line["reason"]) for line in found] == [
        (2, "same question and images as another row")
    ]


NOTES = {
    "image with unusual colors": {"images": [{"bytes": encoded(noise(1, "CMYK"), "JPEG")}]},
    "image whose transparency is lost": {"images": [{"bytes": encoded(noise(1, "LA"), "PNG")}]},
    "image with an EXIF rotation": {
        "images": [
            {
                "bytes": encoded(
                    noise(1),
                    "JPEG",
                    exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
                )
            }
        ]
    },
    "student response not in the format": {"student_responses": [RESPONSE, "9"]},
}


@pytest.mark.parametrize("note", NOTES)
def test_what_is_unusual_is_a_note(check, tmp_path, note):
    rows = table(good_row(0), good_row(1) | NOTES[note])
    code, found = check(train=rows)
    assert code == 0
    assert [(line["row"], line["level"]) for line in found] == [(1, "note")]
    assert found[0]["reason"].startswith(note)
    assert fixed(tmp_path).equals(rows)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA"])
def test_ordinary_modes_pass(check, mode):
    image = {"bytes": encoded(noise(1, mode), "PNG")}
    assert check(train=table(good_row(1) | {"images": [image]})) == (0, [])


@pytest.mark.parametrize("column", ["id", "data_source", "teacher_response"])
def test_a_text_that_is_not_utf8(check, tmp_path, column):
    rows = latin_1(table(*map(good_row, range(4))), column, 2)
    code, found = check(train=rows)
    assert code == 1
    assert [(line["row"], line["reason"]) for line in found] == [(2, "text that is not UTF-8")]
    assert found[0]["text"].startswith(f"{column} is not UTF-8")
    assert found[0]["id"] == (None if column == "id" else "row-2")
    assert fixed(tmp_path).equals(rows.take([0, 1, 3]))


def plain(**columns: object) -> pa.Table:
    row = {name: value for name, value in (good_row(0) | columns).items() if value is not None}
    return pa.Table.from_pylist([row, row])


SHARE_GPT = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "9"}]
WRONG_COLUMNS = {
    "a prompt that is a text": (plain(prompt="What?"), "prompt is string"),
    "a number as text": (plain(prompt=[{"role": "user", "content": 3}]), "content is int64"),
    "parts as text": (
        plain(prompt=[{"role": "user", "content": [{"type": "text", "text": "a"}]}]),
        "content is list",
    ),
    "ShareGPT messages": (plain(messages=SHARE_GPT), "ShareGPT rows"),
    "a ShareGPT column": (
        plain(prompt=None, messages=None, conversations=SHARE_GPT),
        "no column prompt or messages",
    ),
    "paths": (plain(images=["a.png"]), "images holds paths"),
    "bare bytes": (plain(images=[b"a"]), "images holds binary"),
    "one image": (plain(images={"bytes": b"a"}), "images is struct"),
    "base64": (plain(images=[{"bytes": "aGVsbG8="}]), "images holds bytes as string"),
    "a gold answer alone": (plain(reward_model="9"), "reward_model is string"),
    "extra_info as JSON": (plain(extra_info="{}"), "extra_info is string"),
    "a number as source": (plain(data_source=3), "data_source is int64"),
    "a list as response": (plain(teacher_response=["a"]), "teacher_response is list"),
    "one student response": (plain(student_responses="a"), "student_responses is string"),
    "a number as id": (plain(id=3), "id is int64"),
}


@pytest.mark.parametrize("kind", WRONG_COLUMNS)
def test_columns_of_another_type(dense_folder, tmp_path, capsys, kind):
    wrong, message = WRONG_COLUMNS[kind]
    pq.write_table(wrong, tmp_path / "a.parquet")
    pq.write_table(table(good_row(1)), tmp_path / "b.parquet")
    source = f"source={tmp_path / '*.parquet'}"
    fix = tmp_path / "fixed" / "train.parquet"
    report = f"report={tmp_path / 'report'}"
    assert main(["check", source, f"fix={fix}", report, "workers=0"]) == 1
    lines = (tmp_path / "report" / "problems.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [(line["row"], line["rows"]) for line in found] == [(0, 2)]
    assert message in found[0]["text"]
    assert (
        "2 rows: columns missing or of a wrong type (a.parquet, rows 0 to 1)"
        in capsys.readouterr().err
    )
    assert fixed(tmp_path).equals(table(good_row(1)))


def test_a_number_as_gold_answer(check):
    rows = pa.Table.from_pylist([good_row(0) | {"reward_model": {"ground_truth": 9}}])
    _, found = check(train=rows)
    assert found[0]["reason"] == "gold answer missing or not a string"


def test_a_file_that_is_not_parquet(tmp_path, capsys):
    (tmp_path / "a.parquet").write_text("question,answer\n")
    pq.write_table(table(), tmp_path / "b.parquet")
    assert main(["check", f"source={tmp_path}", "workers=0"]) == 1
    shown = capsys.readouterr()
    assert "file that cannot be read (a.parquet, row 0)" in shown.err
    assert "file without rows (b.parquet, row 0)" in shown.err
    assert "Traceback" not in shown.err


def test_a_damaged_page_ends_its_file_only(tmp_path, capsys):
    rows = table(*map(text_row, range(600)))
    file = tmp_path / "a.parquet"
    pq.write_table(rows, file, row_group_size=512, compression="zstd")
    content = bytearray(file.read_bytes())
    column = pq.read_metadata(file).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 300] = b"\xff" * 300
    file.write_bytes(content)
    pq.write_table(table(good_row(900)), tmp_path / "b.parquet")
    fix = tmp_path / "fixed" / "train.parquet"
    assert main(["check", f"source={tmp_path}", f"fix={fix}", "workers=0"]) == 1
    assert "file that cannot be read (a.parquet, rows " in capsys.readouterr().err
    kept = fixed(tmp_path)
    lost = rejected(tmp_path)[0]
    assert lost["row"] >= 256
    assert lost["row"] + lost["rows"] == 600
    assert kept.equals(pa.concat_tables([rows.slice(0, lost["row"]), table(good_row(900))]))


def test_nulls_of_optional_columns_pass(check):
    rows = table(
        good_row(0) | {"teacher_response": None, "messages": None},
        good_row(1) | {"reward_model": {"style": "rule", "ground_truth": None}},
    )
    code, found = check("optional=[teacher_response,messages,reward_model]", train=rows)
    assert (code, found) == (0, [])


def test_processes_find_the_same(check):
    kinds = ["a truncated JPEG", "no gold answer", "two answers"]
    rows = [good_row(number) for number in range(30)]
    rows += [broken_row(kind, 30 + number) for number, kind in enumerate(kinds)]
    assert check(train=table(*rows)) == check("workers=2", train=table(*rows))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["max_prompt_tokens=3"], "a limit in tokens needs model=FOLDER"),
        (["fix=folder"], "fix: write a folder if source has splits, else a file name"),
        (["model=/nowhere"], "model=/nowhere: no such folder"),
        (["optional=[images2]"], "unknown column images2"),
        (["source=/nowhere.parquet"], "source.data=/nowhere.parquet: no such file"),
    ],
)
def test_mistakes_in_the_settings(tmp_path, capsys, arguments, message):
    pq.write_table(table(good_row(0)), tmp_path / "a.parquet")
    source = f"source={tmp_path / 'a.parquet'}"
    assert main(["check", source, "workers=0", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_copy_does_not_replace_a_source(tmp_path, capsys):
    file = tmp_path / "a.parquet"
    pq.write_table(table(good_row(0)), file)
    assert main(["check", f"source={file}", f"fix={file}", "workers=0"]) == 2
    assert "is a file of source; choose another name" in capsys.readouterr().err


def test_the_picture_shows_the_lengths(check, tmp_path):
    check(train=table(good_row(0)), heldout=table(text_row(1)), model=True)
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
