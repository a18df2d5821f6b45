"""A failed stage is restarted with resume. A function stands in for the stage."""

import json

import pytest

from verl_prism.compose import compose_run
from verl_prism.errors import UserError
from verl_prism.launcher.restart import with_restarts


@pytest.fixture
def start(tmp_path):
    """Return a function that runs launches, each given by its last step and its exit code.

    It returns the last exit code, and whether each launch was resumed.
    """

    def run(launches: list[tuple[int, int]], max_restarts: int) -> tuple[int, list[bool]]:
        config, prism = compose_run(
            ["stage=rlvr", f"prism.output={tmp_path}", f"prism.max_restarts={max_restarts}"]
        )
        resumed = []

        def launch(config, prism) -> int:
            steps, status = launches[len(resumed)]
            resumed.append(prism.resume and config.prism.resume)
            lines = [json.dumps({"step": step, "data": {}}) + "\n" for step in range(1, steps + 1)]
            (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 9')
            return status

        return with_restarts(launch, config, prism), resumed

    return run


def test_a_failed_stage_is_restarted_with_resume(start, capsys):
    assert start([(3, 1), (5, 1), (9, 0)], max_restarts=4) == (0, [False, True, True])
    assert capsys.readouterr().err.splitlines() == [
        "restarting after step 3: restart 1 of prism.max_restarts=4",
        "restarting after step 5: restart 2 of prism.max_restarts=4",
    ]


def test_the_number_of_restarts_is_limited(start):
    assert start([(3, 1)], max_restarts=0) == (1, [False])
    assert start([(3, 1), (4, 1), (5, 1)], max_restarts=2) == (1, [False, True, True])


@pytest.mark.parametrize("status", [0, 2, 75, 130])
def test_other_exit_codes_do_not_restart(start, status):
    assert start([(3, status)], max_restarts=3) == (status, [False])


def test_it_gives_up_if_restarts_make_no_new_step(start, capsys):
    assert start([(3, 1), (3, 1), (2, 1)], max_restarts=9) == (1, [False, True, True])
    assert capsys.readouterr().err.endswith("giving up: 2 restarts in a row made no new step\n")


def test_each_new_step_resets_the_count(start):
    launches = [(0, 1), (0, 1), (1, 1), (1, 1), (2, 0)]
    assert start(launches, max_restarts=9) == (0, [False, True, True, True, True])


def test_a_user_error_is_raised(tmp_path):
    config, prism = compose_run(["stage=rlvr", f"prism.output={tmp_path}", "prism.max_restarts=3"])

    def launch(config, prism):
        raise UserError("no such file")

    with pytest.raises(UserError, match="no such file"):
        with_restarts(launch, config, prism)
