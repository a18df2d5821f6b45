"""Files in the columns of the published data sets of the paper, through every training stage."""

import io
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from raw_sources import convert, write_lines

from verl_prism.response import View, parse_response

ROWS = 32
SMALL = ("prism.steps=2", "prism.rollout.prompts_per_step=8", "prism.rollout.samples_per_prompt=2")
STAGES = {
    "sft": ("prism.steps=2", "prism.sft.examples_per_step=8"),
    "warmup": ("prism.steps=2", "prism.warmup.prompts=24", "prism.warmup.samples_per_prompt=2"),
    "align": SMALL,
    "rlvr": SMALL,
}


def views(response: str) -> tuple[str, str]:
    parsed = parse_response(response)
    return parsed.view_text(View.PERCEPTION), parsed.view_text(View.REASONING)


def write_rl_dataset(questions: list[dict], file: Path) -> Path:
    """Write the columns of prism-vlm/rl_dataset."""
    rows = []
    for number, row in enumerate(questions):
        caption, cot = views(row["teacher_response"])
        published = {
            "images": [{"bytes": row["images"][0]["bytes"], "path": None}],
            "data_source": "mm_gad",
            "prompt": row["prompt"],
            "teacher_caption": caption,
            "teacher_cot": cot,
            "teacher_response": row["teacher_response"],
            "answer": row["reward_model"]["ground_truth"],
            "reward_model": {
                "ground_truth": row["reward_model"]["ground_truth"],
                "style": "rule",
            },
            "extra_info": {"index": number, "need_tools_kwargs": False},
        }
        rows.append(published)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def write_distill(demonstrations: list[dict], folder: Path) -> Path:
    """Write the columns of prism-vlm/gemini_distill: ShareGPT in two shards, images in a zip."""
    folder.mkdir()
    rows = []
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number, row in enumerate(demonstrations):
            system, user, answer = row["messages"]
            archive.writestr(f"images/{number}.png", row["images"][0]["bytes"])
            turns = [
                {"from": "human", "value": user["content"]},
                {"from": "gpt", "value": answer["content"]},
            ]
            shared = {"conversations": turns, "system": system["content"]}
            rows.append(shared | {"id": f"g{number}", "images": [f"images/{number}.png"]})
    half = len(rows) // 2
    (folder / "shard-0.json").write_text(json.dumps(rows[:half]))
    (folder / "shard-1.json").write_text(json.dumps(rows[half:]))
    return folder


def write_pairs(questions: list[dict], demonstrations: list[dict], folder: Path) -> Path:
    """Write the columns of the pairwise warm-up data: two students for each question."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for number, row in enumerate(questions):
        path = f"images/{number}.png"
        (folder / path).write_bytes(row["images"][0]["bytes"])
        caption, cot = views(row["teacher_response"])
        for student in range(2):
            text = demonstrations[2 * number + student]["messages"][-1]["content"]
            student_caption, student_cot = views(text)
            line = {
                "id": f"{number}-{student}",
                "image": path,
                "question": row["prompt"][-1]["content"].replace("<image>", "").strip(),
                "teacher_caption": caption,
                "teacher_cot": cot,
                "student_caption": student_caption,
                "student_cot": student_cot,
            }
            lines.append(line)
    return write_lines(folder / "warmup_pairwise.jsonl", *lines)


@pytest.fixture(scope="module")
def published(digits_folder, tmp_path_factory):
    """The published files, small, and what convert makes of them."""
    folder = tmp_path_factory.mktemp("published")
    data = digits_folder / "data"
    questions = pq.read_table(data / "train.parquet").slice(0, ROWS).to_pylist()
    demonstrations = pq.read_table(data / "sft.parquet").slice(0, 2 * ROWS).to_pylist()
    system = questions[0]["prompt"][0]["content"]
    rl_dataset = write_rl_dataset(questions, folder / "rl_training_data.parquet")
    distill = write_distill(demonstrations, folder / "gemini_distill")
    pairs = write_pairs(questions, demonstrations, folder / "warmup")
    return {
        "questions": questions,
        "rl_dataset": rl_dataset,
        "rl": convert(rl_dataset, output=folder / "rl.parquet"),
        "sft": convert(distill, f"images={distill}/images.zip", output=folder / "sft.parquet"),
        "pairs": convert(pairs, f"system_prompt={system}", output=folder / "pairs.parquet"),
    }


def test_the_rl_data_can_be_used_as_it_is(published):
    figure = "stages that can also read the source as it is"
    assert published["rl"].report.figures[figure] == "warmup, align, rlvr, sample"
    for row, question in zip(published["rl"].rows, published["questions"], strict=True):
        assert row["prompt"] == question["prompt"]
        assert row["reward_model"]["ground_truth"] == question["reward_model"]["ground_truth"]
        assert row["images"][0]["bytes"] == question["images"][0]["bytes"]


def test_equivalent_answers_move_to_where_the_reward_reads_them(published, tmp_path):
    rows = pq.read_table(published["rl_dataset"]).to_pylist()[:2]
    rows[1]["reward_model"]["equivalent_answers"] = ["nine"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rl.parquet")
    found = convert(tmp_path / "rl.parquet", output=tmp_path / "out.parquet")
    assert found.rows[1]["extra_info"]["equivalent_answers"] == ["nine"]
    assert "stages that can also read the source as it is" not in found.report.figures


def test_shards_of_demonstrations_become_one_file(published):
    assert published["sft"].report.counts["rows written"] == 2 * ROWS
    first = published["sft"].rows[0]
    assert [message["role"] for message in first["messages"]] == ["system", "user", "assistant"]
    assert Image.open(io.BytesIO(first["images"][0]["bytes"])).format == "PNG"


def test_pairs_with_one_question_and_image_become_one_row(published):
    found = published["pairs"]
    assert (found.report.counts["rows read"], len(found.rows)) == (2 * ROWS, ROWS)
    for row, question in zip(found.rows, published["questions"], strict=True):
        assert row["teacher_response"] == question["teacher_response"]
        assert row["prompt"][1]["content"].startswith("<image>\n")
        assert len(row["student_responses"]) == 2


@pytest.mark.slow
@pytest.mark.integration
def test_every_stage_runs_on_the_published_columns(published, pipeline, tmp_path):
    train = {
        "sft": published["sft"].output,
        "warmup": published["pairs"].output,
        "align": published["rl_dataset"],
        "rlvr": published["rl"].output,
    }
    for stage, settings in STAGES.items():
        metrics = pipeline.run(
            stage,
            *settings,
            f"prism.data.train={train[stage]}",
            f"prism.data.heldout={published['rl'].output}",
            f"prism.discriminator.path={tmp_path}/warmup/discriminator",
            *(() if stage == "sft" else (f"prism.policy={pipeline.root}/sft/policy",)),
            output=tmp_path / stage,
        )
        assert metrics
