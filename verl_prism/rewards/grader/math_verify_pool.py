r"""math-verify, for formulas that plain arithmetic cannot read: matrices, integrals, equations.

math-verify limits its time with a signal, which only the main thread can receive, and sympy cannot
be stopped in a thread. So it runs in a few processes of its own. A process is started when it is
first needed, and killed and replaced when it misses a deadline.

The processes are plain scripts and not workers of a multiprocessing pool, for two reasons. A
spawned worker imports the user's main module again. A pool whose idle worker is killed, say by the
kernel when memory runs out, is broken for good.
"""

import atexit
import contextlib
import itertools
import json
import logging
import os
import queue
import re
import select
import shlex
import subprocess
import sys
import threading
from pathlib import Path

from verl_prism.errors import UserError
from verl_prism.rewards.grader.deadline import deadline, remaining

logger = logging.getLogger(__name__)

START_SECONDS = 60.0  # longest time a process may take to start
SOFT_LIMIT = 1.0  # CPU seconds after which a process gives up by itself and need not be killed
PROCESSES = min(4, os.cpu_count() or 1)
MAX_CHARACTERS = 300
MAX_NESTING = 16

_FUNCTIONS = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|exp"
_FUNCTION = re.compile(rf"(?<![\\A-Za-z])({_FUNCTIONS}|ln)(?![A-Za-z])")
_WORD = re.compile(rf"(?<![\\A-Za-z])(?!(?:{_FUNCTIONS}|sqrt)\b)[A-Za-z]{{4,}}")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[a-z]+\}")
_INCOMPLETE = re.compile(  # math-verify would read the rest and ignore the sign
    r"""
    ^\s*[<>≤≥≠=*/^]
    |[-+*/^=<>≤≥≠]\s*$
    """,
    re.VERBOSE,
)
_FORMULA = re.compile(
    r"""
    [\\^=<>≤≥≠√∫∑|!]                            # a sign of mathematics
    |[0-9a-zA-Zπ)]\s*[-+*/]\s*[0-9a-zA-Zπ(]     # x + 1
    |[0-9][a-zA-Zπ(]                            # 2x
    |^\W*(?:[a-zA-Z]|[0-9.]+)\W*$               # one letter or number
    """,
    re.VERBOSE,
)
_HARD = re.compile(
    r"""
    __
    |[0-9]{40}                                  # a long number
    |[0-9]{3}\s*!|!\s*!                         # large factorials
    |(?:\^|\*\*)\D{0,3}[0-9]{3}                 # large exponents
    |(?:\^|\*\*)[^+\-*,=]*(?:\^|\*\*)           # towers of powers
    """,
    re.VERBOSE,
)
_TEX = {
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\leq ",
    "≥": r"\geq ",
    "≠": r"\neq ",
    "±": r"\pm ",
    "\u222a": r"\cup ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "⦃": r"\{",
    "⦄": r"\}",
    "°": r"^\circ ",
    "**": "^",
    "*": r"\cdot ",
    "∫": r"\int ",
    "∑": r"\sum ",
}
_SIGN = re.compile("|".join(map(re.escape, sorted(_TEX, key=len, reverse=True))))
_ROOT = re.compile(r"(?:√|(?<![\\A-Za-z])sqrt)\s*(?:\(([^()]*)\)|([0-9]+|[A-Za-z]))?")


def is_formula(text: str) -> bool:
    """Return whether `text` is mathematics, not prose, and small enough for sympy."""
    plain = _ENVIRONMENT.sub("", text)
    if len(text) > MAX_CHARACTERS or not _FORMULA.search(text) or _WORD.search(plain):
        return False
    if _INCOMPLETE.search(text) or _HARD.search(text):
        return False
    depth = 0
    for character in text:
        depth += (character in "([{⦃") - (character in ")]}⦄")
        if depth > MAX_NESTING:
            return False
    return True


def verified(answer: str, gold: str) -> bool:
    """Return math-verify's verdict, False if there is none before the deadline.

    May be called from any thread.
    """
    return bool(_pool.ask(_to_tex(answer), _to_tex(gold)))


def prepare() -> None:
    """Start the first process without waiting for it."""
    _pool.prepare()


def start() -> None:
    """Wait until the first process is ready. Later calls return at once.

    The start takes about a second, which would otherwise count against the first formula's
    deadline.

    Raises:
        UserError: the process ended or did not answer.
    """
    with deadline(START_SECONDS):
        _pool.wait()


def _to_tex(text: str) -> str:
    text = _ROOT.sub(_tex_root, text)
    text = _FUNCTION.sub(r"\\\1", text)
    return _SIGN.sub(lambda sign: _TEX[sign[0]], text)


def _tex_root(root: re.Match[str]) -> str:
    radicand = root[1] or root[2]
    return rf"\sqrt{{{radicand}}}" if radicand else r"\sqrt"


def _command() -> list[str]:
    script = Path(__file__).with_name("math_verify_worker.py")
    return [sys.executable, "-P", str(script), str(SOFT_LIMIT)]


class _Worker:
    """One process that runs math-verify."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            _command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self._poll = select.poll()  # unlike select.select, it takes any number of open files
        self._poll.register(self.process.stdout, select.POLLIN)  # type: ignore[arg-type]
        self._unread = b""

    def ask(self, number: int, answer: str, gold: str) -> bool | None:
        """Return the verdict, None if there is none before the deadline.

        Raises:
            OSError: the process has ended.
        """
        assert self.process.stdin
        question = json.dumps([number, answer, gold])
        self.process.stdin.write(question.encode() + b"\n")
        while (reply := self._read_line()) is not None:
            if reply[0] == number:  # a lower number is a late reply to an earlier question
                return bool(reply[1])
        return None

    def kill(self) -> None:
        """Kill the process and wait for its end."""
        self.process.kill()
        self.process.communicate()

    def _read_line(self) -> list[int] | None:
        assert self.process.stdout
        while b"\n" not in self._unread:
            seconds = min(remaining(), START_SECONDS)
            if seconds <= 0 or not self._poll.poll(1000 * seconds):
                return None
            read = os.read(self.process.stdout.fileno(), 65536)
            if not read:
                raise BrokenPipeError("the math-verify process has ended")
            self._unread += read
        line, self._unread = self._unread.split(b"\n", 1)
        return json.loads(line)


class _Pool:
    """At most PROCESSES processes that wait for a question.

    If a question finds none idle, a thread starts one more. The question takes the first that
    becomes idle, the new one or another.
    """

    def __init__(self) -> None:
        self.idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._permits = threading.Semaphore(PROCESSES)
        self._started = threading.Event()
        self._answered = False  # whether any process ever gave a verdict
        self._growing = False
        self._numbers = itertools.count()

    def prepare(self) -> None:
        """Start the first process without waiting for it."""
        if not self._growing:
            self._grow()

    def wait(self) -> None:
        """Wait until a process is ready.

        Raises:
            UserError: none is, because it failed to start or because of the deadline.
        """
        self.prepare()
        self._started.wait(max(0.0, remaining()))
        if not self._answered:
            raise UserError(
                f"math-verify did not start within {START_SECONDS:.0f} seconds, or it failed. "
                "Without it, right formulas would count as wrong. "
                f'To see why, run: echo \'[0, "1", "1"]\' | {shlex.join(_command())}'
            )

    def ask(self, answer: str, gold: str) -> bool | None:
        """Return the verdict on two TeX formulas, None if there is none before the deadline."""
        try:
            worker = self._take()
        except queue.Empty:
            logger.warning("no math-verify process was idle before the deadline")
            return None
        verdict = None
        try:
            verdict = worker.ask(next(self._numbers), answer, gold)
        except OSError:
            logger.warning("a math-verify process ended at %r against %r", answer, gold)
        if verdict is None:
            worker.kill()
            self._start()
        else:
            self.idle.put(worker)
        return verdict

    def close(self) -> None:
        """Kill the idle processes."""
        while not self.idle.empty():
            self.idle.get_nowait().kill()

    def _take(self) -> _Worker:
        with contextlib.suppress(queue.Empty):
            return self.idle.get_nowait()
        self._grow()
        seconds = min(max(0.0, remaining()), START_SECONDS)
        return self.idle.get(timeout=seconds)

    def _grow(self) -> None:
        self._growing = True
        if self._permits.acquire(blocking=False):
            self._start()

    def _start(self) -> None:
        threading.Thread(target=self._add, daemon=True).start()

    def _add(self) -> None:
        """Start a process and wait until it answers."""
        try:
            worker = _Worker()
            with deadline(START_SECONDS):
                verdict = worker.ask(next(self._numbers), "1", "1")
            self._answered |= verdict is not None
            self.idle.put(worker)
        except OSError as error:
            logger.warning("a math-verify process cannot start: %s", error)
            self._permits.release()
        finally:
            self._started.set()


def _renew() -> None:
    global _pool
    _pool = _Pool()


_pool = _Pool()
os.register_at_fork(after_in_child=_renew)  # a child must not use its parent's processes
atexit.register(lambda: _pool.close())
