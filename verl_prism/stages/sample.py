"""Stage `sample`: the policy answers the training questions, without gold answers or a teacher."""

from pathlib import Path

import pyarrow as pa

from verl_prism.config import Prism
from verl_prism.data.row_files import RowWriter, common_schema, with_columns
from verl_prism.data.rows import Rows, parquet_files, train_rows
from verl_prism.data.schema import COLUMNS
from verl_prism.report.metrics import MetricsLog
from verl_prism.rollout.journal import Journal, JournalReader
from verl_prism.rollout.sampling import Sampling
from verl_prism.run_folder import RunFolder
from verl_prism.stages.sampling import (
    TimeLeft,
    journal_settings,
    sample_to_journal,
    sampling_devices,
    sampling_job,
)

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
        log.total(len(rows))
        sample_policy(prism, rows, log)
        log.note("writing the responses")
        write_samples(prism, rows, folder.samples_file)
    return {"questions": str(len(rows)), "responses": str(_responses_per_question(prism))}


def sample_policy(prism: Prism, rows: Rows, log: MetricsLog) -> None:
    """Write the policy's responses to each row to the run's journal, on all devices."""
    folder = RunFolder(prism.output)
    sampling = Sampling(
        n=_responses_per_question(prism),
        temperature=prism.rollout.temperature,
        top_p=prism.rollout.top_p,
        max_tokens=prism.data.max_response_tokens,
    )
    job = sampling_job(prism, prism.policy, sampling)
    settings = journal_settings(job, "prism.data.train", prism.data.train, len(rows))
    journal = Journal(folder.rollouts, settings, prism.resume)
    time_left = TimeLeft(len(rows))

    def report(done: int) -> None:
        log.step(done, {})
        log.note(f"sampling the policy{time_left(done)}")

    log.note("starting vLLM")
    with sampling_devices(prism.hardware):
        sample_to_journal(
            job,
            rows,
            journal,
            folder,
            encode=lambda row: (row[0], [sample.text for sample in row[1]]),
            report=report,
        )


def write_samples(prism: Prism, rows: Rows, target: Path) -> None:
    """Write each row with its responses. Memory holds a few rows at a time."""
    responses = JournalReader(RunFolder(prism.output).rollouts)
    with RowWriter(target, _schema(prism)) as writer:
        for number in range(len(rows)):
            writer.write(rows[number] | {RESPONSES: responses[number]})


def _schema(prism: Prism) -> pa.Schema:
    files = parquet_files("prism.data.train", prism.data.train)
    return with_columns(common_schema(files), {RESPONSES: COLUMNS[RESPONSES]})


def _responses_per_question(prism: Prism) -> int:
    return prism.rollout.samples_per_prompt
