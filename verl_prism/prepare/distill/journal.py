"""Every answer that was received, in an SQLite file beside the output.

An answer is in the file, and on disk, before it counts. The file is locked while a command uses it.
The requests that are in flight are in it too: those that it holds at the next start were sent and
not answered when the process was killed.

A thread commits what several workers hand in at the same time together.
"""

import json
import queue
import sqlite3
import threading
from asyncio import wrap_future
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from verl_prism.errors import UserError
from verl_prism.prepare.distill.replies import Answer

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS questions (id TEXT PRIMARY KEY, digest TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
    id TEXT, try INTEGER, text TEXT, finish TEXT, input_tokens INTEGER, output_tokens INTEGER,
    counted INTEGER, units REAL, seconds REAL, verdict TEXT, graded_by TEXT, PRIMARY KEY (id, try)
);
CREATE TABLE IF NOT EXISTS sent (
    id TEXT, try INTEGER, input_tokens INTEGER, output_tokens INTEGER, PRIMARY KEY (id, try)
);
CREATE TABLE IF NOT EXISTS lost (
    id TEXT, try INTEGER, input_tokens INTEGER, output_tokens INTEGER, why TEXT
);
CREATE TABLE IF NOT EXISTS failures (id TEXT PRIMARY KEY, reason TEXT) WITHOUT ROWID;
CREATE TEMP TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID;
"""
VERSION = 1
KILLED = "killed"
_LOSE = "INSERT INTO lost SELECT id, try, input_tokens, output_tokens, ? FROM sent"

Statement = tuple[str, Sequence[Any]]
Job = tuple[Sequence[Statement], "Future[None]"]


@dataclass(frozen=True)
class Try:
    """An answer in the journal.

    Attributes:
        verdict: "" if it is kept, why it is rejected, or None if it was not judged yet.
        graded_by: what made the verdict.
    """

    answer: Answer
    verdict: str | None
    graded_by: str | None


@dataclass(frozen=True)
class Totals:
    """What the journal holds in all.

    Attributes:
        answers: number of answers, without refusals.
        input_tokens, output_tokens: of them, counted or else estimated.
        uncounted: answers whose tokens the endpoint did not count.
        lost: requests that were sent and not answered, by the reason.
        lost_input, lost_output: tokens of these, at most.
        ratio: average number of input tokens per unit of a request's size, None if unknown.
        worst_ratio: the largest one.
    """

    answers: int
    input_tokens: int
    output_tokens: int
    uncounted: int
    lost: Mapping[str, int]
    lost_input: int
    lost_output: int
    ratio: float | None
    worst_ratio: float | None


class Journal:
    """The journal of an output.

    identity: the settings on which answers depend, by name.

    Raises:
        UserError: other settings made its answers, it is in use, or it cannot be written.
    """

    def __init__(self, file: Path, identity: Mapping[str, Any]) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                file, timeout=0, isolation_level=None, check_same_thread=False
            )
            # An exclusive lock needs no shared memory, which network file systems lack.
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(SCHEMA)
            self._check_identity(identity)
            self._execute([(_LOSE, (KILLED,)), ("DELETE FROM sent", ())])
            self._execute([("DELETE FROM failures", ())])
        except (sqlite3.Error, OSError) as error:
            raise self._problem(error) from None
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._jobs.put(None)
        self._thread.join()
        self._database.close()

    def tries(self, question: str) -> dict[int, Try]:
        """Return the answers to a question by the number of the try, in order."""
        rows = self._select(
            "SELECT try, text, finish, input_tokens, output_tokens, verdict, graded_by"
            " FROM answers WHERE id = ? ORDER BY try",
            (question,),
        )
        return {row[0]: Try(Answer(*row[1:5]), row[5], row[6]) for row in rows}

    def failure(self, question: str) -> str | None:
        """Return why a question got no answer in this run."""
        rows = self._select("SELECT reason FROM failures WHERE id = ?", (question,))
        return rows[0][0] if rows else None

    def begin_pass(self) -> None:
        """Forget which questions `first_time` was asked about."""
        self._execute([("DELETE FROM temp.seen", ())])

    def first_time(self, question: str) -> bool:
        """Tell whether this question was not yet seen in this pass over the source."""
        statement = "INSERT OR IGNORE INTO temp.seen VALUES (?)"
        with self._lock:
            return self._database.execute(statement, (question,)).rowcount == 1

    def digest(self, question: str) -> str | None:
        """Return the digest of a question, None if the journal does not have it."""
        known = self._select("SELECT digest FROM questions WHERE id = ?", (question,))
        return known[0][0] if known else None

    def same_question(self, question: str, digest: str) -> bool:
        """Tell whether the journal has no other question by this id."""
        return self.digest(question) in (None, digest)

    def totals(self) -> Totals:
        """Return sums over the journal."""
        sums = self._select(
            "SELECT count(*), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),"
            " coalesce(sum(1 - counted), 0)"
            " FROM answers WHERE finish != 'refused'"
        )[0]
        ratios = self._select(
            "SELECT sum(input_tokens) / sum(units), max(input_tokens / units)"
            " FROM answers WHERE counted AND units > 0 AND finish != 'refused'"
        )[0]
        lost = self._select("SELECT why, count(*) FROM lost GROUP BY why")
        lost_tokens = self._select(
            "SELECT coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0) FROM lost"
        )[0]
        return Totals(
            answers=sums[0],
            input_tokens=sums[1],
            output_tokens=sums[2],
            uncounted=sums[3],
            lost=dict(lost),
            lost_input=lost_tokens[0],
            lost_output=lost_tokens[1],
            ratio=ratios[0],
            worst_ratio=ratios[1],
        )

    def usage(self, question: str) -> tuple[int, int, int, float]:
        """Return the number of answers to a question, their tokens in and out, and seconds."""
        return self._select(
            "SELECT count(*), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0),"
            " coalesce(sum(seconds), 0) FROM answers WHERE id = ? AND finish != 'refused'",
            (question,),
        )[0]

    async def sent(
        self, question: str, digest: str, number: int, input_tokens: int, output_tokens: int
    ) -> None:
        """Note that a request is about to be sent, with the most tokens that it may take."""
        values = (question, number, input_tokens, output_tokens)
        await self._commit(
            question_statement(question, digest),
            ("INSERT OR REPLACE INTO sent VALUES (?, ?, ?, ?)", values),
        )

    async def answered(
        self,
        question: str,
        number: int,
        answer: Answer,
        counted: bool = True,
        units: float = 0.0,
        seconds: float | None = None,
    ) -> None:
        """Keep an answer. counted: whether its tokens are the endpoint's count."""
        await self._commit(
            answer_statement(question, number, answer, counted, units, seconds),
            ("DELETE FROM sent WHERE id = ? AND try = ?", (question, number)),
        )

    async def unanswered(self, question: str, number: int, lost: str | None) -> None:
        """Note that a request failed. lost: why it may have been paid for; None: it was not."""
        key = (question, number)
        statements: list[Statement] = [("DELETE FROM sent WHERE id = ? AND try = ?", key)]
        if lost is not None:
            statements.insert(0, (f"{_LOSE} WHERE id = ? AND try = ?", (lost, *key)))
        await self._commit(*statements)

    async def judged(self, question: str, number: int, verdict: str, graded_by: str) -> None:
        """Keep a verdict: "" if the answer is kept, else why it is rejected."""
        await self._commit(
            (
                "UPDATE answers SET verdict = ?, graded_by = ? WHERE id = ? AND try = ?",
                (verdict, graded_by, question, number),
            )
        )

    async def failed(self, question: str, reason: str) -> None:
        """Note why a question gets no answer in this run."""
        await self._commit(("INSERT OR REPLACE INTO failures VALUES (?, ?)", (question, reason)))

    async def forget(self, tries: Sequence[tuple[str, int]]) -> None:
        """Delete the answers to tries of questions, so that they are made again."""
        delete = "DELETE FROM answers WHERE id = ? AND try = ?"
        await self._commit(*((delete, key) for key in tries))

    def add(self, statements: Sequence[Statement]) -> None:
        """Execute statements in one transaction, and wait until they are on disk."""
        self._execute(statements)

    async def _commit(self, *statements: Statement) -> None:
        done: Future[None] = Future()
        self._jobs.put((statements, done))
        await wrap_future(done)

    def _write(self) -> None:
        while (job := self._jobs.get()) is not None:
            jobs = [job]
            while not self._jobs.empty():
                more = self._jobs.get()
                if more is None:
                    self._jobs.put(None)
                    break
                jobs.append(more)
            self._write_all(jobs)

    def _write_all(self, jobs: Sequence[Job]) -> None:
        statements = [statement for job in jobs for statement in job[0]]
        # A worker that was cancelled meanwhile waits no more, but what it received is kept.
        waiting = [done for _, done in jobs if done.set_running_or_notify_cancel()]
        try:
            self._execute(statements)
        except Exception as error:  # the workers would wait forever if this thread ended
            for done in waiting:
                done.set_exception(self._problem(error))
        else:
            for done in waiting:
                done.set_result(None)

    def _execute(self, statements: Sequence[Statement]) -> None:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                for text, values in statements:
                    self._database.execute(text, values)
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def _select(self, text: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._database.execute(text, values).fetchall()

    def _check_identity(self, identity: Mapping[str, Any]) -> None:
        wanted = {"version": VERSION, **identity}
        found = self._select("SELECT value FROM meta WHERE key = 'identity'")
        if not found or self._is_empty():
            save = "INSERT OR REPLACE INTO meta VALUES ('identity', ?)"
            self._execute([(save, (json.dumps(wanted),))])
            return
        before = json.loads(found[0][0])
        changes = [
            _change(name, before.get(name), wanted.get(name))
            for name in sorted(wanted.keys() | before.keys())
            if wanted.get(name) != before.get(name)
        ]
        if changes:
            raise UserError(
                f"{self._file}: its answers were made with other settings: {'; '.join(changes)}. "
                "Use the same settings, or another output"
            )

    def _is_empty(self) -> bool:
        """Return whether no request was made yet, as after a run with a wrong key or model."""
        tables = ("answers", "sent", "lost")
        return not any(self._select(f"SELECT 1 FROM {table} LIMIT 1") for table in tables)

    def _problem(self, error: Exception) -> UserError:
        if "locked" in str(error):
            return UserError(f"{self._file}: another command is using it; wait until it has ended")
        return UserError(f"{self._file}: the journal cannot be read or written ({error})")


def question_statement(question: str, digest: str) -> Statement:
    """Return the statement that keeps the digest of a question."""
    return "INSERT OR IGNORE INTO questions VALUES (?, ?)", (question, digest)


def answer_statement(
    question: str,
    number: int,
    answer: Answer,
    counted: bool,
    units: float,
    seconds: float | None,
) -> Statement:
    """Return the statement that adds an answer. One that is there already stays."""
    return (
        "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
        (
            question,
            number,
            answer.text,
            answer.finish,
            answer.input_tokens or 0,
            answer.output_tokens or 0,
            int(counted),
            units,
            seconds,
        ),
    )


def _change(name: str, before: Any, now: Any) -> str:
    if name == "prompt":
        return "the text of prompt was different"
    return f"{name} was {before!r} and is {now!r}"
