"""Run Ray on one host until stdin ends: python -m verl_prism.cluster.node.

`nodes.py` starts this process on each host through ssh or srun. When the launcher ends, for any
reason, its end of the pipe is closed, and this process stops what it has started. So nothing is
left on a host that the launcher can no longer reach.
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
    """Run Ray as a line of JSON on stdin says, and return the exit code.

    The exit code is 0 if stdin ended, EXIT_STOPPED if this process got a signal, 1 if Ray ended.

    The line has these keys:
        overrides: Of the run.
        environment: The launcher's. Variables that this host sets itself take precedence.
        folder: Working directory.
        address: Of the head; null on the head itself, which then writes its address to stdout.
    """
    order = json.loads(sys.stdin.readline())
    is_head = order["address"] is None
    # Only the address goes to stdout. What Ray writes there goes to stderr, which is the log.
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    os.chdir(order["folder"])
    for name, value in order["environment"].items():
        os.environ.setdefault(name, value)
    _, prism = compose_run(order["overrides"])
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    released = _interrupt_when_stdin_ends()
    # In /tmp, because the path of a socket has at most 107 characters.
    scratch = Path(tempfile.mkdtemp(prefix="prism-", dir="/tmp"))
    try:
        command = ray_start(order["address"], prism.hardware, scratch)
        with ProcessTree(command, ray_environment(prism, scratch)) as ray:
            while ray.wait(POLL_SECONDS) is None:
                if is_head and not stdout.closed:
                    _write_address(stdout, scratch / ADDRESS_FILE)
            return 1
    except KeyboardInterrupt:
        return 0 if released.is_set() else EXIT_STOPPED
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def ray_environment(prism: Prism, scratch: Path) -> dict[str, str]:
    """Return the environment of Ray's processes on this host."""
    hook = f"{__package__}.node.without_client_server"
    return environment(prism, scratch) | {"RAY_START_HOOK": hook}


def without_client_server(parameters: Any, head: bool) -> None:
    """Keep `ray start`, which calls this and has no option for it, from serving port 10001."""
    parameters.ray_client_server_port = None


def ray_start(head: str | None, hardware: Hardware, scratch: Path) -> list[str]:
    """Return the command that starts Ray on this host.

    It has no dashboard and uses only free ports, so that jobs can share a host.
    """
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
        f"--temp-dir={scratch}",
        "--disable-usage-stats",
        "--min-worker-port=0",
        "--max-worker-port=0",
    ]
    if head is None:
        command += ["--head", "--port=0", "--include-dashboard=false"]
    else:
        command.append(f"--address={head}")
    if hardware.ray_cpus is not None:
        command.append(f"--num-cpus={hardware.ray_cpus}")
    if hardware.ray_gpus is not None:
        command.append(f"--num-gpus={hardware.ray_gpus}")
    return command


def _interrupt_when_stdin_ends() -> threading.Event:
    """Interrupt the main thread when stdin ends, as a signal would. Then the event is set."""
    released = threading.Event()

    def wait() -> None:
        # Not through sys.stdin: this thread would hold its lock when the interpreter exits.
        while os.read(0, 4096):
            pass
        released.set()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
    return released


def _write_address(stdout: TextIO, address_file: Path) -> None:
    """Write Ray's address and close the stream, once Ray has written its address to the file."""
    address = address_file.read_text().strip() if address_file.exists() else ""
    if address:
        with stdout:
            stdout.write(f"{ADDRESS}{address}\n")


if __name__ == "__main__":
    sys.exit(main())
