"""Remove secrets from everything that a run writes: dumped configs, logs and messages.

A secret is one of:

* the value of a config key or environment variable whose name says so (`...api_key`, `...token`,
  `...password`);
* the value of the variable that `prism.reward.judge.api_key_env` names;
* a password in a URL;
* a text in the format of a well-known kind of key.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

from omegaconf import DictConfig, OmegaConf

from verl_prism.config import flatten
from verl_prism.errors import UserError

MASK = "[redacted]"
MIN_LENGTH = 6  # characters; anything shorter would match ordinary words in a log

_SECRET_NAME = re.compile(
    r"(secret|password|passwd|passphrase|credentials?|authorization|jwt"
    r"|(api|access|account|private|secret)[_-]?key"
    r"|connection[_-]?string|token)([_-]?\d+)?$",
    re.IGNORECASE,
)
_NO_SECRET_NAME = re.compile(
    r"(per|pad|eos|bos|unk|sep|cls|mask|image|video|audio|vision|stop|start|end)[_-]?token$",
    re.IGNORECASE,
)
_USER_INFO = re.compile(r"(?<=://)([^\s/@:\"']*):([^\s/@\"']+)(?=@)")

# A substring that is fast to search for, and the pattern that is tried if a text contains it.
_KEY_PATTERNS = (
    # OpenAI, Anthropic and compatible services
    ("sk-", re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}")),
    # Hugging Face
    ("hf_", re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}")),
    # GitHub
    ("gh", re.compile(r"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{30,}")),
    ("github_pat_", re.compile(r"github_pat_[A-Za-z0-9_]{30,}")),
    # GitLab
    ("glpat-", re.compile(r"glpat-[A-Za-z0-9_-]{20,}")),
    # AWS
    ("AKIA", re.compile(r"(?<![A-Za-z0-9])AKIA[A-Z0-9]{16}")),
    # Google
    ("AIza", re.compile(r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}")),
    # JSON web token
    ("eyJ", re.compile(r"eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+")),
    # HTTP header
    ("earer ", re.compile(r"(?<=[Bb]earer )(?=[^\s\"']*\d)[^\s\"']{16,}")),
    ("://", _USER_INFO),
)


class Redactor:
    """Replace secrets by `[redacted]`: the given ones, and texts in the format of a known key."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Take the secrets in plain text; their escaped and quoted forms are replaced too."""
        forms: set[str] = set()
        for secret in secrets:
            forms.update(form for form in _forms(secret) if form not in MASK)
        self.secrets = sorted(forms, key=len, reverse=True)  # one may contain another

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        for secret in self.secrets:
            text = text.replace(secret, MASK)
        for hint, pattern in _KEY_PATTERNS:
            if hint in text:
                text = pattern.sub(MASK, text)
        return text

    def config(self, config: DictConfig) -> DictConfig:
        """Return a copy without the values of secret keys. It is for display only."""
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
        if secret and _is_text_or_number(node):
            return MASK
        return self(node) if isinstance(node, str) else node


def run_redactor(config: DictConfig, environment: Mapping[str, str]) -> Redactor:
    """Return a redactor that knows the secrets in a run's config and in its environment."""
    variable = config.prism.reward.judge.api_key_env
    secrets = [value for _, value in config_secrets(config)]
    for name, value in environment.items():
        if is_secret_name(name) or name == variable:
            secrets.append(value)
    return Redactor(secrets)


def command_redactor(overrides: Sequence[str], environment: Mapping[str, str]) -> Redactor:
    """Return a redactor for a command that may not even compose.

    It knows the secrets in the command's overrides and in the environment.
    """
    settings = list(environment.items())
    for override in overrides:
        settings += re.findall(r"([\w-]+)[=:]\s*([^\s,{}\[\]]+)", override)
    return Redactor(value.strip("\"'") for name, value in settings if is_secret_name(name))


def is_secret_name(name: str) -> bool:
    """Tell whether a key or variable is named like a secret: `HF_TOKEN` is, `max_tokens` is not."""
    return bool(_SECRET_NAME.search(name)) and not _NO_SECRET_NAME.search(name)


def config_secrets(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Yield dotted key and value of each secret in a config."""
    for key, value in flatten(OmegaConf.to_container(config)):
        if isinstance(value, str):
            for _, password in _USER_INFO.findall(value):
                yield key, password
        if _is_text_or_number(value) and any(map(is_secret_name, key.split("."))):
            yield key, str(value)


def check_uploads(config: DictConfig) -> None:
    """Raise UserError if a logger would upload a config that contains a secret.

    All of verl's loggers do, except console, file and tensorboard.
    """
    chosen = OmegaConf.select(config, "prism.loggers") or []
    uploading = {chosen} if isinstance(chosen, str) else set(chosen)
    uploading -= {"console", "file", "tensorboard"}
    if not uploading:
        return
    key = next((key for key, _ in config_secrets(config)), None)
    if key is not None:
        raise UserError(
            f"prism.loggers: {', '.join(sorted(uploading))} would upload the whole config, and "
            f"{key} in it is a secret; pass that in an environment variable instead"
        )


def _is_text_or_number(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""


def _forms(secret: str) -> Iterator[str]:
    """Yield what a secret may look like in a text, line by line.

    It may be escaped as in JSON or Python, and quoted or unquoted as in a URL.
    """
    for line in secret.splitlines():
        for plain in {line.strip(), unquote(line.strip())}:
            if len(plain) >= MIN_LENGTH:
                yield plain
                yield json.dumps(plain)[1:-1]
                yield json.dumps(plain, ensure_ascii=False)[1:-1]
                yield repr(plain)[1:-1]
                yield quote(plain, safe="")
