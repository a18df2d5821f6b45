"""A teacher behind an OpenAI-compatible server, for tests."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from urllib.parse import unquote

from aiohttp import web
from openai_endpoint import Endpoint

Reply = str | int | dict | web.StreamResponse
RESPONSE = "<caption>{}</caption><think>It says so.</think><answer>{}</answer>"


class TeacherEndpoint(Endpoint):
    """Serves a teacher.

    `reply(key, body)` decides each reply to the request `key`, "<row id>#<try>": a text, an HTTP
    status, the JSON of a response, or a complete response.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reply: Callable[[str, dict], Reply] = lambda key, body: "?"
        self.arrived: Counter[str] = Counter()
        self.times: list[float] = []
        self.seconds = 0.0

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            key = unquote(request.headers["X-Client-Request-Id"])
            self.times.append(time.monotonic())
            self.arrived[key] += 1
            self.keys.add(request.headers.get("Authorization"))
            body = await request.json()
            self.requests.append(body)
            await asyncio.sleep(self.seconds)
            reply = self.reply(key, body)
            if isinstance(reply, dict):
                return web.json_response(reply)
            if isinstance(reply, int):
                return web.json_response({"error": {"message": f"status {reply}"}}, status=reply)
            if isinstance(reply, str):
                return web.json_response(completion(reply))
            return reply
        finally:
            self._at_once -= 1


def completion(text: str | None, finish: str = "stop", tokens: tuple[int, int] = (100, 20)) -> dict:
    """Return the JSON of a chat completion. tokens: of input and output."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "teacher",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]},
    }
