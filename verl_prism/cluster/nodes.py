"""The launcher's side of Ray on several hosts: one process per host, reached by ssh or srun."""

import contextlib
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from verl_prism.cluster.node import ADDRESS
from verl_prism.errors import UserError

STOP_SECONDS = 30.0  # for a node to stop its own processes


class RayNodes:
    """Ray on several hosts, running inside a `with` block. The first host is this one.

    Args:
        hosts: Names for `shell`.
        shell: Command that runs another command on a host, such as "ssh {host}". The other command
            is appended.
        overrides: Of the run.
        devices_per_node: Devices that the run needs on each host.
        devices: Devices that the run needs on all hosts together.
        logs: Folder for the output of Ray on each host, `<host>.log`.
        timeout: Seconds to wait for Ray on all hosts.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        shell: str,
        overrides: Sequence[str],
        devices_per_node: int,
        devices: int,
        logs: Path,
        timeout: float,
    ) -> None:
        self._hosts = hosts
        self._shell = shell
        self._overrides = overrides
        self._devices_per_node = devices_per_node
        self._devices = devices
        self._logs = logs
        self._timeout = timeout
        self._nodes: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        """Start Ray and wait until it has all hosts and devices.

        Raises:
            UserError: the shell or Ray did not start, or hosts or devices are missing after the
                timeout.
        """
        self._deadline = time.monotonic() + self._timeout
        self._logs.mkdir(parents=True, exist_ok=True)
        # Anyone who can connect to Ray could run code as this user, so Ray requires a secret token.
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        try:
            self._start(self._hosts[0], head=None)
            self.address = self._head_address()
            for host in self._hosts[1:]:
                self._start(host, head=self.address)
            self._wait_for_ray()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def lost(self) -> dict[str, int]:
        """Return the exit status of each host whose Ray has ended."""
        lost: dict[str, int] = {}
        for host, node in self._nodes.items():
            status = node.poll()
            if status is not None:
                lost[host] = status
        return lost

    def log(self, host: str) -> Path:
        """Return the file with the output of Ray on a host."""
        return self._logs / f"{host}.log"

    def _start(self, host: str, head: str | None) -> None:
        shell = self._shell_command(host)
        order = {
            "overrides": list(self._overrides),
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "address": head,
        }
        with self.log(host).open("a") as log:
            try:
                node = subprocess.Popen(
                    [*shell, sys.executable, "-m", "verl_prism.cluster.node"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    start_new_session=True,
                )
            except OSError as error:
                reason = error.strerror or str(error)
                raise UserError(
                    f"--shell: {shell[0]} cannot be started: {reason}; correct it"
                ) from None
        self._nodes[host] = node
        assert node.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended; `lost` reports it
            node.stdin.write(json.dumps(order) + "\n")
            node.stdin.flush()

    def _shell_command(self, host: str) -> list[str]:
        try:
            return shlex.split(self._shell.replace("{host}", host))
        except ValueError as error:
            raise UserError(f"--shell: {self._shell!r} is not a command: {error}") from None

    def _head_address(self) -> str:
        """Return the address that the head writes, and skip other output (a login message)."""
        host = self._hosts[0]
        head = self._nodes[host]
        assert head.stdout
        found = (line for line in head.stdout if line.startswith(ADDRESS))
        timer = threading.Timer(max(0.0, self._deadline - time.monotonic()), head.terminate)
        timer.start()
        try:
            address = next(found, None)
            if address is None:
                status = head.wait()
                raise UserError(f"Ray's head on {host} {self._end(status)}; see {self.log(host)}")
        finally:
            timer.cancel()
        return address.removeprefix(ADDRESS).strip()

    def _end(self, status: int) -> str:
        """Return how the head ended: by itself, or because the time was over."""
        if time.monotonic() < self._deadline:
            return f"ended with status {status} before it had started"
        return f"did not start within {self._timeout:.0f} s"

    def _wait_for_ray(self) -> None:
        import ray  # reads the token when it is imported

        self._connect()
        try:
            while missing := self._missing(ray.nodes()):
                if lost := self.lost():
                    ended = [f"Ray on {host} ended; see {self.log(host)}" for host in lost]
                    raise UserError("\n".join(ended))
                if time.monotonic() > self._deadline:
                    raise UserError(f"{missing} after {self._timeout:.0f} s; see {self._logs}")
                time.sleep(0.5)
        finally:
            ray.shutdown()

    def _connect(self) -> None:
        """Connect to Ray, but keep our handler of SIGTERM, which stops the stage."""
        import ray

        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(self.address, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray raises many kinds
            raise UserError(
                f"cannot connect to Ray's head at {self.address}: {error}; see {self._logs}"
            ) from error
        except SystemExit:  # of Ray's own handler
            raise KeyboardInterrupt from None
        finally:
            signal.signal(signal.SIGTERM, handler)

    def _missing(self, nodes: Sequence[Mapping[str, Any]]) -> str:
        """Return what Ray lacks for the run, or "". verl would wait for it forever."""
        devices = [int(node["Resources"].get("GPU", 0)) for node in nodes if node["Alive"]]
        if len(devices) < len(self._hosts):
            return f"Ray has {len(devices)} of {len(self._hosts)} nodes"
        if min(devices) < self._devices_per_node or sum(devices) < self._devices:
            return (
                f"Ray has {devices} devices on its nodes; the run needs {self._devices_per_node} "
                f"on each (prism.hardware.devices_per_node), {self._devices} in total"
            )
        return ""

    def _stop(self) -> None:
        """Close the stdin of each node, which then stops itself. Kill the nodes that do not."""
        for node in self._nodes.values():
            assert node.stdin
            with contextlib.suppress(BrokenPipeError):
                node.stdin.close()
        deadline = time.monotonic() + STOP_SECONDS
        for node in self._nodes.values():
            try:
                node.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
            assert node.stdout
            node.stdout.close()
