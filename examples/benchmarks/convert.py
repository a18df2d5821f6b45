"""Convert a published benchmark to our rows. Reads local parquet files only.

    python examples/benchmarks/convert.py mathvista
    python examples/benchmarks/convert.py mathvista --source downloads/mathvista --out FILE

The first command prints how to download the benchmark. The second writes the rows, and says how
many rows it wrote and why it left out others. Memory does not grow with the number of rows.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from columns import TEXTS, Columns, fitting_columns, top_level
from question import BadValue, LeftOut, Question
from sets import BENCHMARKS, Benchmark

from verl_prism.data.row_files import Row, count_rows, read_rows, row_writer
from verl_prism.data.schema import COLUMNS
from verl_prism.errors import UserError
from verl_prism.prepare.convert.settings import DEFAULT_SYSTEM_PROMPT

_TYPES = {TEXTS: pa.list_(pa.string())}  # all other facts are texts


@dataclass
class Report:
    """What happened to the published rows."""

    read: int = 0
    written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def lines(self) -> Iterator[str]:
        """Yield the report, one statement per line."""
        yield f"{self.read} rows read"
        yield f"{self.written} rows written"
        for reason, number in self.left_out.most_common():
            yield f"left out: {number} ({reason})"
        for note, number in self.notes.most_common():
            yield f"note: {number} ({note})"


def convert(name: str, files: Sequence[Path], out: Path, system: str) -> Report:
    """Write the questions of the published `files` to `out`, and return what happened.

    system: the system message of every row.

    Raises:
        UserError: a file or value is not as published, or no row can be used.
    """
    benchmark = BENCHMARKS[name]
    report = Report()
    names: set[str] = set()
    with row_writer(out, _schema(benchmark.facts)) as writer:
        for place, source in _rows(benchmark, files):
            report.read += 1
            try:
                question = benchmark.read(source)
            except LeftOut as reason:
                report.left_out[str(reason)] += 1
                continue
            except BadValue as error:
                raise UserError(
                    f"{place}: column {error.column!r} {error.problem}; "
                    "correct the row, or download the published file again"
                ) from None
            if question.name in names:
                raise UserError(f"{place}: {question.name} occurs twice; give each file once")
            names.add(question.name)
            report.notes.update(question.notes)
            writer.write(_our_row(name, question, report.read - 1, system))
        report.written = writer.rows
        if not report.written:
            raise UserError(
                "\n".join(["no row can be used, so no file is written", *report.lines()])
            )
    return report


def source_files(
    benchmark: Benchmark, sources: Sequence[Path], split: str, download: str
) -> list[Path]:
    """Return the parquet files of a split: files as given, and those in the given folders.

    A folder is a copy of the published repository, or a folder of it that contains the files.

    Raises:
        UserError: a source does not exist, or there is no such file in it.
    """
    files: list[Path] = []
    for source in sources:
        if source.is_file():
            files.append(source)
            continue
        if not source.is_dir():
            raise UserError(f"--source {source} does not exist; download it: {download}")
        found = _files_in(source, benchmark.patterns(split))
        if not found:
            present = [str(file.relative_to(source)) for file in sorted(source.rglob("*.parquet"))]
            raise UserError(
                f"--source {source}: no file {' or '.join(benchmark.patterns(split))}\n"
                f"parquet files in it: {', '.join(present) or 'none'}\n"
                f"Name the files, or download them: {download}"
            )
        files += found
    return files


def _files_in(folder: Path, patterns: Sequence[str]) -> list[Path]:
    found = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    if found:
        return found
    last_parts = dict.fromkeys(pattern.split("/")[-1] for pattern in patterns)
    return [file for pattern in last_parts for file in sorted(folder.glob(pattern))]


def _rows(benchmark: Benchmark, files: Sequence[Path]) -> Iterator[tuple[str, Row]]:
    """Yield the rows with their places, after the columns of all files are checked."""
    count_rows(files)  # a damaged file is found before any work
    forms = [fitting_columns(file, pq.read_schema(file), benchmark.forms) for file in files]
    for file, columns in zip(files, forms, strict=True):
        for number, row in enumerate(read_rows([file], top_level(columns))):
            yield f"{file}, row {number}", row


def _schema(facts: Columns) -> pa.Schema:
    """Return the schema of our rows. facts: the columns of `extra_info` besides its own two."""
    kinds = {name: _TYPES.get(kind, pa.string()) for name, kind in facts.items()}
    extra_info = pa.struct(
        {"index": pa.int64(), "equivalent_answers": pa.list_(pa.string()), **kinds}
    )
    names = ("id", "prompt", "images", "data_source", "reward_model")
    columns = {name: COLUMNS[name] for name in names}
    return pa.schema({**columns, "extra_info": extra_info})


def _our_row(benchmark: str, question: Question, index: int, system: str) -> dict[str, Any]:
    """Return one of our rows. index: number of the published row over all files."""
    return {
        "id": f"{benchmark}-{question.name}",
        "prompt": [
            {"role": "system", "content": system},
            {"role": "user", "content": question.text},
        ],
        "images": [{"bytes": image} for image in question.images],
        "data_source": benchmark,
        "reward_model": {"style": "rule", "ground_truth": question.gold},
        "extra_info": {
            "index": index,
            "equivalent_answers": list(question.equivalents),
            **question.facts,
        },
    }


def main() -> None:
    """Convert the benchmark of the command line, or print how to download it."""
    parser = argparse.ArgumentParser(description="Convert a published benchmark to our rows.")
    add = parser.add_argument
    add("name", choices=BENCHMARKS, help="which benchmark")
    add("--source", type=Path, nargs="+", help="downloaded parquet files or folders")
    add("--out", type=Path, default=Path("heldout.parquet"), help="the file to write")
    add("--split", help="which published split; default: the one that the paper evaluates")
    add("--hub", help="id of the data set on the Hub, if it has moved")
    add("--system-prompt", type=Path, default=DEFAULT_SYSTEM_PROMPT, help="text file")
    arguments = parser.parse_args()
    benchmark = BENCHMARKS[arguments.name]
    split = arguments.split or benchmark.split
    hub = arguments.hub or benchmark.hub
    download = benchmark.download_command(hub, split, f"downloads/{arguments.name}")
    if arguments.source is None:
        print(f"{download}\nThen give --source downloads/{arguments.name}")
        return
    try:
        files = source_files(benchmark, arguments.source, split, download)
        system = arguments.system_prompt.read_text(encoding="utf-8").strip()
        report = convert(arguments.name, files, arguments.out, system)
    except (UserError, OSError) as error:
        raise SystemExit(str(error)) from None
    print("\n".join(report.lines()))
    if split == benchmark.split and report.read != benchmark.rows:
        print(f"note: the published split {split} has {benchmark.rows} rows")
    print(f"-> {arguments.out}")


if __name__ == "__main__":
    main()
