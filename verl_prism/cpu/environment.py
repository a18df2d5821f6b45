"""Environment variables for a host without an accelerator."""

import os


def cpu_environment() -> dict[str, str]:
    """Return variables that must be set before verl, vLLM or Ray are imported.

    The processes of Ray and vLLM inherit them from the driver, which starts them.

    Platform:
        VERL_PLATFORM: Selects `verl_prism.cpu.platform`. Without it verl assumes an NVIDIA host.
        VERL_ENGINE_DEVICE: verl registers its FSDP engines for cuda and npu. This only selects the
            class.

    vLLM:
        VLLM_CPU_KVCACHE_SPACE: GiB; the default is a fraction of all memory.
        VLLM_ENABLE_V1_MULTIPROCESSING: 0 allows the executor "uni" on CPU, which runs the worker in
            the engine's process. That is one process less to start and to keep in memory.
        TORCH_COMPILE_DISABLE: vLLM's sampler has one compiled function, and its first call waits
            for the C++ compiler.

    Threads:
        OMP_NUM_THREADS: All usable cores. Ray would set 1 for most processes and 3 for the actor.
        OMP_WAIT_POLICY: A thread that spins at a barrier takes the core from the thread that it
            waits for. On two busy cores vLLM generates over ten times faster with PASSIVE.
        TQ_NUM_THREADS: TransferQueue requests 8 threads, and with fewer cores it warns at every
            request.

    Ray:
        RAY_prestart_worker_first_driver, RAY_enable_worker_prestart: Workers that Ray starts in
            advance lack verl's runtime environment, so they would never be used.
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO: Ray's future default. If unset, each process warns.

    The other variables reduce logging.
    """
    cores = str(len(os.sched_getaffinity(0)))
    return {
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "TORCH_COMPILE_DISABLE": "1",
        "OMP_NUM_THREADS": cores,
        "OMP_WAIT_POLICY": "PASSIVE",
        "TQ_NUM_THREADS": cores,
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TQ_LOGGING_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
    }
