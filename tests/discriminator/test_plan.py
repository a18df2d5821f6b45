"""Plans: every student once, packs within the limit, and ranks that are equally busy."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_prism.discriminator.costs import FlopModel, GroupSizes
from verl_prism.discriminator.plan import Part, assign, local_plan

FLOPS = FlopModel(
    layers=4, token=100.0, expert_token=400.0, pair=1.0, output=0, patch=50.0, patch_pair=0.1
)
UNLIMITED = 10**9


def group(students: int, length: int = 100, prompt: int = 200) -> GroupSizes:
    return GroupSizes(prompt, (), (length, length), ((length, length),) * students)


@st.composite
def random_groups(draw):
    spans = st.tuples(st.integers(1, 300), st.integers(1, 300))
    return [
        GroupSizes(
            prompt=draw(st.integers(1, 500)),
            images=tuple(draw(st.lists(st.integers(4, 2000), max_size=2))),
            teacher=draw(spans),
            students=tuple(draw(st.lists(st.none() | spans, min_size=1, max_size=9))),
        )
        for _ in range(draw(st.integers(1, 9)))
    ]


def flops_of(sizes, plan) -> float:
    return sum(FLOPS.part(sizes[part.group], part.members) for pack in plan for part in pack)


@settings(deadline=None)
@given(random_groups(), st.integers(1, 8), st.integers(1, 4000))
def test_each_student_is_in_one_pack_within_the_limit(sizes, world_size, max_tokens):
    plans = assign(sizes, world_size, max_tokens, FLOPS)
    assert len(plans) == world_size
    packs = [pack for plan in plans for pack in plan]
    students = Counter((part.group, n) for pack in packs for part in pack for n in part.members)
    expected = {(g, n) for g, group in enumerate(sizes) for n in range(len(group.students))}
    assert students == dict.fromkeys(expected, 1)
    for pack in packs:
        size = sum(sizes[part.group].size(part.members) for part in pack)
        valid = sum(
            sizes[part.group].students[n] is not None for part in pack for n in part.members
        )
        assert size <= max_tokens or (len(pack) == 1 and valid <= 1)


@settings(deadline=None)
@given(random_groups(), st.integers(1, 8))
def test_the_busiest_rank_has_at_most_its_share_and_one_unit(sizes, world_size):
    """The bound of longest-processing-time scheduling."""
    plans = assign(sizes, world_size, UNLIMITED, FLOPS)
    loads = [flops_of(sizes, plan) for plan in plans]
    units = [FLOPS.part(sizes[part.group], part.members) for p in plans for q in p for part in q]
    assert max(loads) <= sum(loads) / world_size + max(units) + 1


@settings(deadline=None)
@given(random_groups(), st.integers(1, 8), st.integers(1, 4000))
def test_costly_packs_come_first(sizes, world_size, max_tokens):
    for plan in assign(sizes, world_size, max_tokens, FLOPS):
        loads = [flops_of(sizes, [pack]) for pack in plan]
        assert loads == sorted(loads, reverse=True)


def test_all_ranks_get_as_many_packs_as_the_fullest_one_needs():
    sizes = [group(12), group(10), group(4), group(1)]  # 2,800, 2,400, 1,200 and 600 tokens
    plans = assign(sizes, 2, 3500, FLOPS)
    assert [[pack[0].group for pack in plan] for plan in plans] == [[0, 3], [1, 2]]


def test_group_goes_whole_to_a_rank_if_the_load_is_even():
    plans = assign([group(16)] * 16, 8, UNLIMITED, FLOPS)
    parts = [part for plan in plans for pack in plan for part in pack]
    assert sorted(parts) == [Part(g, tuple(range(16))) for g in range(16)]
    assert [sum(map(len, plan)) for plan in plans] == [2] * 8


def test_four_groups_over_eight_ranks_are_halved():
    plans = assign([group(16)] * 4, 8, UNLIMITED, FLOPS)
    parts = [part for plan in plans for pack in plan for part in pack]
    assert Counter(part.group for part in parts) == dict.fromkeys(range(4), 2)
    assert {len(part.members) for part in parts} == {8}


def test_parts_are_balanced_by_the_length_of_responses_not_by_their_number():
    long = GroupSizes(200, (), (100, 100), ((100, 3000), *[(100, 100)] * 10, None))
    plans = assign([long], 2, UNLIMITED, FLOPS)
    sizes = sorted(len(part.members) for plan in plans for pack in plan for part in pack)
    assert sizes == [1, 11]


def test_nine_groups_over_eight_ranks_do_not_leave_seven_ranks_waiting():
    sizes = [group(16)] * 9
    busiest = max(flops_of(sizes, plan) for plan in assign(sizes, 8, UNLIMITED, FLOPS))
    assert busiest < 1.5 * FLOPS.part(sizes[0], range(16))


def test_more_ranks_than_students_leave_ranks_without_work():
    plans = assign([group(2)], 4, UNLIMITED, FLOPS)
    assert [len(plan) for plan in plans] == [1, 1, 0, 0]


def test_group_over_the_limit_is_split_into_as_few_parts_as_fit():
    sizes = [group(6)]  # 400 tokens of prompt and teacher, 200 of each student
    (plan,) = assign(sizes, 1, 1000, FLOPS)
    assert sorted(len(pack[0].members) for pack in plan) == [3, 3]


def test_group_without_a_valid_response_stays_whole():
    sizes = [GroupSizes(500, (), (10, 10), (None,) * 8)]
    assert assign(sizes, 2, 100, FLOPS) == [((Part(0, tuple(range(8))),),), ()]


def test_same_sizes_give_the_same_plan():
    sizes = [group(5, length=100 + g) for g in range(7)]
    assert assign(sizes, 3, 1500, FLOPS) == assign(list(sizes), 3, 1500, FLOPS)


def test_rank_holds_a_group_of_several_packs_once():
    plan = ((Part(7, (2, 5)), Part(3, (0,))), (Part(7, (4, 1)),))
    held, local = local_plan(plan)
    assert held == [Part(7, (1, 2, 4, 5)), Part(3, (0,))]
    assert local == ((Part(0, (1, 3)), Part(1, (0,))), (Part(0, (2, 0)),))


@pytest.mark.parametrize("prompt", [0, 50])
def test_flops_of_a_span_count_the_pairs_of_tokens_that_see_each_other(prompt):
    only_pairs = FlopModel(
        layers=1, token=0, expert_token=0, pair=1, output=0, patch=0, patch_pair=0
    )
    pairs = sum(prompt + token + 0.5 for token in range(20))
    assert only_pairs.span(prompt, 20) == pairs
