"""Run a command and tell its wall time and the peak memory of all its processes together.

    python benchmarks/cost.py make demo

Memory is the sum of proportional set sizes (a page that n processes share counts 1/n in each), read every two seconds.
"""

import contextlib
import subprocess
import sys
import threading
import time

import psutil

PERIOD_SECONDS = 2.0


def tree_memory(root: psutil.Process) -> int:
    """Bytes held by a process and all its descendants."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += process.memory_full_info().pss
    return total


def main(command: list[str]) -> int:
    start, peak, done = time.monotonic(), 0, threading.Event()
    child = subprocess.Popen(command)

    def watch() -> None:
        nonlocal peak
        while not done.wait(PERIOD_SECONDS):
            with contextlib.suppress(psutil.NoSuchProcess):
                peak = max(peak, tree_memory(psutil.Process(child.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = child.wait()
    done.set()
    watcher.join()
    seconds = round(time.monotonic() - start)
    print(
        f"\nexit status {status}, {seconds // 60}:{seconds % 60:02d} min, peak memory {peak / 2**30:.1f} GiB"
    )
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
