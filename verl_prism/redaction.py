"""Secrets are taken out of all that a run writes down: dumped configurations, logs and messages.

A secret is the value of a config key or an environment variable whose name says so (`…api_key`, `…token`, `…password`),
the value of the variable that `prism.reward.judge.api_key_env` names, a password in a URL, and whatever has the shape
of a well-known kind of key.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

from omegaconf import DictConfig, OmegaConf

from verl_prism.errors import UserError

MASK = "[redacted]"
SHORTEST = 6  # characters: anything shorter stands in every other word of a log

_SECRET_NAME = re.compile(
    r"(secret|password|passwd|passphrase|credentials?|authorization|jwt|(api|access|account|private|secret)[_-]?key|"
    r"connection[_-]?string|token)([_-]?\d+)?$",
    re.IGNORECASE,
)
_NO_SECRET_NAME = re.compile(
    r"(per|pad|eos|bos|unk|sep|cls|mask|image|video|audio|vision|stop|start|end)[_-]?token$",
    re.IGNORECASE,
)
_USER_INFO = re.compile(r"(?<=://)([^\s/@:\"']*):([^\s/@\"']+)(?=@)")

# What a text must contain for the shape to be there, which is quick to see, and the shape.
_SHAPES = (
    (
        "sk-",
        re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}"),
    ),  # OpenAI, Anthropic and those that do as they do
    ("hf_", re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}")),
    ("gh", re.compile(r"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{30,}")),
    ("github_pat_", re.compile(r"github_pat_[A-Za-z0-9_]{30,}")),
    ("glpat-", re.compile(r"glpat-[A-Za-z0-9_-]{20,}")),
    ("AKIA", re.compile(r"(?<![A-Za-z0-9])AKIA[A-Z0-9]{16}")),  # AWS
    ("AIza", re.compile(r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}")),  # Google
    (
        "eyJ",
        re.compile(r"eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+"),
    ),  # JSON web token
    ("earer ", re.compile(r"(?<=[Bb]earer )(?=[^\s\"']*\d)[^\s\"']{16,}")),
    ("://", _USER_INFO),
)


class Redactor:
    """Puts `[redacted]` in the place of secrets, those given and those known by their shape."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets for form in _forms(secret) if form not in MASK}
        self.secrets = sorted(forms, key=len, reverse=True)  # one may be part of another

    def __call__(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, MASK)
        for hint, shape in _SHAPES:
            if hint in text:
                text = shape.sub(MASK, text)
        return text

    def config(self, config: DictConfig) -> DictConfig:
        """A copy to be shown, without the values of secret keys. Nothing can be run from it."""
        return OmegaConf.create(self._node(OmegaConf.to_container(config), False))

    def _node(self, node: Any, secret: bool) -> Any:
        match node:
            case dict():
                return {
                    key: self._node(value, secret or is_secret_name(str(key)))
                    for key, value in node.items()
                }
            case list():
                return [self._node(item, secret) for item in node]
            case str():
                return MASK if secret and node else self(node)
        return MASK if secret and _is_number(node) else node


def run_redactor(config: DictConfig, environment: Mapping[str, str]) -> Redactor:
    """Knows the secrets of a run: those in its configuration and in the environment of its processes."""
    variable = config.prism.reward.judge.api_key_env
    in_environment = [
        value for name, value in environment.items() if is_secret_name(name) or name == variable
    ]
    return Redactor([*in_environment, *(value for _, value in config_secrets(config))])


def command_redactor(overrides: Sequence[str], environment: Mapping[str, str]) -> Redactor:
    """Knows the secrets of a command that may not even compose: its overrides and the environment."""
    settings = [
        match.groups()
        for item in overrides
        for match in re.finditer(r"([\w-]+)[=:]\s*([^\s,{}\[\]]+)", item)
    ]
    named = [
        value.strip("\"'")
        for name, value in [*settings, *environment.items()]
        if is_secret_name(name)
    ]
    return Redactor(named)


def is_secret_name(name: str) -> bool:
    """Whether a key or variable is called like something to be kept: `HF_TOKEN` is, `max_tokens` is not."""
    return bool(_SECRET_NAME.search(name)) and not _NO_SECRET_NAME.search(name)


def config_secrets(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Dotted key and value of each secret in a configuration."""
    return _secrets_below(OmegaConf.to_container(config), "", False)


def check_uploads(config: DictConfig) -> None:
    """verl's loggers other than these send the whole configuration to a server. Raises UserError."""
    chosen = OmegaConf.select(config, "trainer.logger") or []
    sending = {chosen} if isinstance(chosen, str) else set(chosen)
    sending -= {"console", "file", "tensorboard"}
    secrets = [key for key, _ in config_secrets(config)] if sending else []
    if secrets:
        raise UserError(
            f"trainer.logger: {', '.join(sorted(sending))} would send the whole configuration away, and {secrets[0]} "
            "in it is a secret; give that by an environment variable"
        )


def _secrets_below(node: Any, key: str, secret: bool) -> Iterator[tuple[str, str]]:
    match node:
        case dict():
            for name, child in node.items():
                below = f"{key}.{name}" if key else str(name)
                yield from _secrets_below(child, below, secret or is_secret_name(str(name)))
        case list():
            for item in node:
                yield from _secrets_below(item, key, secret)
        case str():
            yield from ((key, password) for _, password in _USER_INFO.findall(node))
            if secret and node:
                yield key, node
        case _ if secret and _is_number(node):
            yield key, str(node)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _forms(secret: str) -> Iterator[str]:
    """A secret as it may stand in a text: line by line, escaped in JSON or Python, quoted in a URL or not."""
    for line in secret.splitlines():
        for plain in {line.strip(), unquote(line.strip())}:
            if len(plain) >= SHORTEST:
                yield from (
                    plain,
                    json.dumps(plain)[1:-1],
                    json.dumps(plain, ensure_ascii=False)[1:-1],
                )
                yield from (repr(plain)[1:-1], quote(plain, safe=""))
