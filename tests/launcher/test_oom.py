"""What ran out of memory and what to lower, from real messages of torch, vLLM, Ray and Linux."""

import subprocess
import sys

import pytest

from verl_prism.compose import compose_run
from verl_prism.config import flatten
from verl_prism.launcher.oom import find_shortage, kernel_kills, memory_advice

# torch/csrc/…/CUDACachingAllocator.cpp
CUDA = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
    "capacity of 79.10 GiB of which 1.20 GiB is free. Process 7 has 77.89 GiB memory in use."
)
POLICY = """\
ray.exceptions.RayTaskError(OutOfMemoryError): ray::WorkerDict.actor_rollout_update_actor() (pid=41)
  File "/env/verl/workers/engine_workers.py", line 713, in update_actor
  File "/env/verl/workers/engine/fsdp/transformer_impl.py", line 740, in forward_backward_batch
"""
DISCRIMINATOR = """\
ray.exceptions.RayTaskError(OutOfMemoryError): ray::WorkerDict.actor_rollout_update_discriminator()
  File "/env/verl_prism/alignment/worker.py", line 95, in update_discriminator
  File "/env/verl_prism/discriminator/step.py", line 120, in run
"""
ENGINE = "(vLLMHttpServer pid=42) (EngineCore pid=43) "
KILLED_BY_RAY = (  # ray/core/src/ray/raylet
    "ray.exceptions.OutOfMemoryError: ray::AgentLoopWorkerTQ.generate_sequences() 1 worker(s) were "
    "killed due to the node running low on memory. Refer to the documentation on how to address "
    "the out of memory issue: https://docs.ray.io"
)
UNRELATED = (
    'Traceback (most recent call last):\n  File "x.py", line 3, in f\nValueError: no memory of it\n'
)


@pytest.fixture(scope="module")
def settings():
    return gpu_settings()


def gpu_settings(*overrides: str) -> dict[str, object]:
    hardware = {
        "max_tokens_per_device": 10240,
        "gpu_memory_utilization": 0.6,
        "max_num_seqs": 256,
        "agent_workers": 8,
        "dataloader_workers": 2,
        "offload": "true",
    }
    values = [f"prism.hardware.{key}={value}" for key, value in hardware.items()]
    values += ["prism.data.max_response_tokens=6144", "prism.data.max_prompt_tokens=2048"]
    values += ["prism.rollout.prompts_per_step=4"]
    values += ["stage=align", "hardware=cuda", "model=qwen3_vl_4b"]
    _, prism = compose_run([*values, *overrides])
    return dict(flatten(prism.model_dump(), "prism"))


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        (
            POLICY + CUDA,
            "out of device memory: the policy's update; lower "
            "prism.hardware.max_tokens_per_device (is 10240) or "
            "prism.hardware.gpu_memory_utilization (is 0.6)",
        ),
        (
            DISCRIMINATOR + CUDA,
            "out of device memory: the discriminator; lower "
            "prism.discriminator.micro_batch_tokens (is 114688) or "
            "prism.hardware.gpu_memory_utilization (is 0.6)",
        ),
        (
            ENGINE + CUDA,
            "out of device memory: vLLM; lower "
            "prism.hardware.gpu_memory_utilization (is 0.6) or "
            "prism.hardware.max_num_seqs (is 256)",
        ),
        (  # vllm/v1/core/kv_cache_utils.py
            ENGINE + "ValueError: No available memory for the cache blocks. Try increasing "
            "`gpu_memory_utilization` when",
            "vLLM has no room for its KV cache; raise "
            "prism.hardware.gpu_memory_utilization (is 0.6), or lower "
            "prism.data.max_response_tokens (is 6144) or prism.data.max_prompt_tokens (is 2048)",
        ),
        (  # vllm/v1/worker/utils.py
            ENGINE
            + "ValueError: Free memory on device cuda:0 (40.11/79.10 GiB) on startup is less "
            "than desired GPU memory utilization (0.6, 47.46 GiB). Decrease GPU memory "
            "utilization or reduce GPU memory used by other",
            "less device memory is free than vLLM is to use; lower "
            "prism.hardware.gpu_memory_utilization (is 0.6)",
        ),
        (
            KILLED_BY_RAY,
            "out of host memory: an agent loop worker; lower "
            "prism.hardware.agent_workers (is 8) or prism.rollout.prompts_per_step (is 4)",
        ),
        (
            "RuntimeError: DataLoader worker (pid 71) is killed by signal: Killed.\n"
            "RuntimeError: unable to write to file </torch_71>: No space left on device (/dev/shm)",
            "out of host memory: a process that prepares data; lower "
            "prism.hardware.dataloader_workers (is 2)",
        ),
        (UNRELATED, None),
    ],
)
def test_the_log_names_the_role_and_the_advice_its_settings(log, advice, settings):
    assert memory_advice((UNRELATED + log).splitlines(), [], 0, settings) == advice


def test_offloading_is_advised_if_it_helps(settings):
    without = gpu_settings("prism.hardware.offload=false")
    log = (POLICY + CUDA).splitlines()
    assert memory_advice(log, [], 0, without).endswith(", or set prism.hardware.offload=true")
    assert "set prism.hardware.offload=false" in memory_advice([], ["WorkerDict"], 1, settings)
    assert "offload" not in memory_advice(log, [], 0, settings)


def test_kills_are_recognized_by_the_kernels_count(settings):
    assert memory_advice([], ["SimpleStorageUnit"], 0, settings) is None
    advice = memory_advice([], ["SimpleStorageUnit"], 1, settings)
    assert advice.startswith(
        "out of host memory: TransferQueue's storage; lower prism.rollout.prompts_per_step (is 4)"
    )
    assert kernel_kills() >= 0


def test_the_dead_process_names_the_role_if_the_log_does_not(settings):
    log = [
        "(raylet) 1 Workers (tasks / actors) killed due to memory pressure (OOM), "
        "0 Workers crashed due to other"
    ]
    advice = memory_advice(log, ["RewardLoopWorker"], 0, settings)
    assert "host memory: a reward worker; lower prism.hardware" in advice
    advice = memory_advice(log, [], 0, settings)
    assert "host memory: the stage's own process; lower" in advice


ALLOCATIONS = {
    "torch": "import torch; limit(); torch.zeros(1 << 36)",
    "Python": "limit(); bytearray(1 << 36)",
    "numpy": "import numpy; limit(); numpy.zeros(1 << 36)",
}


@pytest.mark.parametrize("library", ALLOCATIONS)
def test_a_shortage_of_host_memory_is_recognized(library):
    """The message is the library's own, in a process with a limit."""
    limit = (
        "import resource\ndef limit(): resource.setrlimit(resource.RLIMIT_AS, (1 << 35, 1 << 35))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", limit + ALLOCATIONS[library]], capture_output=True, text=True
    )
    assert done.returncode == 1
    shortage = find_shortage(done.stderr.splitlines())
    assert shortage is not None
    assert not shortage.on_device
    assert shortage.role is None
