"""Results by category: of each data set, or of each value of a field of extra_info."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_prism.compose import compose_run
from verl_prism.errors import UserError
from verl_prism.measures.marks import QuestionMarks, intervals
from verl_prism.report.table import categories_markdown
from verl_prism.stages.evaluation_categories import by_category, read_categories


def marks(*right: bool) -> list[QuestionMarks]:
    """A greedy and two sampled responses to each question, all right or all wrong."""
    found = []
    for each in right:
        given = {"accuracy": each, "format": True, "length": 5}
        found.append(QuestionMarks(given, [given, given]))
    return found


@pytest.fixture
def heldout(tmp_path):
    rows = [
        {"data_source": source, "extra_info": {"level": level, "index": number}}
        for number, (source, level) in enumerate([("a", 1), ("b", 1), ("a", 2), ("b", None)])
    ]
    file = tmp_path / "heldout.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def settings(heldout, tmp_path, category: str):
    data = (f"prism.data.heldout={heldout}", f"prism.data.cache={tmp_path}/cache")
    output = f"prism.output={tmp_path}/eval"
    return compose_run(["stage=eval", *data, output, f"prism.eval.category={category}"])[1]


def test_categories_are_data_sets_or_a_field(heldout, tmp_path):
    assert read_categories(settings(heldout, tmp_path, "data_source"), 4) == ["a", "b", "a", "b"]
    assert read_categories(settings(heldout, tmp_path, "level"), 3) == ["1", "1", "2"]


@pytest.mark.parametrize(("category", "row"), [("level", 3), ("grade", 0)])
def test_a_row_without_the_field_is_named_before_sampling(heldout, tmp_path, category, row):
    message = f"prism.eval.category={category}: .*heldout.parquet, row {row} has no such value"
    with pytest.raises(UserError, match=message):
        read_categories(settings(heldout, tmp_path, category), 4)


def test_each_category_has_the_intervals_of_its_questions():
    given = {"SFT": marks(True, False, True, False), "RL": marks(True, True, True, False)}
    found = by_category(given, ["a", "b", "a", "b"], "data_source")
    assert found["questions"] == {"a": 2, "b": 2}
    of_b = intervals([given["RL"][1], given["RL"][3]])
    assert found["policies"]["RL"]["b"]["accuracy"]["mean"] == of_b["accuracy"].mean == 0.5
    assert found["policies"]["SFT"]["a"]["greedy_accuracy"]["mean"] == 1.0
    assert found["policies"]["SFT"]["b"]["accuracy"]["mean"] == 0.0


def test_the_table_has_a_line_for_each_policy_and_category():
    given = {"SFT": marks(True, False, True, False)}
    found = by_category(given, ["a", "b", "a", "b"], "level")
    policies = {"SFT": {"folder": "x", **found["policies"]["SFT"]["a"]}}
    lines = categories_markdown({"policies": policies, "categories": found}).splitlines()
    assert lines[1] == "## By level"
    header = "| policy | level | questions | accuracy | format | mean length | greedy accuracy |"
    assert lines[3] == header
    assert lines[5].startswith("| SFT | a | 2 | 100.0 ±")
    assert lines[6].startswith("| SFT | b | 2 | 0.0 ±")


def test_a_single_category_has_no_table():
    assert by_category({"SFT": marks(True, False)}, ["a", "a"], "data_source") is None
    assert categories_markdown({"policies": {}, "categories": None}) == ""
