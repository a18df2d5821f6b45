"""Run one stage on several hosts: python -m verl_prism.cluster --hosts a,b -- stage=align …."""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from verl_prism.checkpoints.preemption import EXIT_SAVED
from verl_prism.compose import compose_run
from verl_prism.errors import UserError
from verl_prism.hub import with_local_models
from verl_prism.redaction import command_redactor
from verl_prism.run_folder import RunFolder

HELP = """\
usage: python -m verl_prism.cluster --hosts A,B,… [options] -- stage=… [key=value …]

Checks the data and the models, starts Ray on each host, waits until all devices have joined, runs
  python -m verl_prism.main stage=… [key=value …]
on them, and stops everything that it started.

  --hosts A,B,…     Hosts to use. Start this command on the first one. All hosts must share the
                    working directory, the output folder and the path of Python. With one host,
                    the stage starts its own Ray if it needs one.
  --shell COMMAND   Command that runs another command on a host. Default: 'ssh {host}'.
                    For Slurm: 'srun --overlap --nodes=1 --ntasks=1 --nodelist={host}'
  --wait SECONDS    How long to wait for Ray on all hosts. Default: 300
  --logs FOLDER     Folder for the output of Ray on each host. Default: <prism.output>/nodes

This command sets prism.hardware.nodes and prism.hardware.ray_address.

example:
  python -m verl_prism.cluster --hosts node1,node2 -- stage=align model=qwen3_vl_4b hardware=8xh100

SIGUSR1 asks the stage to save a checkpoint and to end. prism.resume=true resumes it.

exit codes are those of verl_prism.main:
  0    done
  1    failed
  2    a mistake in the arguments, the configuration or the data
  75   run it again with prism.resume=true: the stage saved a checkpoint after SIGUSR1, or a host
       was stopped by SIGTERM, as Slurm does when it takes a node back (then the stage resumes
       from its latest checkpoint)
  130  stopped by Ctrl-C, SIGTERM or SIGHUP
"""
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
POLL_SECONDS = 0.2


class EndRequested(BaseException):
    """SIGUSR1 arrived before the stage was started, so there is nothing to save."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the stage and return the exit code."""
    options = _parser().parse_args(arguments)
    if options.help:
        sys.stdout.write(HELP)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    signal.signal(signal.SIGUSR1, _raise_end_requested)
    try:
        return run(options)
    except UserError as error:
        message = command_redactor(options.overrides, os.environ)(str(error))
        sys.stderr.write(f"verl_prism: {message}\n")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except EndRequested:
        return EXIT_SAVED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="verl_prism.cluster", add_help=False)
    parser.add_argument("--hosts", type=lambda names: names.split(","), default=[])
    parser.add_argument("--shell", default="ssh {host}")
    parser.add_argument("--wait", type=float, default=300.0)
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("overrides", nargs="*")
    return parser


def _raise_end_requested(*_: object) -> None:
    raise EndRequested


def run(options: argparse.Namespace) -> int:
    """Start Ray on the hosts, run the stage and return its exit code.

    Raises:
        UserError: the hosts are named wrongly, or Ray does not start on them.
    """
    hosts = options.hosts
    if not hosts or not all(hosts) or len(set(hosts)) != len(hosts):
        raise UserError("--hosts needs the names of the hosts, each once, such as --hosts a,b")
    overrides = [*options.overrides, f"prism.hardware.nodes={len(hosts)}"]
    # Models are downloaded before Ray holds the hosts.
    _, prism = compose_run(overrides, partial(with_local_models, weights=True, say=print))
    if len(hosts) == 1:
        return run_stage(overrides, lost_hosts=dict)
    if failure := check_stage(overrides):
        return failure
    from verl_prism.cluster.nodes import RayNodes

    logs = options.logs or RunFolder(prism.output).node_logs
    with RayNodes(
        hosts,
        shell=options.shell,
        overrides=overrides,
        devices_per_node=prism.hardware.devices_per_node,
        devices=prism.devices,
        logs=logs.absolute(),
        timeout=options.wait,
    ) as nodes:
        address = f"prism.hardware.ray_address={nodes.address}"
        return run_stage([*overrides, address], lost_hosts=nodes.lost)


def check_stage(overrides: Sequence[str]) -> int:
    """Check the data and the models of a stage on several hosts, and return the exit code."""
    later_address = "prism.hardware.ray_address=auto"
    command = [sys.executable, "-m", "verl_prism.main", *overrides, later_address, "--check"]
    return _exit_code(subprocess.run(command, check=False).returncode)


def run_stage(overrides: Sequence[str], lost_hosts: Callable[[], dict[str, int]]) -> int:
    """Run the stage and return its exit code.

    Args:
        lost_hosts: Returns the exit status of each host whose Ray has ended. The stage is stopped
            if there is one, because a lost host is never replaced.
    """
    end_requested = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: end_requested.set())
    stage = subprocess.Popen([sys.executable, "-m", "verl_prism.main", *overrides])
    try:
        while (status := stage.poll()) is None:
            if end_requested.is_set():  # sent repeatedly: the stage may not handle it yet
                stage.send_signal(signal.SIGUSR1)
            if lost := lost_hosts():
                _stop(stage)
                return _report_lost(lost)
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        status = _stop(stage)
        return status if status >= 0 else EXIT_INTERRUPTED
    # SIGUSR1 kills a stage that does not handle it yet.
    if status == -signal.SIGUSR1:
        return EXIT_SAVED
    return _exit_code(status)


def _exit_code(status: int) -> int:
    """Return the exit code for the status of a process, which is negative after a signal."""
    return status if status >= 0 else 128 - status


def _report_lost(hosts: dict[str, int]) -> int:
    """Write which hosts were lost, and return the exit code."""
    from verl_prism.cluster.node import EXIT_STOPPED

    for host, status in hosts.items():
        how = "was stopped" if status == EXIT_STOPPED else f"ended with status {status}"
        sys.stderr.write(f"verl_prism: Ray on {host} {how}, so the stage was stopped\n")
    return EXIT_SAVED if EXIT_STOPPED in hosts.values() else EXIT_FAILED


def _stop(stage: subprocess.Popen[bytes]) -> int:
    """Stop the stage and wait until it has ended its own processes. Ignore further signals."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    stage.send_signal(signal.SIGTERM)
    return stage.wait()


if __name__ == "__main__":
    sys.exit(main())
