"""Rollouts that are identical in every run with the same seed: `prism.reproducible=true`.

The seed of a response depends only on its position: the step, its prompt's position in the step and
its number among the prompt's samples. It depends neither on the order in which requests reach vLLM
nor on earlier random draws. A resumed run therefore continues like an uninterrupted one.
"""

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.utils import tensordict_utils as tu

from verl_prism.rollout.sampling import request_seed

AGENT_LOOP = "seeded_single_turn"


@dataclass(frozen=True)
class Batch:
    """Prompts that go to vLLM together: positions [first, stop) in their step, samples of each."""

    first: int
    stop: int
    samples: int


class SeededAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager, which also numbers the prompts of a step.

    Selected by `rollout.agent.agent_loop_manager_class`.
    """

    _step = -1
    _prompts = 0  # number of prompts of the step so far

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Number the prompts, and start their rollouts."""
        step = tu.get_non_tensor_data(prompts, "global_steps", default=None)
        if step != self._step:
            self._step = step
            self._prompts = 0
        first = self._prompts
        self._prompts += len(prompts)
        validate = tu.get_non_tensor_data(prompts, "validate", default=False)
        samples = self.rollout_config.val_kwargs.n if validate else self.rollout_config.n
        prompts["position"] = torch.arange(first, self._prompts)
        tu.assign_non_tensor_data(prompts, "batch", Batch(first, self._prompts, samples))
        tu.assign_non_tensor_data(prompts, "agent_name", AGENT_LOOP)
        super().generate_sequences(prompts)


@register(AGENT_LOOP)
class SeededAgentLoop(SingleTurnAgentLoop):
    """verl's agent loop, which also gives each request a seed, a priority and its batch's size.

    Registered because `actor_rollout_ref.model.external_lib` names this module.
    """

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """Sample one response."""
        position = int(kwargs["position"])
        sample = kwargs["session_id"]
        batch = kwargs["batch"]
        priority = position * batch.samples + sample
        # The run's seed, the step, the prompt's position and the sample's number.
        seed = request_seed(self.rollout_config.seed, kwargs["global_steps"], position, sample)
        requests = requests_on_server(priority, batch, self._num_servers())
        seeded = sampling_params | {"seed": seed, "extra_args": {"requests": requests}}
        return await super().run(seeded, **kwargs | {"priority": priority})

    def _num_servers(self) -> int:
        rollout = self.rollout_config
        devices_per_server = (
            rollout.tensor_model_parallel_size
            * rollout.data_parallel_size
            * rollout.pipeline_model_parallel_size
        )
        trainer = self.config.trainer
        return trainer.nnodes * trainer.n_gpus_per_node // devices_per_server


def requests_on_server(priority: int, batch: Batch, servers: int) -> int:
    """Return how many of the batch's requests go to the same vLLM server as the given one.

    verl's router selects the server by the hash of the request's name (`rollout.full_determinism`).
    verl sets the same PYTHONHASHSEED in all processes.
    """
    server = _server(priority, servers)
    priorities = range(batch.first * batch.samples, batch.stop * batch.samples)
    return sum(_server(other, servers) == server for other in priorities)


def _server(priority: int, servers: int) -> int:
    return hash(f"det-{priority}") % servers
