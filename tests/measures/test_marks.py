import pytest

from verl_prism.measures.marks import (
    QuestionMarks,
    compared_pairs,
    comparisons,
    mark_values,
    pass_at_k,
)


def marks(accurate: list[list[int]], greedy: int = 1) -> list[QuestionMarks]:
    """Marks of a policy; perception is undefined for wrong responses."""

    def of(value: int) -> dict:
        return {
            "accuracy": bool(value),
            "perception": True if value else None,
            "length": 5 + value,
        }

    return [QuestionMarks(of(greedy), [of(value) for value in given]) for given in accurate]


def test_values_of_each_mark():
    assert mark_values(marks([[1, 0], [0, 0]])) == {
        "accuracy": [[1.0, 0.0], [0.0, 0.0]],
        "perception": [[1.0], []],
        "length": [[6.0, 5.0], [5.0, 5.0]],
        "greedy_accuracy": [[1.0], [1.0]],
    }


@pytest.mark.parametrize(
    ("policies", "pairs"),
    [
        (["a"], []),
        (["a", "b"], [("b", "a")]),
        (["a", "b", "c"], [("b", "a"), ("c", "a"), ("c", "b")]),
    ],
)
def test_each_policy_is_compared_with_the_first_and_the_previous_one(policies, pairs):
    assert compared_pairs(policies) == pairs


def test_differences_of_every_mark():
    first = marks([[0, 0, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]], greedy=0)
    second = marks([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 0]])
    (found,) = comparisons({"SFT": first, "RL": second}, 100, 0)
    assert (found["policy"], found["against"]) == ("RL", "SFT")
    differences = {mark: each["difference"] for mark, each in found["marks"].items()}
    assert differences == pytest.approx(
        {
            "accuracy": 3 / 12,
            "perception": 0,
            "length": 3 / 12,
            "greedy_accuracy": 1,
            "pass@2": (2 / 3 + 1 + 1 + 2 / 3) / 4 - (2 / 3 + 1) / 4,
        }
    )
    assert comparisons({"SFT": first, "RL": second}, 100, 0) == [found]


def test_pass_at_k_has_strings_as_keys_as_json_does():
    assert list(pass_at_k(marks([[0, 0, 1], [1, 1, 1]]))) == ["1", "2"]
