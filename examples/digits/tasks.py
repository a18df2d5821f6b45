"""Kinds of questions about handwritten digits, the teacher's answers, and answers that drift.

Each response has three blocks: the caption names the digits, the reasoning goes through them step
by step, and the answer follows from the last step.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["sum", "parity", "choice", "largest", "count"]

LETTERS = "ABCD"
OVER = 4  # `count` asks how many digits are over this one
MISREAD = {4: 9, 1: 7, 8: 3, 5: 6}  # what a biased reader takes these digits for


@dataclass(frozen=True)
class Question:
    """A question about digits, read from left to right.

    options: the sums to choose from, if kind is "choice".
    """

    kind: Kind
    digits: tuple[int, ...]
    options: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """What the policy is asked."""
        match self.kind:
            case "sum":
                return "What is the sum?"
            case "parity":
                return "Is the sum even or odd?"
            case "choice":
                pairs = zip(LETTERS, self.options, strict=True)
                return "Is the sum " + ", ".join(f"{letter} {sum_}" for letter, sum_ in pairs) + "?"
            case "largest":
                return "Which digit is the largest?"
            case "count":
                return f"How many digits are over {OVER}?"

    def answer(self, result: int) -> str:
        """Return the answer that follows from the result of the last step.

        With "choice" it is the option next to the result, the first of two.
        """
        match self.kind:
            case "parity":
                return "odd" if result % 2 else "even"
            case "choice":
                distances = [abs(option - result) for option in self.options]
                return LETTERS[distances.index(min(distances))]
            case _:
                return str(result)

    @property
    def gold(self) -> str:
        """The right answer."""
        return self.answer(right_result(self.kind, self.digits))


def draw_question(kind: Kind, digits: tuple[int, ...], rng: random.Random) -> Question:
    """Return a question about the digits; the options of a choice are near the right sum."""
    if kind != "choice":
        return Question(kind, digits)
    total = sum(digits)
    near = [other for other in range(max(0, total - 5), total + 6) if other != total]
    options = [total, *rng.sample(near, len(LETTERS) - 1)]
    rng.shuffle(options)
    return Question(kind, digits, tuple(options))


def right_result(kind: Kind, digits: Sequence[int]) -> int:
    """Return the result of the last step."""
    match kind:
        case "largest":
            return max(digits)
        case "count":
            return sum(digit > OVER for digit in digits)
        case _:
            return sum(digits)


def respond(caption: str, think: str, answer: str) -> str:
    """Return a response in the response format."""
    return f"<caption>{caption}</caption><think>{think}</think><answer>{answer}</answer>"


class Task(Protocol):
    """How the teacher and the broad demonstrators answer."""

    def teacher(self, question: Question) -> str:
        """Return the teacher's response: always right, always in the same style."""
        ...

    def broad(self, question: Question, rng: random.Random) -> str:
        """Return a demonstration that may be wrong."""
        ...


@dataclass(frozen=True)
class NoisyPair:
    """The sum of two digits. The broad demonstrations err without bias, independently in each part.

    The fields are probabilities.

    wrong_digit: one of the two digits in the caption is replaced by a random other digit.
    wrong_sum: the sum of the named digits is one too high or one too low.
    brief: the caption has less detail than the teacher's; the same, drawn again, for the reasoning.
    """

    wrong_digit: float = 0.25
    wrong_sum: float = 0.40
    brief: float = 0.2

    TEACHER_CAPTION = "Left a {a}, right a {b}."
    TEACHER_THINK = "Add left and right: {a} + {b} = {sum}."
    BRIEF_CAPTIONS = ("A {a} and a {b}.", "Digits {a}, {b}.")
    BRIEF_THINKS = ("{a} + {b} = {sum}.", "The sum is {sum}.")

    def teacher(self, question: Question) -> str:
        """Return the teacher's response."""
        a, b = question.digits
        caption = self.TEACHER_CAPTION.format(a=a, b=b)
        think = self.TEACHER_THINK.format(a=a, b=b, sum=a + b)
        return respond(caption, think, question.answer(a + b))

    def broad(self, question: Question, rng: random.Random) -> str:
        """Return a demonstration that may name a wrong digit, and may add up wrongly."""
        named = list(question.digits)
        if rng.random() < self.wrong_digit:
            place = rng.randrange(2)
            named[place] = other_digit(named[place], rng)
        a, b = named
        total = a + b
        if rng.random() < self.wrong_sum:
            total += off_by_one(total, rng)
        caption, think = self.TEACHER_CAPTION, self.TEACHER_THINK
        if rng.random() < self.brief:
            caption = rng.choice(self.BRIEF_CAPTIONS)
        if rng.random() < self.brief:
            think = rng.choice(self.BRIEF_THINKS)
        texts = [text.format(a=a, b=b, sum=total) for text in (caption, think)]
        return respond(*texts, question.answer(total))


@dataclass(frozen=True)
class BiasedRow:
    """A row of digits, one step per digit. The broad demonstrations err with a bias.

    The fields are probabilities.

    misread: a digit of MISREAD is taken for the other one.
    wrong_digit: a digit is replaced by a random other digit.
    drop_carry: a sum that carries is 10 too low.
    wrong_step: another sum is one too high or one too low; of two digits the smaller is called the
        larger; a digit is counted wrongly.
    """

    misread: float = 0.65
    wrong_digit: float = 0.05
    drop_carry: float = 0.5
    wrong_step: float = 0.15

    def teacher(self, question: Question) -> str:
        """Return the teacher's response."""
        return BiasedRow(0, 0, 0, 0).broad(question, random.Random(0))

    def broad(self, question: Question, rng: random.Random) -> str:
        """Return a demonstration that reasons from what it named, step by step."""
        named = [self._named(digit, rng) for digit in question.digits]
        match question.kind:
            case "largest":
                steps, result = self._largest(named, rng)
            case "count":
                steps, result = self._count(named, rng)
            case _:
                steps, result = self._sum(named, rng)
        return respond(caption_of(named), " ".join(steps), question.answer(result))

    def nearly_right(self, question: Question, rng: random.Random) -> str:
        """Return the teacher's response with one wrong digit in the caption, and one wrong sum.

        The reasoning adds up the right digits and continues from the wrong sum. The question must
        be about the sum.
        """
        named = list(question.digits)
        place = rng.randrange(len(named))
        named[place] = other_digit(named[place], rng)
        wrong = rng.randrange(1, len(question.digits))
        total = question.digits[0]
        steps = []
        for number, digit in enumerate(question.digits[1:], start=1):
            before = total
            total += digit
            if number == wrong:
                carries = before % 10 + digit >= 10
                total += -10 if carries else off_by_one(total, rng)
            steps.append(f"{before} + {digit} = {total}.")
        return respond(caption_of(named), " ".join(steps), question.answer(total))

    def _named(self, digit: int, rng: random.Random) -> int:
        if digit in MISREAD and rng.random() < self.misread:
            digit = MISREAD[digit]
        if rng.random() < self.wrong_digit:
            digit = other_digit(digit, rng)
        return digit

    def _sum(self, named: Sequence[int], rng: random.Random) -> tuple[list[str], int]:
        total = named[0]
        steps = []
        for digit in named[1:]:
            before = total
            total += digit
            if before % 10 + digit >= 10 and rng.random() < self.drop_carry:
                total -= 10
            elif rng.random() < self.wrong_step:
                total += off_by_one(total, rng)
            steps.append(f"{before} + {digit} = {total}.")
        return steps, total

    def _largest(self, named: Sequence[int], rng: random.Random) -> tuple[list[str], int]:
        largest = named[0]
        steps = []
        for digit in named[1:]:
            before = largest
            choose = min if rng.random() < self.wrong_step else max
            largest = choose(before, digit)
            steps.append(f"{before} or {digit}: {largest}.")
        return steps, largest

    def _count(self, named: Sequence[int], rng: random.Random) -> tuple[list[str], int]:
        count = 0
        steps = []
        for digit in named:
            wrong = rng.random() < self.wrong_step
            count += (digit > OVER) != wrong
            steps.append(f"{digit}: {count}.")
        return steps, count


def other_digit(digit: int, rng: random.Random) -> int:
    """Return a random digit that is not this one."""
    return rng.choice([other for other in range(10) if other != digit])


def caption_of(digits: Sequence[int]) -> str:
    """Return the caption of a row that names these digits."""
    return f"Digits {', '.join(map(str, digits))}."


def off_by_one(total: int, rng: random.Random) -> int:
    """Return 1 or -1, so that the changed total is not negative."""
    return rng.choice((-1, 1)) if total > 0 else 1
