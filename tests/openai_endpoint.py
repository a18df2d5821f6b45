"""An OpenAI-compatible server for tests."""

import asyncio
import json
import threading
from collections.abc import Callable

from aiohttp import web

RIGHT, WRONG = '{"correct": true}', '{"correct": false}'


class Endpoint:
    """Serves `POST /v1/chat/completions` on a free port.

    `answer(question)` decides each reply: its text, an HTTP status or a complete response.
    """

    def __init__(self) -> None:
        self.requests: list[dict] = []
        self.most_at_once = 0
        self.seconds = 0.0
        self.keys: set[str | None] = set()
        self.answer: Callable[[dict], str | int | web.Response | None] = lambda question: RIGHT
        self._at_once = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    async def _complete(self, request: web.Request) -> web.Response:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        body = await request.json()
        self.requests.append(body)
        self.keys.add(request.headers.get("Authorization"))
        await asyncio.sleep(self.seconds)
        self._at_once -= 1
        reply = self.answer(json.loads(body["messages"][1]["content"]))
        if isinstance(reply, web.Response):
            return reply
        if isinstance(reply, int):
            return web.json_response({"error": {"message": f"status {reply}"}}, status=reply)
        message = {"role": "assistant", "content": reply}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response(
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [choice],
            }
        )

    def __enter__(self) -> "Endpoint":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._complete)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
