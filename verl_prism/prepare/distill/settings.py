"""Settings of the commands `distill` and `estimate`."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from verl_prism import config
from verl_prism.config import AbsolutePath, NonNegativeInt, Section
from verl_prism.errors import UserError
from verl_prism.prepare.rejects import rejects_file
from verl_prism.prepare.settings import Output, ParquetFiles

PACKAGED = {"plain": "prompt.txt", "gold": "prompt_gold.txt"}
GOLD = "{gold}"  # in the text of a prompt: the row's gold answer
OWN_FIELDS = ("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "stream")


def _endpoint(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("write a URL such as https://api.openai.com/v1")
    return url.rstrip("/").removesuffix("/chat/completions")


def _extra_body(body: dict[str, Any]) -> dict[str, Any]:
    taken = [name for name in OWN_FIELDS if name in body]
    if taken or body.get("n", 1) != 1:
        raise ValueError(f"{', '.join(taken) or 'n'} is set by other settings")
    return body


class Teacher(Section):
    """The teacher and how it is asked."""

    endpoint: Annotated[str, AfterValidator(_endpoint)] = Field(
        description="URL of an OpenAI-compatible API, up to /v1"
    )
    model: str = Field(description="the teacher's name there")
    api_key_env: str | None = Field(
        None, description="environment variable that holds the API key; null: no key"
    )
    temperature: NonNegativeFloat | None = Field(
        1.0, description="sampling temperature; null: not sent"
    )
    max_tokens: PositiveInt = Field(4096, description="most output tokens of an answer")
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="the name of max_tokens in a request"
    )
    extra_body: Annotated[dict[str, Any], AfterValidator(_extra_body)] = Field(
        default={}, description="further fields of a request, such as {top_p: 0.9}"
    )
    timeout_seconds: PositiveFloat = Field(300.0, description="longest wait for an answer")


class Prices(Section):
    """Prices per million tokens."""

    input: NonNegativeFloat | None = Field(None, description="price of a million input tokens")
    output: NonNegativeFloat | None = Field(None, description="price of a million output tokens")
    currency: str = Field("USD", description="the currency of prices and budget")

    @model_validator(mode="after")
    def _both(self) -> "Prices":
        if (self.input is None) != (self.output is None):
            raise ValueError("input and output go together")
        return self

    def cost(self, input_tokens: float, output_tokens: float) -> float:
        """Return the price of tokens, 0 without prices."""
        return ((self.input or 0) * input_tokens + (self.output or 0) * output_tokens) / 1e6


class Judge(config.Judge):
    """The language model that reviews answers which the rules call wrong."""

    endpoint: str | None = Field(None, description="URL of the judge's API; null: no judge")
    model: str | None = Field(None, description="the judge's name there")
    api_key_env: str | None = Field(
        None, description="environment variable that holds the judge's API key"
    )
    concurrency: PositiveInt = Field(16, description="most questions to the judge at once")
    timeout_seconds: PositiveFloat = Field(60.0, description="longest wait for a verdict")
    retries: NonNegativeInt = Field(5, description="retries of a question to the judge")
    budget: PositiveInt = Field(100_000, description="most questions to the judge in a run")
    cache: AbsolutePath = Field(
        Path("~/.cache/verl_prism/judge").expanduser(),
        description="folder in which verdicts are kept",
    )
    when_down: Literal["stop", "unjudged"] = Field(
        "stop", description="stop the run, or reject what was not judged"
    )


class Settings(Section):
    """Settings of `distill`."""

    source: ParquetFiles = Field(description="questions: parquet files, a folder, or a glob")
    output: Output = Field(description="parquet file to write")
    teacher: Teacher = Field(default={}, validate_default=True)
    prompt: str = Field(
        "plain",
        description="the system message: plain, gold, or a text file; {gold} in it is the answer",
    )
    max_image_pixels: PositiveInt | None = Field(
        None, description="shrink larger images before they are sent; null: send as they are"
    )
    tries: PositiveInt = Field(4, description="most answers per question")
    grade: bool = Field(True, description="keep only answers that equal the gold answer")
    judge: Judge = Field(default={}, validate_default=True)
    limit: PositiveInt | None = Field(None, description="only the first rows of the source")
    concurrency: PositiveInt = Field(16, description="most requests at once")
    requests_per_minute: PositiveFloat | None = Field(None, description="rate limit")
    tokens_per_minute: PositiveFloat | None = Field(
        None, description="rate limit, input and output tokens together"
    )
    retries: NonNegativeInt = Field(
        8, description="retries of a request that fails for a passing reason"
    )
    stop_if_refused: bool = Field(
        True,
        description="stop if 10 requests in a row, or a whole batch, are refused; keep no refusal",
    )
    prices: Prices = Field(default={}, validate_default=True)
    budget: PositiveFloat | None = Field(
        None, description="stop before the costs, in the prices' currency, would pass this"
    )
    batch: Literal["write", "read"] | None = Field(
        None, description="write request files for a batch API, or read its results"
    )
    batch_results: AbsolutePath | tuple[AbsolutePath, ...] | None = Field(
        None, description="batch=read: files, folders or globs with results (JSONL)"
    )
    batch_max_requests: PositiveInt = Field(50_000, description="most requests in a batch file")
    batch_max_bytes: PositiveInt = Field(190_000_000, description="most bytes of a batch file")

    @model_validator(mode="after")
    def _possible(self) -> "Settings":
        if self.tries > 1 and self.teacher.temperature == 0:
            raise ValueError(
                "teacher.temperature=0 gives the same answer at every try; raise it, or use tries=1"
            )
        if self.budget is not None and self.prices.input is None:
            raise ValueError("budget needs prices.input and prices.output")
        if self.judge.endpoint is not None and not self.grade:
            raise ValueError("judge.endpoint needs grade=true")
        if self.budget is not None and self.batch == "write":
            raise ValueError(
                "batch=write sends no requests, so budget cannot limit their costs; limit the rows "
                "with limit, and use budget=null"
            )
        if (self.batch == "read") != (self.batch_results is not None):
            raise ValueError("batch=read and batch_results=FILES go together")
        return self

    @property
    def journal(self) -> Path:
        """The file that keeps every answer."""
        return self.output.with_name(f"{self.output.name}.journal.sqlite")

    @property
    def rejects(self) -> Path:
        """The file with the rows that are left out."""
        return rejects_file(self.output)


def prompt_text(prompt: str) -> str:
    """Return the text of the setting `prompt`.

    Raises:
        UserError: the file cannot be read, or is empty.
    """
    if prompt in PACKAGED:
        return files(__package__).joinpath(PACKAGED[prompt]).read_text(encoding="utf-8").strip()
    try:
        text = Path(prompt).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"prompt={prompt}: cannot be read ({error}); use {', '.join(PACKAGED)}, or a text file"
        ) from None
    if not text:
        raise UserError(f"prompt={prompt}: the file is empty")
    return text
