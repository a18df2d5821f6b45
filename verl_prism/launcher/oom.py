"""Which role ran out of memory, and which setting to lower: read from the log, the dead and the kernel's count."""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from verl_prism.config import Prism

Role = Literal["policy", "discriminator", "vllm", "agent", "reward", "storage", "data", "stage"]

CACHE_TOO_SMALL = re.compile(
    r"No available memory for the cache blocks|KV cache is needed|to serve even a single token"
)
SHARE_TOO_LARGE = re.compile(r"is less than desired GPU memory utilization")
DEVICE = re.compile(
    r"torch\.(cuda\.)?OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|NCCL.*out of memory"
)
HOST = re.compile(
    r"can't allocate memory: you tried to allocate|^(.*\W)?MemoryError\b|std::bad_alloc|_ArrayMemoryError"
    r"|Cannot allocate memory|[Uu]nable to mmap \d+ bytes"
)
RAY = re.compile(
    r"ray\.exceptions\.OutOfMemoryError|killed due to (the node running low on memory|memory pressure)"
)
SHARED = re.compile(
    r"No space left on device.*(/dev/shm|shm)|(/dev/shm|shm).*No space left on device|insufficient shared memory"
)

# In this order: who is named first in the traceback that ends with the message.
_OF_ROLE: dict[Role, str] = {
    "discriminator": r"[Dd]iscriminator",
    "vllm": r"/vllm/|EngineCore|VLLM::|VllmWorker|vLLMHttpServer",
    "data": r"DataLoader worker",
    "policy": r"WorkerDict|engine_workers\.py|sft_trainer|update_actor|compute_log_prob|/workers/engine/",
    "agent": r"AgentLoopWorker",
    "reward": r"RewardLoopWorker",
    "storage": r"SimpleStorageUnit|TransferQueue",
}
_ROLE_OF_CLASS: dict[str, Role] = {
    "WorkerDict": "policy",
    "DiscriminatorWorker": "discriminator",
    "vLLMHttpServer": "vllm",
    "EngineCore": "vllm",
    "VllmWorker": "vllm",
    "AgentLoopWorkerTQ": "agent",
    "RewardLoopWorker": "reward",
    "SimpleStorageUnit": "storage",
}
_NAMES: dict[Role, str] = {
    "policy": "the policy's update",
    "discriminator": "the discriminator",
    "vllm": "vLLM",
    "agent": "an agent loop worker",
    "reward": "a reward worker",
    "storage": "TransferQueue's storage",
    "data": "a process that prepares data",
    "stage": "the stage's own process",
}
_DEVICE_KEYS: dict[Role, tuple[str, ...]] = {
    "policy": ("hardware.max_tokens_per_device", "hardware.gpu_memory_utilization"),
    "discriminator": ("discriminator.micro_batch_tokens", "hardware.gpu_memory_utilization"),
    "vllm": ("hardware.gpu_memory_utilization", "hardware.max_num_seqs"),
    "data": ("hardware.dataloader_workers",),
    "stage": ("hardware.max_tokens_per_device",),
}
_HOST_KEYS: dict[Role, tuple[str, ...]] = {
    "policy": ("hardware.max_tokens_per_device", "hardware.weight_bucket_mib"),
    "discriminator": ("discriminator.micro_batch_tokens",),
    "vllm": ("hardware.max_num_seqs", "hardware.weight_bucket_mib"),
    "agent": ("hardware.agent_workers", "rollout.prompts_per_step"),
    "reward": ("hardware.reward_workers",),
    "storage": ("rollout.prompts_per_step", "rollout.samples_per_prompt"),
    "data": ("hardware.dataloader_workers",),
    "stage": ("hardware.dataloader_workers", "hardware.max_tokens_per_device"),
}


@dataclass(frozen=True)
class Shortage:
    """role: who asked for memory that was not there, where that is told. device: of a GPU, not of the host."""

    role: Role | None
    device: bool
    message: str


def memory_advice(
    lines: Sequence[str], dead: Sequence[str], kernel_kills: int, prism: Prism
) -> str | None:
    """What to say of a failure: who ran out of memory and what to lower, with the values now; None if nobody did.

    lines: of the log. dead: classes of the processes that died. kernel_kills: how many processes the kernel has killed
    for want of memory meanwhile.
    """
    shortage = find_shortage(lines) or (
        Shortage(None, False, "killed") if kernel_kills > 0 else None
    )
    if shortage is None:
        return None
    if CACHE_TOO_SMALL.search(shortage.message):
        lower = _keys(["data.max_response_tokens", "data.max_prompt_tokens"], prism)
        return f"vLLM has no room for its cache; raise {_keys(['hardware.gpu_memory_utilization'], prism)}, or lower {lower}"
    if SHARE_TOO_LARGE.search(shortage.message):
        return f"vLLM finds less device memory free than its share; lower {_keys(['hardware.gpu_memory_utilization'], prism)}"
    killed: list[Role] = [_ROLE_OF_CLASS[name] for name in dead if name in _ROLE_OF_CLASS]
    role: Role = shortage.role or (killed or ["stage"])[0]
    where, settings = ("device", _DEVICE_KEYS) if shortage.device else ("host", _HOST_KEYS)
    lower = _keys(settings.get(role, settings["stage"]), prism)
    return f"out of {where} memory: {_NAMES[role]}; lower {lower}{_offload(role, shortage.device, prism)}"


def find_shortage(lines: Sequence[str]) -> Shortage | None:
    """The first in the log: what follows are other processes that say the same, or its consequences."""
    for number, line in enumerate(lines):
        if CACHE_TOO_SMALL.search(line) or SHARE_TOO_LARGE.search(line):
            return Shortage("vllm", True, line)
        if DEVICE.search(line):
            return Shortage(_role(lines[max(0, number - 80) : number + 1]), True, line)
        if HOST.search(line) or RAY.search(line) or SHARED.search(line):
            return Shortage(_role(lines[max(0, number - 80) : number + 1]), False, line)
    return None


def _role(context: Sequence[str]) -> Role | None:
    """Who is named in the traceback that ends with the last line, or in that line's own prefix `(Name pid=…)`."""
    starts = [
        n
        for n, line in enumerate(context)
        if "Traceback (most recent call last)" in line or "ray::" in line
    ]
    text = "\n".join(context[starts[-1] if starts else -1 :])
    return next((role for role, pattern in _OF_ROLE.items() if re.search(pattern, text)), None)


def _keys(keys: Sequence[str], prism: Prism) -> str:
    """With their values, such as "prism.hardware.gpu_memory_utilization (is 0.6)"."""
    sections = [key.split(".") for key in keys]
    return " or ".join(
        f"prism.{key}.{name} (is {getattr(getattr(prism, key), name)})" for key, name in sections
    )


def _offload(role: Role, device: bool, prism: Prism) -> str:
    """Offloading moves idle models from the devices to the host."""
    wanted = device  # where the device is short they go to the host, and the other way round
    useless = role not in ("policy", "discriminator") or prism.hardware.device == "cpu"
    return (
        ""
        if useless or prism.hardware.offload == wanted
        else f", or set prism.hardware.offload={str(wanted).lower()}"
    )


def kernel_kills() -> int:
    """How many processes of this control group, or else of this host, the kernel has killed for want of memory."""
    for file in (*_cgroup_files(), Path("/proc/vmstat")):
        with contextlib.suppress(OSError):
            if count := re.search(r"(?m)^oom_kill (\d+)$", file.read_text()):
                return int(count[1])
    return 0


def _cgroup_files() -> list[Path]:
    root, groups = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup").read_text().splitlines()
    paths = [line.split(":", 2)[1:] for line in groups]
    return [
        root
        / ("memory" if names else "")
        / path.lstrip("/")
        / ("memory.oom_control" if names else "memory.events")
        for names, path in paths
        if names in ("", "memory")
    ]
