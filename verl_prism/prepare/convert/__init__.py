"""Turn questions or demonstrations in another form into the parquet that the stages read.

    python -m verl_prism.data convert source=questions.jsonl images=pictures output=train.parquet
    python -m verl_prism.data convert source=org/name@main split=train output=train.parquet

The source is JSON, JSON lines, parquet, a zip or tar of them, a folder or list of such files, a
folder of the library `datasets`, or a data set on the Hugging Face Hub. Rows are ShareGPT or OpenAI
messages, plain columns (question, answer, images, options), the pairs of a warm-up, or rows that
already have a `prompt`. The columns are found by their names; `columns.*` names others.

A row that cannot be used goes to <output>.rejects.jsonl, with its place and the reason.
"""

from verl_prism.prepare.convert.run import run
from verl_prism.prepare.convert.settings import Settings

__all__ = ["Settings", "run"]
