"""Let the policy answer each question `n` times, and write the questions with its responses.

python -m verl_prism.data sample source=train.parquet output=sampled.parquet policy=runs/sft/policy
python -m verl_prism.data sample source=... output=... policy=... n=16 run='[hardware=8xh100, ...]'

`run` has the stage's settings; without it, model=digits and hardware=cpu apply. All devices are
used. This runs stage `sample` of verl_prism.main in the folder <output>.run; a run that was
interrupted keeps its responses and samples the rest. The responses are in the column
student_responses. `filter` and `pairs` read it, and so does the warm-up of the discriminator with
prism.warmup.responses=file.
"""

import shutil
from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from verl_prism.checkpoints.preemption import EXIT_SAVED
from verl_prism.config import AbsolutePath, ModelPath, Section
from verl_prism.data.row_files import count_rows
from verl_prism.data.rows import parquet_files
from verl_prism.errors import UserError
from verl_prism.prepare.outputs import check_output
from verl_prism.prepare.report import Report
from verl_prism.prepare.settings import Output, ParquetFiles
from verl_prism.run_folder import RunFolder

REFUSED, INTERRUPTED = 2, 130  # exit codes of verl_prism.main


class Settings(Section):
    """Settings of `sample`."""

    source: ParquetFiles
    output: Output = Field(description="parquet file to write")
    policy: ModelPath = Field(description="folder of the policy, or its id on the Hugging Face Hub")
    n: PositiveInt = Field(16, description="responses to each question")
    temperature: PositiveFloat = Field(1.0, description="sampling temperature")
    max_response_tokens: PositiveInt | None = Field(
        None, description="longest response; null: that of the model preset"
    )
    run: Annotated[
        tuple[str, ...],
        Field(description="other settings of stage sample: [hardware=8xh100, model=qwen3_vl_4b]"),
    ] = ()
    folder: AbsolutePath | None = Field(None, description="folder of the run; null: <output>.run")


def run(settings: Settings) -> Report:
    """Sample the policy and write the responses.

    Raises:
        UserError: the stage refuses its settings or data, or the output is a file of the source.
        KeyboardInterrupt: the stage was interrupted.
    """
    from verl_prism.main import main

    files = parquet_files("source", settings.source)
    check_output("output", settings.output, settings.source, files)
    folder = settings.folder or settings.output.with_name(f"{settings.output.name}.run")
    status = main(stage_arguments(settings, folder))
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    if status == REFUSED:
        raise UserError("stage sample refused its input, see above")
    if status:
        return Report({}, problems=(_stage_problem(status, folder),))
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(RunFolder(folder).samples_file, settings.output)
    rows = count_rows([settings.output])
    return Report(counts={"rows": rows, "responses": rows * settings.n}, outputs=(settings.output,))


def _stage_problem(status: int, folder: Path) -> str:
    """Return what happened by the exit code of the stage, which has printed why it ended."""
    if status == EXIT_SAVED:
        return "stage sample was asked to end, and has saved its responses; run the command again"
    return (
        f"stage sample failed (exit code {status}), see {RunFolder(folder).log}; the same command "
        "resumes it"
    )


def stage_arguments(settings: Settings, folder: Path) -> list[str]:
    """Return the arguments of verl_prism.main."""
    files = parquet_files("source", settings.source)
    arguments = [
        "stage=sample",
        *settings.run,
        f"prism.data.train={_list(files)}",
        f"prism.policy={settings.policy}",
        f"prism.output={folder}",
        f"prism.rollout.samples_per_prompt={settings.n}",
        f"prism.rollout.temperature={settings.temperature}",
        "prism.resume=true",
    ]
    if settings.max_response_tokens is not None:
        arguments.append(f"prism.data.max_response_tokens={settings.max_response_tokens}")
    return arguments


def _list(files: list[Path]) -> str:
    quoted = [str(file).replace("\\", "\\\\").replace("'", "\\'") for file in files]
    return "[" + ",".join(f"'{file}'" for file in quoted) + "]"
