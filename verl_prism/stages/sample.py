"""Stage `sample`: the policy answers the training questions, without gold answers or a teacher."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from verl_prism.config import Prism
from verl_prism.data.row_files import common_schema, row_writer, with_columns
from verl_prism.data.rows import Rows, parquet_files, train_rows
from verl_prism.data.schema import COLUMNS
from verl_prism.report.metrics import MetricsLog
from verl_prism.report.step_samples import RESPONSE, ROW, evenly
from verl_prism.response import parse_response
from verl_prism.rollout.journal import JournalReader
from verl_prism.run_folder import RunFolder
from verl_prism.stages.sampling import sample_training_rows
from verl_prism.trainer.tracking import log_results

RESPONSES = "student_responses"
NOTE_EVERY = 500  # rows; the launcher ends a stage that reports nothing


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
        invalid = write_samples(prism, rows, folder.samples_file, log)
    responses = JournalReader(folder.rollouts)
    samples = first_responses(responses, prism.samples_per_step)
    log_results(prism, {"sample/invalid": invalid}, samples)
    return {
        "questions": str(len(rows)),
        "responses": str(prism.rollout.samples_per_prompt),
        "invalid responses": f"{invalid:.1%}",
    }


def first_responses(responses: Sequence[Sequence[str]], count: int) -> list[dict[str, Any]]:
    """Return the first response to each of at most `count` questions, for the loggers."""
    samples = []
    for row in evenly(range(len(responses)), count):
        text = responses[row][0]
        fault = str(parse_response(text).fault or "")
        samples.append({ROW: row, RESPONSE: text, "fault": fault})
    return samples


def write_samples(prism: Prism, rows: Rows, target: Path, log: MetricsLog) -> float:
    """Write each row with its responses. Memory holds a few rows at a time.

    Returns the share of the responses that are not in the format.
    """
    responses = JournalReader(RunFolder(prism.output).rollouts)
    invalid = 0
    total = 0
    with row_writer(target, _schema(prism)) as writer:
        for number in range(len(rows)):
            if number % NOTE_EVERY == 0:
                log.note(f"writing the responses {number}/{len(rows)}")
            given = responses[number]
            invalid += sum(not parse_response(text).valid for text in given)
            total += len(given)
            writer.write(rows[number] | {RESPONSES: given})
    return invalid / total


def _schema(prism: Prism) -> pa.Schema:
    files = parquet_files("prism.data.train", prism.data.train)
    return with_columns(common_schema(files), {RESPONSES: COLUMNS[RESPONSES]})
