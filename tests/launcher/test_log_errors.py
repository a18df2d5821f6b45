"""The lines of a log that explain a failure."""

from verl_prism.launcher.log_errors import causes, last_errors, plain_lines, user_mistake

CASCADE = """\
\x1b[36m(RewardLoopWorker pid=8)\x1b[0m ZeroDivisionError: division by zero
(AgentLoopWorkerTQ pid=9) ERROR:2026-11-22 22:11:27,219:Error in _run_prompt for uid=c4cad681
(AgentLoopWorkerTQ pid=9) ray.exceptions.RayTaskError(ZeroDivisionError): ray::RewardLoopWorker.f
(AgentLoopWorkerTQ pid=9) ZeroDivisionError: division by zero
an innocent line
(PrismTaskRunner pid=7) ray.exceptions.ActorDiedError: The actor died unexpectedly.
RuntimeError: rollouts of 4 prompts failed: in the log, below `Error in _run_prompt`
"""


def test_a_cause_is_shown_once_and_without_its_consequences():
    assert causes(plain_lines(CASCADE)) == [
        "(AgentLoopWorkerTQ pid=9) ZeroDivisionError: division by zero"
    ]
    assert last_errors(plain_lines(CASCADE), 8) == causes(plain_lines(CASCADE))


def test_consequences_are_shown_if_there_is_no_cause():
    lines = plain_lines(CASCADE)[-3:]
    assert last_errors(lines, 8) == lines[1:]
    assert causes(lines) == []


def test_a_killed_rank_is_named():
    killed = "  traceback : Signal 9 (SIGKILL) received by PID 2211"
    assert causes(["    raise ChildFailedError(", killed]) == [killed]


def test_of_a_traceback_in_vllms_log_the_last_line_is_shown():
    said = "(vLLMHttpServer pid=6) ERROR 11-22 23:15:10 [async_llm.py:724] "
    traceback = [
        "Traceback (most recent call last):",
        '  File "core_client.py", line 1101, in get',
        "    raise e",
        "    ^^",
    ]
    assert causes([said + line for line in (*traceback, "ValueError: bad")]) == [
        said + "ValueError: bad"
    ]


def test_a_user_error_is_found_in_any_process():
    line = "(RewardLoopWorker pid=8) verl_prism.errors.UserError: the judge is down. Start it"
    assert user_mistake([line, "RuntimeError: rollouts failed"]) == "the judge is down. Start it"
    assert user_mistake(plain_lines(CASCADE)) is None
