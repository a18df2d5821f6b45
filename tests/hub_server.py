"""A server for tests that speaks the part of the Hugging Face Hub's API that downloads use."""

import asyncio
import hashlib
import json
import threading
from pathlib import Path

from aiohttp import web

MAIN = "a" * 40  # commit of the branch main
TAGGED = "b" * 40  # commit of the tag v1
COMMIT = web.RequestKey("commit", str)


class HubServer:
    """Serves the files of `folder` as the model and the data set `org/tiny`, on a free port.

    gated: only these tokens may read files; None: everyone may.
    down: answer every request with 503.
    requests: method and path of each request that is about a model.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gated: set[str] | None = None
        self.down = False
        self.requests: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    @property
    def downloads(self) -> list[str]:
        """The names of the files that were downloaded."""
        return [path.rpartition("/")[2] for path in self.requests if path.startswith("GET /org")]

    @web.middleware
    async def _record(self, request: web.Request, handler) -> web.StreamResponse:
        if "/org/" in request.path:
            self.requests.append(f"{request.method} {request.path}")
        if self.down:
            return web.Response(status=503)
        if "owner" not in request.match_info:
            return web.Response(status=404)
        if f"{request.match_info['owner']}/{request.match_info['name']}" != "org/tiny":
            return self._error(401, "RepoNotFound")
        revision = request.match_info.get("revision", "main")
        commit = {"main": MAIN, "v1": TAGGED, MAIN: MAIN, TAGGED: TAGGED}.get(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound")
        request[COMMIT] = commit
        return await handler(request)

    @staticmethod
    def _error(status: int, code: str) -> web.Response:
        return web.Response(status=status, headers={"X-Error-Code": code})

    async def _info(self, request: web.Request) -> web.Response:
        files = [{"rfilename": file.name} for file in self.folder.iterdir()]
        return web.json_response({"id": "org/tiny", "sha": request[COMMIT], "siblings": files})

    async def _tree(self, request: web.Request) -> web.Response:
        entries = []
        for file in self.folder.iterdir():
            size = file.stat().st_size
            entries.append({"type": "file", "path": file.name, "size": size, "oid": _etag(file)})
        return web.json_response(entries)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.gated is not None and token not in self.gated:
            return self._error(403 if token else 401, "GatedRepo")
        file = self.folder / request.match_info["file"]
        headers = {"X-Repo-Commit": request[COMMIT], "ETag": f'"{_etag(file)}"'}
        return web.Response(body=file.read_bytes(), headers=headers)

    async def _no_folder(self, request: web.Request) -> web.Response:
        return self._error(404, "EntryNotFound")

    async def _paths(self, request: web.Request) -> web.Response:
        wanted = (await request.post()).getall("paths", [])
        entries = json.loads((await self._tree(request)).body)
        return web.json_response([entry for entry in entries if entry["path"] in wanted])

    async def _data_file(self, request: web.Request) -> web.StreamResponse:
        """Serve a file of a data set; the library asks for parts of it."""
        file = self.folder / request.match_info["file"]
        if not file.is_file():
            return self._error(404, "EntryNotFound")
        headers = {"X-Repo-Commit": request[COMMIT], "ETag": f'"{_etag(file)}"'}
        return web.FileResponse(file, headers=headers)

    def __enter__(self) -> "HubServer":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    async def _start(self) -> None:
        app = web.Application(middlewares=[self._record])
        model = "/{owner}/{name}"
        app.router.add_get(f"/api/models{model}/revision/{{revision}}", self._info)
        app.router.add_get(f"/api/models{model}/tree/{{revision}}", self._tree)
        app.router.add_get(f"{model}/resolve/{{revision}}/{{file}}", self._file)
        app.router.add_get(f"/api/datasets{model}", self._info)
        app.router.add_get(f"/api/datasets{model}/revision/{{revision}}", self._info)
        app.router.add_get(f"/api/datasets{model}/tree/{{revision}}", self._tree)
        app.router.add_get(f"/api/datasets{model}/tree/{{revision}}/{{below}}", self._no_folder)
        app.router.add_post(f"/api/datasets{model}/paths-info/{{revision}}", self._paths)
        app.router.add_get(f"/datasets{model}/resolve/{{revision}}/{{file}}", self._data_file)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
