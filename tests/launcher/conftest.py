"""A stage as a user runs it, with the processes that it starts and the memory that it holds."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from verl_prism.run_folder import RunFolder


class StageRun:
    """A stage on the digits. Its processes are recorded once, when it has reached some point."""

    def __init__(self, output: Path, overrides: list[str]):
        self.output = output
        command = [sys.executable, "-m", "verl_prism.main", f"prism.output={output}", *overrides]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def reach(self, text: str) -> None:
        """Wait until the metrics file contains the text, and record the run's processes."""
        metrics = RunFolder(self.output).metrics
        while not (metrics.exists() and text in metrics.read_text()):
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.2)
        self.descendants = psutil.Process(self.process.pid).children(recursive=True)
        # Some processes have overwritten their environment.
        environments = [process.environ() for process in self.descendants]
        self.scratch = {
            Path(names["RAY_TMPDIR"]) for names in environments if "RAY_TMPDIR" in names
        }
        self.segments = {name for name in os.listdir("/dev/shm") if self._uses(f"/dev/shm/{name}")}

    def end(self, limit: float) -> tuple[int, str, float]:
        """Return exit code, stderr, and the seconds until the run ended; fail after `limit`."""
        started = time.monotonic()
        _, stderr = self.process.communicate(timeout=limit)
        return self.process.returncode, stderr, time.monotonic() - started

    def assert_nothing_left(self) -> None:
        running = [process for process in self.descendants if process.is_running()]
        assert not running, "not even a zombie"
        assert not self.segments & set(os.listdir("/dev/shm"))
        assert self.scratch
        assert not [folder for folder in self.scratch if folder.exists()]

    def _uses(self, path: str) -> bool:
        return any(
            path in Path(f"/proc/{p.pid}/maps").read_text()
            for p in self.descendants
            if p.is_running()
        )


@pytest.fixture
def start_stage(digits_folder, discriminator_folder, tmp_path):
    """Return a function that starts a stage on the digits, and stop it after the test."""
    runs = []

    def start(stage: str, *overrides: str) -> StageRun:
        inputs = [
            f"prism.root={digits_folder}",
            f"prism.policy={digits_folder / 'base'}",
            f"prism.discriminator.path={discriminator_folder}",
        ]
        runs.append(StageRun(tmp_path, [f"stage={stage}", *inputs, *overrides]))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.process.terminate()
            run.process.communicate()
