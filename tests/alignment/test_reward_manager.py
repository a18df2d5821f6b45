"""The reward manager parses and tokenizes each rollout once; groups are made from its results."""

import asyncio

import numpy as np
import pytest
import torch
from alignment.stored_rows import StoredRows, stored_row
from verl import DataProto

from verl_prism.alignment import groups as groups_module
from verl_prism.alignment.groups import GroupRows, RankShare, read_groups, token_ranges
from verl_prism.alignment.reward_manager import DiscriminatorRewardManager
from verl_prism.compose import compose_run
from verl_prism.discriminator import Prompt, tokenize_spans
from verl_prism.response import View, parse_response

CAPTION = "<caption>Left a 7, right a 8.</caption>"
REASONING = "<think>Add left and right: 7 + 8 = 15.</think><answer>15</answer>"
RIGHT = CAPTION + REASONING
NO_CAPTION = "<think>7 + 8 = 15.</think><answer>15</answer>"


@pytest.fixture
def manager(tokenizer, discriminator_folder):
    path = f"prism.discriminator.path={discriminator_folder}"
    config, _ = compose_run(["stage=align", path, "prism.discriminator.max_perception_tokens=12"])
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


def test_valid_rollout_has_the_token_ids_of_its_spans(manager, tokenizer):
    result = asyncio.run(manager.run_single(rollout(tokenizer, RIGHT)))
    info = result["reward_extra_info"]
    assert result["reward_score"] == 1.0
    assert info["fault"] == ""
    for key, text in (("perception_ids", CAPTION), ("reasoning_ids", REASONING)):
        *ids, terminal = info[key]
        assert tokenizer.decode(ids) == text
        assert terminal == tokenizer.eos_token_id


@pytest.mark.parametrize(("text", "accuracy"), [(RIGHT, 1.0), (NO_CAPTION, 0.0)])
def test_answers_are_graded_only_if_they_count(discriminator_folder, tokenizer, text, accuracy):
    path = f"prism.discriminator.path={discriminator_folder}"
    config, _ = compose_run(["stage=align", path, "prism.align.accuracy_weight=0.5"])
    manager = DiscriminatorRewardManager(config, tokenizer, compute_score=None)
    data = rollout(tokenizer, text)
    gold = {"style": "rule", "ground_truth": "15"}
    data.non_tensor_batch["reward_model"] = np.array([gold], dtype=object)
    info = asyncio.run(manager.run_single(data))["reward_extra_info"]
    assert info["acc"] == accuracy


def test_no_gold_answer_is_read_without_a_weight(manager, tokenizer):
    info = asyncio.run(manager.run_single(rollout(tokenizer, RIGHT)))["reward_extra_info"]
    assert "acc" not in info


def test_valid_rollout_has_the_ranges_of_its_spans(manager, tokenizer):
    data = rollout(tokenizer, RIGHT.replace("<think>", "\n<think>"))
    info = asyncio.run(manager.run_single(data))["reward_extra_info"]
    responses = data.batch["responses"][0]
    texts = [tokenizer.decode(responses[start:end]) for start, end in token_ranges(info)]
    assert texts == [CAPTION, REASONING]


def test_invalid_rollout_has_its_fault(manager, tokenizer):
    result = asyncio.run(manager.run_single(rollout(tokenizer, NO_CAPTION)))
    assert result["reward_score"] == 0.0
    info = result["reward_extra_info"]
    assert (info["fault"], info["perception_ids"], info["reasoning_ids"]) == ("missing", [], [])
    assert token_ranges(info) == [(0, 0), (0, 0)]


def test_view_over_its_limit_is_a_fault(manager, tokenizer):
    text = RIGHT.replace("right a 8.", "right a 8. And an 8 it is, on the right.")
    info = manager.spans(tokenizer.encode(text))
    assert info["fault"] == "perception_too_long"
    assert token_ranges(info) == [(0, 0), (0, 0)]


def test_limit_does_not_count_the_terminal_token(manager, tokenizer):
    limit = len(tokenizer.encode(CAPTION, add_special_tokens=False))
    for view_limit, fault in ((limit, ""), (limit - 1, "perception_too_long")):
        manager._limits[View.PERCEPTION] = view_limit
        assert manager.spans(tokenizer.encode(RIGHT))["fault"] == fault


def test_group_is_read_from_the_rows_of_one_prompt(monkeypatch, manager, tokenizer):
    """The same text has the same tokens on both sides."""
    teacher = tokenize_spans(parse_response(RIGHT), tokenizer)
    rows = {}
    for key, text in {"a_0_0": RIGHT, "a_1_0": NO_CAPTION}.items():
        row = stored_row(Prompt(torch.arange(3)), RIGHT, student=None)
        row["extra_fields"] = {"reward_extra_info": manager.spans(tokenizer.encode(text))}
        rows[key] = row
    monkeypatch.setattr(groups_module, "tq", StoredRows(rows))
    share = RankShare("train", (GroupRows(("a_0_0", "a_1_0"), teacher),), plan=())
    (group,) = read_groups(share)
    assert group.prompt.input_ids.tolist() == [0, 1, 2]
    assert list(group.students) == [teacher, None]


def test_rank_without_a_share_reads_nothing(monkeypatch):
    monkeypatch.setattr(groups_module, "tq", None)
    assert read_groups(RankShare("train", (), plan=())) == []
