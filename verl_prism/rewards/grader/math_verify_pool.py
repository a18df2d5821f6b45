r"""math-verify for the formulas that plain arithmetic cannot read: matrices, integrals, equations to be solved.

math-verify's time limit is a signal, which no thread can receive, and sympy cannot be stopped in a thread. So it runs
in a few processes of its own, each started when first needed and killed when it misses the deadline.
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
import subprocess
import sys
import threading
from pathlib import Path

from verl_prism.rewards.grader.deadline import deadline, remaining

logger = logging.getLogger(__name__)

START_SECONDS = 60.0  # that a process may take until it answers, at most
SOFT_LIMIT = 1.0  # seconds after which a process gives up by itself, and need not be replaced
PROCESSES = min(4, os.cpu_count() or 1)
MAX_CHARACTERS = 300
MAX_NESTING = 16

_FUNCTIONS = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|exp"
_WORD = re.compile(rf"(?<![\\A-Za-z])(?!(?:{_FUNCTIONS}|sqrt)\b)[A-Za-z]{{4,}}")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[a-z]+\}")
_INCOMPLETE = re.compile(r"^\s*[<>≤≥≠=*/^]|[-+*/^=<>≤≥≠]\s*$")  # math-verify would read the rest
_FORMULA = re.compile(
    r"[\\^=<>≤≥≠√∫∑|!]|[0-9a-zA-Zπ)]\s*[-+*/]\s*[0-9a-zA-Zπ(]|[0-9][a-zA-Zπ(]|^\W*(?:[a-zA-Z]|[0-9.]+)\W*$"
)
_HARD = re.compile(
    r"__|[0-9]{40}|[0-9]{3}\s*!|!\s*!|(?:\^|\*\*)\D{0,3}[0-9]{3}|(?:\^|\*\*)[^+\-*,=]*(?:\^|\*\*)"
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
    """Whether `text` is mathematics of a size that sympy can be asked about, and not prose."""
    plain = _ENVIRONMENT.sub("", text)
    if len(text) > MAX_CHARACTERS or not _FORMULA.search(text) or _WORD.search(plain):
        return False
    if _INCOMPLETE.search(text) or _HARD.search(text):
        return False
    depths = itertools.accumulate((c in "([{⦃") - (c in ")]}⦄") for c in text)
    return max(depths, default=0) <= MAX_NESTING


def verified(answer: str, gold: str) -> bool:
    """math-verify's verdict; False where it has none before the deadline. May be called from any thread."""
    return bool(_pool.ask(_tex(answer), _tex(gold)))


def prepare() -> None:
    """Start a process, without waiting for it."""
    _pool.prepare()


def start() -> None:
    """Wait until a process answers, so that the first formula's deadline does not pay for its start (a second).

    Later calls return at once.
    """
    with deadline(START_SECONDS):
        _pool.wait()


def _tex(text: str) -> str:
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m[1] or m[2]}}}" if m[1] or m[2] else r"\sqrt", text)
    text = re.sub(rf"(?<![\\A-Za-z])({_FUNCTIONS}|ln)(?![A-Za-z])", r"\\\1", text)
    return _SIGN.sub(lambda sign: _TEX[sign[0]], text)


class _Worker:
    """One process."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("math_verify_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script), str(SOFT_LIMIT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self._poll = select.poll()  # takes any number of open files, unlike select.select
        self._poll.register(self.process.stdout, select.POLLIN)  # type: ignore[arg-type]
        self._unread = b""

    def ask(self, number: int, answer: str, gold: str) -> bool | None:
        """The verdict, None if there is none before the deadline. OSError if the process is gone."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps([number, answer, gold]).encode() + b"\n")
        while (reply := self._line()) is not None:
            if reply[0] == number:  # an earlier number is a reply that came after its deadline
                return bool(reply[1])
        return None

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _line(self) -> list[int] | None:
        assert self.process.stdout
        while b"\n" not in self._unread:
            left = min(remaining(), START_SECONDS)
            if left <= 0 or not self._poll.poll(1000 * left):
                return None
            read = os.read(self.process.stdout.fileno(), 65536)
            if not read:
                raise BrokenPipeError("the math process has ended")
            self._unread += read
        line, self._unread = self._unread.split(b"\n", 1)
        return json.loads(line)


class _Pool:
    """Processes that wait for a question, at most PROCESSES. One is started when none is idle, by a thread of its own:
    who asks meanwhile may find another idle first."""

    def __init__(self) -> None:
        self.idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._permits = threading.Semaphore(PROCESSES)
        self._started = threading.Event()
        self._growing = False
        self._numbers = itertools.count()

    def prepare(self) -> None:
        if not self._growing:
            self._grow()

    def wait(self) -> None:
        """Until a process has started, or has failed to, or the deadline passes."""
        self.prepare()
        self._started.wait(max(0.0, remaining()))

    def ask(self, answer: str, gold: str) -> bool | None:
        try:
            worker = self._take()
        except queue.Empty:
            logger.warning("no math process was free before the deadline")
            return None
        verdict = None
        try:
            verdict = worker.ask(next(self._numbers), answer, gold)
        except OSError:
            logger.warning("a math process has ended at %r against %r", answer, gold)
        if verdict is None:
            worker.kill()
            self._start()
        else:
            self.idle.put(worker)
        return verdict

    def close(self) -> None:
        while not self.idle.empty():
            self.idle.get_nowait().kill()

    def _take(self) -> _Worker:
        with contextlib.suppress(queue.Empty):
            return self.idle.get_nowait()
        self._grow()
        return self.idle.get(timeout=min(max(0.0, remaining()), START_SECONDS))

    def _grow(self) -> None:
        self._growing = True
        if self._permits.acquire(blocking=False):
            self._start()

    def _start(self) -> None:
        threading.Thread(target=self._add, daemon=True).start()

    def _add(self) -> None:
        """One process more, once it has loaded what sympy loads late."""
        try:
            worker = _Worker()
            with deadline(START_SECONDS):
                worker.ask(next(self._numbers), r"\int_0^1 x dx", r"\frac{1}{2}")
            self.idle.put(worker)
        except OSError as error:
            logger.warning("a math process cannot start: %s", error)
            self._permits.release()
        finally:
            self._started.set()


def _renew() -> None:
    global _pool
    _pool = _Pool()


_pool = _Pool()
os.register_at_fork(after_in_child=_renew)  # a child must not talk to its parent's processes
atexit.register(lambda: _pool.close())
