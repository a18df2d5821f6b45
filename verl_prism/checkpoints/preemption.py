"""Preemption: SIGUSR1 asks a stage to finish its step, save, and exit with a code of its own.

The launcher receives the signal and creates a file. The stage, possibly on another node, looks for
the file once per step.
"""

import signal

from verl_prism.run_folder import RunFolder

EXIT_SAVED = 75  # EX_TEMPFAIL of sysexits.h: try again later


def end_requested(run: RunFolder) -> bool:
    """Return whether the stage was asked to end early."""
    return run.end_request.exists()


def ignore_requests() -> None:
    """Ignore SIGUSR1 in this process and in those that it starts.

    A batch system may send the signal to every process of a job, and by default it kills them.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def listen_for_requests(run: RunFolder) -> None:
    """Pass on SIGUSR1 to the stage from now on."""
    signal.signal(signal.SIGUSR1, lambda *_: run.end_request.touch())
