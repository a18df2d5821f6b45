"""What we rely on in verl 0.9.1, vLLM and transformers. A new version that breaks it fails here."""

import importlib.metadata
import inspect
import re
from types import ModuleType

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
from verl.utils.tracking import Tracking
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp import FSDPEngine, FSDPEngineWithLMHead
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.rollout.router import GlobalRequestLoadBalancer
from verl.workers.utils import losses
from vllm.v1.core.sched.scheduler import Scheduler

from verl_prism.alignment.engine import MODEL_TYPE, DiscriminatorEngine
from verl_prism.alignment.estimator import ESTIMATOR
from verl_prism.alignment.reward_manager import DiscriminatorRewardManager
from verl_prism.alignment.trainer import AdversarialOPDTrainer
from verl_prism.alignment.worker import AdversarialOPDWorker, DiscriminatorWorker
from verl_prism.rollout.seeded import SeededAgentLoop, SeededAgentLoopManager
from verl_prism.rollout.vllm_plugins import WholeBatchScheduler
from verl_prism.trainer.dpo import PrismDPOTrainer
from verl_prism.trainer.frozen_vision import VENDOR, FrozenVisionEngine
from verl_prism.trainer.ppo import PrismTrainer, PublishCheckpoint
from verl_prism.trainer.replay_buffer import ConfiguredReplayBuffer
from verl_prism.trainer.sft import PrismSFTTrainer, PublishingHandler
from verl_prism.trainer.worker import PolicyWorker, PrismWorker
from verl_prism.worker_extension import PrismWorkerExtension, vLLMColocateWorkerExtension

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
    (PPOTrainerSync, PrismTrainer, "_compute_old_log_prob", ["self", "batch", "metrics"]),
    (PPOTrainerSync, PrismTrainer, "_init_resource_pool_mgr", ["self"]),
    (
        PPOTrainerSync,
        PrismTrainer,
        "_compute_metrics",
        ["self", "batch", "metrics", "timing_raw", "global_steps", "epoch"],
    ),
    (
        CheckpointCallback,
        PublishCheckpoint,
        "on_save",
        ["self", "trainer", "global_step", "checkpoint_dir", "async_save", "kwargs"],
    ),
    (SFTTrainer, PrismSFTTrainer, "_build_ckpt_handler", ["self"]),
    (SFTTrainer, PrismSFTTrainer, "_build_dataloader", ["self"]),
    (SFTTrainer, PrismSFTTrainer, "_build_engine", ["self"]),
    (SFTTrainer, PrismDPOTrainer, "_build_engine", ["self"]),
    (SFTTrainer, PrismDPOTrainer, "_build_dataloader", ["self"]),
    (SFTTrainer, PrismDPOTrainer, "_init_engine", ["self"]),
    (CheckpointHandler, PublishingHandler, "save_checkpoint", ["self", "step"]),
    (CheckpointHandler, PublishingHandler, "_load_dataloader_state", ["self", "checkpoint_path"]),
    (ActorRolloutRefWorker, AdversarialOPDWorker, "init_model", ["self"]),
    (ActorRolloutRefWorker, PrismWorker, "init_model", ["self"]),
    (TrainingWorker, DiscriminatorWorker, "__init__", ["self", "config"]),
    (TrainingWorker, DiscriminatorWorker, "reset", ["self"]),
    (FSDPEngine, DiscriminatorEngine, "_build_module", ["self"]),
    (FSDPEngine, DiscriminatorEngine, "_build_fsdp_module", ["self", "module"]),
    (TrainingWorker, PolicyWorker, "train_mini_batch", ["self", "data"]),
    (TrainingWorker, PolicyWorker, "infer_batch", ["self", "data"]),
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
    (vLLMColocateWorkerExtension, PrismWorkerExtension, "_get_zmq_handle", ["self"]),
]
CALLED = [
    (PPOTrainerSync, "_save_checkpoint", ["self"]),
    (FSDPEngine, "optimizer_zero_grad", ["self"]),
    (FSDPEngine, "optimizer_step", ["self"]),
    (FSDPEngine, "lr_scheduler_step", ["self"]),
    (TrainingWorker, "reset", ["self"]),
    (TrainingWorker, "set_loss_fn", ["self", "loss_fn"]),
    (TrainingWorker, "train_batch", ["self", "data"]),
    (TrainingWorker, "infer_batch", ["self", "data"]),
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
        Tracking,
        "__init__",
        ["self", "project_name", "experiment_name", "default_backend", "config"],
    ),
    (Tracking, "log", ["self", "data", "step", "backend"]),
    (Tracking, "finish", ["self", "exit_code"]),
    (distributed, "initialize_global_process_group_ray", ["timeout_second", "backend"]),
    (Scheduler, "get_request_counts", ["self"]),
    (Scheduler, "set_pause_state", ["self", "pause_state"]),
]


def parameters(owner: type | ModuleType, name: str) -> list[str]:
    """Return the names of a method's parameters, without the one that Ray adds to an actor."""
    names = list(inspect.signature(inspect.unwrap(getattr(owner, name))).parameters)
    return [name for name in names if name != "_ray_trace_ctx"]


def test_verl_is_the_version_that_these_contracts_describe():
    assert importlib.metadata.version("verl") == "0.9.1"
    assert verl.__version__ == "0.9.1"


@pytest.mark.parametrize(("base", "ours", "name", "expected"), OVERRIDDEN)
def test_overridden_methods_have_the_parameters_that_we_expect(base, ours, name, expected):
    assert parameters(base, name) == expected
    assert getattr(base, name) is not getattr(ours, name)


@pytest.mark.parametrize(("owner", "name", "expected"), CALLED)
def test_called_methods_have_the_parameters_that_we_expect(owner, name, expected):
    assert parameters(owner, name) == expected


def test_every_overridden_method_is_listed():
    listed = {(ours, name) for _, ours, name, _ in OVERRIDDEN}
    bases = {ours: base for base, ours, _, _ in OVERRIDDEN}
    for ours, base in bases.items():
        for name, value in vars(ours).items():
            overrides = inspect.isfunction(value) and hasattr(base, name)
            if overrides and name not in ("__init__", "_abc_impl"):
                assert (ours, name) in listed


def test_the_trainer_mode_is_compared_only_with_sync():
    """Our trainer sets the mode to "sync" after the mode has selected its class."""
    source = inspect.getsource(trainer_base)
    assert set(re.findall(r"trainer_mode\s*[!=]=\s*(\S+?)[:)\s]", source)) == {'"sync"'}
    source = inspect.getsource(TaskRunnerV1.__ray_actor_class__.run)
    selected = "trainer_cls = get_trainer_cls(config.trainer.v1.trainer_mode)"
    assert source.index(selected) < source.index("trainer_cls(config=config)")


def test_verl_finds_our_registrations():
    assert trainer_base.get_trainer_cls("adversarial_opd") is AdversarialOPDTrainer
    assert core_algos.get_adv_estimator_fn(ESTIMATOR).__module__ == "verl_prism.alignment.estimator"
    assert MODEL_TYPE in EngineRegistry._engines


def test_an_engine_is_chosen_by_its_vendor(monkeypatch):
    monkeypatch.setenv("VERL_ENGINE_DEVICE", "cuda")
    assert EngineRegistry.get_engine_cls("language_model", "fsdp2") is FSDPEngineWithLMHead
    monkeypatch.setenv("VERL_ENGINE_VENDOR", VENDOR)
    assert EngineRegistry.get_engine_cls("language_model", "fsdp2") is FrozenVisionEngine


def test_setup_loads_the_checkpoint_after_building_the_workers():
    """`_load_checkpoint` is the last step of verl's setup. The discriminator is built there."""
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


def test_on_save_is_called_after_everything_is_written():
    source = inspect.getsource(trainer_base.PPOTrainer._save_checkpoint)
    last_write = source.index("torch.save(self.train_dataloader")
    assert last_write < source.rindex("self.checkpoint_callback.on_save(")


def test_a_role_can_be_a_string():
    assert {Role.ActorRollout, Role.ActorRolloutRef} < set(Role)
    assert "mapping[role]" in inspect.getsource(trainer_base.ResourcePoolManager.get_resource_pool)


def test_the_replay_buffer_has_a_poll_interval():
    assert "poll_interval" in parameters(ReplayBuffer, "__init__")


def test_the_load_balancer_picks_a_server_by_the_request_id():
    """Seeded rollouts count each server's requests in advance, by the same rule."""
    run = inspect.getsource(inspect.unwrap(SingleTurnAgentLoop.run))
    acquire = inspect.getsource(GlobalRequestLoadBalancer.acquire_server)
    assert 'f"det-{priority}"' in run
    assert "hash(request_id) % len(self._servers)" in acquire


def test_an_agent_loop_gets_the_number_of_its_sample():
    source = inspect.getsource(AgentLoopWorkerTQ.__ray_actor_class__)
    assert "session_id=i, **prompt" in source
    assert "agent_loop.run(sampling_params, **kwargs)" in inspect.getsource(AgentLoopWorker)


def test_vllm_schedules_no_new_request_while_paused():
    source = inspect.getsource(Scheduler.schedule)
    assert "if not preempted_reqs and self._pause_state == PauseState.UNPAUSED:" in source


def test_verls_advantage_reads_the_field_that_we_write():
    assert '"rm_scores"' in inspect.getsource(trainer_base.PPOTrainer._compute_advantage)


def test_verls_loss_reads_the_old_log_probs_that_we_write():
    assert '"old_log_probs"' in inspect.getsource(losses.ppo_loss)
    assert "rollout_log_probs" in inspect.getsource(trainer_base.PPOTrainer._compute_old_log_prob)


def test_run_ppo_accepts_a_task_runner_class():
    assert list(inspect.signature(run_ppo).parameters) == ["config", "task_runner_class"]
    assert parameters(TaskRunnerV1.__ray_actor_class__, "run") == ["self", "config"]


def test_a_tensordict_carries_metrics_beside_scores():
    result = tensordict_utils.get_tensordict(
        {"score": torch.zeros(3)}, non_tensor_dict={"metrics": {"loss": 1.0}}
    )
    assert result.batch_size == torch.Size([3])
    assert result["metrics"] == {"loss": 1.0}


def test_the_moe_layer_calls_its_router_with_our_signature():
    block = inspect.getsource(moe.Qwen3VLMoeTextSparseMoeBlock)
    assert "_, routing_weights, selected_experts = self.gate(" in block
    assert parameters(moe.Qwen3VLMoeTextTopKRouter, "forward") == ["self", "hidden_states"]


def test_the_text_model_accepts_embeddings_positions_and_visual_features():
    inputs = {"inputs_embeds", "position_ids", "visual_pos_masks", "deepstack_visual_embeds"}
    assert inputs <= set(parameters(moe.Qwen3VLMoeTextModel, "forward"))


def test_verl_reads_the_rendezvous_of_its_workers_from_the_environment():
    for function in (
        distributed.initialize_global_process_group,
        distributed.initialize_global_process_group_ray,
    ):
        assert 'init_method=os.environ.get("DIST_INIT_METHOD", None)' in inspect.getsource(function)
    create_worker = inspect.getsource(RayWorkerGroup._create_worker)
    assert '"WG_BACKEND": "ray"' in create_worker
    assert '"WG_PREFIX": self.name_prefix' in create_worker
