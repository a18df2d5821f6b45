"""`prism.reproducible=true`: the same seed gives the same run, bit for bit."""

import asyncio
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tensordict import TensorDict
from torch.distributed.tensor import DTensor
from torch.utils._pytree import keystr, tree_flatten_with_path
from transfer_queue import KVBatchMeta
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.utils import tensordict_utils as tu
from vllm import SamplingParams
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler

from verl_prism.alignment.groups import keys_by_group
from verl_prism.compose import compose_run
from verl_prism.errors import UserError
from verl_prism.rollout.sampling import request_seed
from verl_prism.rollout.seeded import (
    Batch,
    SeededAgentLoop,
    SeededAgentLoopManager,
    requests_on_server,
)
from verl_prism.rollout.vllm_plugins import WholeBatchScheduler
from verl_prism.trainer.replay_buffer import ConfiguredReplayBuffer

ROLLOUT = {
    "n": 2,
    "seed": 7,
    "tensor_model_parallel_size": 1,
    "data_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
}


def batch_of(step: int, prompts: int, **fields: Any) -> TensorDict:
    return tu.get_tensordict({"uid": list("abcdefgh")[:prompts]}, {"global_steps": step, **fields})


@pytest.fixture
def numbered(monkeypatch) -> list[TensorDict]:
    """The batches that the manager passes on to verl, and so to the agent loops."""
    batches: list[TensorDict] = []
    monkeypatch.setattr(
        AgentLoopManagerTQ, "generate_sequences", lambda self, prompts: batches.append(prompts)
    )
    return batches


def manager() -> SeededAgentLoopManager:
    rollout = OmegaConf.create({**ROLLOUT, "val_kwargs": {"n": 1}})
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout, "model": {}}})
    return SeededAgentLoopManager(config, None)


def requests(prompts: TensorDict, samples: int, monkeypatch) -> list[dict[str, Any]]:
    """The requests that an agent loop on one device sends to vLLM for each sample."""
    sent = []

    async def run(self, sampling_params, **kwargs):
        sent.append({**sampling_params, "priority": kwargs["priority"]})

    monkeypatch.setattr(SingleTurnAgentLoop, "run", run)
    loop = SeededAgentLoop.__new__(SeededAgentLoop)
    loop.rollout_config = OmegaConf.create(ROLLOUT)
    loop.config = OmegaConf.create({"trainer": {"nnodes": 1, "n_gpus_per_node": 1}})
    for position, sample in product(prompts["position"], range(samples)):
        kwargs = {
            "position": position,
            "session_id": sample,
            "batch": prompts["batch"],
            "global_steps": prompts["global_steps"],
        }
        asyncio.run(loop.run({"temperature": 1.0}, **kwargs))
    return sent


def test_the_seed_of_a_request_depends_only_on_its_position(numbered, monkeypatch):
    uninterrupted = manager()
    for step in (1, 2):
        uninterrupted.generate_sequences(batch_of(step, 2))
    manager().generate_sequences(batch_of(2, 2))  # resumed after step 1
    first = requests(numbered[0], 2, monkeypatch)
    second = requests(numbered[1], 2, monkeypatch)
    again = requests(numbered[2], 2, monkeypatch)
    assert second == again
    assert len({request["seed"] for request in first + second}) == 8
    assert [request["priority"] for request in second] == [0, 1, 2, 3]
    assert all(request["extra_args"] == {"requests": 4} for request in second)
    assert all(request["temperature"] == 1.0 for request in second)


def test_prompts_drawn_later_in_a_step_have_new_positions(numbered, monkeypatch):
    """Dynamic sampling draws prompts several times per step."""
    one = manager()
    for prompts in (2, 3):
        one.generate_sequences(batch_of(1, prompts))
    first = requests(numbered[0], 2, monkeypatch)
    later = requests(numbered[1], 2, monkeypatch)
    assert [request["priority"] for request in later] == [4, 5, 6, 7, 8, 9]
    assert {request["extra_args"]["requests"] for request in later} == {6}
    assert len({request["seed"] for request in first + later}) == 10


def test_validation_counts_its_own_samples(numbered):
    manager().generate_sequences(batch_of(1, 3, validate=True))
    assert numbered[0]["batch"] == Batch(0, 3, samples=1)


def test_seeds_differ_with_every_part_of_the_position():
    positions = [(0, 1, 2, 3), (1, 1, 2, 3), (0, 2, 2, 3), (0, 1, 3, 3), (0, 1, 2, 4), (0, 1, 3, 2)]
    seeds = [request_seed(*position) for position in positions]
    assert len(set(seeds)) == len(positions)
    assert seeds == [request_seed(*position) for position in positions]


def test_each_server_waits_for_its_own_share_of_a_batch():
    batch = Batch(3, 8, samples=4)
    priorities = range(12, 32)
    shares = [requests_on_server(priority, batch, servers=2) for priority in priorities]
    assert all(requests_on_server(priority, batch, servers=1) == 20 for priority in priorities)
    # The shares of a server's requests add up to 1 when each counts as 1 / share.
    used_servers = sum(Fraction(1, share) for share in shares)
    assert used_servers in (1, 2)
    assert all(shares.count(share) % share == 0 for share in set(shares))


def test_vllm_starts_when_all_requests_of_a_batch_have_arrived(monkeypatch):
    waiting: list[Any] = []
    monkeypatch.setattr(Scheduler, "add_request", lambda self, request: waiting.append(request))
    monkeypatch.setattr(Scheduler, "get_request_counts", lambda self: (0, len(waiting)))
    scheduler = WholeBatchScheduler.__new__(WholeBatchScheduler)
    request = SimpleNamespace(sampling_params=SamplingParams(extra_args={"requests": 3}))
    states = []
    for _ in range(3):
        scheduler.add_request(request)
        states.append(scheduler.pause_state)
    assert states == [PauseState.PAUSED_NEW, PauseState.PAUSED_NEW, PauseState.UNPAUSED]


def test_rollouts_come_in_the_order_of_the_data(monkeypatch):
    """Neither the order of completion nor the names that verl gives to prompts matter."""
    partition = {}
    for uid in "zap":
        partition[uid] = {"is_prompt": True, "status": "finished", "global_steps": 1}
    for key in ["p_10_0", "a_0_0", "p_9_0", "z_1_0", "z_0_0", "a_1_0"]:
        partition[key] = {"status": "success"}
    monkeypatch.setattr(tq, "kv_list", lambda: {"train": partition})
    monkeypatch.setattr(tq, "kv_clear", lambda partition_id, keys: None)
    batch, _ = buffer().sample(global_steps=1, partition_id="train", batch_size=2)
    assert batch.keys == ["z_0_0", "z_1_0", "a_0_0", "a_1_0"]


def test_no_batch_is_sampled_while_a_rollout_is_running(monkeypatch):
    """The slow prompt was drawn first and is taken, instead of a later one that overtook it."""
    polls = iter(["running", "running", "finished"])

    def kv_list():
        statuses = {"slow": next(polls), "fast": "finished", "faster": "finished"}
        partition = {}
        for uid, status in statuses.items():
            partition[uid] = {"is_prompt": True, "status": status, "global_steps": 1}
            partition[f"{uid}_0_0"] = {"status": "success"}
        return {"train": partition}

    monkeypatch.setattr(tq, "kv_list", kv_list)
    monkeypatch.setattr(tq, "kv_clear", lambda partition_id, keys: None)
    batch, _ = buffer(wait_for_all=True).sample(global_steps=1, partition_id="train", batch_size=2)
    assert batch.keys == ["slow_0_0", "fast_0_0"]


def buffer(**options: Any) -> ConfiguredReplayBuffer:
    return ConfiguredReplayBuffer(
        trainer_mode="sync",
        trainer_config={},
        max_off_policy_threshold=8,
        max_off_policy_strategy="drop",
        sampler_kwargs=OmegaConf.create({"poll_interval": 0.001, **options}),
        refill_fn=lambda count: None,
    )


def test_the_discriminator_gets_groups_in_the_order_of_the_batch():
    """verl's group names are random, and balancing over ranks may separate the rows of a group."""
    keys = ["z_0_0", "a_1_0", "pad_0_0", "z_1_0", "a_0_0"]
    tags = [{"is_padding": True} if key.startswith("pad") else {} for key in keys]
    batch = KVBatchMeta(partition_id="train", keys=keys, tags=tags)
    assert keys_by_group(batch) == [["z_0_0", "z_1_0"], ["a_1_0", "a_0_0"]]


def test_nothing_changes_unless_it_is_set():
    config, _ = compose_run(["stage=rlvr"])
    rollout = config.actor_rollout_ref.rollout
    assert rollout.agent.agent_loop_manager_class is None
    assert config.actor_rollout_ref.model.external_lib is None
    assert rollout.engine_kwargs.vllm.scheduler_cls is None
    assert not rollout.full_determinism


@pytest.mark.parametrize(
    ("key", "overrides"),
    [
        (
            "prism.algorithm.distillation.enable",
            ["algorithm=opd_whitebox", "prism.hardware.ray_gpus=2"],
        ),
        (
            "prism.reward.judge.endpoint",
            ["prism.reward.judge.endpoint=http://judge/v1", "prism.reward.judge.model=m"],
        ),
    ],
)
def test_sources_of_randomness_outside_the_run_are_refused(key, overrides):
    with pytest.raises(UserError, match=f"prism.reproducible=true does not work with {key}"):
        compose_run(["stage=rlvr", "prism.reproducible=true", *overrides])


# The runs themselves. Times and metrics derived from times do not depend on the seed.
TIMES = ("timing_", "perf/", "actor/perf/", "train/mfu")
SMALL = (
    "prism.rollout.prompts_per_step=4",
    "prism.rollout.samples_per_prompt=4",
    "prism.optim.lr=1e-3",
)
STAGES = {
    "sft": ("prism.steps=4", "prism.sft.examples_per_step=16", "prism.optim.lr=2e-3"),
    "warmup": (
        "prism.steps=3",
        "prism.warmup.prompts=60",
        "prism.warmup.samples_per_prompt=2",
        "prism.warmup.pairs_per_step=16",
    ),
    "rlvr": ("prism.steps=3", *SMALL),
    "eval": ("prism.eval.max_questions=20",),
}


@dataclass(frozen=True)
class Run:
    """What a stage wrote: metrics of each step, without times, and every tensor that it saved."""

    metrics: list[dict]
    tensors: dict[str, torch.Tensor]
    texts: dict[str, str]

    @classmethod
    def of(cls, output: Path, metrics: list[dict]) -> "Run":
        without_times = []
        for step in metrics:
            kept = {key: value for key, value in step.items() if not key.startswith(TIMES)}
            without_times.append(kept)
        files = [output / "rollouts.jsonl", output / "responses.jsonl"]
        texts = {file.name: file.read_text() for file in files if file.exists()}
        return cls(without_times, saved_tensors(output), texts)


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Parameters, optimizer states and states of random generators, by file and path in it."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.rglob("*.pt")):
        leaves = tree_flatten_with_path(torch.load(file, weights_only=False))[0]
        for path, leaf in leaves:
            if isinstance(leaf, DTensor):
                leaf = leaf.to_local()
            if isinstance(leaf, torch.Tensor):
                found[f"{file.relative_to(folder)} {keystr(path)}"] = leaf
    for file in sorted(folder.rglob("*.safetensors")):
        for name, tensor in load_file(file).items():
            found[f"{file.relative_to(folder)} {name}"] = tensor
    return found


def assert_equal(one: Run, other: Run) -> None:
    steps = zip(one.metrics, other.metrics, strict=True)
    for step, (metrics, others) in enumerate(steps, start=1):
        different = [key for key in metrics | others if not same(metrics.get(key), others.get(key))]
        assert not different, f"step {step}: {different}"
    assert one.texts == other.texts
    assert one.tensors.keys() == other.tensors.keys()
    assert not [
        name for name, tensor in one.tensors.items() if not torch.equal(tensor, other.tensors[name])
    ]


def same(one: object, other: object) -> bool:
    return one == other or (one != one and other != other)  # both are NaN


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", STAGES)
def test_a_rerun_of_a_stage_is_identical_bit_for_bit(pipeline, tmp_path, stage):
    policy = [f"prism.policy={pipeline.root}/sft/policy"] if stage in ("rlvr", "eval") else []
    runs = []
    for name in ("one", "other"):
        metrics = pipeline.run(
            stage, "prism.reproducible=true", *STAGES[stage], *policy, output=tmp_path / name
        )
        runs.append(Run.of(tmp_path / name, metrics))
    assert_equal(*runs)
    assert runs[0].tensors or runs[0].texts


EPOCH = 3  # steps, of 4 prompts each
ALIGN = (*SMALL, "prism.discriminator.lr=1e-3", "prism.reproducible=true")


@pytest.fixture(scope="module")
def few_prompts(digits_folder, tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("few") / "train.parquet"
    pq.write_table(
        pq.read_table(digits_folder / "data" / "train.parquet").slice(0, 4 * EPOCH), file
    )
    return f"prism.data.train={file}"


@pytest.fixture(scope="module")
def uninterrupted(pipeline, few_prompts, tmp_path_factory) -> tuple[Path, list[dict]]:
    """Six uninterrupted steps of alignment, with all checkpoints."""
    output = tmp_path_factory.mktemp("uninterrupted")
    saving = ("prism.checkpoint_every=1", "prism.keep_checkpoints=6")
    return output, pipeline.run(
        "align", "prism.steps=6", few_prompts, *ALIGN, *saving, output=output
    )


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "half",
    [
        pytest.param(1, id="within an epoch"),
        pytest.param(2, id="over an epoch's end"),
        pytest.param(EPOCH, id="stopped at an epoch's end"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    pipeline, few_prompts, uninterrupted, tmp_path, half
):
    """In parameters, both optimizers, random states and metrics.

    The steps before the stop are also a rerun of the uninterrupted run's.
    """
    pipeline.run("align", f"prism.steps={half}", few_prompts, *ALIGN, output=tmp_path)
    resumed = ("prism.resume=true", f"prism.steps={2 * half}")
    metrics = pipeline.run("align", *resumed, few_prompts, *ALIGN, output=tmp_path)
    output, all_metrics = uninterrupted
    last = Path("checkpoints", f"global_step_{2 * half}")
    assert_equal(Run.of(tmp_path / last, metrics), Run.of(output / last, all_metrics[: 2 * half]))
