"""The launcher's side: a process for each host that is reached by ssh or srun, and what Ray says of them."""

import contextlib
import json
import os
import secrets
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from verl_prism.cluster.node import ADDRESS
from verl_prism.config import Prism
from verl_prism.errors import UserError

END_SECONDS = 30.0  # a node first ends its own processes


class RayNodes:
    """A Ray over `hosts`, from entering the `with` block to leaving it; the first host is this one.

    shell: the command that runs another one on a host, such as "ssh {host}"; the other is appended to it.
    logs: folder for what each host's Ray says, `<host>.log`.
    seconds: how long Ray has to be complete.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        shell: str,
        overrides: Sequence[str],
        prism: Prism,
        logs: Path,
        seconds: float,
    ) -> None:
        self._hosts, self._shell, self._overrides, self._prism, self._logs = (
            hosts,
            shell,
            overrides,
            prism,
            logs,
        )
        self._seconds = seconds
        self._nodes: dict[str, subprocess.Popen[str]] = {}

    def __enter__(self) -> Self:
        """Returns when Ray says that all hosts are there with what the run wants. Raises UserError if it never does."""
        self._deadline = time.monotonic() + self._seconds
        self._logs.mkdir(parents=True, exist_ok=True)
        # Whoever reaches its ports could run anything as this user: Ray asks for a token that only this run knows.
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        try:
            self._start(self._hosts[0], head=None)
            self.address = self._head_address()
            for host in self._hosts[1:]:
                self._start(host, head=self.address)
            self._wait_for_ray()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def lost(self) -> dict[str, int]:
        """The hosts whose part of Ray has ended, and its exit status."""
        ended = {host: node.poll() for host, node in self._nodes.items()}
        return {host: status for host, status in ended.items() if status is not None}

    def log(self, host: str) -> Path:
        return self._logs / f"{host}.log"

    def _start(self, host: str, head: str | None) -> None:
        command = [
            *shlex.split(self._shell.replace("{host}", host)),
            sys.executable,
            "-m",
            "verl_prism.cluster.node",
        ]
        order = {
            "overrides": list(self._overrides),
            "environment": dict(os.environ),
            "folder": os.getcwd(),
            "address": head,
        }
        with self.log(host).open("a") as log:
            node = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._nodes[host] = node
        assert node.stdin
        with contextlib.suppress(BrokenPipeError):  # it has ended already: `lost` tells
            node.stdin.write(json.dumps(order) + "\n")
            node.stdin.flush()

    def _head_address(self) -> str:
        """Among whatever else the host says at a login."""
        host = self._hosts[0]
        head = self._nodes[host]
        assert head.stdout
        timer = threading.Timer(max(0.0, self._deadline - time.monotonic()), head.terminate)
        timer.start()
        said = (
            line.removeprefix(ADDRESS).strip() for line in head.stdout if line.startswith(ADDRESS)
        )
        address = next(said, None)
        timer.cancel()
        if address is None:
            raise UserError(
                f"Ray's head on {host} did not start within {self._seconds:.0f} s; see {self.log(host)}"
            )
        return address

    def _wait_for_ray(self) -> None:
        import ray  # which looks for its token at once

        ray.init(self.address, log_to_driver=False, logging_level="ERROR")
        try:
            while missing := self._missing(ray.nodes()):
                if lost := self.lost():
                    raise UserError(
                        "\n".join(f"Ray on {host} ended; see {self.log(host)}" for host in lost)
                    )
                if time.monotonic() > self._deadline:
                    raise UserError(
                        f"{missing} after {self._seconds:.0f} s; the hosts' logs are in {self._logs}"
                    )
                time.sleep(0.5)
        finally:
            ray.shutdown()

    def _missing(self, nodes: Sequence[Mapping[str, Any]]) -> str:
        """What Ray lacks of what the run wants; empty if it is complete. verl would wait for it for ever."""
        hardware = self._prism.hardware
        devices = [int(node["Resources"].get("GPU", 0)) for node in nodes if node["Alive"]]
        wanted = self._prism.devices
        if len(devices) < hardware.nodes:
            return f"Ray has {len(devices)} of {hardware.nodes} nodes"
        if min(devices) < hardware.devices_per_node or sum(devices) < wanted:
            return (
                f"Ray has {devices} devices on its nodes; the run wants {hardware.devices_per_node} on each "
                f"(prism.hardware.devices_per_node), {wanted} in all"
            )
        return ""

    def _end(self) -> None:
        """Each node ends itself when its stdin does; one that does not is killed."""
        for node in self._nodes.values():
            assert node.stdin
            with contextlib.suppress(BrokenPipeError):
                node.stdin.close()
        deadline = time.monotonic() + END_SECONDS
        for node in self._nodes.values():
            try:
                node.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
            assert node.stdout
            node.stdout.close()
