"""Run a command, and print its wall time and the peak memory of all its processes together.

    python benchmarks/cost.py make demo

Memory is the sum of proportional set sizes (a page that n processes share counts 1/n in each),
sampled every two seconds.
"""

import contextlib
import subprocess
import sys
import threading
import time

import psutil

PERIOD_SECONDS = 2.0


def tree_memory(root: psutil.Process) -> int:
    """Return the bytes held by a process and all its descendants."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            total += process.memory_full_info().pss
    return total


def main(command: list[str]) -> int:
    """Run the command, print its cost and return its exit code."""
    start = time.monotonic()
    peak = 0
    done = threading.Event()
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
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    print(
        f"\nexit status {status}, {minutes}:{seconds:02d} min, peak memory {peak / 2**30:.1f} GiB"
    )
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
