"""What we rely on in verl 0.9.1 and in transformers: a new version that breaks it fails here, in one place."""

import importlib.metadata
import inspect
import re

import pytest
import torch
import transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe as moe
import verl
from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.single_controller.ray.base import RayWorkerGroup
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.trainer.sft_trainer import SFTTrainer
from verl.utils import distributed, tensordict_utils
from verl.utils.checkpoint import CheckpointHandler
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import FSDPEngine, FSDPEngineWithLMHead
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.rollout.router import GlobalRequestLoadBalancer
from vllm.v1.core.sched.scheduler import Scheduler

from verl_prism.alignment.engine import MODEL_TYPE, DiscriminatorEngine
from verl_prism.alignment.estimator import ESTIMATOR
from verl_prism.alignment.reward_manager import DiscriminatorRewardManager
from verl_prism.alignment.trainer import AdversarialOPDTrainer
from verl_prism.alignment.worker import AdversarialOPDWorker, DiscriminatorWorker
from verl_prism.rollout.seeded import SeededAgentLoop, SeededAgentLoopManager
from verl_prism.rollout.vllm_plugins import WholeBatchScheduler
from verl_prism.trainer.frozen_vision import VENDOR, FrozenVisionEngine
from verl_prism.trainer.ppo import PrismTrainer, PublishCheckpoint
from verl_prism.trainer.replay_buffer import ConfiguredReplayBuffer
from verl_prism.trainer.sft import PrismSFTTrainer, PublishingHandler

OVERRIDDEN = [
    (PPOTrainerSync, AdversarialOPDTrainer, "_init_resource_pool_mgr", ["self"]),
    (PPOTrainerSync, AdversarialOPDTrainer, "_compute_advantage", ["self", "batch", "metrics"]),
    (
        PPOTrainerSync,
        AdversarialOPDTrainer,
        "_compute_metrics",
        ["self", "batch", "metrics", "timing_raw", "global_steps", "epoch"],
    ),
    (PPOTrainerSync, AdversarialOPDTrainer, "_update_actor", ["self", "batch", "metrics"]),
    (PPOTrainerSync, AdversarialOPDTrainer, "_save_checkpoint", ["self"]),
    (PPOTrainerSync, AdversarialOPDTrainer, "_load_checkpoint", ["self"]),
    (PPOTrainerSync, PrismTrainer, "on_step_end", ["self"]),
    (
        CheckpointCallback,
        PublishCheckpoint,
        "on_save",
        ["self", "trainer", "global_step", "checkpoint_dir", "async_save", "kwargs"],
    ),
    (SFTTrainer, PrismSFTTrainer, "_build_ckpt_handler", ["self"]),
    (SFTTrainer, PrismSFTTrainer, "_build_dataloader", ["self"]),
    (CheckpointHandler, PublishingHandler, "save_checkpoint", ["self", "step"]),
    (CheckpointHandler, PublishingHandler, "_load_dataloader_state", ["self", "checkpoint_path"]),
    (ActorRolloutRefWorker, AdversarialOPDWorker, "init_model", ["self"]),
    (TrainingWorker, DiscriminatorWorker, "__init__", ["self", "config"]),
    (TrainingWorker, DiscriminatorWorker, "reset", ["self"]),
    (FSDPEngine, DiscriminatorEngine, "_build_module", ["self"]),
    (FSDPEngineWithLMHead, FrozenVisionEngine, "_build_module", ["self"]),
    (RewardManagerBase, DiscriminatorRewardManager, "run_single", ["self", "data"]),
    (AgentLoopManagerTQ, SeededAgentLoopManager, "generate_sequences", ["self", "prompts"]),
    (
        SingleTurnAgentLoop,
        SeededAgentLoop,
        "run",
        ["self", "sampling_params", "priority", "kwargs"],
    ),
    (ReplayBuffer, ConfiguredReplayBuffer, "_sync_metadata_from_transfer_queue", ["self"]),
    (
        ReplayBuffer,
        ConfiguredReplayBuffer,
        "_select_prompt_uids",
        ["self", "partition_id", "sampleable_keys", "batch_size"],
    ),
    (Scheduler, WholeBatchScheduler, "add_request", ["self", "request"]),
]
CALLED = [
    (PPOTrainerSync, "_save_checkpoint", ["self"]),
    (FSDPEngine, "optimizer_zero_grad", ["self"]),
    (FSDPEngine, "optimizer_step", ["self"]),
    (FSDPEngine, "lr_scheduler_step", ["self"]),
    (FSDPEngine, "_gradient_sync_context", ["self", "is_last_micro_batch"]),
    (TrainingWorker, "reset", ["self"]),
    (
        TrainingWorker,
        "save_checkpoint",
        ["self", "local_path", "hdfs_path", "global_step", "max_ckpt_to_keep"],
    ),
    (
        TrainingWorker,
        "load_checkpoint",
        ["self", "local_path", "hdfs_path", "del_local_after_load"],
    ),
    (
        ActorRolloutRefWorker,
        "set_dispatch_collect",
        ["self", "mesh_name", "dispatch_dp_rank", "collect_dp_rank"],
    ),
    (TrainingWorker, "get_dispatch_collect", ["self"]),
    (Scheduler, "get_request_counts", ["self"]),
    (Scheduler, "set_pause_state", ["self", "pause_state"]),
]


def parameters(owner: type, name: str) -> list[str]:
    """Names of a method's parameters; Ray adds one of its own to the methods of a class that was made an actor."""
    names = list(inspect.signature(inspect.unwrap(getattr(owner, name))).parameters)
    return [name for name in names if name != "_ray_trace_ctx"]


def test_the_version_is_the_one_that_was_read():
    assert importlib.metadata.version("verl") == "0.9.1" and verl.__version__ == "0.9.1"


@pytest.mark.parametrize(("base", "ours", "name", "expected"), OVERRIDDEN)
def test_an_overridden_method_is_there_with_the_arguments_that_we_take(base, ours, name, expected):
    assert parameters(base, name) == expected
    assert getattr(base, name) is not getattr(ours, name)


@pytest.mark.parametrize(("owner", "name", "expected"), CALLED)
def test_a_method_that_we_call_is_there(owner, name, expected):
    assert parameters(owner, name) == expected


def test_every_method_that_shadows_verls_is_pinned_above():
    pinned = {(ours, name) for _, ours, name, _ in OVERRIDDEN}
    bases = {ours: base for base, ours, _, _ in OVERRIDDEN}
    for ours, base in bases.items():
        shadowing = {
            name
            for name in vars(ours)
            if hasattr(base, name) and inspect.isfunction(vars(ours)[name])
        }
        generic = {"__init__", "_abc_impl"} - (
            {"__init__"} if (ours, "__init__") in pinned else set()
        )
        assert {(ours, name) for name in shadowing - generic} <= pinned


def test_the_trainer_mode_is_compared_only_with_sync():
    """Our trainer sets the mode to "sync" after the mode has selected its class."""
    source = inspect.getsource(trainer_base)
    assert set(re.findall(r"trainer_mode\s*[!=]=\s*(\S+?)[:)\s]", source)) == {'"sync"'}
    source = inspect.getsource(TaskRunnerV1.__ray_actor_class__.run)
    selected = "trainer_cls = get_trainer_cls(config.trainer.v1.trainer_mode)"
    assert source.index(selected) < source.index("trainer_cls(config=config)")


def test_registrations_are_found_where_verl_looks():
    assert trainer_base.get_trainer_cls("adversarial_opd") is AdversarialOPDTrainer
    assert core_algos.get_adv_estimator_fn(ESTIMATOR).__module__ == "verl_prism.alignment.estimator"
    assert MODEL_TYPE in EngineRegistry._engines


def test_an_engine_is_chosen_by_its_vendor(monkeypatch):
    monkeypatch.setenv("VERL_ENGINE_DEVICE", "cuda")
    assert EngineRegistry.get_engine_cls("language_model", "fsdp2") is FSDPEngineWithLMHead
    monkeypatch.setenv("VERL_ENGINE_VENDOR", VENDOR)
    assert EngineRegistry.get_engine_cls("language_model", "fsdp2") is FrozenVisionEngine


def test_the_setup_order_in_which_the_discriminator_is_built():
    """`_load_checkpoint` ends verl's set-up, after the worker groups. The discriminator is built there."""
    source = inspect.getsource(trainer_base.PPOTrainer._setup)
    steps = [
        "_init_resource_pool_mgr",
        "create_resource_pool()",
        "init_model()",
        "_load_checkpoint()",
    ]
    places = [source.index(step) for step in steps]
    assert places == sorted(places)


def test_the_ppo_trainer_can_save_and_end_after_a_step():
    """`on_step_end` lowers the number of steps, which is read again before the next step."""
    source = inspect.getsource(trainer_base.PPOTrainer.fit)
    steps = [
        "and self.global_steps <= self.total_training_steps:",
        "self.step(metrics",
        "self._save_checkpoint()",
        "self.on_step_end()",
        "self.logger.log(data=metrics",
    ]
    places = [source.index(step) for step in steps]
    assert places == sorted(places)


def test_the_sft_trainer_takes_the_next_batch_after_it_has_saved():
    """When our data loader is asked for the next batch, it may save the last step and raise."""
    source = inspect.getsource(SFTTrainer.fit)
    steps = [
        "self.train_dataloader,",
        "self.training_client.train_batch(",
        "tracking.log(data=metrics, step=global_step)",
        "self.ckpt_handler.save_checkpoint(step=global_step)",
    ]
    places = [source.index(step) for step in steps]
    assert places == sorted(places)
    assert source.count("self.train_dataloader,") == 1
    assert source.count("self.train_dataloader)") == 0


def test_a_checkpoint_is_announced_when_all_of_it_is_written():
    source = inspect.getsource(trainer_base.PPOTrainer._save_checkpoint)
    assert source.index("torch.save(self.train_dataloader") < source.rindex(
        "self.checkpoint_callback.on_save("
    )


def test_a_role_may_be_a_string():
    assert {Role.ActorRollout, Role.ActorRolloutRef} < set(Role)
    assert "mapping[role]" in inspect.getsource(trainer_base.ResourcePoolManager.get_resource_pool)


def test_the_replay_buffer_takes_a_poll_interval():
    assert "poll_interval" in parameters(ReplayBuffer, "__init__")


def test_a_request_reaches_the_server_that_we_count_it_for():
    assert 'f"det-{priority}"' in inspect.getsource(inspect.unwrap(SingleTurnAgentLoop.run))
    assert "hash(request_id) % len(self._servers)" in inspect.getsource(
        GlobalRequestLoadBalancer.acquire_server
    )


def test_an_agent_loop_is_told_where_its_rollout_stands():
    source = inspect.getsource(AgentLoopWorkerTQ.__ray_actor_class__)
    assert (
        "session_id=i, **prompt" in source
        and "agent_loop.run(sampling_params, **kwargs)" in inspect.getsource(AgentLoopWorker)
    )


def test_vllm_schedules_no_new_request_while_it_is_paused():
    source = inspect.getsource(Scheduler.schedule)
    assert "if not preempted_reqs and self._pause_state == PauseState.UNPAUSED:" in source


def test_the_advantage_reads_the_reward_that_we_write():
    assert '"rm_scores"' in inspect.getsource(trainer_base.PPOTrainer._compute_advantage)


def test_run_ppo_takes_a_task_runner_that_we_can_subclass():
    assert list(inspect.signature(run_ppo).parameters) == ["config", "task_runner_class"]
    assert parameters(TaskRunnerV1.__ray_actor_class__, "run") == ["self", "config"]


def test_a_metrics_dictionary_travels_beside_a_batch_of_scores():
    result = tensordict_utils.get_tensordict(
        {"score": torch.zeros(3)}, non_tensor_dict={"metrics": {"loss": 1.0}}
    )
    assert result.batch_size == torch.Size([3]) and result["metrics"] == {"loss": 1.0}


def test_the_moe_layer_calls_its_router_as_ours_answers():
    assert "_, routing_weights, selected_experts = self.gate(" in inspect.getsource(
        moe.Qwen3VLMoeTextSparseMoeBlock
    )
    assert parameters(moe.Qwen3VLMoeTextTopKRouter, "forward") == ["self", "hidden_states"]
    assert {"inputs_embeds", "position_ids", "visual_pos_masks", "deepstack_visual_embeds"} <= set(
        parameters(moe.Qwen3VLMoeTextModel, "forward")
    )


def test_verl_lets_the_environment_say_where_its_workers_meet():
    for function in (
        distributed.initialize_global_process_group,
        distributed.initialize_global_process_group_ray,
    ):
        assert 'init_method=os.environ.get("DIST_INIT_METHOD", None)' in inspect.getsource(function)
    told = inspect.getsource(RayWorkerGroup._create_worker)
    assert '"WG_BACKEND": "ray"' in told and '"WG_PREFIX": self.name_prefix' in told
