"""Steps that fail in every way. `test_runner.py` runs them in processes."""

import os
import signal
import subprocess
import sys
import time

from verl_prism.gpu_check.record import Options, Record, Skip


def describe(options: Options, record: Record, gpus: int) -> None:
    """The environment of a host with so many GPUs."""
    record.add(gpus=gpus)


def works(options: Options, record: Record) -> None:
    record.add(device=options.device, quick=options.quick)
    record.check("an error", 0.5, 1.0)


def raises(options: Options, record: Record) -> None:
    record.add(measured=1)
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def hangs(options: Options, record: Record) -> None:
    record.add(measured=1)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    record.add(child=child.pid)
    time.sleep(600)


def dies(options: Options, record: Record) -> None:
    print("about to die", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def leaves(options: Options, record: Record) -> None:
    os._exit(0)


def skips(options: Options, record: Record) -> None:
    raise Skip("there is no base model")


def fails_in_parts(options: Options, record: Record) -> None:
    with record.part("first kernel"):
        raise ValueError("out of resource: shared memory")
    record.check("second kernel", float("nan"), 1.0)
    record.require("third kernel", "bfloat16", "bfloat16")


def cannot_be_called(options: Options) -> None:
    pass
