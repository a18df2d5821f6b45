"""The columns of the data files."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_prism.compose import compose_run
from verl_prism.data.checks import check_inputs
from verl_prism.data.rows import SPLITS
from verl_prism.data.schema import COLUMNS, EXAMPLE, schema, stage_columns

DOCS = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.mark.parametrize("stage", ["sft", "warmup", "align", "rlvr", "sample", "eval"])
def test_the_example_row_passes_the_checks_of_each_stage(stage, dense_folder, tmp_path):
    settings = [
        f"stage={stage}",
        f"prism.root={tmp_path}",
        f"prism.policy={dense_folder}",
        f"prism.discriminator.path={dense_folder}",
        f"prism.discriminator.upcycle.base={dense_folder}",
        f"prism.data.train={tmp_path}/train.parquet",
        f"prism.data.heldout={tmp_path}/heldout.parquet",
        "prism.warmup.responses=file",
        "prism.rollout.prompts_per_step=1",
        "prism.sft.examples_per_step=1",
    ]
    _, prism = compose_run(settings)
    for split in SPLITS:
        row = {name: EXAMPLE[name] for name in stage_columns(prism, split)}
        if row:
            table = pa.Table.from_pylist([row], schema=schema(row))
            pq.write_table(table, tmp_path / f"{split}.parquet")
    assert check_inputs(prism).splits


def test_the_example_has_all_columns():
    assert EXAMPLE.keys() == COLUMNS.keys()
    table = pa.Table.from_pylist([EXAMPLE], schema=schema(COLUMNS))
    assert table.to_pylist() == [EXAMPLE]


def test_the_docs_show_the_example():
    text = DOCS.read_text()
    shown = json.loads(text.split("```json\n")[1].split("```")[0])
    assert shown == EXAMPLE | {"images": [{"bytes": "…"}]}


def test_the_docs_describe_all_columns():
    text = DOCS.read_text()
    for name in COLUMNS:
        assert f"| `{name}` |" in text
