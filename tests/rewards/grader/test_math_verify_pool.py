import os
import subprocess
import sys
import threading
import time

import pytest

from verl_prism.errors import UserError
from verl_prism.rewards.grader import math_verify_pool
from verl_prism.rewards.grader.deadline import deadline, remaining


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    """Return a new pool with one running process."""
    pool = math_verify_pool._Pool()
    monkeypatch.setattr(math_verify_pool, "_pool", pool)
    math_verify_pool.start()
    yield pool
    pool.close()


def test_math_verify_judges_formulas_that_arithmetic_cannot():
    with deadline():
        assert math_verify_pool.verified("xy = 1", "y = 1/x")
        assert not math_verify_pool.verified("x y = 1", "y = 2/x")


def test_a_process_that_misses_the_deadline_is_replaced(pool):
    worker = pool.idle.get()
    pool.idle.put(worker)
    start = time.perf_counter()
    with deadline(0.2):
        assert not math_verify_pool.verified("(x+1)^{99}(y+1)^{99}(z+1)^{99}", "x! y! z!")
    assert time.perf_counter() - start < 1
    assert worker.process.poll() is not None
    with deadline(30):
        assert math_verify_pool.verified("x^2", "x \\cdot x")


def test_a_dead_process_costs_one_verdict(pool):
    worker = pool.idle.get()
    pool.idle.put(worker)
    worker.process.kill()
    worker.process.wait()
    with deadline():
        assert not math_verify_pool.verified("x^2", "x \\cdot x")
    with deadline(30):
        assert math_verify_pool.verified("x^2", "x \\cdot x")


def test_more_threads_than_processes_get_verdicts(pool):
    verdicts = []

    def ask():
        with deadline(30):
            verdicts.append(math_verify_pool.verified("xy = 1", "y = 1/x"))

    threads = [threading.Thread(target=ask) for _ in range(2 * math_verify_pool.PROCESSES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [True] * len(threads)
    assert pool.idle.qsize() <= math_verify_pool.PROCESSES


def test_a_forked_child_starts_its_own_processes():
    child = os.fork()
    if child == 0:
        with deadline(30):
            right = math_verify_pool.verified("x^2", "x \\cdot x")
        math_verify_pool._pool.close()
        os._exit(0 if right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with deadline():
        assert math_verify_pool.verified("x^2", "x \\cdot x")


def test_a_process_that_cannot_start_is_reported_before_the_first_verdict(monkeypatch):
    monkeypatch.setattr(math_verify_pool, "_pool", math_verify_pool._Pool())
    monkeypatch.setattr(sys, "executable", "/bin/false")
    for _ in range(2):
        with pytest.raises(UserError, match=r"math-verify did not start .*math_verify_worker\.py"):
            math_verify_pool.start()


def test_a_lower_limit_of_the_users_memory_is_obeyed():
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_AS, ({1 << 30}, {1 << 30}))
from verl_prism.rewards.grader import math_verify_pool
math_verify_pool.start()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_prose_and_towers_are_not_formulas():
    assert math_verify_pool.is_formula(r"\begin{pmatrix} 1 & 2 \end{pmatrix} = A")
    for text in [
        "a rectangle = a square",
        "9^9^9",
        "9^{99999}",
        "(" * 40 + "x^2" + ")" * 40,
        "x^2" * 200,
        "dog",
    ]:
        assert not math_verify_pool.is_formula(text)


def test_a_deadline_applies_only_to_its_thread():
    with deadline(1):
        assert 0 < remaining() <= 1
        other = []
        thread = threading.Thread(target=lambda: other.append(remaining()))
        thread.start()
        thread.join()
    assert other == [float("inf")]
    assert remaining() == float("inf")
