"""The typed node `prism` of the Hydra config.

`trainer_configs/prism.yaml` explains each key next to its default. This module imports neither
torch nor verl, so that a config can be composed and checked in a second.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from verl_prism.errors import UserError

Stage = Literal["sft", "warmup", "align", "rlvr", "dpo", "sample", "eval"]
ON_RAY: tuple[Stage, ...] = ("align", "rlvr")  # whose trainer is verl's PPO trainer on Ray
PROJECT = "prism"  # what loggers call all runs together, as in trainer_configs/verl
ONLY_SAMPLE: tuple[Stage, ...] = ("sample", "eval")  # which train nothing
AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
DataFiles = AbsolutePath | tuple[AbsolutePath, ...]  # files, folders or globs
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
UserFunction = Annotated[str, AfterValidator(lambda spec: absolute_function(spec))]
# org/name or org/name@revision, as the Hugging Face Hub writes it
HUB_ID = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w.][\w./-]*))?", re.ASCII)


def folder_or_hub_id(value: Any) -> Any:
    """Return a hub id as a relative path, and any other path, or an existing folder, as absolute.

    `org/name` is a hub id unless there is such a folder; `./org/name` never is.
    """
    if not isinstance(value, str):
        return value
    if HUB_ID.fullmatch(value) and not Path(value).is_dir():
        return Path(value)
    return Path(value).expanduser().absolute()


# A relative path is a hub id. `verl_prism.hub` replaces it with the folder of the download.
ModelPath = Annotated[Path, BeforeValidator(folder_or_hub_id)]

RENAMED_KEYS = {
    "prism.align.normalisation": "prism.align.normalization",
    "prism.discriminator.score_regularisation": "prism.discriminator.score_regularization",
    "prism.eval.questions": "prism.eval.max_questions",
    "prism.hardware.data_workers": "prism.hardware.dataloader_workers",
    "prism.hardware.engine_eager": "prism.hardware.enforce_eager",
    "prism.hardware.engine_executor": "prism.hardware.executor_backend",
    "prism.hardware.engine_extension": "prism.hardware.worker_extension",
    "prism.hardware.engine_memory": "prism.hardware.gpu_memory_utilization",
    "prism.hardware.engine_sequences": "prism.hardware.max_num_seqs",
    "prism.hardware.engine_sleep": "prism.hardware.sleep_mode",
    "prism.hardware.engine_tensor_parallel": "prism.hardware.tensor_parallel_size",
    "prism.hardware.tokens_per_device": "prism.hardware.max_tokens_per_device",
    "prism.sft.data_workers": "prism.sft.dataloader_workers",
    "prism.warmup.swapped_teachers": "prism.warmup.mismatched_teachers",
}
"""Old dotted key to new dotted key. Old keys are refused, with the new name in the message."""


# The loggers of verl 0.9.1 (verl.utils.tracking.Tracking.supported_backend).
Logger = Literal[
    "wandb",
    "mlflow",
    "swanlab",
    "vemlp_wandb",
    "tensorboard",
    "console",
    "clearml",
    "trackio",
    "file",
    "rl_insight",
]


def absolute_function(spec: str) -> str:
    """Return "path/to/file.py:function" with an absolute path."""
    path, colon, name = spec.rpartition(":")
    if not (path and colon and name.isidentifier()):
        raise ValueError("write path/to/file.py:function")
    return f"{Path(path).expanduser().absolute()}:{name}"


def with_file(loggers: list[Logger]) -> list[Logger]:
    """Return the loggers with `file` first: the console and the summary read what it writes."""
    return ["file", *(logger for logger in loggers if logger != "file")]


class Section(BaseModel):
    """A frozen node that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    """Parquet files, and the longest prompt and response in tokens."""

    train: DataFiles
    heldout: DataFiles
    cache: AbsolutePath
    max_prompt_tokens: PositiveInt
    max_response_tokens: PositiveInt
    overlong: Literal["error", "filter"]

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest prompt with the longest response."""
        return self.max_prompt_tokens + self.max_response_tokens


class Image(Section):
    """The sizes between which images are resized, in pixels; null: the limits of the model."""

    min_pixels: PositiveInt | None
    max_pixels: PositiveInt | None

    @model_validator(mode="after")
    def _in_order(self) -> "Image":
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels={self.min_pixels} is above max_pixels={self.max_pixels}")
        return self


class Hub(Section):
    """The Hugging Face Hub."""

    offline: bool


class Model(Section):
    """Name of the model preset, its base model, and the side of a vision patch in pixels."""

    name: str
    base: ModelPath
    image_patch_size: PositiveInt


class Hardware(Section):
    """Devices, numeric format, memory limits and numbers of processes."""

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
    worker_extension: str
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
    """How the policy is sampled during training."""

    prompts_per_step: PositiveInt
    samples_per_prompt: PositiveInt
    temperature: PositiveFloat
    top_p: Annotated[float, Field(gt=0.0, le=1.0)]
    old_log_probs: Literal["auto", "always"]


class Optim(Section):
    """The policy's optimizer and learning-rate schedule."""

    lr: PositiveFloat
    weight_decay: NonNegativeFloat
    warmup_steps: NonNegativeInt
    warmup_ratio: Fraction
    schedule: Literal["constant", "cosine"]
    grad_clip: PositiveFloat


class Lora(Section):
    """Adapters on the policy; rank 0 trains all weights instead."""

    rank: NonNegativeInt
    alpha: PositiveInt


class Sft(Section):
    """Stage sft."""

    examples_per_step: PositiveInt
    freeze_vision: bool
    dataloader_workers: NonNegativeInt


class Dpo(Section):
    """Stage dpo."""

    pairs_per_step: PositiveInt
    responses_per_prompt: PositiveInt
    beta: PositiveFloat


class Upcycle(Section):
    """How a dense model becomes the mixture-of-experts discriminator."""

    base: ModelPath
    experts: PositiveInt
    experts_per_token: PositiveInt
    routing: Literal["dedicated", "token", "dense"]
    scoring: Literal["head", "likelihood"]
    images: bool
    noise: NonNegativeFloat

    @model_validator(mode="after")
    def _enough_experts(self) -> "Upcycle":
        if self.experts_per_token > self.experts:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token}, but there are only "
                f"{self.experts} experts"
            )
        return self


class Discriminator(Section):
    """The discriminator: folder, limits, placement, optimizer and loss."""

    path: ModelPath
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
    imitation_coef: NonNegativeFloat
    micro_batch_tokens: PositiveInt
    updates_per_step: PositiveInt
    replay_share: Annotated[float, Field(ge=0.0, lt=1.0)]
    replay_groups: PositiveInt
    restart_every: PositiveInt | None
    skip_above_accuracy: Fraction | None
    max_nonfinite: PositiveInt


class Warmup(Section):
    """Stage warmup: the data that the discriminator is first trained on."""

    responses: Literal["sample", "file"]
    prompts: PositiveInt
    samples_per_prompt: PositiveInt
    pairs_per_step: PositiveInt
    mismatched_teachers: NonNegativeInt
    heldout_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]


class Align(Section):
    """Stage align: how the discriminator's scores become the policy's advantages."""

    perception_weight: NonNegativeFloat
    reasoning_weight: NonNegativeFloat
    accuracy_weight: NonNegativeFloat
    credit: Literal["response", "span"]
    normalization: Literal["valid", "combined", "quantile", "reference"]
    quantile_power: PositiveFloat
    format_penalty: NonNegativeFloat
    std_floor: PositiveFloat

    @model_validator(mode="after")
    def _a_view_has_weight(self) -> "Align":
        if self.perception_weight + self.reasoning_weight == 0:
            raise ValueError(
                "perception_weight and reasoning_weight are both 0, so the policy would learn "
                "nothing; set at least one above 0"
            )
        return self

    @model_validator(mode="after")
    def _reference_has_no_accuracy(self) -> "Align":
        if self.normalization == "reference" and self.accuracy_weight > 0:
            raise ValueError(
                f"accuracy_weight is {self.accuracy_weight}, but the rule of the published code "
                "(normalization=reference) has no term for it; choose another normalization"
            )
        return self


class Overlong(Section):
    """DAPO's penalty for long responses."""

    enable: bool
    buffer_tokens: NonNegativeInt
    penalty: NonNegativeFloat


class Distillation(Section):
    """White-box distillation from a teacher with open weights."""

    enable: bool
    teacher: ModelPath
    devices: PositiveInt


class Algorithm(Section):
    """Stage rlvr: the values that an `algorithm` preset sets."""

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
    def _filter_has_metric(self) -> "Algorithm":
        if self.dynamic_sampling != (self.filter_metric is not None):
            raise ValueError("dynamic_sampling=true needs a filter_metric, and false needs null")
        return self


class Judge(Section):
    """The language model that reviews answers which the rules call wrong."""

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
    def _endpoint_has_model(self) -> "Judge":
        if (self.endpoint is None) != (self.model is None):
            raise ValueError("endpoint and model go together")
        return self


class Reward(Section):
    """The weights of the reward in stage rlvr, the user's own reward, and the judge."""

    accuracy_weight: Fraction
    format_weight: Fraction
    function: UserFunction | None
    judge: Judge

    @model_validator(mode="after")
    def _one_grader(self) -> "Reward":
        if self.function is not None and self.judge.endpoint is not None:
            raise ValueError(
                "function and judge.endpoint are both set, but the judge reviews only the "
                "built-in grader's verdicts; set one of them to null"
            )
        return self


class Eval(Section):
    """Stage eval."""

    policies: dict[str, ModelPath]
    samples: PositiveInt
    temperature: NonNegativeFloat
    top_p: Annotated[float, Field(gt=0.0, le=1.0)]
    metrics: UserFunction | None
    max_questions: PositiveInt | None
    category: str
    bootstrap: PositiveInt


class Prism(Section):
    """The whole node `prism`. All paths are absolute, except hub ids of models."""

    stage: Stage
    seed: NonNegativeInt
    reproducible: bool
    root: AbsolutePath
    output: AbsolutePath
    policy: ModelPath
    steps: PositiveInt
    epochs: PositiveFloat | None
    samples_per_step: NonNegativeInt
    log_samples_every: PositiveInt | None
    loggers: Annotated[list[Logger], AfterValidator(with_file)]
    checkpoint_every: PositiveInt
    keep_checkpoints: PositiveInt
    resume: bool
    stall_seconds: PositiveFloat | None
    max_restarts: NonNegativeInt
    hub: Hub
    data: Data
    image: Image
    model: Model
    hardware: Hardware
    rollout: Rollout
    optim: Optim
    lora: Lora
    sft: Sft
    dpo: Dpo
    discriminator: Discriminator
    warmup: Warmup
    align: Align
    algorithm: Algorithm
    reward: Reward
    eval: Eval

    @property
    def samples_policy(self) -> bool:
        """Whether vLLM samples the policy in the stage."""
        if self.stage == "warmup":
            return self.warmup.responses == "sample"
        return self.stage in (*ON_RAY, *ONLY_SAMPLE)

    @property
    def devices(self) -> int:
        """Number of devices of the whole run.

        Includes the devices of a discriminator pool and of a white-box teacher.
        """
        devices = self.hardware.devices_per_node * self.hardware.nodes
        if self.stage == "align" and self.discriminator.placement == "pool":
            devices += self.discriminator.pool_devices
        if self.stage == "rlvr" and self.algorithm.distillation.enable:
            devices += self.algorithm.distillation.devices
        return devices

    @model_validator(mode="after")
    def _only_training_has_epochs(self) -> "Prism":
        if self.stage in ONLY_SAMPLE and self.epochs is not None:
            limit = "; prism.eval.max_questions limits the questions"
            raise ValueError(
                f"prism.epochs: stage {self.stage} does not train"
                + (limit if self.stage == "eval" else "")
            )
        return self

    @model_validator(mode="after")
    def _ray_has_enough_devices(self) -> "Prism":
        """Refuse too few logical devices: Ray would wait forever without a message."""
        allowed = self.hardware.ray_gpus
        one_host = self.hardware.ray_address is None and self.hardware.nodes == 1
        if self.stage in ON_RAY and one_host and allowed is not None and allowed < self.devices:
            raise ValueError(
                f"prism.hardware.ray_gpus={allowed} is less than the {self.devices} devices of "
                f"this run; set prism.hardware.ray_gpus={self.devices}"
            )
        return self

    @model_validator(mode="after")
    def _judge_is_shared_by_all_workers(self) -> "Prism":
        judge = self.reward.judge
        if judge.endpoint is None or self.stage not in ON_RAY:
            return self  # stage eval judges in one process
        workers = self.hardware.reward_workers
        for key, total in {"concurrency": judge.concurrency, "budget": judge.budget}.items():
            if total < workers:
                raise ValueError(
                    f"prism.reward.judge.{key}={total} is less than the {workers} reward workers "
                    "sharing it"
                )
        return self

    @model_validator(mode="after")
    def _reproducible_runs_use_no_server(self) -> "Prism":
        if not self.reproducible or self.stage != "rlvr":
            return self
        servers = {
            "reward.judge.endpoint": self.reward.judge.endpoint is not None,
            "algorithm.distillation.enable": self.algorithm.distillation.enable,
        }
        for key, used in servers.items():
            if used:
                raise ValueError(
                    f"prism.reproducible=true does not work with prism.{key}: "
                    "its results differ from run to run"
                )
        return self

    @model_validator(mode="before")
    @classmethod
    def _evaluate_the_policy(cls, node: Any) -> Any:
        """Let stage eval evaluate `prism.policy` if no policies are named."""
        match node:
            case {"policy": str(policy), "eval": {"policies": None, **others}}:
                return {**node, "eval": {**others, "policies": {"policy": policy}}}
        return node


def parse_prism(node: DictConfig | dict[str, Any]) -> Prism:
    """Return the typed node.

    Raises UserError that names every wrong key, its value and what is allowed.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    try:
        return Prism.model_validate(plain)
    except ValidationError as error:
        raise UserError("\n".join(_problem(item) for item in error.errors())) from None


def check_not_renamed(key: str) -> None:
    """Raise UserError with the new name if `key` is the old name of a key."""
    if key in RENAMED_KEYS:
        raise UserError(f"{key} is now {RENAMED_KEYS[key]}")


def flatten(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each leaf of nested dictionaries and lists with its dotted key, such as `prism.seed`.

    The items of a list share the key of the list. An empty dictionary or list is a leaf.
    """
    match node:
        case dict() if node:
            for name, child in node.items():
                yield from flatten(child, f"{key}.{name}" if key else str(name))
        case list() if node:
            for item in node:
                yield from flatten(item, key)
        case _:
            yield key, node


def _problem(item: ErrorDetails) -> str:
    key = ".".join(["prism", *map(str, item["loc"])])
    if key in RENAMED_KEYS:
        return f"{key} is now {RENAMED_KEYS[key]}"
    if item["type"] == "missing":
        return f"{key} is not set"
    if item["type"] == "value_error":
        return f"{key}: {item['ctx']['error']}"
    return f"{key}={item['input']}: {item['msg'][0].lower()}{item['msg'][1:]}"
