"""The worker role "adversarial OPD": a rank of the discriminator, in the actor's process or on devices of its own."""

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import (
    Dispatch,
    make_nd_compute_dataproto_dispatch_fn,
    register,
)
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import (
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
    TrainingWorkerConfig,
)
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

import verl_prism.alignment.engine as engine  # registers the engine in this process
from verl_prism.alignment.groups import groups_of
from verl_prism.config import Prism, parse_prism
from verl_prism.discriminator.batch import VIEWS
from verl_prism.discriminator.step import StepResult, StepSettings

MESH = "discriminator"
SCORE_FIELDS = [f"{view.value}_score" for view in VIEWS]


def training_worker_config(prism: Prism) -> TrainingWorkerConfig:
    """verl's configuration of a training worker, from ours."""
    settings, hardware = prism.discriminator, prism.hardware
    short = {"float32": "fp32", "bfloat16": "bf16"}[hardware.dtype]
    return TrainingWorkerConfig(
        model_type=engine.MODEL_TYPE,
        model_config=HFModelConfig(
            path=str(settings.path),
            use_remove_padding=False,
            enable_gradient_checkpointing=hardware.gradient_checkpointing,
            override_config={"attn_implementation": hardware.attention},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2",
            param_offload=hardware.offload,
            optimizer_offload=hardware.offload,
            mixed_precision={"param_dtype": short, "reduce_dtype": "fp32", "buffer_dtype": "fp32"},
            use_torch_compile=False,
            seed=prism.seed,
            full_determinism=prism.reproducible,
        ),
        optimizer_config=FSDPOptimizerConfig(
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            clip_grad=settings.grad_clip,
            total_training_steps=prism.steps,
            lr_warmup_steps=0,
        ),
        checkpoint_config=CheckpointConfig(
            save_contents=["model", "optimizer", "extra", "hf_model"]
        ),
    )


def score_fields(result: StepResult) -> dict[str, torch.Tensor]:
    """One score per row and view: NaN for an invalid response, and for all where the step was not finite."""
    usable = result.scores.valid & (not result.nonfinite)
    scores = result.scores.student.masked_fill(~usable, torch.nan)
    return {field: view.reshape(-1) for field, view in zip(SCORE_FIELDS, scores, strict=True)}


class DiscriminatorWorker(TrainingWorker):
    """One rank of the discriminator."""

    def __init__(self, prism: Prism):
        super().__init__(training_worker_config(prism))
        self._settings, self._faults = StepSettings.of(prism.discriminator), prism.output

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def reset(self):
        super().reset()
        self.engine.prepare_steps(self._settings, self._faults)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"))
    def update_discriminator(self, data: TensorDict) -> TensorDict:
        """Score this rank's rows and learn from them. The fields are written back beside the rows by verl; the metrics
        are those of all ranks."""
        with self.engine.train_mode():
            result = self.engine.step_on(groups_of(data))
        return tu.get_tensordict(score_fields(result), non_tensor_dict={"metrics": result.metrics})

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_discriminator(self, folder: str, step: int) -> None:
        self.save_checkpoint(folder, None, step)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_discriminator(self, folder: str, step: int) -> None:
        self.load_checkpoint(folder)
        self.engine.prepare_steps(self._settings, self._faults, step)


class AdversarialOPDWorker(ActorRolloutRefWorker):
    """verl's hybrid worker (actor, rollout, reference) with a rank of the discriminator in the same process."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self):
        super().init_model()
        self.discriminator = DiscriminatorWorker(parse_prism(self.config.prism))
        self.discriminator.reset()
        self.set_dispatch_collect(mesh_name=MESH, **self.discriminator.get_dispatch_collect())

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name=MESH))
    def update_discriminator(self, data: TensorDict) -> TensorDict:
        return self.discriminator.update_discriminator(data)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_discriminator(self, folder: str, step: int) -> None:
        self.discriminator.save_discriminator(folder, step)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_discriminator(self, folder: str, step: int) -> None:
        self.discriminator.load_discriminator(folder, step)
