import json
import os
import pty
import subprocess
import sys
import time

import pytest

from verl_prism.launcher.console import StageConsole
from verl_prism.report.metrics import MetricsLog

NOISY_STAGE = """
import json, os, subprocess, sys, time
from pathlib import Path
from verl_prism.launcher.console import StageConsole

output = Path(sys.argv[1])
with StageConsole("align", output, total_steps=3, headline=["reward=rewards/mean"]) as console:
    console.note("starting Ray")
    print("python noise"); print("python noise on stderr", file=sys.stderr)
    os.system("echo noise of a C-level child; echo noise of a C-level child on stderr >&2")
    subprocess.run([sys.executable, "-c", "import os; os.write(1, b'raw noise\\\\n')"], check=True)
    time.sleep(0.6)
    with open(output / "metrics.jsonl", "w") as metrics:
        for step in (1, 2, 3):
            metrics.write(json.dumps({"step": step, "data": {"rewards/mean": step / 10}}) + "\\n"); metrics.flush()
            time.sleep(0.6)
    console.finish({"reward": 0.3, "note": "kept"}, made=output / "policy")
print("after the stage")
"""


def run_stage(code: str, folder) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )


def run_on_terminal(code: str, folder) -> str:
    terminal, child_end = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=child_end, stderr=child_end, env=env
    )
    os.close(child_end)
    seen = b""
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:  # how a closed pseudo-terminal reads on Linux
            break
        if not block:
            break
        seen += block
    os.close(terminal)
    assert child.wait(timeout=60) == 0
    return seen.decode()


def test_no_noise_reaches_a_pipe_and_none_is_lost(tmp_path):
    done = run_stage(NOISY_STAGE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "noise" not in (done.stdout + done.stderr).replace(str(tmp_path), "")
    log = (tmp_path / "log.txt").read_text()
    for noise in (
        "python noise\n",
        "python noise on stderr",
        "C-level child\n",
        "C-level child on stderr",
        "raw noise",
    ):
        assert noise in log


def test_plain_lines_name_phase_and_time_and_the_summary_has_three_lines(tmp_path):
    lines = run_stage(NOISY_STAGE, tmp_path).stdout.splitlines()
    assert lines[0].startswith("align  0/3  starting Ray  0:0")
    assert lines[-1] == "after the stage"
    made, figures, where = lines[-4:-1]
    assert made == f"✓ align: {tmp_path / 'policy'}"
    assert figures == "  reward 0.3 · note kept"
    assert where.startswith("  3 steps in 0:0") and where.endswith(f"log in {tmp_path / 'log.txt'}")


def test_terminal_shows_one_line_that_moves(tmp_path):
    seen = run_on_terminal(NOISY_STAGE, tmp_path)
    assert "noise" not in seen
    assert "starting Ray" in seen and "2/3" in seen and "reward 0.2" in seen and "left" in seen
    assert "after the stage" in seen


def test_summary_file(tmp_path):
    run_stage(NOISY_STAGE, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["stage"] == "align" and summary["steps"] == 3
    assert summary["figures"] == {"reward": 0.3, "note": "kept"}
    assert summary["made"] == str(tmp_path / "policy")


def test_an_exception_gives_the_terminal_back_and_propagates(tmp_path):
    code = """
import os, sys
from verl_prism.launcher.console import StageConsole
with StageConsole("sft", sys.argv[1], None) as console:
    os.system("echo 'ValueError: bad shape'; echo 'an innocent line'")
    raise RuntimeError("the cause: " + " | ".join(console.last_errors()))
"""
    done = run_stage(code, tmp_path)
    assert done.returncode == 1
    assert "RuntimeError: the cause: ValueError: bad shape" in done.stderr
    assert "innocent" not in done.stdout + done.stderr


def test_what_libraries_say_at_exit_goes_to_the_log(tmp_path):
    code = """
import atexit, sys
atexit.register(print, "a library says good-bye")
from verl_prism.launcher.console import StageConsole
with StageConsole("sft", sys.argv[1], None): pass
print("ours")
"""
    done = run_stage(code, tmp_path)
    assert done.stdout.splitlines()[-1] == "ours"
    assert "good-bye" not in done.stdout + done.stderr
    assert "a library says good-bye" in (tmp_path / "log.txt").read_text()


def test_a_stage_may_count_its_own_steps(tmp_path, capfd):
    with StageConsole("warmup", tmp_path, total_steps=None) as console:
        console.total_steps = 5
        console.advance(2)
        console.advance()
        console.print("a table")
        console.finish({})
    shown = capfd.readouterr().out
    assert "a table" in shown and "3 steps in" in shown


def test_a_line_still_being_written_waits_for_its_end(tmp_path):
    with StageConsole("rlvr", tmp_path, total_steps=9, headline=["reward"]) as console:
        with open(tmp_path / "metrics.jsonl", "w") as metrics:
            metrics.write('{"step": 4, "data": {"rew')
            metrics.flush()
            time.sleep(0.6)
            assert console.metrics == {}
            metrics.write('ard": 0.5}}\n')
        time.sleep(0.6)
        assert console.metrics == {"reward": 0.5}


def test_metrics_of_an_earlier_run_are_not_shown(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 40, "data": {"reward": 1.0}}\n')
    with StageConsole("rlvr", tmp_path, total_steps=40, headline=["reward"]) as console:
        time.sleep(0.6)
        assert console.metrics == {}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a\nb\nc\n", ["b", "c"]),
        ("", []),
        ("x\n\x1b[31mKeyError: 'y'\x1b[0m\nz", ["KeyError: 'y'"]),
    ],
)
def test_last_errors(tmp_path, text, expected):
    console = StageConsole("sft", tmp_path, None)
    console.log_path.write_text(text)
    assert console.last_errors(count=2) == expected


def test_a_child_process_names_its_phase_and_its_number_of_steps(tmp_path, capfd):
    with StageConsole("warmup", tmp_path, total_steps=None) as console:
        with MetricsLog(tmp_path) as log:
            log.total(40)
            log.note("sampling the policy 1/9")
            time.sleep(0.6)
            log.note("sampling the policy 2/9")
            log.step(3, {"loss": 0.5})
        time.sleep(0.6)
        assert console.total_steps == 40 and console.metrics == {"loss": 0.5}
    lines = capfd.readouterr().out.splitlines()
    assert sum("sampling" in line for line in lines) == 1


def test_a_resumed_run_counts_its_own_steps_and_adds_to_the_log(tmp_path, capfd):
    (tmp_path / "log.txt").write_text("ValueError: of the first part\n")
    with StageConsole("align", tmp_path, 40, first_step=30) as console:
        os.write(1, b"of the second part\n")
        (tmp_path / "metrics.jsonl").write_text('{"step": 32, "data": {"loss": 1.0}}\n')
        console.say("going on from step 30")
        time.sleep(0.6)
        assert console.last_errors() == ["of the second part"]
        console.finish({})
    assert (
        tmp_path / "log.txt"
    ).read_text() == "ValueError: of the first part\nof the second part\n"
    said = capfd.readouterr().out
    assert "going on from step 30\n" in said and "  2 steps in " in said
