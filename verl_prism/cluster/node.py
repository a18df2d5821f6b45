"""python -m verl_prism.cluster.node: one host's part of a Ray, from a line of JSON on stdin until stdin ends.

Started on each host by `nodes.py`, through ssh or srun. When the launcher goes, however it goes, its end of the pipe is
closed, and this process ends what it has started: nothing is left on a host that nobody reaches any more.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, TextIO

from verl_prism.compose import compose_run
from verl_prism.config import Hardware, Prism
from verl_prism.launcher.launch import environment
from verl_prism.launcher.process_tree import STOP_SIGNALS, ProcessTree

POLL_SECONDS = 0.2
EXIT_STOPPED = 128 + signal.SIGTERM
ADDRESS = "address of Ray: "
ADDRESS_FILE = "ray_current_cluster"  # written by `ray start` when the node is up


def main() -> int:
    """Returns 0 where stdin ended, EXIT_STOPPED where somebody else stopped this node, 1 where Ray ended by itself.

    The line: `overrides` of the run, `environment` of the launcher (what this host has itself goes before it), `folder`
    to work in, and the head's `address`, null for the head itself, which then writes its own to stdout.
    """
    order = json.loads(sys.stdin.readline())
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.chdir(order["folder"])
    os.environ.update(
        {name: value for name, value in order["environment"].items() if name not in os.environ}
    )
    _, prism = compose_run(order["overrides"])
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    released = _when_stdin_ends()
    scratch = Path(
        tempfile.mkdtemp(prefix="prism-", dir="/tmp")
    )  # short: a socket's path has 107 characters at most
    try:
        with ProcessTree(
            ray_start(order["address"], prism.hardware, scratch), ray_environment(prism, scratch)
        ) as ray:
            while ray.wait(POLL_SECONDS) is None:
                if order["address"] is None and not report.closed:
                    _report_address(report, scratch)
            return 1
    except KeyboardInterrupt:
        return 0 if released.is_set() else EXIT_STOPPED
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def ray_environment(prism: Prism, scratch: Path) -> dict[str, str]:
    return environment(prism, scratch) | {
        "RAY_START_HOOK": f"{__package__}.node.without_client_server"
    }


def without_client_server(parameters: Any, head: bool) -> None:
    """Called by `ray start`, which has no option for it: nobody asked for a server on port 10001."""
    parameters.ray_client_server_port = None


def ray_start(head: str | None, hardware: Hardware, scratch: Path) -> list[str]:
    """The command. Every port is one that is free, so that several jobs may share a host; no dashboard."""
    given = {"--num-cpus": hardware.ray_cpus, "--num-gpus": hardware.ray_gpus}
    return [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        f"--temp-dir={scratch}",
        "--disable-usage-stats",
        "--min-worker-port=0",
        "--max-worker-port=0",
        *(
            ["--head", "--port=0", "--include-dashboard=false"]
            if head is None
            else [f"--address={head}"]
        ),
        *(f"{option}={number}" for option, number in given.items() if number is not None),
    ]


def _when_stdin_ends() -> threading.Event:
    """Ends the main thread then, as a signal would; the event tells the two apart."""
    released = threading.Event()

    def wait() -> None:
        while os.read(
            0, 4096
        ):  # not through sys.stdin, whose lock this thread would hold at the end
            pass
        released.set()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
    return released


def _report_address(report: TextIO, scratch: Path) -> None:
    """Once there is one."""
    file = scratch / ADDRESS_FILE
    if file.exists() and (address := file.read_text().strip()):
        with report:
            report.write(f"{ADDRESS}{address}\n")


if __name__ == "__main__":
    sys.exit(main())
