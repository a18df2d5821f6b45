"""The worker role "adversarial OPD": a rank of the discriminator, in the actor's process or on devices of its own."""

from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

import verl_prism.alignment.engine as engine  # registers the engine in this process
from verl_prism.alignment.groups import groups_of
from verl_prism.config import Prism, parse_prism
from verl_prism.discriminator.batch import VIEWS
from verl_prism.discriminator.loss import LossWeights

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
        ),
        optimizer_config=FSDPOptimizerConfig(
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            clip_grad=settings.grad_clip,
            total_training_steps=prism.steps,
            lr_warmup_steps=0,
        ),
        checkpoint_config=CheckpointConfig(save_contents=["model", "optimizer", "extra", "hf_model"]),
    )


class DiscriminatorWorker(TrainingWorker):
    """One rank of the discriminator."""

    def __init__(self, prism: Prism):
        super().__init__(training_worker_config(prism))
        settings = prism.discriminator
        self._weights = LossWeights(settings.score_regularisation, settings.balance_coef)
        self._max_tokens = settings.micro_batch_tokens

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="train"))
    def update_discriminator(self, data: TensorDict) -> TensorDict:
        """Score this rank's rows and learn from them, in one forward pass.

        Returns one score per row and view, NaN for an invalid response, which verl writes back beside the rows; the
        metrics are those of all ranks.
        """
        groups = groups_of(data)
        with self.engine.train_mode():
            update = self.engine.update_groups(groups, self._weights, self._max_tokens)
        scores = {field: view.reshape(-1) for field, view in zip(SCORE_FIELDS, update.scores.student, strict=True)}
        return tu.get_tensordict(scores, non_tensor_dict={"metrics": update.metrics})

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_discriminator(self, folder: str, step: int, keep: int | None) -> None:
        self.save_checkpoint(folder, None, step, keep)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_discriminator(self, folder: str) -> None:
        self.load_checkpoint(folder)


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
    def save_discriminator(self, folder: str, step: int, keep: int | None) -> None:
        self.discriminator.save_discriminator(folder, step, keep)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_discriminator(self, folder: str) -> None:
        self.discriminator.load_discriminator(folder)
