"""Which form the rows of a source have, and which column holds what."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verl_prism.errors import UserError
from verl_prism.prepare.convert.records import Rejected, Values
from verl_prism.prepare.convert.settings import AUTO, Columns, Form, Settings

# The names that are looked for, by what they hold. docs/data.md has the same table.
ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("id", "question_id", "uid", "qid", "pid"),
    "messages": ("messages", "conversations", "conversation"),
    "system": ("system", "system_prompt"),
    "question": ("question", "problem", "prompt", "query", "instruction"),
    "input": ("input",),
    "options": ("options", "choices"),
    "answer": ("answer", "gold", "gold_answer", "ground_truth", "solution", "reward_model"),
    "equivalent_answers": ("equivalent_answers",),
    "images": ("images", "image", "image_path", "image_paths", "file_name"),
    "response": ("response", "teacher_response", "output"),
    "caption": ("caption", "teacher_caption"),
    "reasoning": ("reasoning", "teacher_cot", "cot", "think", "rationale"),
    "data_source": ("data_source",),
    "student_responses": ("student_responses",),
}
HEAD = 20  # rows by which the columns are found
ANSWERERS = ("assistant", "gpt", "chatgpt", "model", "bot")  # roles
PAIR_TEXTS = ("teacher_caption", "teacher_cot", "student_caption", "student_cot")
# Two columns that make a demonstration only together.
PARTNERS = {"caption": "reasoning", "reasoning": "caption"}
# What each form reads, besides id, images and data_source.
READS: dict[Form, tuple[str, ...]] = {
    "chat": ("messages", "system", "answer", "equivalent_answers"),
    "question": (
        *("question", "input", "options", "system", "answer", "equivalent_answers"),
        *("response", "caption", "reasoning"),
    ),
    "pairs": ("question", "system", "answer", "equivalent_answers"),
    "rows": (
        *("question", "messages", "answer", "equivalent_answers", "response"),
        "student_responses",
    ),
}
ALWAYS = ("id", "images", "data_source")
NEEDED: dict[Form, str] = {
    "chat": "messages",
    "question": "question",
    "pairs": "question",
    "rows": "question",
}


@dataclass(frozen=True)
class Mapped:
    """The form of a source, and its columns by what they hold.

    Attributes:
        demonstrations: whether the rows have a response.
        unread: known column names that are not read, and what each would hold.
    """

    form: Form
    columns: Mapping[str, tuple[str, ...]]
    demonstrations: bool
    unread: Mapping[str, str]

    def get(self, values: Values, what: str) -> Any:
        """Return what a row holds, None if it lacks it; a list if several columns hold it."""
        names = self.columns.get(what, ())
        if len(names) == 1:
            return field(values, names[0])
        found = [field(values, name) for name in names]
        return [value for value in found if value is not None] or None

    def check_unread(self, values: Values) -> None:
        """Check that no value is lost because the first rows, which tell the columns, lack it.

        Raises:
            Rejected: a column that is not read has a known name, and a value of its own.
        """
        for name, what in self.unread.items():
            value = values.get(name)
            if _is_empty(value) or value == self.get(values, what):
                continue
            if what in PARTNERS and not self._may_hold(values, PARTNERS[what]):
                continue
            (other,) = self.columns.get(what, ("null",))
            raise Rejected(
                f"column {name} is not read: it is empty, or a copy of another column, in the "
                f"first {HEAD} rows; set columns.{what}={name} to read it, or "
                f"columns.{what}={other} to leave it out"
            )

    def _may_hold(self, values: Values, what: str) -> bool:
        """Return whether a row has a value in a column that is, or would be, read as `what`."""
        names = [name for name, unread in self.unread.items() if unread == what]
        found = [self.get(values, what), *(values.get(name) for name in names)]
        return not all(_is_empty(value) for value in found)

    def used(self) -> set[str]:
        """Return the names of the columns that are read."""
        names = [name for names in self.columns.values() for name in names]
        pairs = PAIR_TEXTS if self.form == "pairs" else ()
        return {name.partition(".")[0] for name in names} | set(names) | set(pairs)

    def describe(self) -> str:
        """Return the form and the columns in words."""
        columns = [f"{what}={'+'.join(names)}" for what, names in self.columns.items()]
        return f"{self.form}: {', '.join(columns)}"


def map_columns(name: str, head: Sequence[Values], settings: Settings) -> Mapped:
    """Find the form and the columns of a source from its first rows.

    Raises:
        UserError: they are ambiguous or unknown; with what was found and the key to set.
    """
    present = _present_columns(head)
    form = settings.form
    if form == "auto":
        form = _form(name, head, present, settings.columns)
    columns = {}
    for what in (*ALWAYS, *READS[form]):
        found = _find(name, what, form, head, present, settings.columns)
        if found:
            columns[what] = found
    _require(name, form, columns, present)
    unread = _unread(form, columns, settings.columns)
    return Mapped(form, columns, _demonstrations(form, columns, head), unread)


def named_columns(columns: Columns) -> dict[str, str]:
    """Return the columns that settings name, and what each holds."""
    named: dict[str, str] = {}
    for what, given in columns.model_dump().items():
        names = (given,) if isinstance(given, str) else given or ()
        named |= {name: what for name in names if name != AUTO}
    return named


def check_named(columns: Columns, known: Collection[str]) -> None:
    """Check that the columns that settings name are among all that a source has.

    Raises:
        UserError: one is not.
    """
    for name, what in named_columns(columns).items():
        if name not in known and name.partition(".")[0] not in known:
            raise UserError(
                f"columns.{what}={name}: source has no such column; it has {', '.join(known)}"
            )


def has_value(values: Values, name: str) -> bool:
    """Return whether a row has something in a column, or in a field."""
    return not _is_empty(field(values, name))


def field(values: Values, name: str) -> Any:
    """Return a value of a row; a name with dots leads into fields."""
    if name in values:
        return values[name]
    found: Any = values
    for part in name.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found


def is_messages(value: Any) -> bool:
    """Return whether a value is a list of messages, in the ways of ShareGPT or OpenAI."""
    if not isinstance(value, list) or not value or not isinstance(value[0], Mapping):
        return False
    return {"from", "value"} <= value[0].keys() or {"role", "content"} <= value[0].keys()


def _present_columns(head: Sequence[Values]) -> list[str]:
    """Return the columns that hold something in one of the rows."""
    names: dict[str, None] = {}
    for values in head:
        for name, value in values.items():
            if not _is_empty(value):
                names[name] = None
    return list(names)


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value == []


def _form(name: str, head: Sequence[Values], present: Sequence[str], columns: Columns) -> Form:
    if set(PAIR_TEXTS) <= set(present):
        return "pairs"
    question = columns.question if columns.question not in (AUTO, None) else "prompt"
    if any(is_messages(field(values, str(question))) for values in head):
        return "rows"
    chat = _given(columns.messages, "messages", present)
    plain = _given(columns.question, "question", present)
    if chat and plain and columns.messages == AUTO and columns.question == AUTO:
        raise UserError(
            f"{name} has {chat[0]} and {plain[0]}: set form=chat to convert the messages, or "
            "form=question"
        )
    if chat and (not plain or columns.messages != AUTO):
        return "chat"
    if plain:
        return "question"
    raise UserError(
        f"{name}: no known form; it has the columns {', '.join(present) or '(none)'}; set "
        "columns.question=NAME for the question as a text, or columns.messages=NAME for messages"
    )


def _given(column: str | None, what: str, present: Sequence[str]) -> list[str]:
    if column is None:
        return []
    if column != AUTO:
        return [column]
    return [alias for alias in ALIASES[what] if alias in present]


def _find(
    name: str,
    what: str,
    form: Form,
    head: Sequence[Values],
    present: Sequence[str],
    columns: Columns,
) -> tuple[str, ...]:
    """Return the columns that hold `what`, usually one."""
    wanted = getattr(columns, what)
    if wanted is None:
        return ()
    if wanted != AUTO:
        return (wanted,) if isinstance(wanted, str) else tuple(wanted)
    found = [alias for alias in _aliases(what, form) if alias in present]
    if what != "id" and len(found) > 1 and _differ(found, head):
        raise UserError(
            f"{name} has {' and '.join(found)}: set columns.{what}={found[0]}, or another one"
        )
    return tuple(found[:1])


def _unread(form: Form, found: Mapping[str, tuple[str, ...]], columns: Columns) -> dict[str, str]:
    """Return the known names that are not read, of what no setting names a column for."""
    used = {name for names in found.values() for name in names}
    unread: dict[str, str] = {}
    for what in (*ALWAYS, *READS[form]):
        if what in PARTNERS and "response" in found:
            continue  # the response is the whole demonstration
        several = what == "id" and what in found  # a row may have several names
        if getattr(columns, what) == AUTO and not several:
            unread |= {alias: what for alias in _aliases(what, form) if alias not in used}
    return unread


def _aliases(what: str, form: Form) -> tuple[str, ...]:
    match form, what:
        case "rows", "question":
            return ("prompt",)
        case "rows", "messages":
            return ("messages",)
        case "rows", "answer":
            return ("reward_model",)
        case "rows", "response":
            return ("teacher_response",)
        case "pairs", "question":
            return ("question", "prompt")
    return ALIASES[what]


def _differ(names: Sequence[str], head: Sequence[Values]) -> bool:
    return any(values.get(name) != values.get(names[0]) for values in head for name in names[1:])


def _require(
    name: str, form: Form, columns: Mapping[str, tuple[str, ...]], present: Sequence[str]
) -> None:
    missing = [NEEDED[form]] if NEEDED[form] not in columns else []
    lacking = [text for text in PAIR_TEXTS if form == "pairs" and text not in present]
    if lacking:
        raise UserError(f"{name}: form=pairs needs {', '.join(lacking)}; it has {present}")
    if missing:
        raise UserError(
            f"{name}: form={form} needs columns.{missing[0]}=NAME; it has {', '.join(present)}"
        )


def _demonstrations(
    form: Form, columns: Mapping[str, tuple[str, ...]], head: Sequence[Values]
) -> bool:
    match form:
        case "chat":
            return any(_answered(messages) for messages in _messages(columns, head))
        case "question":
            return "response" in columns or {"caption", "reasoning"} <= columns.keys()
        case "rows":
            return "messages" in columns or "response" in columns
    return True


def _messages(columns: Mapping[str, tuple[str, ...]], head: Sequence[Values]) -> Iterator[Any]:
    for values in head:
        yield field(values, columns["messages"][0])


def _answered(messages: Any) -> bool:
    if not is_messages(messages):
        return False
    last = messages[-1]
    return isinstance(last, Mapping) and last.get("role", last.get("from")) in ANSWERERS
