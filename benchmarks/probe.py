"""What the fresh probe of stage eval sees: its accuracy on texts with known faults.

python benchmarks/probe.py

The texts are those of the digits example: the teacher's, and for each of 600 questions four
demonstrations with only some of its faults. Nothing is trained but the probe. Prints
the mean over five seeds, in %, and how often the interval of the control contains 50 %.
"""

import argparse
import random
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
from tasks import NoisyPair, Question

from verl_prism.measures.probe import difference_features, probe_accuracy, shuffled
from verl_prism.response import View, parse_response

QUESTIONS = 600
RESPONSES = 4
NONE = NoisyPair(brief=0.0, wrong_digit=0.0, wrong_sum=0.0)
DRIFTS = {
    "none: the teacher's texts": NONE,
    "other wording in 20 %": NoisyPair(wrong_digit=0.0, wrong_sum=0.0),
    "a wrong digit in 25 %": NoisyPair(brief=0.0, wrong_sum=0.0),
    "a wrong sum in 40 %": NoisyPair(brief=0.0, wrong_digit=0.0),
    "all three": NoisyPair(),
}


def probe(drift: NoisyPair, view: View, seed: int) -> tuple[float, float, bool]:
    """Return the accuracy of probe and control, and whether the control's interval holds."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(QUESTIONS):
        question = Question("sum", (rng.randrange(10), rng.randrange(10)))
        teacher = parse_response(drift.teacher(question)).view_text(view)
        for _ in range(RESPONSES):
            own = parse_response(drift.broad(question, rng))
            pairs.append((teacher, own.view_text(view)))
    questions = np.repeat(np.arange(QUESTIONS), RESPONSES)
    features = difference_features(pairs)
    accuracy = probe_accuracy(features, questions, seed)
    control = probe_accuracy(shuffled(features, questions, seed), questions, seed)
    return accuracy.mean, control.mean, control.low <= 0.5 <= control.high


def main() -> None:
    """Print one row of a Markdown table per drift."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    print("| faults | perception | control | reasoning | control | controls that hold |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, drift in DRIFTS.items():
        cells, holding = [], 0
        for view in View:
            found = [probe(drift, view, seed) for seed in seeds]
            accuracy, control, holds = np.array(found).T
            cells += [f"{100 * accuracy.mean():.1f}", f"{100 * control.mean():.1f}"]
            holding += int(holds.sum())
        print(f"| {name} | {' | '.join(cells)} | {holding} of {2 * len(seeds)} |", flush=True)


if __name__ == "__main__":
    main()
