"""python -m verl_prism.cluster --hosts a,b -- stage=align …: one stage on several hosts."""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from verl_prism.checkpoints.preemption import EXIT_SAVED
from verl_prism.compose import compose_run
from verl_prism.config import ON_RAY
from verl_prism.errors import UserError
from verl_prism.redaction import command_redactor

HELP = """\
python -m verl_prism.cluster --hosts a,b,… [--shell COMMAND] [--wait SECONDS] [--logs FOLDER] -- stage=… [key=value …]

Starts Ray on each host, waits until Ray says that all are there with the devices that the run wants, runs
`python -m verl_prism.main stage=… key=value …` on them, and ends everything that it started.

  --hosts   the first is the host that this is started on; they share its folders, and Python is in the same place.
            With one host the stage starts a Ray of its own there, and nothing else is started
  --shell   what runs a command on a host; default 'ssh {host}'; in Slurm
            'srun --overlap --nodes=1 --ntasks=1 --nodelist={host}'
  --wait    so long for Ray to be complete; default 300
  --logs    folder for what each host's Ray says; default <prism.output>/nodes

prism.hardware.nodes and .ray_address are set by this command. Exit codes are those of verl_prism.main. SIGUSR1 is
handed to it: the stage saves and ends with 75, to be started again with prism.resume=true. 75 also where somebody
stopped a host's part of the run with SIGTERM, as Slurm does when it takes a node back: there is nobody left who could
save, and the stage goes on from its newest checkpoint.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="verl_prism.cluster", add_help=False)
    parser.add_argument("--hosts", type=lambda names: names.split(","))
    parser.add_argument("--shell", default="ssh {host}")
    parser.add_argument("--wait", type=float, default=300.0)
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args(arguments)
    if options.help:
        sys.stdout.write(HELP)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    signal.signal(signal.SIGUSR1, _again)
    try:
        return run(options)
    except UserError as error:
        sys.stderr.write(
            f"verl_prism: {command_redactor(options.overrides, os.environ)(str(error))}\n"
        )
        return 2
    except KeyboardInterrupt:
        return 130
    except Again:
        return EXIT_SAVED


class Again(BaseException):
    """SIGUSR1 before the stage was started: there is nothing to save."""


def _again(*_: object) -> None:
    raise Again


def run(options: argparse.Namespace) -> int:
    hosts = options.hosts or []
    if not all(hosts) or len(set(hosts)) != len(hosts) or not hosts:
        raise UserError("--hosts wants the names of the hosts, each once: --hosts a,b")
    overrides = [*options.overrides, f"prism.hardware.nodes={len(hosts)}"]
    _, prism = compose_run(overrides)
    if len(hosts) == 1:
        return run_stage(overrides, watch=dict)
    if prism.stage not in ON_RAY:
        raise UserError(f"stage {prism.stage} runs on one host; name one: --hosts {hosts[0]}")
    from verl_prism.cluster.nodes import RayNodes

    logs = options.logs or prism.output / "nodes"
    with RayNodes(hosts, options.shell, overrides, prism, logs.absolute(), options.wait) as nodes:
        return run_stage(
            [*overrides, f"prism.hardware.ray_address={nodes.address}"], watch=nodes.lost
        )


def run_stage(overrides: Sequence[str], watch: Callable[[], dict[str, int]]) -> int:
    """The stage's exit code. Where a host is lost (`watch`) the stage is stopped: no other comes in its place."""
    asked = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: asked.set())
    stage = subprocess.Popen([sys.executable, "-m", "verl_prism.main", *overrides])
    try:
        while (status := stage.poll()) is None:
            if asked.is_set():  # again and again: it may not listen yet
                stage.send_signal(signal.SIGUSR1)
            if lost := watch():
                return _give_up(stage, lost)
            time.sleep(0.2)
    except KeyboardInterrupt:
        return _stop(stage)
    # The signal that asks for an early end has killed it where it came before the stage was listening.
    if status == -signal.SIGUSR1:
        return EXIT_SAVED
    return status if status >= 0 else 128 - status


def _give_up(stage: subprocess.Popen, lost: dict[str, int]) -> int:
    from verl_prism.cluster.node import EXIT_STOPPED

    _stop(stage)
    for host, status in lost.items():
        how = "was stopped" if status == EXIT_STOPPED else f"ended with status {status}"
        sys.stderr.write(f"verl_prism: Ray on {host} {how}, so the stage was stopped\n")
    return EXIT_SAVED if EXIT_STOPPED in lost.values() else 1


def _stop(stage: subprocess.Popen) -> int:
    """It ends what it has started; a second signal does not keep it from that."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    stage.send_signal(signal.SIGTERM)
    return stage.wait()


if __name__ == "__main__":
    sys.exit(main())
