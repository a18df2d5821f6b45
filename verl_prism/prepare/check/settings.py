"""Settings of the command check."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from verl_prism import config
from verl_prism.config import AbsolutePath, ModelPath, Section
from verl_prism.data.schema import COLUMNS
from verl_prism.prepare.parallel import available_cores
from verl_prism.prepare.settings import ParquetFiles

ONE = "data"  # name of the only split

SplitName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]


def _known_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown:
        raise ValueError(f"unknown column {unknown[0]}; known: {', '.join(COLUMNS)}")
    return columns


class Image(config.Image):
    """The sizes between which models resize images."""

    min_pixels: PositiveInt | None = Field(
        None, description="prism.image.min_pixels of the run; null: the model's"
    )
    max_pixels: PositiveInt | None = Field(
        None, description="prism.image.max_pixels of the run; null: the model's"
    )


class Settings(Section):
    """What to check, against which limits, and what to write."""

    source: dict[SplitName, ParquetFiles] | ParquetFiles = Field(
        description="parquet: a file, a folder, a glob or a list of them; or splits, "
        "{train: FILES, heldout: FILES}: a row that leaks is reported in the later split"
    )
    model: ModelPath | None = Field(
        None,
        description="folder or Hub id whose processor counts tokens; null: tokens are not counted",
    )
    image: Image = Image(min_pixels=None, max_pixels=None)
    max_prompt_tokens: PositiveInt | None = Field(
        None, description="most tokens of `prompt`, with its images and the chat template"
    )
    max_response_tokens: PositiveInt | None = Field(
        None, description="most tokens of `teacher_response`, or else of the last message"
    )
    max_demonstration_tokens: PositiveInt | None = Field(
        None, description="most tokens of `messages`, with images and the chat template"
    )
    max_perception_tokens: PositiveInt | None = Field(
        None, description="most tokens of the caption of `teacher_response`"
    )
    max_reasoning_tokens: PositiveInt | None = Field(
        None, description="most tokens of the reasoning and the answer of `teacher_response`"
    )
    optional: Annotated[tuple[str, ...], AfterValidator(_known_columns)] = Field(
        (), description="columns that may be null in a row, such as [teacher_response]"
    )
    decode_images: bool = Field(
        True, description="decode all pixels; false: check only the structure of the files"
    )
    report: AbsolutePath | None = Field(
        None, description="folder for problems.jsonl and lengths.png; null: neither"
    )
    fix: AbsolutePath | None = Field(
        None,
        description="a copy without the broken rows: a file, or a folder if source has splits",
    )
    workers: NonNegativeInt = Field(
        default_factory=available_cores, description="number of processes; 0: only this one"
    )

    @property
    def splits(self) -> dict[str, Any]:
        """The files by the name of their split; `data` if there is only one."""
        return self.source if isinstance(self.source, dict) else {ONE: self.source}

    def fixed_file(self, split: str) -> Path:
        """Return the file for the copy of a split."""
        assert self.fix is not None
        return self.fix / f"{split}.parquet" if isinstance(self.source, dict) else self.fix

    def token_limits(self) -> dict[str, int]:
        """Return the limits in tokens that are set, by their key."""
        keys = (
            "max_prompt_tokens",
            "max_response_tokens",
            "max_demonstration_tokens",
            "max_perception_tokens",
            "max_reasoning_tokens",
        )
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.token_limits() and self.model is None:
            raise ValueError("a limit in tokens needs model=FOLDER, whose processor counts them")
        if isinstance(self.source, dict) and not self.source:
            raise ValueError("source has no split")
        if self.fix is not None and isinstance(self.source, dict) == (
            self.fix.suffix == ".parquet"
        ):
            raise ValueError(
                "fix: write a folder if source has splits, else a file name ending with .parquet"
            )
        return self
