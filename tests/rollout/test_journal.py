"""The journal of responses: kept over a kill, refused with other settings."""

import json

import pytest

from verl_prism.errors import UserError
from verl_prism.rollout.journal import Journal, JournalReader, read_journal

SETTINGS = {"policy": "abc", "temperature": 1.0, "top": [1, 2]}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "output" / "rollouts.jsonl"


def test_lines_are_in_the_documented_format(file):
    journal = Journal(file, SETTINGS, resume=False)
    journal.append([(1, ["é"]), (0, [])])
    assert file.read_text() == '{"row": 1, "responses": ["é"]}\n{"row": 0, "responses": []}\n'
    assert [*JournalReader(file)] == [[], ["é"]]


def test_responses_are_read_back_whatever_they_contain(file):
    """str.splitlines() would also split at U+2028, U+0085 and other separators."""
    texts = ["one\u2028two", "\x85 \x1c \x0b \r \n", "三"]
    Journal(file, SETTINGS, resume=False).append([(0, texts)])
    assert [*JournalReader(file)] == [texts]


@pytest.mark.parametrize("torn", ["", '{"row": 7, "resp', "x" * 200_000])
def test_a_killed_run_continues_where_it_was(file, torn):
    journal = Journal(file, SETTINGS, resume=False)
    journal.append([(3, ["a"]), (1, ["b"])])
    with open(file, "a") as lines:
        lines.write(torn)
    resumed = Journal(file, SETTINGS | {"top": (1, 2)}, resume=True)
    assert resumed.missing(5) == [0, 2, 4]
    resumed.append([(0, ["c"]), (1, ["other"]), (2, ["d"]), (4, ["e"])])
    assert [*JournalReader(file)] == [["c"], ["b"], ["d"], ["a"], ["e"]]
    assert len(list(read_journal(file))) == 5


def test_a_file_that_only_holds_a_torn_line_is_emptied(file):
    Journal(file, SETTINGS, resume=False)
    file.write_text('{"row": 0')
    assert Journal(file, SETTINGS, resume=True).missing(1) == [0]
    assert file.read_text() == ""


def test_other_settings_are_refused_by_name(file):
    Journal(file, SETTINGS, resume=False).append([(0, ["a"])])
    with pytest.raises(UserError, match=r"rollouts.jsonl was.*temperature=0.5 \(was 1.0\)"):
        Journal(file, SETTINGS | {"temperature": 0.5}, resume=True)


def test_without_resume_it_starts_from_scratch(file):
    Journal(file, SETTINGS, resume=False).append([(0, ["a"])])
    assert Journal(file, SETTINGS | {"policy": "other"}, resume=False).missing(1) == [0]
    assert json.loads(file.with_suffix(".settings.json").read_text())["policy"] == "other"
