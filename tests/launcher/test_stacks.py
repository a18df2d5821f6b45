import os
import re
import subprocess
import sys

import psutil

from verl_prism.launcher.stacks import STACKS_VARIABLE, report_stacks, where

WAITING = """\
Thread 0x00007f1 (most recent call first):
  File "/env/ray/_private/worker.py", line 1045 in main_loop
  File "/env/ray/_private/workers/default_worker.py", line 330 in <module>

Current thread 0x00007f2 (most recent call first):
  File "/env/torch/distributed/distributed_c10d.py", line 2810 in all_reduce
  File "/src/verl_prism/discriminator/ranks.py", line 58 in _reduce
  File "/src/verl_prism/alignment/worker.py", line 95 in update_discriminator
"""


def test_the_thread_at_work_is_shown_with_who_called_it():
    assert where(WAITING) == (
        "distributed/distributed_c10d.py:2810 in all_reduce, called by discriminator/ranks.py:58 in _reduce"
    )
    assert where(WAITING.partition("\n\n")[0]) == "_private/worker.py:1045 in main_loop"
    assert where("") == ""


def test_every_interpreter_answers_where_a_run_wants_it(tmp_path):
    """Of its own accord: `verl_prism_cpu.pth` is beside the packages. Without the variable it is left alone."""
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
    _, first, second = (tmp_path / "log.txt").read_text().split("===== where it stands: ")
    assert f"process {processes[0].pid}, " in first and re.search(
        r'File "<string>", line [23] in <module>', first
    )
    assert f"process {processes[1].pid}, " in second and "File" not in second
