"""A vLLM engine in this process, which samples one policy."""

import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoProcessor

from verl_prism.data.images import row_images
from verl_prism.data.messages import chat_messages
from verl_prism.rollout.sampling import (
    Finished,
    NumberedRow,
    Row,
    Sample,
    SamplingJob,
    request_seed,
)

CPU_CACHE_BYTES = 2**30
# Samples of a question share the full blocks of its prompt, which vLLM's default of 128 exceeds.
CPU_BLOCK_TOKENS = 32
REPORT_SECONDS = 10.0  # after which finished rows are returned, so that they can be saved


class PolicyEngine:
    """Serves the policy in a Hugging Face folder with vLLM, from the constructor until `close`.

    It builds prompts like verl's rollout, and decodes responses like verl's reward managers. The
    seed of a response depends only on the seed of the job, the number of its row and its place
    among the row's responses. On CPU vLLM runs in this process. Only one engine may be open in a
    process.
    """

    def __init__(self, job: SamplingJob) -> None:
        if job.hardware.device == "cpu":
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        self._set_num_threads = torch.set_num_threads
        from vllm import LLM  # takes ten seconds, and reads the environment

        self._job = job
        self._processor = AutoProcessor.from_pretrained(job.policy)
        self._requests: dict[str, tuple[int, int]] = {}  # request -> row, number of its sampling
        self._responses: dict[int, dict[int, list[Sample]]] = {}  # row -> sampling -> responses
        self._llm: Any = LLM(**llm_arguments(job))

    def ready(self) -> None:
        """Do nothing. The answer of a remote engine shows that vLLM has started."""

    def close(self) -> None:
        """Free vLLM's memory."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        # vLLM's CPU worker replaces this function with one that only warns.
        torch.set_num_threads = self._set_num_threads

    def advance(self, new: Sequence[NumberedRow], keep: int) -> list[Finished]:
        """Add rows, generate, and return the rows that are finished.

        Returns when at most `keep` rows are unfinished, or after some seconds.
        """
        if self._job.reproducible and not self._responses:
            self._forget()
        self._add(new)
        finished: list[Finished] = []
        deadline = time.monotonic() + REPORT_SECONDS
        while len(self._responses) > keep and time.monotonic() < deadline:
            for output in self._llm.llm_engine.step():
                finished += self._take(output)
        return finished

    def _forget(self) -> None:
        """Empty vLLM's caches.

        With what is in them a prompt is computed in fewer rows, on which the last bits of a product
        depend.
        """
        assert self._llm.llm_engine.reset_prefix_cache(), "vLLM still holds blocks of a request"
        self._llm.llm_engine.reset_encoder_cache()

    def _add(self, rows: Sequence[NumberedRow]) -> None:
        places: list[tuple[int, int]] = []
        prompts: list[dict[str, Any]] = []
        params: list[Any] = []
        for number, row in rows:
            prompt = self._prompt(row)
            self._responses[number] = {}
            for index in range(len(self._job.samplings)):
                places.append((number, index))
                prompts.append(prompt)
                params.append(self._params(number, index))
        if not prompts:
            return
        # vLLM adds a random suffix to the names of requests, and reports them without it.
        requests = self._llm.enqueue(prompts, params, use_tqdm=False)
        names = [request.partition("-")[0] for request in requests]
        self._requests |= dict(zip(names, places, strict=True))

    def _params(self, number: int, index: int) -> Any:
        from vllm import SamplingParams

        sampling = self._job.samplings[index]
        temperature = sampling.temperature
        top_k = 0  # no limit
        if temperature == 0 and self._job.hardware.device == "cpu":
            # On CPU vLLM ignores the seeds of a batch in which a request is greedy. The most
            # probable token is also what is left of the vocabulary with top_k = 1.
            temperature = 1.0
            top_k = 1
        # vLLM adds the number of a response to the seed of its request.
        return SamplingParams(
            n=sampling.n,
            temperature=temperature,
            top_p=sampling.top_p,
            top_k=top_k,
            max_tokens=sampling.max_tokens,
            seed=request_seed(self._job.seed, number, index),
            detokenize=False,
        )

    def _prompt(self, row: Row) -> dict[str, Any]:
        text = self._processor.apply_chat_template(
            chat_messages(row), add_generation_prompt=True, tokenize=False
        )
        ids = self._processor.tokenizer.encode(text, add_special_tokens=False)
        patch_size = self._processor.image_processor.patch_size
        images = row_images(row, patch_size, self._job.image)
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": images} if images else {}}

    def _take(self, output: Any) -> list[Finished]:
        """Keep the responses to a request, and return its row if it is finished."""
        number, index = self._requests.pop(output.request_id)
        responses = self._responses[number]
        responses[index] = [self._sample(completion) for completion in output.outputs]
        if len(responses) < len(self._job.samplings):
            return []
        del self._responses[number]
        ordered = [sample for place in sorted(responses) for sample in responses[place]]
        return [(number, ordered)]

    def _sample(self, completion: Any) -> Sample:
        ids = completion.token_ids
        text = self._processor.tokenizer.decode(ids, skip_special_tokens=True)
        return Sample(text, len(ids), truncated=completion.finish_reason == "length")


def llm_arguments(job: SamplingJob) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`."""
    hardware = job.hardware
    arguments: dict[str, Any] = {
        "model": str(job.policy),
        "dtype": hardware.dtype,
        "seed": job.seed,
        "max_model_len": job.max_model_len,
        "max_num_seqs": hardware.max_num_seqs,
        "enforce_eager": hardware.enforce_eager,
        "tensor_parallel_size": hardware.tensor_parallel_size,
        "limit_mm_per_prompt": {"video": 0},
        "disable_log_stats": True,
        "logits_processors": ["verl_prism.rollout.vllm_plugins:NoImageTokens"],
    }
    if hardware.tensor_parallel_size > 1:
        # Inside a Ray actor vLLM would otherwise ask Ray for the devices that the actor has.
        arguments["distributed_executor_backend"] = "mp"
    if hardware.device == "cpu":
        arguments["block_size"] = CPU_BLOCK_TOKENS
        arguments["kv_cache_memory_bytes"] = CPU_CACHE_BYTES
        # After a part of a prompt vLLM sets the request's random generator back, which a generator
        # of a CPU cannot do.
        arguments["enable_chunked_prefill"] = False
    else:
        arguments["gpu_memory_utilization"] = hardware.gpu_memory_utilization
    return arguments
