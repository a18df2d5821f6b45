import os
import re
import subprocess
import sys

import psutil

from verl_prism.launcher.stacks import HEADING, STACKS_VARIABLE, current_frames, report_stacks

WAITING = """\
Thread 0x00007f1 (most recent call first):
  File "/env/ray/_private/worker.py", line 1045 in main_loop
  File "/env/ray/_private/workers/default_worker.py", line 330 in <module>

Current thread 0x00007f2 (most recent call first):
  File "/env/torch/distributed/distributed_c10d.py", line 2810 in all_reduce
  File "/src/verl_prism/discriminator/ranks.py", line 58 in _reduce
  File "/src/verl_prism/alignment/worker.py", line 95 in update_discriminator
"""


def test_the_busiest_thread_is_shown_with_its_caller():
    assert current_frames(WAITING) == (
        "distributed/distributed_c10d.py:2810 in all_reduce, "
        "called by discriminator/ranks.py:58 in _reduce"
    )
    idle = WAITING.partition("\n\n")[0]
    assert current_frames(idle) == "_private/worker.py:1045 in main_loop"
    assert current_frames("") == ""


def test_every_interpreter_answers_if_the_environment_says_so(tmp_path):
    """Interpreters listen because of `verl_prism_cpu.pth`. Others are left alone."""
    program = [sys.executable, "-c", "import time\nprint(flush=True)\ntime.sleep(300)"]
    answering = {**os.environ, STACKS_VARIABLE: str(tmp_path / "stacks")}
    processes = [
        subprocess.Popen(program, stdout=subprocess.PIPE, env=env) for env in (answering, None)
    ]
    try:
        for process in processes:
            process.stdout.readline()
        report_stacks(
            [psutil.Process(process.pid) for process in processes],
            tmp_path / "stacks",
            tmp_path / "log.txt",
        )
        assert [process.poll() for process in processes] == [None, None]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    _, first, second = (tmp_path / "log.txt").read_text().split(HEADING)
    assert f"process {processes[0].pid}, " in first
    assert re.search(r'File "<string>", line [23] in <module>', first)
    assert f"process {processes[1].pid}, " in second
    assert "File" not in second
