"""Out of memory: which role of a run it was, and which setting to lower.

This is read from the log, the classes of dead processes, and the kernel's count of kills.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Role = Literal["policy", "discriminator", "vllm", "agent", "reward", "storage", "data", "stage"]

CACHE_TOO_SMALL = re.compile(
    r"No available memory for the cache blocks|KV cache is needed|to serve even a single token"
)
SHARE_TOO_LARGE = re.compile(r"is less than desired GPU memory utilization")
DEVICE = re.compile(
    r"torch\.(cuda\.)?OutOfMemoryError|CUDA out of memory|CUDA error: out of memory"
    r"|NCCL.*out of memory"
)
HOST = re.compile(
    r"can't allocate memory: you tried to allocate|^(.*\W)?MemoryError\b|std::bad_alloc"
    r"|_ArrayMemoryError|Cannot allocate memory|[Uu]nable to mmap \d+ bytes"
)
RAY = re.compile(
    r"ray\.exceptions\.OutOfMemoryError"
    r"|killed due to (the node running low on memory|memory pressure)"
)
SHARED = re.compile(
    r"No space left on device.*(/dev/shm|shm)|(/dev/shm|shm).*No space left on device"
    r"|insufficient shared memory"
)

CONTEXT_LINES = 80  # of the log, before the message, in which its traceback may start

# What a traceback of the role contains. The first role that matches is taken.
ROLE_PATTERNS: dict[Role, str] = {
    "discriminator": r"[Dd]iscriminator",
    "vllm": r"/vllm/|EngineCore|VLLM::|VllmWorker|vLLMHttpServer",
    "data": r"DataLoader worker",
    "policy": (
        r"WorkerDict|engine_workers\.py|sft_trainer|update_actor|compute_log_prob|/workers/engine/"
    ),
    "agent": r"AgentLoopWorker",
    "reward": r"RewardLoopWorker",
    "storage": r"SimpleStorageUnit|TransferQueue",
}
ROLE_OF_CLASS: dict[str, Role] = {
    "WorkerDict": "policy",
    "DiscriminatorWorker": "discriminator",
    "vLLMHttpServer": "vllm",
    "EngineCore": "vllm",
    "VllmWorker": "vllm",
    "AgentLoopWorkerTQ": "agent",
    "RewardLoopWorker": "reward",
    "SimpleStorageUnit": "storage",
}
ROLE_NAMES: dict[Role, str] = {
    "policy": "the policy's update",
    "discriminator": "the discriminator",
    "vllm": "vLLM",
    "agent": "an agent loop worker",
    "reward": "a reward worker",
    "storage": "TransferQueue's storage",
    "data": "a process that prepares data",
    "stage": "the stage's own process",
}
DEVICE_KEYS: dict[Role, tuple[str, ...]] = {
    "policy": ("hardware.max_tokens_per_device", "hardware.gpu_memory_utilization"),
    "discriminator": ("discriminator.micro_batch_tokens", "hardware.gpu_memory_utilization"),
    "vllm": ("hardware.gpu_memory_utilization", "hardware.max_num_seqs"),
    "data": ("hardware.dataloader_workers",),
    "stage": ("hardware.max_tokens_per_device",),
}
HOST_KEYS: dict[Role, tuple[str, ...]] = {
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
    """A failed request for memory.

    role: what asked for the memory, if known. on_device: memory of a GPU, not of the host.
    message: the line of the log.
    """

    role: Role | None
    on_device: bool
    message: str


def memory_advice(
    lines: Sequence[str], dead: Sequence[str], kernel_kills: int, settings: Mapping[str, Any]
) -> str | None:
    """Return what ran out of memory and which settings to lower; None if nothing did.

    lines: the log. dead: classes of the processes that died.
    kernel_kills: number of processes that the kernel's OOM killer has killed during the run.
    settings: full key -> current value.
    """
    shortage = find_shortage(lines)
    if shortage is None and kernel_kills > 0:
        shortage = Shortage(None, False, "killed")
    if shortage is None:
        return None
    utilization = _with_values(("hardware.gpu_memory_utilization",), settings)
    if CACHE_TOO_SMALL.search(shortage.message):
        lower = _with_values(("data.max_response_tokens", "data.max_prompt_tokens"), settings)
        return f"vLLM has no room for its KV cache; raise {utilization}, or lower {lower}"
    if SHARE_TOO_LARGE.search(shortage.message):
        return f"less device memory is free than vLLM is to use; lower {utilization}"
    role = shortage.role or _role_of_dead(dead)
    memory = "device" if shortage.on_device else "host"
    keys = DEVICE_KEYS if shortage.on_device else HOST_KEYS
    lower = _with_values(keys.get(role, keys["stage"]), settings)
    offload = _offload_advice(role, shortage.on_device, settings)
    return f"out of {memory} memory: {ROLE_NAMES[role]}; lower {lower}{offload}"


def find_shortage(lines: Sequence[str]) -> Shortage | None:
    """Return the first shortage in the log. Later ones are usually its consequences."""
    for number, line in enumerate(lines):
        if CACHE_TOO_SMALL.search(line) or SHARE_TOO_LARGE.search(line):
            return Shortage("vllm", True, line)
        on_device = DEVICE.search(line) is not None
        if on_device or HOST.search(line) or RAY.search(line) or SHARED.search(line):
            context = lines[max(0, number - CONTEXT_LINES) : number + 1]
            return Shortage(_role(context), on_device, line)
    return None


def _role(context: Sequence[str]) -> Role | None:
    """Return the role named in the traceback that ends with the last line.

    Without a traceback only the last line counts. Its prefix may be `(Name pid=…)`.
    """
    start = len(context) - 1
    for number, line in enumerate(context):
        if "Traceback (most recent call last)" in line or "ray::" in line:
            start = number
    text = "\n".join(context[start:])
    for role, pattern in ROLE_PATTERNS.items():
        if re.search(pattern, text):
            return role
    return None


def _role_of_dead(dead: Sequence[str]) -> Role:
    for name in dead:
        if name in ROLE_OF_CLASS:
            return ROLE_OF_CLASS[name]
    return "stage"


def _with_values(keys: Sequence[str], settings: Mapping[str, Any]) -> str:
    """Return e.g. "prism.hardware.gpu_memory_utilization (is 0.6)", joined by "or"."""
    return " or ".join(f"prism.{key} (is {settings[f'prism.{key}']})" for key in keys)


def _offload_advice(role: Role, on_device: bool, settings: Mapping[str, Any]) -> str:
    """Return the advice to move idle models away from the memory that is short, if possible.

    Offloading moves them from the devices to the host.
    """
    movable = role in ("policy", "discriminator") and settings["prism.hardware.device"] != "cpu"
    if not movable or settings["prism.hardware.offload"] == on_device:
        return ""
    return f", or set prism.hardware.offload={str(on_device).lower()}"


def kernel_kills() -> int:
    """Return how many processes the kernel's OOM killer has killed.

    The count is that of this control group or, if it is not available, of this host.
    """
    for file in (*_cgroup_files(), Path("/proc/vmstat")):
        with contextlib.suppress(OSError):
            if count := re.search(r"(?m)^oom_kill (\d+)$", file.read_text()):
                return int(count[1])
    return 0


def _cgroup_files() -> list[Path]:
    """Return the files with the counts of this process's control groups, versions 1 and 2."""
    root = Path("/sys/fs/cgroup")
    files = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        group = path.lstrip("/")
        if controllers == "":
            files.append(root / group / "memory.events")
        elif controllers == "memory":
            files.append(root / "memory" / group / "memory.oom_control")
    return files
