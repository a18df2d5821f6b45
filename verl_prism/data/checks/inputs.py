"""All checks of what a stage reads, before Ray starts and before torch is imported."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from verl_prism.config import ONLY_SAMPLE, Prism
from verl_prism.data.checks.cache import read_result, result_key, write_result
from verl_prism.data.checks.columns import check_columns
from verl_prism.data.checks.host import check_loggers, check_nodes, check_output
from verl_prism.data.checks.models import check_models, model_folders
from verl_prism.data.checks.rows import FileReport, RowChecker, add_tokens, check_rows
from verl_prism.data.checks.steps import check_division, check_longest, step_size
from verl_prism.data.epochs import MANY_EPOCHS, epochs_of, steps_per_epoch
from verl_prism.data.rows import SPLITS, parquet_files
from verl_prism.data.schema import grades_answers, stage_columns
from verl_prism.errors import UserError
from verl_prism.files import write_atomically
from verl_prism.rewards.own import load_reward
from verl_prism.rewards.user_function import load_metrics
from verl_prism.run_folder import RunFolder

# What a pass over the rows reads of a model.
MODEL_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
)

Progress = Callable[[int, int], None]  # is given the rows so far and in total


@dataclass(frozen=True)
class SplitReport:
    """What was found in the files of `prism.data.train` or `prism.data.heldout`.

    Attributes:
        rows: number of rows, without those that are left out.
        longest: tokens of the longest prompt or demonstration that is not left out.
        skipped: numbers of the rows that are left out, counted over all files.
        tokens: sums over the rows that are not left out, as in `FileReport`.
        unfinished: number of the policy's responses without an end, as in `FileReport`.
    """

    rows: int
    longest: int
    skipped: tuple[int, ...]
    tokens: Mapping[str, int]
    unfinished: int


@dataclass(frozen=True)
class InputReport:
    """What a check found, by split: `train` and `heldout`, if the stage reads them."""

    splits: Mapping[str, SplitReport]

    @property
    def train_rows(self) -> int | None:
        """Number of training rows, None in stage eval."""
        return self.splits["train"].rows if "train" in self.splits else None


def check_inputs(prism: Prism, on_progress: Progress = lambda done, total: None) -> InputReport:
    """Check the output folder, functions, models and data of `prism.stage`.

    Raises:
        UserError: the first mistake, with the key, file or row and the fix.
    """
    check_nodes(prism.hardware)
    check_division(prism)
    check_longest(prism)
    check_output(prism.output)
    check_loggers(prism.loggers)
    report = check_files(prism, on_progress)
    check_number_of_rows(prism, report)
    return report


def check_files(prism: Prism, on_progress: Progress = lambda done, total: None) -> InputReport:
    """Check the user's functions, the model folders and every row of the data files."""
    check_functions(prism)
    check_models(prism)
    for key, file, columns in data_files(prism):
        check_columns(key, file, columns)
    return InputReport(_check_splits(prism, on_progress))


def check_functions(prism: Prism) -> None:
    """Import the user's own functions that the stage calls."""
    if prism.reward.function is not None and grades_answers(prism):
        load_reward(prism.reward.function)
    if prism.eval.metrics is not None and prism.stage == "eval":
        load_metrics(prism.eval.metrics)


def data_files(prism: Prism) -> Iterator[tuple[str, Path, tuple[str, ...]]]:
    """Yield config key, path and required columns of each data file that the stage reads."""
    for split in SPLITS:
        for file in split_files(prism, split):
            yield f"prism.data.{split}", file, stage_columns(prism, split)


def split_files(prism: Prism, split: str) -> list[Path]:
    """Return the files of `prism.data.train` or `prism.data.heldout`; none if they are not read."""
    if not stage_columns(prism, split):
        return []
    return parquet_files(f"prism.data.{split}", getattr(prism.data, split))


def count_rows(prism: Prism) -> int:
    """Return the number of training rows, before any is left out."""
    files = split_files(prism, "train")
    for file in files:
        check_columns("prism.data.train", file, stage_columns(prism, "train"))
    return sum(pq.read_metadata(file).num_rows for file in files)


def _check_splits(prism: Prism, on_progress: Progress) -> dict[str, SplitReport]:
    total = sum(pq.read_metadata(file).num_rows for _, file, _ in data_files(prism))
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        on_progress(done, total)

    reports = {}
    for split in SPLITS:
        files = split_files(prism, split)
        if files:
            checker = RowChecker(prism, stage_columns(prism, split))
            found = [(file, _check_file(prism, file, checker, advance)) for file in files]
            reports[split] = _join(prism, f"prism.data.{split}", found)
    return reports


def _check_file(
    prism: Prism,
    file: Path,
    checker: RowChecker,
    advance: Callable[[int], None],
) -> FileReport:
    """Return what a pass over the file finds, from the cache if there was one before."""
    model = next(iter(model_folders(prism).values()))
    model_files = [model / name for name in MODEL_FILES if (model / name).is_file()]
    key = result_key(file, model_files, checker.settings)
    report = read_result(key)
    if report is None:
        report = check_rows(file, checker, advance)
        write_result(key, report)
    else:
        advance(report.rows)
    return report


def _join(prism: Prism, key: str, found: list[tuple[Path, FileReport]]) -> SplitReport:
    """Join the reports of a split's files; refuse rows that are too long, unless filtered."""
    rows = sum(report.rows for _, report in found)
    skipped: list[int] = []
    first = 0
    for _, report in found:
        skipped += [first + number for number in report.overlong]
        first += report.rows
    if skipped and prism.data.overlong == "error":
        raise UserError(_overlong_text(key, len(skipped), rows, found))
    longest = max(report.longest for _, report in found)
    tokens: dict[str, int] = {}
    for _, report in found:
        add_tokens(tokens, report.tokens)
    unfinished = sum(report.unfinished for _, report in found)
    return SplitReport(rows - len(skipped), longest, tuple(skipped), tokens, unfinished)


def _overlong_text(key: str, count: int, rows: int, found: list[tuple[Path, FileReport]]) -> str:
    examples = [f"{file}, {text}" for file, report in found for text in report.examples]
    shown = "\n  ".join(examples[:3])
    return (
        f"{count:,} of {rows:,} rows of {key} are too long:\n  {shown}\n"
        "raise the limit, lower prism.image.max_pixels if images take the tokens, or leave these "
        "rows out with prism.data.overlong=filter"
    )


def check_number_of_rows(prism: Prism, report: InputReport) -> None:
    """Check that the rows fill a step, and that stage eval has as many questions as it asks for."""
    for split, found in report.splits.items():
        if found.rows == 0:
            raise UserError(
                f"prism.data.{split}: all rows are too long; --check with "
                "prism.data.overlong=error names the limits"
            )
    rows = report.train_rows
    needed = step_size(prism)
    if rows is not None and needed is not None and rows < needed.rows:
        raise UserError(
            f"prism.data.train has {rows:,} rows, but a step needs {needed.rows:,} "
            f"({needed.key}={needed.value:,}); add rows, or lower {needed.key}"
        )
    limit = prism.eval.max_questions
    if prism.stage == "eval" and limit is not None and limit > report.splits["heldout"].rows:
        raise UserError(
            f"prism.eval.max_questions={limit}, but prism.data.heldout has "
            f"{report.splits['heldout'].rows:,} rows; lower it, or set it to null for all rows"
        )


def summary(prism: Prism, report: InputReport) -> str:
    """Return what was found in one line: "5,978 rows, 3.2 epochs, longest prompt 1,830 tokens"."""
    split = "heldout" if prism.stage == "eval" else "train"
    found = report.splits[split]
    parts = [f"{found.rows:,} rows"]
    if prism.stage not in ONLY_SAMPLE:
        epochs = epochs_of(prism, found.rows)
        number = f"{epochs:,.0f}" if epochs >= 100 else f"{epochs:.3g}"
        parts.append("1 epoch" if number == "1" else f"{number} epochs")
    kind = "demonstration" if prism.stage == "sft" else "prompt"
    parts.append(f"longest {kind} {found.longest:,} tokens")
    return ", ".join(parts)


def notes(prism: Prism, report: InputReport) -> Iterator[str]:
    """Yield what is not a mistake, but easily one.

    These are rows left out, responses that were cut, and very many epochs.
    """
    for split, found in report.splits.items():
        if found.skipped:
            yield (
                f"prism.data.{split}: {len(found.skipped):,} of "
                f"{found.rows + len(found.skipped):,} rows are too long and left out "
                "(prism.data.overlong=filter)"
            )
        if found.unfinished:
            yield (
                f"prism.data.{split}: in {found.unfinished:,} of "
                f"{found.rows * prism.dpo.responses_per_prompt:,} pairs the policy's response does "
                "not end with </answer>, as if cut at the length limit; all of it is learned from, "
                "except for the end token"
            )
    rows = report.train_rows
    if rows is None or prism.stage in ONLY_SAMPLE:
        return
    epochs = epochs_of(prism, rows)
    if epochs > MANY_EPOCHS:
        yield (
            f"prism.steps={prism.steps:,} are {epochs:,.0f} epochs of {rows:,} rows; an epoch has "
            f"{steps_per_epoch(prism, rows):,.0f} steps, and prism.epochs sets steps from the rows"
        )
    prompts = prism.warmup.prompts
    if prism.stage == "warmup" and rows < prompts:
        yield (
            f"prism.data.train has {rows:,} rows; all of them are used instead of "
            f"prism.warmup.prompts={prompts:,}"
        )
    if prism.stage == "warmup" and rows > prompts:
        yield (
            f"prism.data.train has {rows:,} rows; only {prompts:,}, evenly spaced, are used "
            "(prism.warmup.prompts)"
        )


def write_skipped_rows(prism: Prism, report: InputReport) -> None:
    """Write which rows the stage leaves out, for its datasets. Without any, there is no file."""
    file = RunFolder(prism.output).skipped_rows
    skipped = {split: list(found.skipped) for split, found in report.splits.items()}
    if not any(skipped.values()):
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps({"train": [], "heldout": []} | skipped))
