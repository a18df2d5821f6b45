"""Rollouts that come out the same in every run with the same seed: `prism.reproducible=true`.

What a response is sampled with depends on where it stands: the step, its prompt's place in the step, its number among
the prompt's samples. It depends neither on the order in which requests reach vLLM nor on what the process has drawn
before, so that a resumed run goes on as one that was never stopped.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.utils import tensordict_utils as tu

AGENT_LOOP = "seeded_single_turn"


@dataclass(frozen=True)
class Batch:
    """Prompts that are handed to vLLM together: the places [first, stop) in their step, and samples of each."""

    first: int
    stop: int
    samples: int


class SeededAgentLoopManager(AgentLoopManagerTQ):
    """verl's, which also numbers the prompts of a step. Selected by `rollout.agent.agent_loop_manager_class`."""

    _step, _prompts = -1, 0

    def generate_sequences(self, prompts: TensorDict) -> None:
        step = tu.get_non_tensor_data(prompts, "global_steps", default=None)
        if step != self._step:
            self._step, self._prompts = step, 0
        first, self._prompts = self._prompts, self._prompts + len(prompts)
        validate = tu.get_non_tensor_data(prompts, "validate", default=False)
        samples = self.rollout_config.val_kwargs.n if validate else self.rollout_config.n
        prompts["place"] = torch.arange(first, self._prompts)
        tu.assign_non_tensor_data(prompts, "batch", Batch(first, self._prompts, samples))
        tu.assign_non_tensor_data(prompts, "agent_name", AGENT_LOOP)
        super().generate_sequences(prompts)


@register(AGENT_LOOP)
class SeededAgentLoop(SingleTurnAgentLoop):
    """verl's, which gives each request a seed, a priority and the number of those that it comes with.

    Registered where `actor_rollout_ref.model.external_lib` names this module.
    """

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        place, session, batch = int(kwargs["place"]), kwargs["session_id"], kwargs["batch"]
        priority = place * batch.samples + session
        seeded = sampling_params | {
            "seed": request_seed(self.rollout_config.seed, kwargs["global_steps"], place, session),
            "extra_args": {"requests": requests_beside(priority, batch, self._servers())},
        }
        return await super().run(seeded, **kwargs | {"priority": priority})

    def _servers(self) -> int:
        rollout, trainer = self.rollout_config, self.config.trainer
        devices = (
            rollout.tensor_model_parallel_size
            * rollout.data_parallel_size
            * rollout.pipeline_model_parallel_size
        )
        return trainer.nnodes * trainer.n_gpus_per_node // devices


def request_seed(*position: int) -> int:
    """A seed for the run's seed, the step, the prompt's place in it and the sample's number."""
    return int(np.random.SeedSequence(position).generate_state(1)[0])


def requests_beside(priority: int, batch: Batch, servers: int) -> int:
    """How many of the batch's requests reach the same vLLM server as the one with this priority, itself included.

    verl's router chooses the server by the hash of the name that its agent loop gives a request
    (`rollout.full_determinism`); verl has set the same PYTHONHASHSEED for all processes.
    """
    priorities = range(batch.first * batch.samples, batch.stop * batch.samples)
    return sum(_server(other, servers) == _server(priority, servers) for other in priorities)


def _server(priority: int, servers: int) -> int:
    return hash(f"det-{priority}") % servers
