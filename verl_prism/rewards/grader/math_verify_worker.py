"""A process that runs math-verify for the pool.

It reads JSON lines `[number, answer, gold]` from stdin and writes `[number, verdict]` to stdout,
until stdin is closed. It runs as a script, so that it imports math-verify and nothing else. If a
question takes longer than the limit in its argument (seconds of CPU time), the verdict is false.
The pool kills the process if it does not obey that limit.
"""

import json
import os
import resource
import signal
import sys

import math_verify

# They make sympy import its lazy modules, which on a slow host takes longer than the limit.
FIRST_QUESTIONS = ((r"\int_0^1 x dx", r"\frac{1}{2}"), ("xy = 1", "y = 1/x"))
MEMORY = 2 << 30  # bytes; sympy evaluates any number that it is given


class _TooSlow(BaseException):
    """Not an Exception, because math-verify catches those."""


def _stop(*_: object) -> None:
    raise _TooSlow


def same(answer: str, gold: str) -> bool:
    """Return math-verify's verdict on two TeX formulas."""
    given = math_verify.parse(f"${answer}$", parsing_timeout=None)
    wanted = math_verify.parse(f"${gold}$", parsing_timeout=None)
    return bool(math_verify.verify(wanted, given, timeout_seconds=None))


def limit_memory() -> None:
    """Limit the memory of this process to MEMORY, or to the user's own limit if that is lower."""
    _, allowed = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY if allowed == resource.RLIM_INFINITY else min(MEMORY, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    """Answer questions until stdin is closed."""
    limit = float(sys.argv[1])
    limit_memory()
    signal.signal(signal.SIGVTALRM, _stop)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not write to the replies
    for answer, gold in FIRST_QUESTIONS:
        same(answer, gold)
    for line in sys.stdin:
        number, answer, gold = json.loads(line)
        verdict = False
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, limit)
            verdict = same(answer, gold)
        except (Exception, _TooSlow):  # sympy raises anything on odd input
            pass
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        replies.write(json.dumps([number, verdict]) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
