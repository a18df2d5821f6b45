"""Rollouts are parsed once, by the reward manager; what it leaves is what the discriminator's groups are made from."""

import asyncio

import numpy as np
import pytest
import torch
from tensordict import NonTensorData, TensorDict
from verl import DataProto
from verl.utils import tensordict_utils

from verl_prism.alignment.groups import groups_of, token_ranges
from verl_prism.alignment.reward_manager import DiscriminatorRewardManager
from verl_prism.compose import compose_run
from verl_prism.response import View

RIGHT = "<caption>Left a 7, right a 8.</caption><think>Add left and right: 7 + 8 = 15.</think><answer>15</answer>"
NO_CAPTION = "<think>7 + 8 = 15.</think><answer>15</answer>"


@pytest.fixture
def manager(tokenizer):
    config, _ = compose_run(["stage=align", "prism.discriminator.max_perception_tokens=12"])
    return DiscriminatorRewardManager(config, tokenizer, compute_score=None)


def rollout(tokenizer, text: str, padding: int = 3) -> DataProto:
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    mask = [1] * (4 + len(ids)) + [0] * padding
    tensors = {
        "prompts": torch.zeros(1, 4, dtype=torch.long),
        "responses": torch.tensor([ids + [tokenizer.pad_token_id] * padding]),
        "attention_mask": torch.tensor([mask]),
    }
    return DataProto.from_dict(tensors, non_tensors={"uid": np.array(["a"], dtype=object)})


def test_a_valid_rollout_leaves_its_views(manager, tokenizer):
    result = asyncio.run(manager.run_single(rollout(tokenizer, RIGHT)))
    info = result["reward_extra_info"]
    assert result["reward_score"] == 1.0 and info["fault"] == ""
    assert info["perception"] + info["reasoning"] == RIGHT


def test_a_valid_rollout_leaves_the_tokens_of_its_views(manager, tokenizer):
    data = rollout(tokenizer, RIGHT.replace("<think>", "\n<think>"))
    info = asyncio.run(manager.run_single(data))["reward_extra_info"]
    assert all(type(value) in (int, str) for value in info.values())
    texts = [
        tokenizer.decode(data.batch["responses"][0, start:end]) for start, end in token_ranges(info)
    ]
    assert texts == [info["perception"], info["reasoning"]]


def test_an_invalid_rollout_leaves_its_fault(manager, tokenizer):
    result = asyncio.run(manager.run_single(rollout(tokenizer, NO_CAPTION)))
    assert result["reward_score"] == 0.0
    info = result["reward_extra_info"]
    assert (info["fault"], info["perception"], info["reasoning"]) == ("missing", "", "")
    assert token_ranges(info) == [(0, 0), (0, 0)]


def test_a_view_over_its_limit_is_a_fault(manager, tokenizer):
    info = manager.spans(
        tokenizer.encode(RIGHT.replace("right a 8.", "right a 8. And an 8 it is, on the right."))
    )
    assert info["fault"] == "perception_too_long" and token_ranges(info) == [(0, 0), (0, 0)]


def test_groups_are_made_of_rows_that_share_a_prompt(manager, tokenizer):
    infos = [manager.spans(tokenizer.encode(text)) for text in (RIGHT, NO_CAPTION, RIGHT, RIGHT)]
    data = TensorDict({}, batch_size=4)
    data["prompts"] = torch.nested.as_nested_tensor(
        [torch.arange(3), torch.arange(3), torch.arange(5), torch.arange(5)], layout=torch.jagged
    )
    columns = {
        "uid": ["a", "a", "b", "b"],
        "multi_modal_inputs": [{}] * 4,
        "extra_fields": [{"reward_extra_info": info} for info in infos],
        "teacher_response": [RIGHT] * 4,
    }
    for name, values in columns.items():
        stack = tensordict_utils.get_tensordict({name: values})[name]
        data[name] = stack
    groups = groups_of(data)
    assert [len(group.prompt.input_ids) for group in groups] == [3, 5]
    assert [[spans is not None for spans in group.students] for group in groups] == [
        [True, False],
        [True, True],
    ]
    assert groups[0].teacher[View.PERCEPTION] == "<caption>Left a 7, right a 8.</caption>"
    assert not isinstance(groups[0].students[0], NonTensorData)
