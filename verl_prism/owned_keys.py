"""verl's keys that this package sets itself, and that an override would contradict.

A key of verl that `trainer_configs` sets from a key under `prism` has to keep that value: other
parts of a run, such as the estimate of a step's groups, read the key under `prism`. An override
with another value is refused, and the message names the key to set instead.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_prism.config import flatten
from verl_prism.errors import UserError

# verl's keys that may differ from the key under `prism` that sets them.
MAY_DIFFER = re.compile(
    # several updates per batch of rollouts
    r"actor_rollout_ref\.actor\.ppo_mini_batch_size"
    # a name for the logger's website
    r"|trainer\.experiment_name"
    # keep only one of weights and optimizer state on the device
    r"|(actor_rollout_ref\.actor\.fsdp_config|engine)\.(param|optimizer)_offload"
    # the server of a white-box teacher, which is not the policy's
    r"|distillation\.teacher_models\..*"
)

_STEPS = "set prism.steps or prism.epochs"
_RESUME = "prism.resume=true resumes a run"
_KEEP = "set prism.keep_checkpoints"
_OVERLONG = "set prism.data.overlong=error or filter"
_PROMPT = "set prism.data.max_prompt_tokens"
_ROWS = "write a file with fewer rows"
_COLUMN = "rename the column in the file"
_REWARD = "set prism.reward.function=path/to/file.py:function"

# verl's keys that have one value in this package, and what to do instead.
FIXED = {
    "trainer.total_epochs": _STEPS,
    "trainer.resume_mode": _RESUME,
    "trainer.resume_from_path": _RESUME,
    "trainer.max_actor_ckpt_to_keep": _KEEP,
    "trainer.max_ckpt_to_keep": _KEEP,
    "trainer.checkpoint_callback_class": "checkpoints are published by this package",
    "trainer.v1.trainer_mode": "stage= selects the trainer",
    "data.truncation": _OVERLONG,
    "data.filter_overlong_prompts": _OVERLONG,
    "data.train_max_samples": _ROWS,
    "data.custom_cls.path": "this package reads the rows",
    "data.custom_cls.name": "this package reads the rows",
    "data.prompt_key": _COLUMN,
    "data.image_key": _COLUMN,
    "data.messages_key": _COLUMN,
    "actor_rollout_ref.rollout.name": "only vLLM is supported",
    "actor_rollout_ref.rollout.prompt_length": _PROMPT,
    "actor_rollout_ref.rollout.response_length": "set prism.data.max_response_tokens",
    "reward.custom_reward_function.path": _REWARD,
    "reward.custom_reward_function.name": _REWARD,
}
FIXED_IN_ALIGN = {
    "algorithm.adv_estimator": "stage align learns from the discriminator; use stage=rlvr",
    "reward.reward_manager.source": "stage align needs its own manager; use stage=rlvr",
    "reward.reward_manager.name": "stage align needs its own manager; use stage=rlvr",
}

_OURS = re.compile(r"\$\{(prism\.[\w.]+)\}")


def check_owned_keys(default: DictConfig, config: DictConfig) -> None:
    """Refuse overrides of verl's keys that contradict `prism`.

    default: the config as composed from the groups only, interpolations unresolved.
    config: the same with all overrides.

    Raises:
        UserError: names each contradicted key and what to set instead.
    """
    problems = list(_contradictions(default, config))
    if problems:
        raise UserError("\n".join(problems))


def _contradictions(default: DictConfig, config: DictConfig) -> Iterator[str]:
    before, after = _leaves(default), _leaves(config)
    fixed = FIXED | (FIXED_IN_ALIGN if config.prism.stage == "align" else {})
    for key, raw in before.items():
        if key.startswith("prism.") or MAY_DIFFER.fullmatch(key) or after.get(key) == raw:
            continue
        given = OmegaConf.select(config, key)
        if key in fixed:
            yield f"{key}={given}: this key has to stay as it is; {fixed[key]}"
        elif ours := _OURS.search(str(raw)):
            expected = _resolved(config, key, raw)
            free = "when:" in str(raw) and expected is None
            if given != expected and not free:
                yield f"{key}={given}: this key follows {ours[1]}, so set {ours[1]} instead"


def _leaves(config: DictConfig) -> Mapping[str, Any]:
    """Return unresolved values by dotted key; the items of a list together."""
    leaves: dict[str, list[Any]] = {}
    for key, value in flatten(OmegaConf.to_container(config, resolve=False)):
        leaves.setdefault(key, []).append(value)
    return {key: values if len(values) > 1 else values[0] for key, values in leaves.items()}


def _resolved(config: DictConfig, key: str, raw: Any) -> Any:
    """Return the value that the key would have without an override."""
    without = config.copy()
    OmegaConf.update(without, key, raw, merge=False, force_add=True)
    return OmegaConf.select(without, key)
