"""Offline sampling of a policy with vLLM in this process, for the evaluation and the warm-up."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from transformers import AutoProcessor

from verl_prism.config import Hardware, Image
from verl_prism.data.images import row_images
from verl_prism.data.messages import chat_messages

CPU_CACHE_BYTES = 2**30
# Samples of a question share the full blocks of its prompt, which vLLM's default of 128 exceeds.
CPU_BLOCK_TOKENS = 32

Row = Mapping[str, Any]
Progress = Callable[[int, int], None]  # number of responses so far, and in total


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled: `n` per question; temperature 0 is greedy."""

    n: int
    temperature: float
    top_p: float
    max_tokens: int  # per response


@dataclass(frozen=True)
class Sample:
    """A sampled response: its text without special tokens, and its length with the end token."""

    text: str
    tokens: int
    truncated: bool


class PolicySampler:
    """Serves the policy in a Hugging Face folder with vLLM, within a `with` block.

    It builds prompts like verl's rollout, and decodes responses like verl's reward managers. On CPU
    vLLM runs in this process, and the same `seed` gives the same responses. Entering the block
    seeds torch's global generator. Only one sampler may be open at a time.
    """

    def __init__(self, policy: Path, hardware: Hardware, seed: int, image: Image) -> None:
        self._policy = str(policy)
        self._image_limits = image
        self._hardware = hardware
        self._seed = seed

    def __enter__(self) -> Self:
        if self._hardware.device == "cpu":
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        self._set_num_threads = torch.set_num_threads
        from vllm import LLM  # takes ten seconds, and reads the environment

        self._processor = AutoProcessor.from_pretrained(self._policy)
        self._llm: Any = LLM(**llm_arguments(self._policy, self._hardware, self._seed))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        # vLLM's CPU worker replaces this function with one that only warns.
        torch.set_num_threads = self._set_num_threads

    def sample(
        self, rows: Sequence[Row], sampling: Sampling, on_progress: Progress | None = None
    ) -> list[list[Sample]]:
        """Return `sampling.n` responses to each row."""
        from vllm import SamplingParams

        params = SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            detokenize=False,
        )
        self._llm.enqueue([self._prompt(row) for row in rows], params, use_tqdm=False)
        groups: dict[int, list[Sample]] = {}  # by request id; ids ascend in the order of the rows
        while self._llm.llm_engine.has_unfinished_requests():
            for output in self._llm.llm_engine.step():
                samples = [self._sample(completion) for completion in output.outputs]
                groups[int(output.request_id)] = samples
            if on_progress is not None:
                on_progress(len(groups) * sampling.n, len(rows) * sampling.n)
        assert len(groups) == len(rows), f"{len(groups)} answers to {len(rows)} prompts"
        return [groups[request] for request in sorted(groups)]

    def _prompt(self, row: Row) -> dict[str, Any]:
        text = self._processor.apply_chat_template(
            chat_messages(row), add_generation_prompt=True, tokenize=False
        )
        ids = self._processor.tokenizer.encode(text, add_special_tokens=False)
        patch_size = self._processor.image_processor.patch_size
        images = row_images(row, patch_size, self._image_limits)
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": images} if images else {}}

    def _sample(self, completion: Any) -> Sample:
        ids = completion.token_ids
        text = self._processor.tokenizer.decode(ids, skip_special_tokens=True)
        return Sample(text, len(ids), truncated=completion.finish_reason == "length")


def llm_arguments(policy: str, hardware: Hardware, seed: int) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`."""
    arguments: dict[str, Any] = {
        "model": policy,
        "dtype": hardware.dtype,
        "seed": seed,
        "max_model_len": -1,  # as long as the cache allows
        "max_num_seqs": hardware.max_num_seqs,
        "enforce_eager": hardware.enforce_eager,
        "tensor_parallel_size": hardware.tensor_parallel_size,
        "limit_mm_per_prompt": {"video": 0},
        "disable_log_stats": True,
        "logits_processors": ["verl_prism.rollout.vllm_plugins:NoImageTokens"],
    }
    if hardware.device == "cpu":
        arguments["block_size"] = CPU_BLOCK_TOKENS
        arguments["kv_cache_memory_bytes"] = CPU_CACHE_BYTES
    else:
        arguments["gpu_memory_utilization"] = hardware.gpu_memory_utilization
    return arguments
