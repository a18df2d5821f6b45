"""Ask a teacher for a caption, reasoning and an answer to each question of a source.

The teacher is any model behind an OpenAI-compatible endpoint. The first answer to a question that
is in the response format, and that grades as equal to the gold answer, is kept. The output is the
source's rows, in their order, with the columns `teacher_response` and `messages` (the prompt and
the answer), which are replaced if the source has them. The other rows are in
`<output>.rejects.jsonl` with the reasons and the texts.

Every answer is kept in `<output>.journal.sqlite` as soon as it arrives. The same command continues
a run that has ended early, and pays for no answer twice.

    python -m verl_prism.data distill source=questions.parquet output=distilled.parquet \\
        teacher.endpoint=https://api.openai.com/v1 teacher.model=MODEL \\
        teacher.api_key_env=OPENAI_API_KEY requests_per_minute=500 \\
        prices.input=1.25 prices.output=10 budget=200

    python -m verl_prism.data distill source=questions.parquet output=distilled.parquet \\
        teacher.endpoint=http://localhost:8000/v1 teacher.model=MODEL concurrency=64 grade=false

What the teacher sees: the text of `prompt` is the system message, in place of the row's own. The
row's other messages follow as they are, with its images as data URLs. `prompt=plain` asks for the
response format; `prompt=gold` also shows the gold answer and forbids mentioning it; a text file of
your own can contain {gold}, which stands for the row's gold answer. Only the answer's `content`
counts: the separate reasoning of a reasoning model is ignored.

Questions without a gold answer can only be kept ungraded, with grade=false.
"""

from verl_prism.prepare.distill.settings import Settings
from verl_prism.prepare.report import Report

__all__ = ["Settings", "run"]


def run(settings: Settings) -> Report:
    """Ask the teacher, and write the output.

    Raises:
        UserError: a mistake in the settings or the source, or the teacher refuses every request.
    """
    from verl_prism.prepare.distill.running import distill  # imports openai

    return distill(settings)
