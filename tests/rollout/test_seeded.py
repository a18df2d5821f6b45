"""`prism.reproducible=true`: the same seed gives the same run, to the last bit."""

import asyncio
from dataclasses import dataclass
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

from verl_prism.alignment.trainer import AdversarialOPDTrainer
from verl_prism.compose import compose_run
from verl_prism.errors import UserError
from verl_prism.rollout.seeded import (
    Batch,
    SeededAgentLoop,
    SeededAgentLoopManager,
    request_seed,
    requests_beside,
)
from verl_prism.rollout.vllm_plugins import WholeBatchScheduler
from verl_prism.trainer.replay_buffer import ConfiguredReplayBuffer

ROLLOUT = dict(
    n=2, seed=7, tensor_model_parallel_size=1, data_parallel_size=1, pipeline_model_parallel_size=1
)


def batch_of(step: int, prompts: int, **fields: Any) -> TensorDict:
    return tu.get_tensordict({"uid": list("abcdefgh")[:prompts]}, {"global_steps": step, **fields})


@pytest.fixture
def handed_out(monkeypatch) -> list[TensorDict]:
    """What the manager hands to verl's, and so to the agent loops."""
    batches: list[TensorDict] = []
    monkeypatch.setattr(
        AgentLoopManagerTQ, "generate_sequences", lambda self, prompts: batches.append(prompts)
    )
    return batches


def manager() -> SeededAgentLoopManager:
    rollout = OmegaConf.create({**ROLLOUT, "val_kwargs": {"n": 1}})
    return SeededAgentLoopManager(
        OmegaConf.create({"actor_rollout_ref": {"rollout": rollout, "model": {}}}), None
    )


def requests(prompts: TensorDict, samples: int, monkeypatch) -> list[dict[str, Any]]:
    """What an agent loop on one device asks vLLM for, for each sample of each prompt."""
    asked = []

    async def run(self, sampling_params, **kwargs):
        asked.append({**sampling_params, "priority": kwargs["priority"]})

    monkeypatch.setattr(SingleTurnAgentLoop, "run", run)
    loop = SeededAgentLoop.__new__(SeededAgentLoop)
    loop.rollout_config = OmegaConf.create(ROLLOUT)
    loop.config = OmegaConf.create({"trainer": {"nnodes": 1, "n_gpus_per_node": 1}})
    step, batch = prompts["global_steps"], prompts["batch"]
    for place, session in product(prompts["place"], range(samples)):
        kwargs = {"place": place, "session_id": session, "batch": batch, "global_steps": step}
        asyncio.run(loop.run({"temperature": 1.0}, **kwargs))
    return asked


def test_a_request_is_seeded_by_where_it_stands_and_not_by_what_was_drawn_before(
    handed_out, monkeypatch
):
    straight, resumed = manager(), manager()
    for step in (1, 2):
        straight.generate_sequences(batch_of(step, 2))
    resumed.generate_sequences(batch_of(2, 2))
    first, second, again = (requests(prompts, 2, monkeypatch) for prompts in handed_out)
    assert second == again
    assert len({request["seed"] for request in first + second}) == 8
    assert [request["priority"] for request in second] == [0, 1, 2, 3]
    assert all(request["extra_args"] == {"requests": 4} for request in second)
    assert all(request["temperature"] == 1.0 for request in second)


def test_prompts_drawn_later_in_a_step_have_places_of_their_own(handed_out, monkeypatch):
    """As dynamic sampling draws them."""
    one = manager()
    for prompts in (2, 3):
        one.generate_sequences(batch_of(1, prompts))
    first, later = (requests(prompts, 2, monkeypatch) for prompts in handed_out)
    assert [request["priority"] for request in later] == [4, 5, 6, 7, 8, 9]
    assert {request["extra_args"]["requests"] for request in later} == {6}
    assert len({request["seed"] for request in first + later}) == 10


def test_validation_counts_its_own_samples(handed_out):
    manager().generate_sequences(batch_of(1, 3, validate=True))
    assert handed_out[0]["batch"] == Batch(0, 3, samples=1)


def test_seeds_differ_with_every_part_of_the_position():
    positions = [(0, 1, 2, 3), (1, 1, 2, 3), (0, 2, 2, 3), (0, 1, 3, 3), (0, 1, 2, 4), (0, 1, 3, 2)]
    seeds = [request_seed(*position) for position in positions]
    assert len(set(seeds)) == len(positions)
    assert seeds == [request_seed(*position) for position in positions]


def test_each_server_waits_for_its_own_share_of_a_batch():
    batch = Batch(3, 8, samples=4)
    beside = [requests_beside(priority, batch, servers=2) for priority in range(12, 32)]
    assert all(requests_beside(priority, batch, servers=1) == 20 for priority in range(12, 32))
    assert len(set(beside)) <= 2 and sum(set(beside)) == 20
    assert all(beside.count(share) == share for share in set(beside))


def test_vllm_begins_when_all_requests_of_a_batch_are_there(monkeypatch):
    waiting: list[Any] = []
    monkeypatch.setattr(Scheduler, "add_request", lambda self, request: waiting.append(request))
    monkeypatch.setattr(Scheduler, "get_request_counts", lambda self: (0, len(waiting)))
    scheduler, states = WholeBatchScheduler.__new__(WholeBatchScheduler), []
    for _ in range(3):
        scheduler.add_request(
            SimpleNamespace(sampling_params=SamplingParams(extra_args={"requests": 3}))
        )
        states.append(scheduler.pause_state)
    assert states == [PauseState.PAUSED_NEW, PauseState.PAUSED_NEW, PauseState.UNPAUSED]


def test_rollouts_come_in_the_order_of_the_data(monkeypatch):
    """Whichever was finished first, and whatever verl has named the prompts."""
    prompt = {"is_prompt": True, "status": "finished", "global_steps": 1}
    finished = ["p_10_0", "a_0_0", "p_9_0", "z_1_0", "z_0_0", "a_1_0"]
    partition = {uid: dict(prompt) for uid in "zap"} | {
        key: {"status": "success"} for key in finished
    }
    monkeypatch.setattr(tq, "kv_list", lambda: {"train": partition})
    monkeypatch.setattr(tq, "kv_clear", lambda partition_id, keys: None)
    batch, _ = buffer().sample(global_steps=1, partition_id="train", batch_size=2)
    assert batch.keys == ["z_0_0", "z_1_0", "a_0_0", "a_1_0"]


def test_nothing_is_decided_while_a_rollout_is_under_way(monkeypatch):
    """The slow prompt of the two that were drawn first is taken, and not one that overtook it."""
    polls = iter(["running", "running", "finished"])

    def kv_list():
        statuses = {"slow": next(polls), "fast": "finished", "faster": "finished"}
        return {
            "train": {
                uid: {"is_prompt": True, "status": s, "global_steps": 1}
                for uid, s in statuses.items()
            }
            | {f"{uid}_0_0": {"status": "success"} for uid in statuses}
        }

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
    """verl's names of groups are random; rows of a group may stand apart when they were balanced over ranks."""
    seen: list[KVBatchMeta] = []

    def update(rollouts: KVBatchMeta) -> SimpleNamespace:
        seen.append(rollouts)
        return SimpleNamespace(extra_info={"metrics": [{}]})

    trainer = SimpleNamespace(discriminator_wg=SimpleNamespace(update_discriminator=update))
    keys = ["z_0_0", "a_1_0", "pad_0_0", "z_1_0", "a_0_0"]
    tags = [{"is_padding": True} if key.startswith("pad") else {} for key in keys]
    AdversarialOPDTrainer._update_discriminator(
        trainer, KVBatchMeta(partition_id="train", keys=keys, tags=tags), {}
    )
    assert seen[0].keys == ["z_0_0", "z_1_0", "a_1_0", "a_0_0"]


def test_nothing_changes_where_it_was_not_asked_for():
    config, _ = compose_run(["stage=rlvr"])
    rollout = config.actor_rollout_ref.rollout
    assert (
        rollout.agent.agent_loop_manager_class is None
        and config.actor_rollout_ref.model.external_lib is None
    )
    assert rollout.engine_kwargs.vllm.scheduler_cls is None and not rollout.full_determinism


@pytest.mark.parametrize(
    ("key", "overrides"),
    [
        ("prism.algorithm.distillation.enable", ["algorithm=opd_whitebox"]),
        (
            "prism.reward.judge.endpoint",
            ["prism.reward.judge.endpoint=http://judge/v1", "prism.reward.judge.model=m"],
        ),
    ],
)
def test_what_comes_from_outside_the_run_is_refused(key, overrides):
    with pytest.raises(UserError, match=f"prism.reproducible=true, but .*{key}"):
        compose_run(["stage=rlvr", "prism.reproducible=true", *overrides])


# What the runs themselves show. Times, and what is made of them, are not a matter of the seed.
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
    "eval": ("prism.eval.questions=20",),
}


@dataclass(frozen=True)
class Run:
    """What a stage left: metrics of each step, without times, and every tensor that it saved."""

    metrics: list[dict]
    tensors: dict[str, torch.Tensor]
    texts: dict[str, str]

    @classmethod
    def of(cls, output: Path, metrics: list[dict]) -> "Run":
        without_times = [
            {key: v for key, v in step.items() if not key.startswith(TIMES)} for step in metrics
        ]
        texts = {
            name: (output / name).read_text()
            for name in ("rollouts.jsonl", "responses.jsonl")
            if (output / name).exists()
        }
        return cls(without_times, saved_tensors(output), texts)


def saved_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """By file and place in it: parameters, moments of the optimizers, states of random generators."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.rglob("*.pt")):
        leaves = tree_flatten_with_path(torch.load(file, weights_only=False))[0]
        found |= {
            f"{file.relative_to(folder)} {keystr(path)}": leaf
            for path, leaf in leaves
            if isinstance(leaf, torch.Tensor)
        }
    for file in sorted(folder.rglob("*.safetensors")):
        found |= {
            f"{file.relative_to(folder)} {name}": tensor for name, tensor in load_file(file).items()
        }
    return {name: t.to_local() if isinstance(t, DTensor) else t for name, t in found.items()}


def assert_equal(one: Run, other: Run) -> None:
    for step, (metrics, others) in enumerate(zip(one.metrics, other.metrics, strict=True), start=1):
        different = [key for key in metrics | others if not same(metrics.get(key), others.get(key))]
        assert not different, f"step {step}: {different}"
    assert one.texts == other.texts
    assert one.tensors.keys() == other.tensors.keys()
    assert not [
        name for name, tensor in one.tensors.items() if not torch.equal(tensor, other.tensors[name])
    ]


def same(one: object, other: object) -> bool:
    return one == other or (one != one and other != other)  # NaN is where it was


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_run_again_gives_the_same_to_the_last_bit(pipeline, tmp_path, stage):
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
def straight(pipeline, few_prompts, tmp_path_factory) -> tuple[Path, list[dict]]:
    """Six steps of alignment without a stop, all checkpoints kept."""
    output = tmp_path_factory.mktemp("straight")
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
def test_a_resumed_run_ends_where_one_that_was_not_stopped_does(
    pipeline, few_prompts, straight, tmp_path, half
):
    """Parameters, both optimizers, random states, metrics; so the steps before the stop are the same run again, too."""
    pipeline.run("align", f"prism.steps={half}", few_prompts, *ALIGN, output=tmp_path)
    resumed = ("prism.resume=true", f"prism.steps={2 * half}")
    metrics = pipeline.run("align", *resumed, few_prompts, *ALIGN, output=tmp_path)
    output, all_metrics = straight
    last = Path("checkpoints", f"global_step_{2 * half}")
    assert_equal(Run.of(tmp_path / last, metrics), Run.of(output / last, all_metrics[: 2 * half]))
