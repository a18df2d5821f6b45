"""The typed node: what it refuses, and in which words."""

import copy

import pytest

from verl_prism.compose import compose_run
from verl_prism.config import Prism, parse_prism
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


def test_a_dump_parses_to_the_same(node):
    assert parse_prism(node) == Prism.model_validate(node)
    assert parse_prism(node).model_dump(mode="json") == node


@pytest.mark.parametrize(
    ("key", "value", "said"),
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
        ("discriminator.upcycle.experts_per_token", 9, "experts_per_token is 9, of 4 experts"),
        (
            "reward.format_weight",
            1.2,
            "prism.reward.format_weight=1.2: input should be less than or equal to 1",
        ),
        (
            "discriminator.placement",
            "pool",
            "prism.hardware.ray_gpus=1 is less than devices_per_node + pool_devices = 2",
        ),
        ("align.credit", "token", "prism.align.credit=token: input should be 'response' or 'span'"),
        (
            "align.normalization",
            "all",
            "prism.align.normalization=all: input should be 'valid' or 'reference'",
        ),
        (
            "algorithm.dynamic_sampling",
            True,
            "dynamic_sampling=true and a filter_metric go together",
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(node, key, value, said):
    with pytest.raises(UserError) as caught:
        parse_prism(changed(node, key, value))
    assert said in str(caught.value)


def test_every_wrong_key_is_named_at_once(node):
    with pytest.raises(UserError) as caught:
        parse_prism(changed(changed(node, "steps", 0), "align.std_floor", 0))
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_key_is_named(node):
    node = copy.deepcopy(node)
    del node["data"]["train"]
    with pytest.raises(UserError, match=r"^prism\.data\.train is not set$"):
        parse_prism(node)


def test_it_is_frozen(node):
    with pytest.raises(ValueError, match="frozen"):
        parse_prism(node).data.max_prompt_tokens = 3


def test_without_policies_eval_looks_at_the_policy(node):
    prism = parse_prism(changed(node, "eval.policies", None))
    assert prism.eval.policies == {"policy": prism.policy}
