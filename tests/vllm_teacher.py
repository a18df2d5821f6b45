"""A policy of the digits example behind vLLM's OpenAI-compatible server, as a teacher."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 300
NAME = "teacher"
ENVIRONMENT = {
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}


@contextmanager
def vllm_teacher(policy: Path, log: Path) -> Iterator[str]:
    """Serve a policy on the CPU for the block; yield the URL of its API."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--served-model-name", NAME, "--max-model-len", "512", "--max-num-seqs", "16"]
    options += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", policy]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*command, *options],
            stdout=output,
            stderr=output,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(START_SECONDS):
        if process.poll() is not None:
            raise RuntimeError(f"vLLM has ended:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(1)
    raise RuntimeError("vLLM does not start")
