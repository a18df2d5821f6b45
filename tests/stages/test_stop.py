"""Ctrl-C in the middle of each stage on Ray or vLLM, beside another Ray on the host."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

BYSTANDER = """
import sys, ray
ray.init(num_cpus=1, include_dashboard=False, _temp_dir=sys.argv[1])
double = ray.remote(lambda number: 2 * number)
for line in sys.stdin:
    print(ray.get(double.remote(int(line))), flush=True)
"""


@pytest.fixture
def bystander():
    """A function that asks another Ray on this host for twice a number."""
    folder = tempfile.mkdtemp(prefix="bystander-", dir="/tmp")  # a socket's path must be short
    command = [sys.executable, "-c", BYSTANDER, folder]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(number: int) -> int:
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    yield ask
    process.stdin.close()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)


SMALL = ["prism.rollout.prompts_per_step=4", "prism.rollout.samples_per_prompt=4"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("stage", "reached", "overrides"),
    [
        ("rlvr", '"data"', SMALL),
        ("align", '"data"', SMALL),
        ("warmup", "starting vLLM", []),
        ("warmup", "sampling", ["prism.warmup.prompts=4000"]),
        ("eval", '"data"', []),
    ],
)
def test_ctrl_c_leaves_nothing_and_touches_no_other_ray(
    stage, reached, overrides, digits_folder, discriminator_folder, tmp_path, bystander
):
    assert bystander(1) == 2
    overrides = [
        f"stage={stage}",
        f"prism.root={digits_folder}",
        f"prism.output={tmp_path}",
        f"prism.policy={digits_folder / 'base'}",
        f"prism.discriminator.path={discriminator_folder}",
        *overrides,
    ]
    run = subprocess.Popen([sys.executable, "-m", "verl_prism.main", *overrides], stderr=subprocess.PIPE, text=True)
    while reached not in read(tmp_path / "metrics.jsonl"):
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.5)
    descendants = psutil.Process(run.pid).children(recursive=True)
    environments = [process.environ() for process in descendants]  # a Ray process may have written over its own
    scratch = {Path(environment["RAY_TMPDIR"]) for environment in environments if "RAY_TMPDIR" in environment}
    segments = {name for name in os.listdir("/dev/shm") if used_by(descendants, f"/dev/shm/{name}")}

    stopped = time.monotonic()
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=30) == 130
    assert time.monotonic() - stopped < 15
    assert len(descendants) > (10 if stage in ("rlvr", "align") else 0), "what it stops was running"
    assert not [process for process in descendants if process.is_running()]
    assert not segments & set(os.listdir("/dev/shm"))
    assert scratch and not [folder for folder in scratch if folder.exists()]
    assert bystander(21) == 42


def read(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def used_by(processes: list[psutil.Process], path: str) -> bool:
    return any(path in Path(f"/proc/{process.pid}/maps").read_text() for process in processes if process.is_running())
