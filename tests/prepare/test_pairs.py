"""Pairs whose lengths say nothing about the side."""

import random

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from question_rows import question, respond

from verl_prism.errors import UserError
from verl_prism.prepare.pairs import Settings, cell, run
from verl_prism.response import View

TEACHER = question(0, "7")["teacher_response"]


def rows(count: int, longer: float) -> list[dict]:
    """Policies' responses that are mostly shorter than the teacher's, by a random length."""
    draw = random.Random(0)

    def text(usual: str) -> str:
        if draw.random() < longer:
            return usual + "!" * draw.randint(1, 10)
        return usual[: -draw.randint(1, 8)]

    made = []
    for number in range(count):
        responses = [respond(text("A 3 and a 4."), text("3 + 4 = 7."), "7") for _ in range(4)]
        made.append(question(number, "7", responses))
    return made


def test_matched_lengths_say_nothing(write_rows, tmp_path):
    source = write_rows(rows(2000, longer=0.3))
    output = tmp_path / "pairs.parquet"
    report = run(Settings(source=source, output=output))
    for view in View:
        before, after = report.figures[f"{view.value}: guess by length"].split(", ")
        assert float(before.split()[0]) > 0.65
        assert float(after.split()[0]) < 0.53
    kept = pq.read_table(output).to_pylist()
    assert report.counts["rows kept"] == len(kept)
    assert report.counts["pairs kept"] == sum(len(row["student_responses"]) for row in kept)
    assert report.counts["pairs kept"] > 2000


def test_without_matching_all_valid_other_responses_are_kept(write_rows, tmp_path):
    other = respond("A 3.", "7.", "7")
    source = write_rows([question(0, "7", [TEACHER, "7", other]), question(1, "7", ["7"])])
    output = tmp_path / "pairs.parquet"
    report = run(Settings(source=source, output=output, match_length=False))
    kept = pq.read_table(output).to_pylist()
    assert [row["student_responses"] for row in kept] == [[other]]
    assert report.rejects == {"no response forms a pair": 1}


def test_the_choice_is_the_same_again_and_limited(write_rows, tmp_path):
    source = write_rows(rows(50, longer=0.5))
    tables = []
    for name in ("a.parquet", "b.parquet"):
        run(Settings(source=source, output=tmp_path / name, per_question=1))
        tables.append(pq.read_table(tmp_path / name))
    assert tables[0] == tables[1]
    assert set(map(len, tables[0]["student_responses"].to_pylist())) == {1}


@pytest.mark.parametrize(
    ("responses", "message"),
    [
        (["7"], "no response is in the format"),
        ([respond("A.", "7.", "7")], "one side is always longer; raise bin_width"),
    ],
)
def test_nothing_left_says_why(write_rows, tmp_path, responses, message):
    source = write_rows([question(0, "7", responses)])
    with pytest.raises(UserError, match=message):
        run(Settings(source=source, output=tmp_path / "pairs.parquet"))


def test_a_teacher_out_of_format_names_the_row(write_rows, tmp_path):
    source = write_rows([question(0, "7", ["7"]) | {"teacher_response": "7"}])
    with pytest.raises(UserError, match="row q0: teacher_response is not in the format"):
        run(Settings(source=source, output=tmp_path / "pairs.parquet"))


def test_a_response_that_is_null_names_the_row(write_rows, tmp_path):
    source = write_rows([question(0, "7", ["7", None])])
    with pytest.raises(UserError, match=r"row q0: student_responses\[1\] is null; leave it out"):
        run(Settings(source=source, output=tmp_path / "pairs.parquet"))


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=2), st.floats(0.01, 1))
def test_opposite_ratios_have_opposite_bins(ratios, width):
    mirrored = cell([-ratio for ratio in ratios], width)
    assert mirrored == tuple(-index for index in cell(ratios, width))
