"""Kill `python -m verl_prism.data distill` with SIGKILL many times, and count what was paid.

    python benchmarks/distill_kills.py --kills 20
    python benchmarks/distill_kills.py --kills 20 --policy outputs/digits/sft/policy \\
        --source outputs/digits/data/train.parquet

A server between the command and the teacher counts the requests of each try of each row, and keeps
what it delivered. Without --policy the server answers by itself; with --policy it passes on to a
vLLM server with that model (of the digits example), which it starts.

Each run is killed at a random moment after its first request. The last run is left alone. Then

* the rows of the output and of the rejects are the rows of the source, each once, in order;
* each answer in the journal is one that the server delivered for this row and try;
* for each row and try, the server saw at most one request besides those that the journal counts as
  sent and unanswered: nothing that was received was asked, and paid, again.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import aiohttp
import pyarrow.parquet as pq
from aiohttp import web

from verl_prism.data.row_files import row_writer

ROOT = Path(__file__).parents[1]
SYSTEM_PROMPT = "Reply with <caption>image</caption><think>steps</think><answer>sum</answer>."
START_SECONDS = 300


class Server:
    """Counts requests, and answers them or passes them on to `upstream`."""

    def __init__(self, upstream: str | None) -> None:
        self.arrived: Counter[str] = Counter()
        self.delivered: defaultdict[str, list[str]] = defaultdict(list)
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession()
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._complete)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _stop(self) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _complete(self, request: web.Request) -> web.Response:
        key = unquote(request.headers["X-Client-Request-Id"])
        self.arrived[key] += 1
        body = await request.read()
        reply = await self._reply(body)
        self.delivered[key].append(reply["choices"][0]["message"]["content"])
        return web.json_response(reply)

    async def _reply(self, body: bytes) -> dict:
        if self._upstream is not None:
            headers = {"Content-Type": "application/json"}
            url = f"{self._upstream}/chat/completions"
            async with self._session.post(url, data=body, headers=headers) as response:
                return await response.json()
        await asyncio.sleep(random.uniform(0.02, 0.3))
        total = random.randint(0, 18)
        text = f"<caption>{total}</caption><think>{total}</think><answer>{total}</answer>"
        message = {"role": "assistant", "content": text}
        return {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 30},
        }


@contextmanager
def vllm_server(policy: Path) -> Iterator[str]:
    """Serve a tiny policy with vLLM on the CPU; yield the URL of its API."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--served-model-name", "teacher", "--max-model-len", "512", "--max-num-seqs", "16"]
    options += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32"]
    environment = os.environ | {"TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", policy]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, *options], stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _wait_for(url: str, process: subprocess.Popen) -> None:
    for _ in range(START_SECONDS):
        if process.poll() is not None:
            raise SystemExit("vLLM has ended")
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(1)
    raise SystemExit("vLLM does not start")


def write_source(file: Path, rows: int, given: Path | None) -> None:
    """Write questions: of the digits example, or without images."""
    if given is not None:
        table = pq.read_table(given).slice(0, rows)
        ids = [f"digits-{number}" for number in range(table.num_rows)]
        pq.write_table(table.append_column("id", [ids]), file)
        return
    from verl_prism.data.schema import schema

    columns = ["id", "prompt", "data_source", "reward_model"]
    with row_writer(file, schema(columns)) as writer:
        for number in range(rows):
            gold = {"style": "rule", "ground_truth": str(number % 19)}
            prompt = [{"role": "user", "content": f"What is question {number}?"}]
            row = {"id": f"row-{number}", "prompt": prompt, "data_source": "numbers"}
            writer.write(row | {"reward_model": gold})


def run_kills(server: Server, folder: Path, source: Path, kills: int, seconds: float) -> int:
    """Run the command, and kill it `kills` times; return how often it was running when killed."""
    (folder / "prompt.txt").write_text(SYSTEM_PROMPT)
    command = [sys.executable, "-m", "verl_prism.data", "distill", f"source={source}"]
    command += [f"output={folder / 'distilled.parquet'}", f"teacher.endpoint={server.url}"]
    command += ["teacher.model=teacher", f"prompt={folder / 'prompt.txt'}", "concurrency=8"]
    command += ["teacher.max_tokens=96", "tries=2", "teacher.timeout_seconds=60"]
    killed = 0
    for _ in range(kills):
        before = server.arrived.total()
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while server.arrived.total() == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(random.uniform(0, seconds))
        killed += process.poll() is None
        process.kill()
        process.wait()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"the last run failed: {done.stderr}")
    print(done.stdout)
    return killed


def check(server: Server, output: Path, source: Path) -> str:
    """Compare source, output, journal and server; return the result in words."""
    ids = pq.read_table(source, columns=["id"])["id"].to_pylist()
    kept = pq.read_table(output, columns=["id"])["id"].to_pylist()
    rejects = output.with_name(f"{output.name}.rejects.jsonl").read_text().splitlines()
    left_out = [json.loads(line)["id"] for line in rejects]
    _require(kept == [name for name in ids if name in set(kept)], "rows out of order or doubled")
    _require(sorted(kept + left_out) == sorted(ids), "rows were lost or doubled")
    with sqlite3.connect(output.with_name(f"{output.name}.journal.sqlite")) as database:
        answers = database.execute("SELECT id || '#' || try, text FROM answers").fetchall()
        lost = Counter(key for (key,) in database.execute("SELECT id || '#' || try FROM lost"))
    for key, text in answers:
        _require(text in server.delivered[key], f"{key}: an answer that was not delivered")
    answered = {key for key, _ in answers}
    for key, number in server.arrived.items():
        paid = number - lost[key]
        _require(paid <= (key in answered), f"{key}: asked again after an answer")
    return (
        f"{len(ids)} rows = {len(kept)} kept + {len(left_out)} left out, none lost or doubled; "
        f"server: {server.arrived.total()} requests; journal: {len(answers)} answers + "
        f"{lost.total()} sent and unanswered; none paid twice"
    )


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise SystemExit(problem)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1.5, help="longest life of a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", type=Path)
    parser.add_argument("--source", type=Path)
    options = parser.parse_args()
    random.seed(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="distill-kills-"))
    try:
        if options.policy is None:
            run(options, folder, None)
        else:
            with vllm_server(options.policy) as upstream:
                run(options, folder, upstream)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(options: argparse.Namespace, folder: Path, upstream: str | None) -> None:
    source = folder / "source.parquet"
    write_source(source, options.rows, options.source)
    with Server(upstream) as server:
        killed = run_kills(server, folder, source, options.kills, options.seconds)
        print(f"{options.kills} runs, {killed} killed at work")
        print(check(server, folder / "distilled.parquet", source))


if __name__ == "__main__":
    main()
