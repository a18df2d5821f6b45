"""The chat template of a model, rendered as transformers does, without the import of torch."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from verl_prism.errors import UserError

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class ChatTemplate:
    """Renders messages as the text that the policy is given.

    Raises:
        UserError: the folder has no chat template, or the template is not valid.
    """

    def __init__(self, model: Path) -> None:
        self._model = model
        self._special_tokens = _special_tokens(model)
        try:
            self._template = _environment().from_string(_template(model))
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{model}: its chat template is not valid: {error}") from None

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """Return the text.

        Raises:
            jinja2.TemplateError: the template does not accept the messages.
        """
        return self._template.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._special_tokens,
        )


class _Generation(Extension):
    """The tag `generation`, which marks an assistant's text and shows its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _template(model: Path) -> str:
    """Return the text of the template, which has several possible places."""
    file = model / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _read(model / name).get("chat_template")
        if isinstance(found, str):
            return found
    raise UserError(
        f"{model}: no chat template (looked for chat_template.jinja, chat_template.json and "
        "tokenizer_config.json); copy it from the base model"
    )


def _special_tokens(model: Path) -> dict[str, str]:
    content = _read(model / "tokenizer_config.json")
    tokens = {}
    for name in SPECIAL_TOKENS:
        token = content.get(name)
        if isinstance(token, dict):
            token = token["content"]
        if token is not None:
            tokens[name] = token
    return tokens


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); copy it again") from None
