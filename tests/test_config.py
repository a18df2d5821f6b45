"""The typed node `prism`: what it refuses, and with which message."""

import copy

import pytest

from verl_prism.compose import compose_run
from verl_prism.config import RENAMED_KEYS, Prism, flatten, parse_prism
from verl_prism.errors import UserError


@pytest.fixture(scope="module")
def node() -> dict:
    return compose_run(["stage=align"])[1].model_dump(mode="json")


def changed(node: dict, key: str, value: object) -> dict:
    node = copy.deepcopy(node)
    *path, last = key.split(".")
    inner = node
    for part in path:
        inner = inner[part]
    inner[last] = value
    return node


def test_dump_parses_to_the_same_node(node):
    assert parse_prism(node) == Prism.model_validate(node)
    assert parse_prism(node).model_dump(mode="json") == node


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("steps", 0, "prism.steps=0: input should be greater than 0"),
        ("steps", "many", "prism.steps=many: input should be a valid integer"),
        ("hardware.device", "tpu", "prism.hardware.device=tpu: input should be 'cpu' or 'cuda'"),
        (
            "rollout.temperature",
            -1.0,
            "prism.rollout.temperature=-1.0: input should be greater than 0",
        ),
        ("optim.lr", float("nan"), "prism.optim.lr=nan: input should be a finite number"),
        ("optim.beta", 0.9, "prism.optim.beta=0.9: extra inputs are not permitted"),
        (
            "warmup.heldout_fraction",
            1.0,
            "prism.warmup.heldout_fraction=1.0: input should be less than 1",
        ),
        (
            "discriminator.upcycle.experts_per_token",
            9,
            "experts_per_token is 9, but there are only 4 experts",
        ),
        (
            "reward.format_weight",
            1.2,
            "prism.reward.format_weight=1.2: input should be less than or equal to 1",
        ),
        (
            "discriminator.placement",
            "pool",
            "prism.hardware.ray_gpus=1 is less than the 2 devices of this run; "
            "set prism.hardware.ray_gpus=2",
        ),
        ("align.credit", "token", "prism.align.credit=token: input should be 'response' or 'span'"),
        (
            "align.normalization",
            "all",
            "prism.align.normalization=all: input should be 'valid', 'combined', 'quantile' or "
            "'reference'",
        ),
        (
            "algorithm.dynamic_sampling",
            True,
            "dynamic_sampling=true needs a filter_metric",
        ),
    ],
)
def test_message_names_the_key_and_the_allowed_values(node, key, value, message):
    with pytest.raises(UserError) as caught:
        parse_prism(changed(node, key, value))
    assert message in str(caught.value)


def test_message_names_every_wrong_key(node):
    with pytest.raises(UserError) as caught:
        parse_prism(changed(changed(node, "steps", 0), "align.std_floor", 0))
    assert len(str(caught.value).splitlines()) == 2


def test_message_names_a_missing_key(node):
    node = copy.deepcopy(node)
    del node["data"]["train"]
    with pytest.raises(UserError, match=r"^prism\.data\.train is not set$"):
        parse_prism(node)


def test_node_is_frozen(node):
    with pytest.raises(ValueError, match="frozen"):
        parse_prism(node).data.max_prompt_tokens = 3


def test_eval_without_policies_evaluates_the_policy(node):
    prism = parse_prism(changed(node, "eval.policies", None))
    assert prism.eval.policies == {"policy": prism.policy}


@pytest.mark.parametrize(("old", "new"), RENAMED_KEYS.items())
@pytest.mark.parametrize("prefix", ["", "+", "++"])
def test_renamed_key_is_refused_with_its_new_name(old, new, prefix):
    with pytest.raises(UserError) as caught:
        compose_run(["stage=align", f"{prefix}{old}=1"])
    assert str(caught.value) == f"{old} is now {new}"


def test_renamed_key_in_a_dictionary_is_refused_with_its_new_name(node):
    with pytest.raises(UserError) as caught:
        parse_prism(changed(node, "hardware.engine_memory", 0.5))
    assert str(caught.value) == (
        "prism.hardware.engine_memory is now prism.hardware.gpu_memory_utilization"
    )


def test_new_names_of_renamed_keys_exist(node):
    keys = {key for key, _ in flatten(node, "prism")}
    assert set(RENAMED_KEYS.values()) <= keys
    assert not RENAMED_KEYS.keys() & keys


def test_flatten_yields_each_leaf_with_its_dotted_key():
    nested = {"a": {"b": 1, "c": [2, {"d": 3}]}, "e": {}, "f": []}
    assert list(flatten(nested)) == [("a.b", 1), ("a.c", 2), ("a.c.d", 3), ("e", {}), ("f", [])]
