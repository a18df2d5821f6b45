"""The driver's plan of a step: sizes from token ids, and shares that name each row once."""

import pytest
import torch
from alignment.stored_rows import StoredRows, stored_row

from verl_prism.alignment import groups as groups_module
from verl_prism.alignment import planner as planner_module
from verl_prism.alignment.groups import read_groups, read_infos, scores_by_key
from verl_prism.alignment.planner import StepPlanner
from verl_prism.compose import compose_run
from verl_prism.discriminator import GroupScores, assign, group_sizes, tokenize_spans
from verl_prism.response import parse_response

TEACHER = "<caption>Left a 7.</caption><think>7 + 8 = 15.</think><answer>15</answer>"
GROUPS = [[f"{g}_{n}_0" for n in range(8)] for g in range(6)]
KEYS = [key for keys in GROUPS for key in keys]


@pytest.fixture
def planner(discriminator_folder):
    path = f"prism.discriminator.path={discriminator_folder}"
    return StepPlanner(compose_run(["stage=align", path])[1].discriminator)


@pytest.fixture
def store(monkeypatch, prompts, tokenizer):
    """6 prompts of 8 responses, of which every fifth is invalid."""
    rows = {}
    for number, key in enumerate(KEYS):
        text = (
            f"<caption>{'1' * (number % 7 + 1)}.</caption><think>I add.</think><answer>3</answer>"
        )
        student = tokenize_spans(parse_response(text), tokenizer) if number % 5 else None
        rows[key] = stored_row(prompts[number // 8], TEACHER, student)
    store = StoredRows(rows)
    monkeypatch.setattr(groups_module, "tq", store)
    monkeypatch.setattr(planner_module, "tq", store)
    return store


@pytest.mark.parametrize("ranks", [1, 4, 7, 16])
def test_each_row_is_in_the_share_of_one_rank_and_gets_its_own_score(planner, store, ranks):
    shares = planner.shares(GROUPS, read_infos(KEYS, "train"), "train", ranks)
    assert len(shares) == ranks
    scores = {}
    for share in shares:
        numbers = [[float(KEYS.index(key)) for key in rows.keys] for rows in share.groups]
        groups = read_groups(share)
        for g, group in enumerate(groups):
            valid = torch.tensor([[student is not None for student in group.students]])
            student = torch.tensor([[numbers[g]], [[-number for number in numbers[g]]]])
            found = scores_by_key([share.groups[g]], GroupScores(torch.zeros(2, 1), student, valid))
            assert not found.keys() & scores.keys()
            scores |= found
    expected = {key: (float(n), -float(n)) for n, key in enumerate(KEYS) if n % 5}
    assert scores == expected


def test_sizes_are_those_of_the_groups_but_are_read_without_pixels(monkeypatch, planner, store):
    planned = []

    def remember(sizes, *arguments):
        planned.extend(sizes)
        return assign(sizes, *arguments)

    monkeypatch.setattr(planner_module, "assign", remember)
    (share,) = planner.shares(GROUPS, read_infos(KEYS, "train"), "train", 1)
    assert "multi_modal_inputs" not in {name for _, name in store.reads}
    by_prompt = dict(zip([keys[0] for keys in GROUPS], planned, strict=True))
    for rows, group in zip(share.groups, read_groups(share), strict=True):
        assert group_sizes(group) == by_prompt[rows.keys[0]]
