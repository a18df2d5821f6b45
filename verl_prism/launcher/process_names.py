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
_ACTOR = re.compile(
    r"ray::(?!IDLE)(\w*[A-Z]\w*)"
)  # a class; Ray's functions are named like functions
_ENGINE = re.compile(r"VLLM::(EngineCore|Worker)")
_STAGE = "verl_prism.stages.run"


def process_class(process: psutil.Process) -> str | None:
    """`WorkerDict`, `EngineCore`, `raylet`, …: of the processes without which a run on Ray cannot go on.

    A copy that such a process has forked has the name of its parent, and is none.
    """
    with contextlib.suppress(psutil.Error):
        name, parent = _class(_command(process)), process.parent()
        return name if parent is None or name != _class(_command(parent)) else None
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


def role(process: psutil.Process) -> str | None:
    """In words, for the stage's own process (of SFT, each rank) and those with a class."""
    if name := process_class(process):
        return in_words(name)
    return "stage's own process" if _STAGE in _command(process) else None


def title(process: psutil.Process) -> str:
    """Of any process: its role where it has one, otherwise its command."""
    return (
        role(process)
        or " ".join(" ".join(_command(process)).split())[:60]
        or "a process that has ended"
    )


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
