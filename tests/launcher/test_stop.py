"""Ctrl-C during each stage on Ray or vLLM, with another Ray on the same host."""

import shutil
import signal
import subprocess
import sys
import tempfile

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
    """Return a function that lets another Ray on this host double a number."""
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


@pytest.mark.integration
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
def test_ctrl_c_leaves_nothing_and_spares_another_ray(
    stage, reached, overrides, start_stage, bystander
):
    assert bystander(1) == 2
    run = start_stage(stage, *overrides)
    run.reach(reached)
    run.process.send_signal(signal.SIGINT)
    status, _, seconds = run.end(30)
    assert status == 130
    assert seconds < 15
    expected = 10 if stage in ("rlvr", "align") else 0
    assert len(run.descendants) > expected, "the stage was running"
    run.assert_nothing_left()
    assert bystander(21) == 42
