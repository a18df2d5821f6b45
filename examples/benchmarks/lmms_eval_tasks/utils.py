"""The functions of the tasks `prism_*` of lmms-eval.

Questions, prompts, grader and measures are those of `convert.py`, stage eval and `score.py`. Only
lmms-eval has to be installed: everything else is imported from the repository that this file is in.
lmms-eval reads the file by its path, once for each `!function` of a task.
"""

import io
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from datasets import Image as ImageFeature
from loguru import logger
from PIL import Image

BENCHMARKS = Path(__file__).resolve().parents[1]
REPOSITORY = BENCHMARKS.parents[1]
for folder in (BENCHMARKS, REPOSITORY):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

import hallusion  # noqa: E402
import wemath  # noqa: E402
from columns import fitting_columns, top_level  # noqa: E402
from measures import Answer, MeasureAll  # noqa: E402
from question import BadValue, LeftOut, Question, Row  # noqa: E402
from sets import BENCHMARKS as SETS  # noqa: E402

from verl_prism.data.messages import chat_messages  # noqa: E402
from verl_prism.errors import UserError  # noqa: E402
from verl_prism.rewards.grader import math_verify_pool  # noqa: E402
from verl_prism.rewards.score import compute_score  # noqa: E402

Document = Mapping[str, Any]  # `text`, `images`, `gold`, `equivalents` and `facts` of a question
Read = Callable[[Row], Question]

MATH_VERIFY = ("math-verify==0.9.0", "antlr4-python3-runtime==4.9.3")
DEFAULT_SYSTEM_PROMPT = REPOSITORY / "verl_prism" / "prepare" / "convert" / "system_prompt.txt"


def documents(name: str, published: Dataset) -> Dataset:
    """Return the documents of a published split. Each is read when lmms-eval asks for it.

    Raises:
        UserError: a column or value is not as published, or math-verify does not work.
    """
    _check_math_verify()
    benchmark = SETS[name]
    for column, feature in published.features.items():
        if isinstance(feature, ImageFeature):
            published = published.cast_column(column, ImageFeature(decode=False))
    schema = published.features.arrow_schema
    columns = fitting_columns(Path(f"lmms-eval, {name}"), schema, benchmark.forms)
    rows = published.select_columns(top_level(columns))
    usable = list(_usable(name, benchmark.read, rows))
    return rows.select(usable).with_transform(partial(_read_documents, benchmark.read))


mathvista_documents = partial(documents, "mathvista")
mathverse_documents = partial(documents, "mathverse")
mathvision_documents = partial(documents, "mathvision")
wemath_documents = partial(documents, "wemath")
mmmu_documents = partial(documents, "mmmu")
mmmu_pro_documents = partial(documents, "mmmu_pro")
hallusion_documents = partial(documents, "hallusion_bench")


def text(document: Document) -> str:
    """Return the question with `<image>` for each image. Chat models get `messages` instead."""
    return document["text"]


def gold(document: Document) -> str:
    """Return the gold answer, for the logs of lmms-eval."""
    return document["gold"]


def messages(document: Document) -> list[dict[str, Any]]:
    """Return the prompt of a chat model: the system message, and the question with its images."""
    prompt = [
        {"role": "system", "content": _system_prompt()},
        {"role": "user", "content": document["text"]},
    ]
    images = iter(document["images"])
    filled = []
    for message in chat_messages({"prompt": prompt}):
        parts = message["content"]
        if isinstance(parts, str):
            parts = [{"type": "text", "text": parts}]
        content = [_filled(part, images) for part in parts]
        filled.append({"role": message["role"], "content": content})
    return filled


def no_simple_model(document: Document) -> list[Image.Image]:
    """Stop models that take a text and a list of images, because they lose places and roles.

    Raises:
        UserError: always.
    """
    raise UserError(
        "the tasks prism_* need a model that takes chat messages, such as --model vllm; "
        "leave out --force_simple"
    )


def grade(document: Document, responses: Sequence[str]) -> dict[str, Any]:
    """Grade a response as stage eval does: one that is not in the response format is wrong."""
    equivalents = {"equivalent_answers": document["equivalents"]}
    score = compute_score("", responses[0], document["gold"], equivalents)
    return {"accuracy": score["acc"], "format": score["format"]}


def grade_wemath(document: Document, responses: Sequence[str]) -> dict[str, Any]:
    """Grade a response, and keep the answer for the scores over problems."""
    marks = grade(document, responses)
    return {**marks, **dict.fromkeys(("strict_score", "loose_score"), _answer(document, marks))}


def grade_hallusion(document: Document, responses: Sequence[str]) -> dict[str, Any]:
    """Grade a response, and keep the answer for the measures over questions and figures."""
    marks = grade(document, responses)
    return {**marks, **dict.fromkeys(("qAcc", "fAcc"), _answer(document, marks))}


def strict_score(answers: Sequence[Document]) -> float:
    """Return We-Math's strict score."""
    return _measured(wemath.measure, "strict score", answers)


def loose_score(answers: Sequence[Document]) -> float:
    """Return We-Math's loose score."""
    return _measured(wemath.measure, "loose score", answers)


def q_acc(answers: Sequence[Document]) -> float:
    """Return HallusionBench's qAcc."""
    return _measured(hallusion.measure, "qAcc", answers)


def f_acc(answers: Sequence[Document]) -> float:
    """Return HallusionBench's fAcc."""
    return _measured(hallusion.measure, "fAcc", answers)


def _check_math_verify() -> None:
    """Stop if math-verify fails, since every answer that only it can read would be wrong."""
    math_verify_pool.start()
    if not math_verify_pool.verified("x + 1", "1 + x"):
        raise UserError(
            "math-verify does not work in this environment, as after a plain installation of "
            f"lmms-eval; run: {sys.executable} -m pip install {' '.join(MATH_VERIFY)}"
        )


def _usable(name: str, read: Read, rows: Dataset) -> Iterator[int]:
    """Yield the numbers of the rows that can be used, and report how many are left out, and why."""
    left_out: Counter[str] = Counter()
    for number, row in enumerate(rows):
        try:
            read(row)
        except LeftOut as reason:
            left_out[str(reason)] += 1
            continue
        except BadValue as error:
            raise UserError(
                f"{name}, row {number}: column {error.column!r} {error.problem}"
            ) from None
        yield number
    for reason, count in left_out.most_common():
        logger.warning(f"{name}: {count} rows left out ({reason})")


def _read_documents(read: Read, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Return published rows as documents. `batch` and the result are dicts of columns."""
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    read_rows = [_document(read(row)) for row in rows]
    return {name: [document[name] for document in read_rows] for name in read_rows[0]}


def _document(question: Question) -> Document:
    return {
        "name": question.name,
        "text": question.text,
        "images": [Image.open(io.BytesIO(image)) for image in question.images],
        "gold": question.gold,
        "equivalents": list(question.equivalents),
        "facts": dict(question.facts),
    }


def _system_prompt() -> str:
    file = Path(os.environ.get("PRISM_SYSTEM_PROMPT", DEFAULT_SYSTEM_PROMPT))
    return file.read_text(encoding="utf-8").strip()


def _filled(part: Mapping[str, str], images: Iterator[Image.Image]) -> dict[str, Any]:
    """Return a part of a message as lmms-eval takes it, with the next image for a placeholder.

    Transparent images stay so: the model's image processor puts them on white, as in our stages.
    """
    if part["type"] == "text":
        return dict(part)
    image = next(images)
    return {"type": "image", "url": image if image.mode == "RGBA" else image.convert("RGB")}


def _answer(document: Document, marks: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `_measured` needs, as lmms-eval can store it."""
    return {"facts": document["facts"], "correct": marks["accuracy"] == 1.0}


def _measured(measure: MeasureAll, name: str, answers: Sequence[Document]) -> float:
    """Return one measure of all answers; not a number if it is undefined."""
    measures = measure([Answer(answer["facts"], answer["correct"]) for answer in answers])
    value = measures[name].value
    return math.nan if value is None else value
