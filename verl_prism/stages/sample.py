"""Stage `sample`: the policy answers the training questions, without gold answers or a teacher."""

from pathlib import Path

import pyarrow as pa

from verl_prism.config import Prism
from verl_prism.data.row_files import RowWriter, common_schema, with_columns
from verl_prism.data.rows import Rows, parquet_files, train_rows
from verl_prism.data.schema import COLUMNS
from verl_prism.report.metrics import MetricsLog
from verl_prism.rollout.journal import JournalReader
from verl_prism.run_folder import RunFolder
from verl_prism.stages.sampling import sample_training_rows

RESPONSES = "student_responses"


def run_sample(prism: Prism) -> dict[str, float | str]:
    """Write the questions with the policy's responses to `<output>/samples.parquet`.

    With `prism.resume` it keeps the responses of an unfinished run.

    Raises:
        EndedEarly: an early end was requested; the responses so far are kept.
    """
    folder = RunFolder(prism.output)
    folder.samples_file.unlink(missing_ok=True)
    rows = train_rows(prism)
    with MetricsLog(folder) as log:
        sample_training_rows(prism, rows, prism.rollout.samples_per_prompt, log)
        log.note("writing the responses")
        write_samples(prism, rows, folder.samples_file)
    return {"questions": str(len(rows)), "responses": str(prism.rollout.samples_per_prompt)}


def write_samples(prism: Prism, rows: Rows, target: Path) -> None:
    """Write each row with its responses. Memory holds a few rows at a time."""
    responses = JournalReader(RunFolder(prism.output).rollouts)
    with RowWriter(target, _schema(prism)) as writer:
        for number in range(len(rows)):
            writer.write(rows[number] | {RESPONSES: responses[number]})


def _schema(prism: Prism) -> pa.Schema:
    files = parquet_files("prism.data.train", prism.data.train)
    return with_columns(common_schema(files), {RESPONSES: COLUMNS[RESPONSES]})
