"""Readable names for the processes of a run."""

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
    "PolicyEngine": "vLLM engine",
    "RankActor": "training rank",
    "VllmWorker": "vLLM worker",
    "AgentLoopWorkerTQ": "agent loop worker",
    "RewardLoopWorker": "reward worker",
    "SimpleStorageUnit": "TransferQueue storage",
    "TransferQueueController": "TransferQueue controller",
    "GlobalRequestLoadBalancer": "vLLM load balancer",
    "raylet": "node manager of Ray",
    "gcs_server": "control store of Ray",
}
_ACTOR = re.compile(r"ray::(?!IDLE)(\w*[A-Z]\w*)")  # the name of a class, not of a Ray function
_ENGINE = re.compile(r"VLLM::(EngineCore|Worker)")
_STAGE = "verl_prism.stages.run"


def process_class(process: psutil.Process) -> str | None:
    """Return the class of a process that a run on Ray cannot continue without, or None.

    Examples are `WorkerDict`, `EngineCore` and `raylet`. Forked children share their parent's name
    and are ignored.
    """
    with contextlib.suppress(psutil.Error):
        name = _class(_command(process))
        parent = process.parent()
        if parent is None or name != _class(_command(parent)):
            return name
    return None


def _class(command: list[str]) -> str | None:
    first = command[0] if command else ""
    if actor := _ACTOR.match(first):
        return actor[1]
    if engine := _ENGINE.match(first):
        return "VllmWorker" if engine[1] == "Worker" else engine[1]
    program = PurePath(first).name
    return program if program in ("raylet", "gcs_server") else None


def describe(name: str) -> str:
    """Return the role and the class, or the class only if its role is unknown."""
    return f"{ROLES[name]} ({name})" if name in ROLES else name


def role(process: psutil.Process) -> str | None:
    """Return the description of a process that has a class, or that runs the stage itself."""
    if name := process_class(process):
        return describe(name)
    return "stage's own process" if _STAGE in _command(process) else None


def title(process: psutil.Process) -> str:
    """Return the role of a process if it has one, otherwise its command."""
    if name := role(process):
        return name
    command = " ".join(_command(process))
    return " ".join(command.split())[:60] or "a process that has ended"


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
