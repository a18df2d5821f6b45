"""Responses of a policy to many questions at once, from vLLM in this process: for the evaluation and the warm-up."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from transformers import AutoProcessor

from verl_prism.config import Hardware
from verl_prism.data.messages import chat_messages, row_images

CPU_CACHE_BYTES = 2**30
CPU_BLOCK_TOKENS = (
    32  # samples of a question share the full blocks of its prompt; 128, the default, is too long
)

Row = Mapping[str, Any]
Progress = Callable[[int, int], None]  # responses done, responses in all


@dataclass(frozen=True)
class Sample:
    """A sampled response: its text without special tokens, its length in tokens, the end token included."""

    text: str
    tokens: int
    truncated: bool


class PolicySampler:
    """A vLLM engine that serves the policy in a Hugging Face folder, from entering the `with` block to leaving it.

    Prompts are built as verl's rollout builds them, and responses decoded as its reward managers decode them. On CPU
    the engine runs in this process and, with one `seed`, gives the same responses again; the block seeds torch's
    global generator. Only one may be open at a time.
    """

    def __init__(self, policy: Path, hardware: Hardware, seed: int) -> None:
        self._policy = str(policy)
        self._hardware = hardware
        self._seed = seed

    def __enter__(self) -> Self:
        if self._hardware.device == "cpu":
            os.environ |= {
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            }
        self._set_num_threads = torch.set_num_threads
        from vllm import LLM  # ten seconds, and it reads the environment

        self._processor = AutoProcessor.from_pretrained(self._policy)
        self._engine: Any = LLM(**engine_arguments(self._policy, self._hardware, self._seed))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._engine.llm_engine.engine_core.shutdown()
        del self._engine
        torch.set_num_threads = (
            self._set_num_threads
        )  # vLLM's CPU worker puts a warning in its place

    def sample(
        self,
        rows: Sequence[Row],
        samples: int,
        temperature: float,
        top_p: float,
        max_tokens: int,
        on_progress: Progress | None = None,
    ) -> list[list[Sample]]:
        """`samples` responses to each row. temperature 0 is greedy; max_tokens per response."""
        from vllm import SamplingParams

        params = SamplingParams(
            n=samples, temperature=temperature, top_p=top_p, max_tokens=max_tokens, detokenize=False
        )
        self._engine.enqueue([self._prompt(row) for row in rows], params, use_tqdm=False)
        groups: dict[
            int, list[Sample]
        ] = {}  # by request number, which counts up in the order of the rows
        while self._engine.llm_engine.has_unfinished_requests():
            for output in self._engine.llm_engine.step():
                groups[int(output.request_id)] = [
                    self._sample(completion) for completion in output.outputs
                ]
            if on_progress is not None:
                on_progress(len(groups) * samples, len(rows) * samples)
        assert len(groups) == len(rows), f"{len(groups)} answers to {len(rows)} prompts"
        return [groups[request] for request in sorted(groups)]

    def _prompt(self, row: Row) -> dict[str, Any]:
        text = self._processor.apply_chat_template(
            chat_messages(row), add_generation_prompt=True, tokenize=False
        )
        ids = self._processor.tokenizer.encode(text, add_special_tokens=False)
        images = row_images(row, self._processor.image_processor.patch_size)
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": images} if images else {}}

    def _sample(self, completion: Any) -> Sample:
        text = self._processor.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        return Sample(
            text, len(completion.token_ids), truncated=completion.finish_reason == "length"
        )


def engine_arguments(policy: str, hardware: Hardware, seed: int) -> dict[str, Any]:
    """Arguments of `vllm.LLM`."""
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
        return arguments | {
            "block_size": CPU_BLOCK_TOKENS,
            "kv_cache_memory_bytes": CPU_CACHE_BYTES,
        }
    return arguments | {"gpu_memory_utilization": hardware.gpu_memory_utilization}
