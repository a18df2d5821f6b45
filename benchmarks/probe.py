"""What the fresh probe of stage eval sees: its accuracy on texts with known faults.

python benchmarks/probe.py

The texts are those of the digits example: the teacher's, and for each of 600 questions four
demonstrations of a mixture with only some of its faults. Nothing is trained but the probe. Prints
the mean over five seeds, in %, and how often the interval of the control contains 50 %.
"""

import argparse
import random
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
from data import Mixture, broad_response, teacher_response

from verl_prism.measures.probe import difference_features, probe_accuracy, shuffled
from verl_prism.response import View, parse_response

QUESTIONS = 600
RESPONSES = 4
NONE = Mixture(brief=0.0, wrong_digit=0.0, wrong_sum=0.0)
MIXTURES = {
    "none: the teacher's texts": NONE,
    "other wording in 20 %": Mixture(wrong_digit=0.0, wrong_sum=0.0),
    "a wrong digit in 25 %": Mixture(brief=0.0, wrong_sum=0.0),
    "a wrong sum in 40 %": Mixture(brief=0.0, wrong_digit=0.0),
    "all three": Mixture(),
}


def probe(mixture: Mixture, view: View, seed: int) -> tuple[float, float, bool]:
    """Return the accuracy of probe and control, and whether the control's interval holds."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(QUESTIONS):
        digits = rng.randrange(10), rng.randrange(10)
        teacher = parse_response(teacher_response(digits)).view_text(view)
        for _ in range(RESPONSES):
            own = parse_response(broad_response(digits, mixture, rng))
            pairs.append((teacher, own.view_text(view)))
    questions = np.repeat(np.arange(QUESTIONS), RESPONSES)
    features = difference_features(pairs)
    accuracy = probe_accuracy(features, questions, seed)
    control = probe_accuracy(shuffled(features, questions, seed), questions, seed)
    return accuracy.mean, control.mean, control.low <= 0.5 <= control.high


def main() -> None:
    """Print one row of a Markdown table per mixture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    print("| faults | perception | control | reasoning | control | controls that hold |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, mixture in MIXTURES.items():
        cells, holding = [], 0
        for view in View:
            found = [probe(mixture, view, seed) for seed in seeds]
            accuracy, control, holds = np.array(found).T
            cells += [f"{100 * accuracy.mean():.1f}", f"{100 * control.mean():.1f}"]
            holding += int(holds.sum())
        print(f"| {name} | {' | '.join(cells)} | {holding} of {2 * len(seeds)} |", flush=True)


if __name__ == "__main__":
    main()
