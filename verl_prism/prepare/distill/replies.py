"""What an endpoint replies to a request."""

from dataclasses import dataclass
from typing import Any

REFUSED = "refused"
CONTENT_FILTER = "content_filter"
REFUSED_STATUS = (400, 413, 422)  # the endpoint refuses this request, and would again


@dataclass(frozen=True)
class Answer:
    """An answer of the teacher, or a refusal.

    Attributes:
        text: the answer; of a refusal, the endpoint's reason.
        finish: why it ends: "stop", "length", …; "refused": the endpoint refused the request.
        input_tokens, output_tokens: as the endpoint counts them; None if it does not.
    """

    text: str
    finish: str
    input_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def refused(self) -> bool:
        """Whether the request was refused for good."""
        return self.finish in (REFUSED, CONTENT_FILTER)


def refusal(reason: str) -> Answer:
    """Return the answer of an endpoint that refuses a request. It costs nothing."""
    return Answer(reason, REFUSED, 0, 0)


def read_completion(body: Any) -> Answer | None:
    """Return the answer in the JSON of a chat completion, None if there is none.

    Only `content` counts: the separate reasoning of a reasoning model is ignored.
    """
    match body:
        case {"choices": [{"message": {**message}, **choice}, *_]}:
            content = message.get("content")
            finish = choice.get("finish_reason") or "stop"
        case _:
            return None
    if content is None and isinstance(message.get("refusal"), str):
        content, finish = message["refusal"], "teacher refuses"
    if not isinstance(content, str | None) or not isinstance(finish, str):
        return None
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    tokens = [_count(usage.get(f"{kind}_tokens")) for kind in ("prompt", "completion")]
    return Answer(_unicode(content or ""), _unicode(finish), *tokens)


def error_text(body: Any) -> str:
    """Return the message in the JSON of an error, or else all of it, at most 500 characters."""
    match body:
        case {"error": {"message": str(text)}} | {"error": str(text)} | {"message": str(text)}:
            return _unicode(text[:500])
    return _unicode(str(body)[:500])


def _unicode(text: str) -> str:
    """Return a text with half surrogate pairs, which UTF-8 cannot hold, spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None
