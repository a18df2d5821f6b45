import json
import os
import pty
import subprocess
import sys
import time

import pytest

from verl_prism.launcher.console import StageConsole, clock
from verl_prism.launcher.log_errors import last_errors
from verl_prism.report.metrics import MetricsLog
from verl_prism.run_folder import RunFolder

NOISY_STAGE = """
import json, os, subprocess, sys, time
from pathlib import Path
from verl_prism.launcher.console import StageConsole
from verl_prism.run_folder import RunFolder

run = RunFolder(Path(sys.argv[1]))
with StageConsole("align", run, total_steps=3, shown={"reward": "rewards/mean"}) as console:
    console.note("starting Ray")
    print("python noise")
    print("python noise on stderr", file=sys.stderr)
    os.system("echo noise of a C-level child; echo noise of a C-level child on stderr >&2")
    subprocess.run([sys.executable, "-c", "import os; os.write(1, b'raw noise\\\\n')"], check=True)
    time.sleep(0.6)
    with open(run.metrics, "w") as metrics:
        for step in (1, 2, 3):
            record = {"step": step, "data": {"rewards/mean": step / 10}}
            metrics.write(json.dumps(record) + "\\n")
            metrics.flush()
            time.sleep(0.6)
    console.finish({"reward": 0.3, "note": "kept"}, run.policy)
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


def test_noise_goes_to_the_log_only(tmp_path):
    done = run_stage(NOISY_STAGE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "noise" not in (done.stdout + done.stderr).replace(str(tmp_path), "")
    log = RunFolder(tmp_path).log.read_text()
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
    result, metrics, where = lines[-4:-1]
    assert result == f"✓ align: {tmp_path / 'policy'}"
    assert metrics == "  reward 0.3 · note kept"
    assert where.startswith("  3 steps in 0:0")
    assert where.endswith(f"log in {tmp_path / 'log.txt'}")


def test_a_terminal_shows_one_line_that_is_redrawn(tmp_path):
    seen = run_on_terminal(NOISY_STAGE, tmp_path)
    assert "noise" not in seen
    for shown in ("starting Ray", "2/3", "reward 0.2", "left", "after the stage"):
        assert shown in seen


def test_summary_file(tmp_path):
    run_stage(NOISY_STAGE, tmp_path)
    summary = json.loads(RunFolder(tmp_path).summary.read_text())
    assert summary["stage"] == "align"
    assert summary["steps"] == 3
    assert summary["metrics"] == {"reward": 0.3, "note": "kept"}
    assert summary["made"] == str(tmp_path / "policy")


def test_an_exception_restores_the_terminal_and_propagates(tmp_path):
    code = """
import os, sys
from pathlib import Path
from verl_prism.launcher.console import StageConsole
from verl_prism.run_folder import RunFolder
with StageConsole("sft", RunFolder(Path(sys.argv[1])), None) as console:
    os.system("echo 'ValueError: bad shape'")
    raise RuntimeError("the log: " + " | ".join(console.log_lines()))
"""
    done = run_stage(code, tmp_path)
    assert done.returncode == 1
    assert "RuntimeError: the log: ValueError: bad shape" in done.stderr
    assert "bad shape" not in done.stdout


def test_output_at_exit_goes_to_the_log(tmp_path):
    code = """
import atexit, sys
from pathlib import Path
atexit.register(print, "a library says good-bye")
from verl_prism.launcher.console import StageConsole
from verl_prism.run_folder import RunFolder
with StageConsole("sft", RunFolder(Path(sys.argv[1])), None): pass
print("ours")
"""
    done = run_stage(code, tmp_path)
    assert done.stdout.splitlines()[-1] == "ours"
    assert "good-bye" not in done.stdout + done.stderr
    assert "a library says good-bye" in RunFolder(tmp_path).log.read_text()


def test_an_incomplete_line_is_not_read_yet(tmp_path):
    run = RunFolder(tmp_path)
    with StageConsole("rlvr", run, total_steps=9, shown={"reward": "reward"}) as console:
        with open(run.metrics, "w") as metrics:
            metrics.write('{"step": 4, "data": {"rew')
            metrics.flush()
            time.sleep(0.6)
            assert console.metrics == {}
            metrics.write('ard": 0.5}}\n')
        time.sleep(0.6)
        assert console.metrics == {"reward": 0.5}


def test_steps_are_read_after_a_logger_has_emptied_the_file(tmp_path):
    run = RunFolder(tmp_path)
    with StageConsole("dpo", run, total_steps=9) as console:
        with MetricsLog(run) as log:
            log.note("computing the reference 0 %")
        time.sleep(0.6)
        steps = [json.dumps({"step": step, "data": {"loss": 0.5}}) for step in range(1, 6)]
        run.metrics.write_text("\n".join(steps) + "\n")
        time.sleep(0.6)
        assert console.step == 5


@pytest.mark.parametrize(
    "line", [b"\0\0\0", b'\0\0"data": {}}', b"\xff", b"{", b"7", b'{"step": 2}', b'{"step": null}']
)
def test_an_unreadable_line_is_skipped_and_named(tmp_path, capfd, line):
    run = RunFolder(tmp_path)
    with StageConsole("rlvr", run, total_steps=9) as console:
        run.metrics.write_bytes(line + b"\n")
        time.sleep(0.6)
        before = console.progressed
        with MetricsLog(run) as log:
            log.step(3, {"loss": 0.5})
        time.sleep(0.6)
        assert console.step == 3
        assert console.progressed > before
    assert f"skipped an unreadable line of {run.metrics}: {line!r}\n" in run.log.read_text()
    assert f"unreadable lines of {run.metrics}: 1 skipped; see the log" in capfd.readouterr().out


def unwritable(output: str) -> int:
    if output == "/dev/full":
        return os.open(output, os.O_WRONLY)
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("output", ["/dev/full", "closed pipe"])
def test_steps_are_read_when_the_output_cannot_be_written(tmp_path, output):
    code = """
import sys, time
from pathlib import Path
from verl_prism.launcher.console import StageConsole
from verl_prism.run_folder import RunFolder
run = RunFolder(Path(sys.argv[1]))
with StageConsole("align", run, 3) as console:
    time.sleep(0.6)
    run.metrics.write_text('{"step": 2, "data": {}}\\n')
    time.sleep(0.6)
    (run.path / "seen").write_text(str(console.step))
"""
    with open(unwritable(output), "w") as stdout:
        command = [sys.executable, "-c", code, str(tmp_path)]
        subprocess.run(command, stdout=stdout, stderr=subprocess.DEVNULL, check=False, timeout=60)
    assert (tmp_path / "seen").read_text() == "2"


def test_metrics_of_an_earlier_run_are_not_shown(tmp_path):
    run = RunFolder(tmp_path)
    run.metrics.write_text('{"step": 40, "data": {"reward": 1.0}}\n')
    with StageConsole("rlvr", run, total_steps=40) as console:
        time.sleep(0.6)
        assert console.metrics == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\nb\nc\n", ["b", "c"]),
        ("", []),
        ("x\n\x1b[31mKeyError: 'y'\x1b[0m\nz", ["KeyError: 'y'"]),
    ],
)
def test_errors_are_found_in_the_log(tmp_path, text, expected):
    console = StageConsole("sft", RunFolder(tmp_path), None)
    console.log_path.write_text(text)
    assert last_errors(console.log_lines(), count=2) == expected


def test_a_child_process_reports_its_phase_and_its_number_of_steps(tmp_path, capfd):
    run = RunFolder(tmp_path)
    with StageConsole("warmup", run, total_steps=None) as console:
        with MetricsLog(run) as log:
            log.total(40)
            log.note("sampling the policy 1/9")
            time.sleep(0.6)
            log.note("sampling the policy 2/9")
            log.step(3, {"loss": 0.5})
        time.sleep(0.6)
        assert console.total_steps == 40
        assert console.metrics == {"loss": 0.5}
        console.print("a table")
    lines = capfd.readouterr().out.splitlines()
    assert sum("sampling" in line for line in lines) == 1
    assert "a table" in lines


def test_a_resumed_run_counts_its_own_steps_and_continues_the_log(tmp_path, capfd):
    run = RunFolder(tmp_path)
    run.log.write_text("ValueError: of the first part\n")
    with StageConsole("align", run, 40, first_step=30) as console:
        os.write(1, b"of the second part\n")
        run.metrics.write_text('{"step": 32, "data": {"loss": 1.0}}\n')
        console.say("resuming from step 30")
        time.sleep(0.6)
        assert console.log_lines() == ["of the second part"]
        console.finish({}, run.policy)
    assert run.log.read_text() == "ValueError: of the first part\nof the second part\n"
    shown = capfd.readouterr().out
    assert "resuming from step 30\n" in shown
    assert "  2 steps in " in shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (59.6, "1:00"),
        (3599, "59:59"),
        (3600, "1:00:00"),
        (47 * 3600 + 61, "47:01:01"),
        (12.2 * 86400, "12 d 4 h"),
    ],
)
def test_times_have_hours_and_days(seconds, shown):
    assert clock(seconds) == shown
