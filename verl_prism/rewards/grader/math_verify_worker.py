"""A process that asks math-verify: JSON lines `[number, answer, gold]` in, `[number, verdict]` out, until
its input ends.

It is run as a script, so that it loads math-verify and nothing else. A question that takes longer than the limit given
as its argument (seconds) is answered with false; whoever asks kills the process where even that is not obeyed.
"""

import json
import os
import resource
import signal
import sys

import math_verify

MEMORY = 2 << 30  # bytes; sympy evaluates what it is given


class _TooSlow(BaseException):
    """Not an Exception, for math-verify catches those."""


def _stop(*_: object) -> None:
    raise _TooSlow


def same(answer: str, gold: str) -> bool:
    """Whether math-verify takes two TeX formulas for the same."""
    given, wanted = (
        math_verify.parse(f"${text}$", parsing_timeout=None) for text in (answer, gold)
    )
    return bool(math_verify.verify(wanted, given, timeout_seconds=None))


def main() -> None:
    """Answer until the input ends."""
    limit = float(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGVTALRM, _stop)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
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
