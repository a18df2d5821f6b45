"""A policy's responses against the teacher's responses to the same questions, as in results.json.

Texts come as sequences that may read an item when it is used. Only numbers and the probe's features
of a limited number of texts are kept in memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from verl_prism.measures.probe import TextPair, difference_features, probe_accuracy, shuffled
from verl_prism.measures.proxies import PROXIES, Number, distance, noise_floor
from verl_prism.response import Response, View, parse_response

# The probe uses at most this many questions, drawn at random, and responses to each.
PROBE_QUESTIONS = 1000
PROBE_RESPONSES = 4

Text = str | None  # None if the row has no teacher's response
Numbers = dict[str, list[list[Number]]]  # [Q][*] by proxy


class TeacherComparison:
    """Compares policies with the teacher. teacher[Q]: its text for each question, or None."""

    def __init__(self, teacher: Sequence[Text], resamples: int, seed: int) -> None:
        self._teacher = teacher
        self._resamples = resamples
        self._seed = seed
        numbers = proxy_numbers([text] for text in teacher)
        self._numbers = {name: [own for (own,) in given] for name, given in numbers.items()}
        self._valid = _valid_places(numbers)
        self._missing = sum(text is None for text in teacher)

    def baseline(self) -> dict[str, Any]:
        """Return the noise floor of each proxy, and what a probe makes of the teacher alone.

        The probe tells apart the teacher's responses to two different questions. It is a control:
        which of them comes first is random, so there is nothing to find.
        """
        floors = {}
        for name, numbers in self._numbers.items():
            floors[name] = asdict(noise_floor(numbers, self._resamples, self._seed))
        valid = sum(len(places) for places in self._valid)
        return {
            "responses": valid,
            "invalid": len(self._teacher) - self._missing - valid,
            "missing": self._missing,
            "proxies": floors,
            "probe": {str(view): self._probe_of_teacher(view) for view in View},
        }

    def policy(self, responses: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Return the distances of the proxies, and the probes with their controls.

        responses[Q][S]: the policy's responses. Invalid ones are left out and counted.
        """
        numbers = proxy_numbers(responses)
        valid = _valid_places(numbers)
        distances = {}
        for name, own in numbers.items():
            found = distance(self._numbers[name], own, self._resamples, self._seed)
            distances[name] = asdict(found)
        total = sum(len(given) for given in next(iter(numbers.values())))
        return {
            "invalid": total - sum(len(places) for places in valid),
            "proxies": distances,
            "probe": {str(view): self._probe(view, responses, valid) for view in View},
        }

    def _probe(
        self, view: View, responses: Sequence[Sequence[str]], valid: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        usable = [number for number, own in enumerate(valid) if own and self._valid[number]]
        chosen = sorted(self._draw(usable, PROBE_QUESTIONS))
        places = {question: valid[question][:PROBE_RESPONSES] for question in chosen}
        questions = [question for question, own in places.items() for _ in own]
        features = difference_features(self._pairs(view, responses, places))
        control = shuffled(features, questions, self._seed)
        return {
            "accuracy": asdict(probe_accuracy(features, questions, self._seed)),
            "shuffled": asdict(probe_accuracy(control, questions, self._seed)),
        }

    def _pairs(
        self, view: View, responses: Sequence[Sequence[str]], places: dict[int, Sequence[int]]
    ) -> Iterator[TextPair]:
        for question, own in places.items():
            teacher = self._teacher_text(question, view)
            texts = responses[question]
            for place in own:
                yield teacher, parse_response(texts[place]).view_text(view)

    def _probe_of_teacher(self, view: View) -> dict[str, Any]:
        usable = [number for number, own in enumerate(self._valid) if own]
        drawn = self._draw(usable, 2 * PROBE_QUESTIONS)
        couples = list(zip(drawn[::2], drawn[1::2], strict=False))  # an odd one is left out
        texts = (
            (self._teacher_text(first, view), self._teacher_text(second, view))
            for first, second in couples
        )
        accuracy = probe_accuracy(difference_features(texts), range(len(couples)), self._seed)
        return asdict(accuracy)

    def _teacher_text(self, question: int, view: View) -> str:
        response = _parse(self._teacher[question])
        assert response is not None, f"the teacher's response to question {question} is not valid"
        return response.view_text(view)

    def _draw(self, questions: Sequence[int], count: int) -> list[int]:
        order = np.random.default_rng((self._seed, 2)).permutation(len(questions))[:count]
        return [questions[place] for place in order]


def proxy_numbers(texts: Iterable[Sequence[Text]]) -> Numbers:
    """Return each proxy of texts[Q][*]; None for a text that is missing or invalid."""
    numbers: Numbers = {name: [] for name in PROXIES}
    for group in texts:
        responses = [_parse(text) for text in group]
        for name, proxy in PROXIES.items():
            numbers[name].append([None if each is None else proxy(each) for each in responses])
    return numbers


def _parse(text: Text) -> Response | None:
    """Return the response; None if it is missing or invalid."""
    if text is None:
        return None
    response = parse_response(text)
    return response if response.valid else None


def _valid_places(numbers: Numbers) -> list[list[int]]:
    """Return which texts of each question are valid."""
    groups = next(iter(numbers.values()))
    return [[place for place, own in enumerate(group) if own is not None] for group in groups]
