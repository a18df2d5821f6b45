"""A row of a source becomes a row of our schema."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from verl_prism.data.checks.answers import check_answer
from verl_prism.data.checks.messages import check_messages
from verl_prism.data.checks.problem import RowError
from verl_prism.data.row_files import Row
from verl_prism.prepare.convert.columns import Mapped
from verl_prism.prepare.convert.images import ImageReader, flat
from verl_prism.prepare.convert.records import Rejected, Values
from verl_prism.prepare.convert.settings import Settings
from verl_prism.prepare.convert.texts import (
    IMAGE,
    Message,
    check_response,
    gold_of,
    joined_response,
    messages_of,
    options_of,
    other_forms,
    text_of,
    with_options,
)
from verl_prism.response import parse_response

PLACED = "questions without <image> got one for each image, before the question"
OWN_SYSTEM = "rows kept a system message of their own"
CHANGED = "rows were changed"  # only of form rows


class RowMaker:
    """Makes rows from the records of one source.

    Args:
        settings: of the command.
        mapped: the columns of the source.
        images: reads the images.
        system_prompt: the system message of rows without one; None: none.
        data_source: the name of the data set for rows without one.

    Attributes:
        notes: what was done to the last row, in words.
    """

    def __init__(
        self,
        settings: Settings,
        mapped: Mapped,
        images: ImageReader,
        system_prompt: str | None,
        data_source: str,
    ) -> None:
        self.mapped = mapped
        self.images_name = images.name
        self._settings = settings
        self._images = images
        self._system_prompt = system_prompt
        self._data_source = data_source
        self.notes: set[str] = set()

    def columns(self) -> list[str]:
        """Return the columns of the rows."""
        columns = ["id", "prompt", "images", "data_source", "extra_info"]
        if "answer" in self.mapped.columns:
            columns.append("reward_model")
        if self.mapped.demonstrations:
            columns += ["messages", "teacher_response"]
        if self.mapped.form == "pairs" or "student_responses" in self.mapped.columns:
            columns.append("student_responses")
        return columns

    def make(self, values: Values) -> Row:
        """Return the row of a record.

        Raises:
            Rejected: the record cannot be used.
        """
        self.notes.clear()
        match self.mapped.form:
            case "chat":
                row = self._chat(values)
            case "question":
                row = self._question(values)
            case _:
                row = self._prompt(values)
        return self.finish(row, values)

    def source_id(self, values: Values) -> str | None:
        """Return the name that the record has, None if it has none.

        Raises:
            Rejected: it is neither a text nor a whole number.
        """
        found = self.mapped.get(values, "id")
        if found is None or found == "":
            return None
        if isinstance(found, bool) or not isinstance(found, str | int):
            raise Rejected("id is neither a text nor a number", repr(found)[:100])
        _check_texts(found)
        return str(found)

    def question_row(self, values: Values) -> Row:
        """Return prompt and images of a record with a question as a text."""
        question = text_of("question", self.mapped.get(values, "question"))
        extra = self.mapped.get(values, "input")
        if extra not in (None, ""):
            question = f"{question}\n{text_of('input', extra)}"
        question = with_options(question, options_of(self.mapped.get(values, "options")))
        images = list(flat(self.mapped.get(values, "images")))
        prompt = self._with_system(values, [{"role": "user", "content": question}])
        return {"prompt": self._placed(prompt, images), "images": images}

    def finish(self, row: Row, values: Values) -> Row:
        """Read the images of a row, add its gold answer and id, and check it.

        row: with the images as the record has them.
        """
        row["images"] = [{"bytes": content} for content in self._images.read(row["images"])]
        row["data_source"] = self._source_name(values)
        row["extra_info"] = {"index": None, "equivalent_answers": self._gold(row, values)}
        _check_texts(row)
        self._check(row)
        row["id"] = self.source_id(values) or content_id(row)
        return row

    def demonstration(self, row: Row, response: str) -> None:
        """Add a demonstration to a row."""
        row["messages"] = [*row["prompt"], {"role": "assistant", "content": response}]
        row["teacher_response"] = self._teacher_response(response)

    def _question(self, values: Values) -> Row:
        row = self.question_row(values)
        if not self.mapped.demonstrations:
            return row
        if "response" in self.mapped.columns:
            response = text_of("response", self.mapped.get(values, "response"))
        else:
            gold = self._gold_or_none(values)
            caption = self.mapped.get(values, "caption")
            response = joined_response(caption, self.mapped.get(values, "reasoning"), gold)
        self.demonstration(row, response)
        return row

    def _chat(self, values: Values) -> Row:
        messages, inside = messages_of(self.mapped.get(values, "messages"))
        images = [*flat(self.mapped.get(values, "images")), *inside]
        if inside and len(images) > len(inside):
            raise Rejected("images are in the messages and in a column")
        answered = messages[-1]["role"] == "assistant"
        if answered != self.mapped.demonstrations:
            last = messages[-1]["role"]
            raise Rejected("conversation ends in another role", f"{last}, unlike the first rows")
        prompt = messages[:-1] if answered else messages
        prompt = self._placed(self._with_system(values, prompt), images)
        row = {"prompt": prompt, "images": images}
        if answered:
            self.demonstration(row, messages[-1]["content"])
        return row

    def _prompt(self, values: Values) -> Row:
        """Return the row of a record that has a prompt of messages."""
        messages, inside = messages_of(self.mapped.get(values, "question"))
        images = [*flat(self.mapped.get(values, "images")), *inside]
        row: Row = {"images": images}
        row["prompt"] = self._placed(self._with_system(values, messages), images)
        if row["prompt"] != self.mapped.get(values, "question") or _not_plain(images):
            self.notes.add(CHANGED)
        if "response" in self.mapped.columns:
            response = text_of("teacher_response", self.mapped.get(values, "response"))
            self.demonstration(row, response)
        if "messages" in self.mapped.columns:
            row["messages"] = self._own_messages(values, images)
            last = row["messages"][-1]["content"]
            row.setdefault("teacher_response", self._teacher_response(last))
        if "student_responses" in self.mapped.columns:
            row["student_responses"] = _texts(self.mapped.get(values, "student_responses"))
        return row

    def _own_messages(self, values: Values, images: Sequence[Any]) -> list[Message]:
        """Return the messages of a record, with what precedes the last one treated as a prompt."""
        given = self.mapped.get(values, "messages")
        messages, _ = messages_of(given)
        asked = self._placed(self._with_system(values, messages[:-1]), images)
        found = [*asked, messages[-1]]
        if found != given:
            self.notes.add(CHANGED)
        return found

    def _teacher_response(self, response: str) -> str | None:
        """Return a demonstration; None if it is in another format, where that is allowed."""
        if self._settings.strict:
            check_response("demonstration", response)
            return response
        return response if parse_response(response).valid else None

    def _with_system(self, values: Values, messages: Sequence[Message]) -> list[Message]:
        own = [message for message in messages if message["role"] == "system"]
        column = self.mapped.get(values, "system")
        if column not in (None, ""):
            if own:
                raise Rejected("system message is in the messages and in a column")
            own = [{"role": "system", "content": text_of("system", column)}]
        others = [message for message in messages if message["role"] != "system"]
        if len(own) > 1:
            raise Rejected("several system messages", str(len(own)))
        if own and self._settings.keep_system:
            self.notes.add(OWN_SYSTEM)
            return [*own, *others]
        if self._system_prompt is None:
            return others
        return [{"role": "system", "content": self._system_prompt}, *others]

    def _placed(self, prompt: list[Message], images: Sequence[Any]) -> list[Message]:
        """Put placeholders before the first question if there are images but no placeholders."""
        if not images or any(IMAGE in message["content"] for message in prompt):
            return prompt
        users = [message for message in prompt if message["role"] == "user"]
        if not users:
            raise Rejected("no question", "no message has the role user")
        self.notes.add(PLACED)
        placed = {"role": "user", "content": f"{IMAGE * len(images)}\n{users[0]['content']}"}
        return [placed if message is users[0] else message for message in prompt]

    def _source_name(self, values: Values) -> str:
        found = self.mapped.get(values, "data_source")
        return self._data_source if found is None else text_of("data_source", found)

    def _gold_or_none(self, values: Values) -> str | None:
        if "answer" not in self.mapped.columns:
            return None
        options = options_of(self.mapped.get(values, "options"))
        answer = self.mapped.get(values, "answer")
        return gold_of(answer, options, self._settings.answer_index)

    def _gold(self, row: Row, values: Values) -> list[str] | None:
        """Add the gold answer to a row, and return what is as good."""
        gold = self._gold_or_none(values)
        if gold is None:
            return None
        row["reward_model"] = {"style": "rule", "ground_truth": gold}
        options = options_of(self.mapped.get(values, "options"))
        equivalents = [*self._equivalents(values), *other_forms(gold, options)]
        return equivalents or None

    def _equivalents(self, values: Values) -> list[str]:
        found = self.mapped.get(values, "equivalent_answers")
        for place in ("reward_model", "extra_info"):
            inner = values.get(place)
            if found is None and isinstance(inner, dict):
                found = inner.get("equivalent_answers")
                if found and place == "reward_model":
                    self.notes.add(CHANGED)
        if found is None:
            return []
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise Rejected("equivalent answers are not a list of texts", repr(found)[:100])
        return found

    def _check(self, row: Row) -> None:
        """Make the checks that the stages make."""
        try:
            check_messages(row, "prompt")
            if "messages" in row:
                check_messages(row, "messages")
        except RowError as error:
            raise Rejected("wrong messages or placeholders", str(error)) from None
        if "reward_model" in row:
            try:
                check_answer(row, needs_gold=True)
            except RowError as error:
                raise Rejected("wrong answer", str(error)) from None


def content_id(row: Row) -> str:
    """Return a digest of what a row holds, as its id: equal for equal rows only."""
    digest = hashlib.sha256()
    parts = [row.get(name) for name in ("prompt", "messages", "reward_model", "extra_info")]
    digest.update(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode())
    for image in row["images"]:
        digest.update(hashlib.sha256(image["bytes"]).digest())
    return digest.hexdigest()[:16]


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Rejected("student_responses are not a list of texts", repr(value)[:100])
    return value


def _not_plain(images: Sequence[Any]) -> bool:
    return any(not isinstance(image, dict) or not image.get("bytes") for image in images)


def _check_texts(value: Any) -> None:
    """Refuse a text that UTF-8 cannot hold: half of a surrogate pair, which JSON can spell."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise Rejected("text is not Unicode", f"{error.reason}, at {error.start}") from None
    elif isinstance(value, dict):
        for item in value.values():
            _check_texts(item)
    elif isinstance(value, list):
        for item in value:
            _check_texts(item)
