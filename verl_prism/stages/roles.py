"""The processes of a run by the names that a person knows them by."""

import contextlib
import re
from pathlib import PurePath

import psutil

ROLES = {
    "WorkerDict": "policy worker",
    "DiscriminatorWorker": "discriminator worker",
    "PrismTaskRunner": "trainer",
    "vLLMHttpServer": "vLLM server",
    "EngineCore": "vLLM engine",
    "VllmWorker": "vLLM worker",
    "AgentLoopWorkerTQ": "agent loop worker",
    "RewardLoopWorker": "reward worker",
    "SimpleStorageUnit": "TransferQueue storage",
    "TransferQueueController": "TransferQueue controller",
    "GlobalRequestLoadBalancer": "vLLM load balancer",
    "raylet": "node manager of Ray",
    "gcs_server": "control store of Ray",
}
_ACTOR = re.compile(r"ray::(?!IDLE)(\w*[A-Z]\w*)")  # a class; Ray's functions are named like functions
_ENGINE = re.compile(r"VLLM::(EngineCore|Worker)")
_STAGE = "verl_prism.stages.run"


def process_class(process: psutil.Process) -> str | None:
    """`WorkerDict`, `EngineCore`, `raylet`, …: of the processes without which a run on Ray cannot go on.

    A copy that such a process has forked has the name of its parent, and is none.
    """
    with contextlib.suppress(psutil.Error):
        name, parent = _class(process.cmdline()), process.parent()
        return name if parent is None or name != _class(parent.cmdline()) else None
    return None


def _class(command: list[str]) -> str | None:
    first = command[0] if command else ""
    if actor := _ACTOR.match(first):
        return actor[1]
    if engine := _ENGINE.match(first):
        return {"Worker": "VllmWorker"}.get(engine[1], engine[1])
    program = PurePath(first).name
    return program if program in ("raylet", "gcs_server") else None


def in_words(name: str) -> str:
    """A role for a class; an unknown class stands for itself."""
    return f"{ROLES[name]} ({name})" if name in ROLES else name


def title(process: psutil.Process) -> str:
    """Of any process: its role where it has one, otherwise its program."""
    with contextlib.suppress(psutil.Error):
        if name := process_class(process):
            return in_words(name)
        command = process.cmdline()
        words = " ".join(command).split() or [process.name()]
        return "the stage's own process" if _STAGE in command else " ".join(words)[:60]
    return "a process that has ended"
