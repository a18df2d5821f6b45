"""The command `score`, against scores of the same texts one at a time."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoProcessor

from verl_prism.config import Image
from verl_prism.discriminator import (
    Group,
    GroupEncoder,
    MiniBatch,
    Ranks,
    load_discriminator,
    score_groups,
    tokenize_spans,
)
from verl_prism.errors import UserError
from verl_prism.prepare.command import main, run_command
from verl_prism.prepare.score import best_response
from verl_prism.response import parse_response
from verl_prism.stages.warmup_data import encode_row

MAX_PIXELS = 1024  # half of an image of digits
TEXTS = [
    "<caption>A {}.</caption><think>1 + 2 = 3</think><answer>3</answer>",
    "no format",
    "<caption>Two digits, {} first.</caption><think>So it is</think><answer>7</answer>",
]


@pytest.fixture
def source(digits_folder, tmp_path):
    """Three rows: the second has no valid response and no valid teacher."""
    table = pq.read_table(digits_folder / "data" / "train.parquet").slice(0, 3)
    responses = [[text.format(row) for text in TEXTS] for row in range(3)]
    responses[1] = ["no", "none"]
    teachers = table["teacher_response"].to_pylist()
    teachers[1] = None
    place = table.schema.get_field_index("teacher_response")
    table = table.set_column(place, "teacher_response", pa.array(teachers, pa.string()))
    column = pa.array(responses, pa.list_(pa.string()))
    file = tmp_path / "sampled.parquet"
    pq.write_table(table.append_column("student_responses", column), file)
    return file


def score(source, discriminator, output, *others):
    arguments = [f"source={source}", f"discriminator={discriminator}", f"output={output}", *others]
    return run_command("score", arguments)


def alone(model, prompt, tokenizer, text: str) -> list[float]:
    """The scores of one text of one question, in a pass of its own."""
    spans = tokenize_spans(parse_response(text), tokenizer)
    batch = MiniBatch(GroupEncoder(model.config), [Group(prompt, spans, [spans])], 10_000)
    return score_groups(model, batch, Ranks()).student[:, 0, 0].tolist()


@pytest.mark.parametrize("rows_per_pass", [1, 16])
def test_each_valid_response_gets_the_score_of_its_own_pass(
    source, discriminator_folder, prompts, tokenizer, tmp_path, rows_per_pass
):
    output = tmp_path / "scored.parquet"
    report = score(source, discriminator_folder, output, f"rows_per_pass={rows_per_pass}")
    assert report.counts == {
        "rows": 3,
        "responses": 8,
        "invalid responses, without a score": 4,
    }
    model = load_discriminator(discriminator_folder).eval()
    rows = pq.read_table(output).to_pylist()
    for number in (0, 2):
        row = rows[number]
        prompt = prompts[number]
        views = [row["perception_scores"], row["reasoning_scores"]]
        assert [scores[1] for scores in views] == [None, None]
        for place in (0, 2):
            expected = alone(model, prompt, tokenizer, row["student_responses"][place])
            assert [scores[place] for scores in views] == pytest.approx(expected, abs=1e-4)
        teacher = [row["teacher_perception_score"], row["teacher_reasoning_score"]]
        expected = alone(model, prompt, tokenizer, row["teacher_response"])
        assert teacher == pytest.approx(expected, abs=1e-4)
        sums = {place: views[0][place] + views[1][place] for place in (0, 2)}
        assert row["best_response"] == row["student_responses"][max(sums, key=sums.get)]
    assert rows[1]["perception_scores"] == [None, None]
    assert rows[1]["best_response"] is None
    assert rows[1]["teacher_reasoning_score"] is None


def test_images_have_the_size_of_the_run(
    source, discriminator_folder, rows, prompts, tokenizer, tmp_path
):
    output = tmp_path / "scored.parquet"
    score(source, discriminator_folder, output, f"image.max_pixels={MAX_PIXELS}")
    limits = Image(min_pixels=None, max_pixels=MAX_PIXELS)
    processor = AutoProcessor.from_pretrained(discriminator_folder)
    prompt = encode_row(processor, rows[0], limits)
    assert len(prompt.input_ids) < len(prompts[0].input_ids)
    model = load_discriminator(discriminator_folder).eval()
    row = pq.read_table(output).to_pylist()[0]
    expected = alone(model, prompt, tokenizer, row["student_responses"][0])
    found = [row["perception_scores"][0], row["reasoning_scores"][0]]
    assert found == pytest.approx(expected, abs=1e-4)
    assert found != pytest.approx(
        alone(model, prompts[0], tokenizer, row["student_responses"][0]), abs=1e-4
    )


def test_a_source_without_teacher_has_no_columns_for_it(source, discriminator_folder, tmp_path):
    table = pq.read_table(source).drop_columns(["teacher_response"])
    pq.write_table(table, source)
    score(source, discriminator_folder, tmp_path / "scored.parquet")
    added = set(pq.read_schema(tmp_path / "scored.parquet").names) - set(table.column_names)
    assert added == {"perception_scores", "reasoning_scores", "best_response"}


def test_the_first_of_equal_responses_is_the_best():
    assert best_response(["a", "b", "c"], [(1.0, 2.0), None, (2.0, 1.0)]) == "a"
    assert best_response(["a"], [None]) is None


def test_mistakes_name_the_column_or_the_row(source, discriminator_folder, tmp_path, capsys):
    given = [f"discriminator={discriminator_folder}", f"output={tmp_path}/scored.parquet"]
    table = pq.read_table(source)
    place = table.schema.get_field_index("student_responses")
    empty = pa.array([[], [], []], pa.list_(pa.string()))
    pq.write_table(table.set_column(place, "student_responses", empty), source)
    assert main(["score", f"source={source}", *given]) == 2
    assert ": student_responses is empty; python -m verl_prism.data sample" in (
        capsys.readouterr().err
    )
    images = table.column("images").to_pylist()
    images[1] = [{"bytes": b"no image"}]
    place = table.schema.get_field_index("images")
    broken = pa.array(images, table.schema.field("images").type)
    pq.write_table(table.set_column(place, "images", broken), source)
    assert main(["score", f"source={source}", *given]) == 2
    assert re.search(r"row [0-9a-f]{16}: images\[0\]: unreadable", capsys.readouterr().err)
    pq.write_table(table.drop_columns(["student_responses"]), source)
    assert main(["score", f"source={source}", *given]) == 2
    assert "sampled.parquet: no column student_responses" in capsys.readouterr().err


def test_a_discriminator_that_is_not_there(source, tmp_path, capsys):
    given = [f"source={source}", f"output={tmp_path}/scored.parquet"]
    assert main(["score", *given, f"discriminator={tmp_path}/nowhere"]) == 2
    assert f"discriminator={tmp_path}/nowhere: no such folder" in capsys.readouterr().err


def test_a_size_of_images_without_effect_is_refused(source, discriminator_folder, tmp_path):
    with pytest.raises(UserError, match=r"image\.max_pixels=1 is outside the limits"):
        score(source, discriminator_folder, tmp_path / "scored.parquet", "image.max_pixels=1")
