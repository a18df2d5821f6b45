"""SIGUSR1 asks a stage to end early and come back: finish the step, save, and exit with a code of its own.

The launcher gets the signal and leaves a file; the stage, perhaps on another node, looks for it once per step.
"""

import signal
from pathlib import Path

from verl_prism.config import Prism

EXIT_SAVED = 75  # EX_TEMPFAIL of sysexits.h: to be started again


def request_file(prism: Prism) -> Path:
    return prism.output / "end_requested"


def end_requested(prism: Prism) -> bool:
    return request_file(prism).exists()


def ignore_requests() -> None:
    """For the processes to be started: a batch system may send the signal to each, and it would end them."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def listen_for_requests(prism: Prism) -> None:
    signal.signal(signal.SIGUSR1, lambda *_: request_file(prism).touch())
