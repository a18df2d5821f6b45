"""The environment variables of a run on a host with no accelerator."""

import os


def cpu_environment() -> dict[str, str]:
    """Returns what has to be in `os.environ` before verl, vLLM or Ray are imported.

    Ray's processes and vLLM's inherit it from the driver, which starts them.

    Platform:
        VERL_PLATFORM: selects `verl_prism.cpu.platform`; without it verl believes that it is on an NVIDIA host.
        VERL_ENGINE_DEVICE: verl registers its FSDP engines for cuda and npu; this selects the class and nothing else.

    vLLM:
        VLLM_CPU_KVCACHE_SPACE: GiB; the default is a fraction of all memory.
        VLLM_ENABLE_V1_MULTIPROCESSING: 0 allows the executor "uni" on CPU, the worker inside the engine's process: one
            process less to start and to keep in memory.
        TORCH_COMPILE_DISABLE: vLLM's sampler has one compiled function, and its first call waits for the C++ compiler.

    Threads:
        OMP_NUM_THREADS: the usable cores; Ray would choose 1 for most processes and 3 for the actor.
        OMP_WAIT_POLICY: threads that spin at a barrier take the core from the thread that they wait for. On two busy
            cores vLLM generates more than ten times faster with PASSIVE.
        TQ_NUM_THREADS: TransferQueue asks for 8 threads and warns at every request where there are fewer cores.

    Ray:
        RAY_prestart_worker_first_driver, RAY_enable_worker_prestart: workers started in advance lack verl's runtime
            environment, so none is ever used.
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO: what Ray will do by default; unset, each process warns about it.

    Quiet: the remaining ones turn down logs that are of no use to a reader.
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
