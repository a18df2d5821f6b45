"""The typed part of the configuration: the node `prism` of the Hydra config.

What each key means stands beside its default in `trainer_configs/prism.yaml`. This module imports neither torch nor
verl, so that a configuration is composed and checked in a second.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from verl_prism.errors import UserError

Stage = Literal["sft", "warmup", "align", "rlvr", "eval"]
ON_RAY: tuple[Stage, ...] = ("align", "rlvr")  # the others run on one node
AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A frozen node that refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    train: AbsolutePath
    heldout: AbsolutePath
    max_prompt_tokens: PositiveInt
    max_response_tokens: PositiveInt


class Model(Section):
    name: str
    image_patch_size: PositiveInt


class Hardware(Section):
    device: Literal["cpu", "cuda"]
    devices_per_node: PositiveInt
    nodes: PositiveInt
    dtype: Literal["float32", "bfloat16"]
    attention: Literal["sdpa", "flash_attention_2"]
    gradient_checkpointing: bool
    offload: bool
    compile: bool
    max_tokens_per_device: PositiveInt
    dataloader_workers: NonNegativeInt
    gpu_memory_utilization: Fraction
    tensor_parallel_size: PositiveInt
    worker_extension: str | None
    enforce_eager: bool
    executor_backend: Literal["mp", "uni"]
    sleep_mode: bool
    max_num_seqs: PositiveInt
    weight_bucket_mib: PositiveInt
    agent_workers: PositiveInt
    reward_workers: PositiveInt
    storage_units: PositiveInt
    poll_seconds: PositiveFloat
    ray_address: str | None
    ray_cpus: PositiveInt | None
    ray_gpus: PositiveInt | None


class Rollout(Section):
    prompts_per_step: PositiveInt
    samples_per_prompt: PositiveInt
    temperature: PositiveFloat
    top_p: Annotated[float, Field(gt=0.0, le=1.0)]


class Optim(Section):
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    warmup_steps: NonNegativeInt
    warmup_ratio: Fraction
    schedule: Literal["constant", "cosine"]
    grad_clip: PositiveFloat


class Lora(Section):
    rank: NonNegativeInt
    alpha: PositiveInt


class Sft(Section):
    examples_per_step: PositiveInt
    freeze_vision: bool
    dataloader_workers: NonNegativeInt


class Upcycle(Section):
    base: AbsolutePath
    experts: PositiveInt
    experts_per_token: PositiveInt
    routing: Literal["dedicated", "token", "dense"]
    noise: NonNegativeFloat

    @model_validator(mode="after")
    def _experts_suffice(self) -> "Upcycle":
        if self.experts_per_token > self.experts:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token}, of {self.experts} experts"
            )
        return self


class Discriminator(Section):
    path: AbsolutePath
    upcycle: Upcycle
    max_perception_tokens: PositiveInt
    max_reasoning_tokens: PositiveInt
    placement: Literal["colocated", "pool"]
    pool_devices: PositiveInt
    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    grad_clip: PositiveFloat
    score_regularization: NonNegativeFloat
    balance_coef: NonNegativeFloat
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)]
    margin: NonNegativeFloat
    gradient_penalty: NonNegativeFloat
    micro_batch_tokens: PositiveInt
    updates_per_step: PositiveInt
    skip_above_accuracy: Fraction | None
    max_nonfinite: PositiveInt


class Warmup(Section):
    prompts: PositiveInt
    samples_per_prompt: PositiveInt
    pairs_per_step: PositiveInt
    swapped_teachers: NonNegativeInt
    heldout_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]


class Align(Section):
    perception_weight: NonNegativeFloat
    reasoning_weight: NonNegativeFloat
    credit: Literal["response", "span"]
    normalization: Literal["valid", "reference"]
    format_penalty: NonNegativeFloat
    std_floor: PositiveFloat

    @model_validator(mode="after")
    def _some_weight(self) -> "Align":
        if self.perception_weight + self.reasoning_weight == 0:
            raise ValueError(
                "perception_weight and reasoning_weight are both 0: the policy would learn nothing"
            )
        return self


class Overlong(Section):
    enable: bool
    buffer_tokens: NonNegativeInt
    penalty: NonNegativeFloat


class Distillation(Section):
    enable: bool
    teacher: AbsolutePath
    devices: PositiveInt


class Algorithm(Section):
    name: Literal["grpo", "dapo", "gspo", "opd_whitebox"]
    policy_loss: Literal["vanilla", "gspo"]
    loss_aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]
    clip_low: PositiveFloat
    clip_high: PositiveFloat
    dual_clip: Annotated[float, Field(gt=1.0)]
    dynamic_sampling: bool
    filter_metric: str | None
    batches_in_flight: PositiveInt
    max_batches: PositiveInt
    reward_manager: Literal["naive", "dapo"]
    overlong: Overlong
    weight_decay: NonNegativeFloat
    warmup_steps: NonNegativeInt
    warmup_ratio: Fraction
    validation_temperature: NonNegativeFloat
    validation_top_p: Annotated[float, Field(gt=0.0, le=1.0)]
    distillation: Distillation

    @model_validator(mode="after")
    def _filter_has_a_metric(self) -> "Algorithm":
        if self.dynamic_sampling != (self.filter_metric is not None):
            raise ValueError("dynamic_sampling=true and a filter_metric go together")
        return self


class Judge(Section):
    endpoint: str | None
    model: str | None
    api_key_env: str | None
    concurrency: PositiveInt
    timeout_seconds: PositiveFloat
    retries: NonNegativeInt
    budget: PositiveInt
    cache: AbsolutePath
    when_down: Literal["stop", "unjudged"]

    @model_validator(mode="after")
    def _model_of_the_endpoint(self) -> "Judge":
        if (self.endpoint is None) != (self.model is None):
            raise ValueError("endpoint and model go together")
        return self


class Reward(Section):
    accuracy_weight: Fraction
    format_weight: Fraction
    judge: Judge


class Eval(Section):
    policies: dict[str, AbsolutePath]
    samples: PositiveInt
    temperature: NonNegativeFloat
    top_p: Annotated[float, Field(gt=0.0, le=1.0)]
    metrics: str | None
    questions: PositiveInt | None


class Prism(Section):
    """The whole node. All paths are absolute."""

    stage: Stage
    seed: NonNegativeInt
    reproducible: bool
    root: AbsolutePath
    output: AbsolutePath
    policy: AbsolutePath
    steps: PositiveInt
    checkpoint_every: PositiveInt
    keep_checkpoints: PositiveInt
    resume: bool
    stall_seconds: PositiveFloat | None
    max_restarts: NonNegativeInt
    data: Data
    model: Model
    hardware: Hardware
    rollout: Rollout
    optim: Optim
    lora: Lora
    sft: Sft
    discriminator: Discriminator
    warmup: Warmup
    align: Align
    algorithm: Algorithm
    reward: Reward
    eval: Eval

    @property
    def devices(self) -> int:
        """Of the whole run: the policy's and, where they have their own, the discriminator's and a teacher's."""
        devices = self.hardware.devices_per_node * self.hardware.nodes
        if self.stage == "align" and self.discriminator.placement == "pool":
            devices += self.discriminator.pool_devices
        if self.stage == "rlvr" and self.algorithm.distillation.enable:
            devices += self.algorithm.distillation.devices
        return devices

    @model_validator(mode="after")
    def _devices_for_the_pool(self) -> "Prism":
        """With too few logical devices Ray would wait for ever and say nothing."""
        pool = self.discriminator.pool_devices if self.discriminator.placement == "pool" else 0
        wanted, given = self.hardware.devices_per_node + pool, self.hardware.ray_gpus
        if self.stage == "align" and given is not None and given < wanted:
            raise ValueError(
                f"prism.hardware.ray_gpus={given} is less than devices_per_node + pool_devices = {wanted}"
            )
        return self

    @model_validator(mode="after")
    def _some_of_the_judge_for_each_worker(self) -> "Prism":
        judge, workers = self.reward.judge, self.hardware.reward_workers
        for key, total in {"concurrency": judge.concurrency, "budget": judge.budget}.items():
            if judge.endpoint is not None and total < workers:
                raise ValueError(
                    f"prism.reward.judge.{key}={total} is less than the {workers} reward workers sharing it"
                )
        return self

    @model_validator(mode="after")
    def _nothing_random_from_outside(self) -> "Prism":
        outside = {
            "reward.judge.endpoint": self.reward.judge.endpoint is not None,
            "algorithm.distillation.enable": self.algorithm.distillation.enable,
        }
        for key, used in outside.items():
            if self.reproducible and used and self.stage == "rlvr":
                raise ValueError(
                    f"prism.reproducible=true, but what prism.{key} brings in would not repeat itself"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _evaluate_the_policy(cls, node: Any) -> Any:
        """Where no policies are named, stage eval looks at `prism.policy`."""
        match node:
            case {"policy": str(policy), "eval": {"policies": None, **others}}:
                return {**node, "eval": {**others, "policies": {"policy": policy}}}
        return node


def parse_prism(node: DictConfig | dict) -> Prism:
    """The typed node. Raises UserError that names each wrong key, its value and what is allowed."""
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    try:
        return Prism.model_validate(plain)
    except ValidationError as error:
        raise UserError("\n".join(_problem(item) for item in error.errors())) from None


def flatten(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each leaf of nested dictionaries and lists with its dotted key, such as `prism.seed`.

    The items of a list share the key of the list.
    """
    match node:
        case dict():
            for name, child in node.items():
                yield from flatten(child, f"{key}.{name}" if key else str(name))
        case list():
            for item in node:
                yield from flatten(item, key)
        case _:
            yield key, node


def _problem(item) -> str:
    key = ".".join(["prism", *map(str, item["loc"])])
    if item["type"] == "missing":
        return f"{key} is not set"
    if item["type"] == "value_error":
        return f"{key}: {item['ctx']['error']}"
    return f"{key}={item['input']}: {item['msg'][0].lower()}{item['msg'][1:]}"
