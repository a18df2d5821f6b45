"""The log contains what was printed, but no secrets."""

import os
import stat
import subprocess
import time
from pathlib import Path

from verl_prism.launcher.log import LONG_LINE, StageLog
from verl_prism.redaction import Redactor


def printed(pipe: int, text: bytes) -> None:
    while text:
        text = text[os.write(pipe, text) :]


def test_a_secret_printed_in_pieces_is_redacted(tmp_path):
    log = StageLog(tmp_path / "log.txt", Redactor(["hunter-two"]))
    for piece in (b"before hun", b"ter-", b"two after\nhunter", b"-two"):
        printed(log.pipe, piece)
        time.sleep(0.05)
    log.close()
    assert (tmp_path / "log.txt").read_text() == "before [redacted] after\n[redacted]"


def test_the_log_equals_what_was_printed_byte_for_byte(tmp_path):
    text = (
        b"\xff\xfe no utf-8\r 50%\r100%\r\n"
        + "é→\n".encode()
        + b"x " * LONG_LINE
        + b"\n"
        + bytes(range(256)) * 5000
    )
    log = StageLog(tmp_path / "log.txt", str)
    printed(log.pipe, text)
    log.close()
    assert (tmp_path / "log.txt").read_bytes() == text


def test_a_line_is_written_while_the_stage_runs(tmp_path):
    log = StageLog(tmp_path / "log.txt", str)
    subprocess.run(["echo", "a line"], stdout=log.pipe, check=True)
    log.catch_up()
    assert (tmp_path / "log.txt").read_text() == "a line\n"
    log.close()


def test_a_full_disk_is_reported_and_blocks_no_process():
    log = StageLog(Path("/dev/full"), str)
    more_than_a_pipe_holds = ["head", "--bytes=262144", "/dev/zero"]
    subprocess.run(more_than_a_pipe_holds, stdout=log.pipe, check=True, timeout=60)
    log.close()
    expected = "262144 bytes could not be written to /dev/full: No space left on device"
    assert log.problem == expected


def test_a_log_that_could_be_written_has_no_problem(tmp_path):
    log = StageLog(tmp_path / "log.txt", str)
    printed(log.pipe, b"a line\n")
    log.close()
    assert log.problem == ""


def test_only_the_user_can_read_it(tmp_path):
    StageLog(tmp_path / "log.txt", str).close()
    assert stat.S_IMODE((tmp_path / "log.txt").stat().st_mode) == 0o600
