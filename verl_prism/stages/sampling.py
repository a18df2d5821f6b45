"""Sampling of a policy to a journal, for stages warmup, sample and eval."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verl_prism.checkpoints.preemption import end_requested
from verl_prism.config import DataFiles, Hardware, Prism
from verl_prism.data.rows import Rows
from verl_prism.errors import EndedEarly
from verl_prism.launcher.console import clock
from verl_prism.launcher.ray_session import ray_session
from verl_prism.report.metrics import MetricsLog
from verl_prism.rollout.engines import engine_count
from verl_prism.rollout.journal import Journal, data_settings
from verl_prism.rollout.sampler import sample_rows
from verl_prism.rollout.sampling import Finished, Row, Sampling, SamplingJob
from verl_prism.run_folder import RunFolder
from verl_prism.weights import weights_digest

Encode = Callable[[Finished], tuple[int, list[Any]]]


def sampling_job(prism: Prism, policy: Path, *samplings: Sampling) -> SamplingJob:
    """Return the job of sampling a policy with a run's settings."""
    return SamplingJob(
        policy,
        samplings,
        prism.hardware,
        prism.image,
        prism.seed,
        prism.reproducible,
        prism.data.max_tokens,
    )


def journal_settings(job: SamplingJob, key: str, data: DataFiles, rows: Rows) -> dict[str, Any]:
    """Return what responses depend on. A journal is only continued if it is the same.

    key: the config key that names the files in `data`.
    """
    settings: dict[str, Any] = {
        "the policy's weights": weights_digest(job.policy),
        **data_settings(key, data, rows),
        "prism.image": job.image.model_dump(),
        "samplings": [asdict(sampling) for sampling in job.samplings],
        "prism.seed": job.seed,
        "prism.hardware.dtype": job.hardware.dtype,
        "prism.reproducible": job.reproducible,
    }
    if job.reproducible:
        settings["prism.hardware.max_num_seqs"] = job.hardware.max_num_seqs
    return settings


def sample_to_journal(
    job: SamplingJob,
    rows: Sequence[Row],
    journal: Journal,
    run: RunFolder,
    encode: Encode,
    report: Callable[[int], None],
) -> None:
    """Sample the rows that the journal lacks.

    Needs `sampling_devices`.

    encode: turns responses into what JSON can hold.
    report: receives the number of rows so far.

    Raises:
        EndedEarly: an early end was requested; the journal has what was finished.
    """
    report(len(journal.done))
    missing = journal.missing(len(rows))
    if not missing:
        return
    for finished in sample_rows(job, rows, missing):
        journal.append([encode(row) for row in finished])
        report(len(journal.done))
        if end_requested(run):
            raise EndedEarly(0)


def sample_training_rows(prism: Prism, rows: Rows, n: int, log: MetricsLog) -> None:
    """Write the policy's `n` responses to each training row to the run's journal, on all devices.

    With `prism.resume` the responses that are there are kept.

    Raises:
        UserError: the responses that are there were sampled with other settings.
        EndedEarly: an early end was requested; the journal has what was finished.
    """
    folder = RunFolder(prism.output)
    rollout = prism.rollout
    sampling = Sampling(n, rollout.temperature, rollout.top_p, prism.data.max_response_tokens)
    job = sampling_job(prism, prism.policy, sampling)
    settings = journal_settings(job, "prism.data.train", prism.data.train, rows)
    journal = Journal(folder.rollouts, settings, prism.resume)
    if not journal.missing(len(rows)):
        return
    time_left = TimeLeft(len(rows))
    log.note("starting vLLM")
    with sampling_devices(prism.hardware):
        sample_to_journal(
            job,
            rows,
            journal,
            folder,
            encode=lambda row: (row[0], [sample.text for sample in row[1]]),
            report=lambda done: log.note(
                f"sampling the policy {done}/{len(rows)}{time_left(done)}"
            ),
        )


@contextmanager
def sampling_devices(hardware: Hardware) -> Iterator[None]:
    """Connect to Ray for the block, if more than one engine samples."""
    with ray_session(hardware) if engine_count(hardware) > 1 else nullcontext():
        yield


class TimeLeft:
    """Estimates the time left from the pace since the first report."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int) -> str:
        """Return " · 1:23 left", or "" while it is unknown."""
        now = time.monotonic()
        if self._first is None:
            self._first = (done, now)
        first, start = self._first
        if done == first:
            return ""
        seconds = (now - start) / (done - first) * (self._total - done)
        return f" · {clock(seconds)} left"
