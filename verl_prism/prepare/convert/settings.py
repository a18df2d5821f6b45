"""Settings of `convert`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from verl_prism.config import DataFiles, Fraction, Section
from verl_prism.prepare.settings import Output

AUTO = "auto"
Form = Literal["chat", "question", "pairs", "rows"]
Column = str | None  # a name, AUTO, or None: there is no such column
DEFAULT = "default"  # names the file below
DEFAULT_SYSTEM_PROMPT = Path(__file__).with_name("system_prompt.txt")


def _column(text: str) -> Column:
    return Field(default=AUTO, description=f"column with {text}")


class Columns(Section):
    """Which column holds what. "auto" finds it by its name; null means no such column.

    A name with dots names a field of a field: `meta.answer`.
    """

    id: Column = _column("the name of the row")
    messages: Column = _column("the messages of form chat")
    system: Column = _column("the system message, as a text")
    question: Column = _column("the question, or the prompt")
    input: Column = _column("a text that is added to the question, as in Alpaca")
    options: Column = _column("the options of multiple choice")
    answer: Column = _column("the gold answer")
    equivalent_answers: Column = _column("a list of further gold answers")
    images: str | tuple[str, ...] | None = Field(
        default=AUTO, description="column with the images, or a list of columns"
    )
    response: Column = _column("a whole response, as a demonstration")
    caption: Column = _column("the caption of a demonstration")
    reasoning: Column = _column("the reasoning of a demonstration")
    data_source: Column = _column("the name of the data set")
    student_responses: Column = _column("the policy's own responses, in form rows")


class Settings(Section):
    """Settings of `convert`."""

    source: Annotated[str | tuple[str, ...], Field(min_length=1)] = Field(
        description="file, folder, glob, list of them, or org/name[@revision] on the Hub"
    )
    output: Output = Field(description="the parquet file to write")
    form: Form | Literal["auto"] = Field(
        "auto",
        description="chat (messages), question (plain columns), pairs (of a warm-up) or rows",
    )
    columns: Columns = Columns()
    images: DataFiles | None = Field(
        None,
        description="folder or archive (or a list) where image paths start; null: at the source",
    )
    strip_prefix: str | None = Field(None, description="prefix to remove from each image path")
    add_prefix: str | None = Field(
        None, description="prefix to add to each image path, after strip_prefix"
    )
    max_image_bytes: PositiveInt = Field(
        2**27, description="an encoded image that is larger is refused"
    )
    system_prompt: str | None = Field(
        DEFAULT, description="system message: a text, a text file, or null for none"
    )
    keep_system: bool = Field(
        True, description="a row's own system message stays; false: system_prompt replaces it"
    )
    answer_index: Literal[0, 1] | None = Field(
        None, description="a gold answer that is a number counts the options from here"
    )
    strict: bool = Field(True, description="demonstrations have to be in the response format")
    data_source: str | None = Field(
        None, description="data_source of rows without one; null: the name of the source"
    )
    split: str | None = Field(None, description="split of a data set of the library datasets")
    subset: str | None = Field(None, description="configuration of a data set on the Hub")
    limit: PositiveInt | None = Field(None, description="read at most this many rows")
    on_error: Literal["reject", "stop"] = Field(
        "reject", description="a broken row is left out, or ends the command"
    )
    max_rejects: Fraction = Field(
        0.1, description="largest part of the rows so far that may be left out"
    )
