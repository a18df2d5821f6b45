"""Time `distill` against a bare asynchronous client, and measure its rate limits at the server.

    python benchmarks/distill.py --concurrency 32 --latency 0.5
    python benchmarks/distill.py --requests-per-minute 600
    python benchmarks/distill.py --tokens-per-minute 60000

A server in a process of its own answers after the latency. The bare client is httpx with the
bodies of the requests prepared before the clock starts; `distill` reads parquet, encodes images,
keeps the journal, parses and grades, and then writes the output. Both send the same bodies at the
same concurrency, one after the other, in each of the rounds. The time is the server's, from the
first request to the last reply; `whole` is the whole command, with its start and the output.

With a limit, only `distill` runs, and the server counts requests and tokens in each window of a
minute, of which the first starts at the first request.
"""

import argparse
import asyncio
import io
import json
import multiprocessing
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from aiohttp import web
from PIL import Image

from verl_prism.data.row_files import row_writer
from verl_prism.data.schema import schema
from verl_prism.prepare.command import run_command
from verl_prism.prepare.distill.questions import RequestMaker, read_questions
from verl_prism.prepare.distill.settings import Settings
from verl_prism.prepare.settings import parse_settings

SIZE = (640, 480)
WORDS = 300  # of an answer
IMAGES = 16  # different ones


def serve(latency: float, pipe) -> None:
    """Answer requests after `latency` seconds; `/log` returns and forgets what was seen."""
    log: list[tuple[float, float, int]] = []
    think = " ".join(f"word{number}" for number in range(WORDS))
    text = f"<caption>Noise.</caption><think>{think}</think><answer>4</answer>"

    async def complete(request: web.Request) -> web.Response:
        began = time.monotonic()
        await request.read()
        await asyncio.sleep(latency * random.uniform(0.8, 1.2))
        tokens = random.randint(100, 500)
        message = {"role": "assistant", "content": text}
        reply = {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 600, "completion_tokens": tokens},
        }
        log.append((began, time.monotonic(), 600 + tokens))
        return web.json_response(reply)

    async def seen(_: web.Request) -> web.Response:
        reply = web.json_response(log)
        log.clear()
        return reply

    async def run() -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", complete)
        app.router.add_get("/log", seen)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        pipe.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


@contextmanager
def server(latency: float) -> Iterator[str]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(latency, theirs))
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()


def write_source(file: Path, rows: int, with_images: bool) -> None:
    noise = np.random.default_rng(0)
    pictures = []
    for _ in range(IMAGES):
        pixels = noise.integers(0, 256, (SIZE[1] // 4, SIZE[0] // 4, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC).save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    place = "<image>\n" if with_images else ""
    names = ["id", "prompt", "images", "data_source", "reward_model"]
    with row_writer(file, schema(names)) as writer:
        for number in range(rows):
            images = [{"bytes": pictures[number % IMAGES]}] if with_images else None
            prompt = [{"role": "user", "content": f"{place}Question {number}: what is 2 + 2?"}]
            row = {"id": f"row-{number}", "prompt": prompt, "data_source": "noise"}
            gold = {"style": "rule", "ground_truth": "4"}
            writer.write(row | {"images": images, "reward_model": gold})


def bare(url: str, bodies: list[bytes], concurrency: int) -> None:
    """Send all bodies with httpx."""

    async def run() -> None:
        left = iter(bodies)
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)

        async def work(client: httpx.AsyncClient) -> None:
            headers = {"Content-Type": "application/json"}
            for body in left:
                reply = await client.post(
                    f"{url}/v1/chat/completions", content=body, headers=headers
                )
                reply.json()

        async with httpx.AsyncClient(limits=limits, timeout=300) as client:
            await asyncio.gather(*(work(client) for _ in range(concurrency)))

    asyncio.run(run())


def rate(url: str) -> float:
    """Return requests per second since the last call."""
    log = httpx.get(f"{url}/log").json()
    return len(log) / (max(end for _, end, _ in log) - min(began for began, _, _ in log))


def settings_of(url: str, folder: Path, *more: str) -> list[str]:
    return [
        f"source={folder / 'source.parquet'}",
        f"output={folder / 'distilled.parquet'}",
        f"teacher.endpoint={url}/v1",
        "teacher.model=teacher",
        "tries=1",
        *more,
    ]


def distill(folder: Path, arguments: list[str]) -> float:
    """Run the command on a new journal, and return its seconds."""
    for file in folder.glob("distilled.parquet*"):
        file.unlink()
    began = time.monotonic()
    report = run_command("distill", arguments)
    assert not report.rejects, report
    return time.monotonic() - began


def compare(options: argparse.Namespace, url: str, folder: Path, with_images: bool) -> None:
    write_source(folder / "source.parquet", options.rows, with_images)
    arguments = settings_of(url, folder, f"concurrency={options.concurrency}")
    maker = RequestMaker(parse_settings(Settings, arguments))
    questions = read_questions([folder / "source.parquet"], None)
    bodies = [maker.request(question.row).body for question in questions]
    kind = "images" if with_images else "text"
    ratios = []
    for number in range(options.rounds):
        bare(url, bodies, options.concurrency)
        bare_rate = rate(url)
        seconds = distill(folder, arguments)
        own_rate = rate(url)
        ratios.append(own_rate / bare_rate)
        print(
            f"{kind}, round {number}: {len(bodies)} requests of {len(bodies[0]):,} bytes; "
            f"bare {bare_rate:.1f}/s, distill {own_rate:.1f}/s, ratio {ratios[-1]:.3f}; "
            f"whole {len(bodies) / seconds:.1f}/s",
            flush=True,
        )
    print(f"{kind}: median ratio {statistics.median(ratios):.3f}", flush=True)


def measure_limits(options: argparse.Namespace, url: str, folder: Path) -> None:
    write_source(folder / "source.parquet", options.rows, False)
    more = [f"concurrency={options.concurrency}", "teacher.max_tokens=500"]
    if options.requests_per_minute:
        more.append(f"requests_per_minute={options.requests_per_minute}")
    if options.tokens_per_minute:
        more.append(f"tokens_per_minute={options.tokens_per_minute}")
    distill(folder, settings_of(url, folder, *more))
    log = httpx.get(f"{url}/log").json()
    starts = np.array([began for began, _, _ in log])
    tokens = np.array([count for _, _, count in log])[np.argsort(starts)]
    starts = np.sort(starts) - starts.min()
    figures = []
    for begin in starts[starts <= starts[-1] - 60]:
        inside = (starts >= begin) & (starts < begin + 60)
        figures.append((int(inside.sum()), int(tokens[inside].sum())))
    requests, summed = np.array(figures).T
    print(json.dumps({"limits": more[2:], "seconds": round(starts[-1]), "windows": len(figures)}))
    print(f"requests in a minute: {requests.min()} to {requests.max()}, mean {requests.mean():.1f}")
    print(f"tokens in a minute: {summed.min()} to {summed.max()}, mean {summed.mean():.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency", type=float, default=0.5, help="seconds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests-per-minute", type=float)
    parser.add_argument("--tokens-per-minute", type=float)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="distill-"))
    try:
        with server(options.latency) as url:
            if options.requests_per_minute or options.tokens_per_minute:
                measure_limits(options, url, folder)
            else:
                compare(options, url, folder, with_images=True)
                compare(options, url, folder, with_images=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
