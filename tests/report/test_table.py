import io
from dataclasses import asdict

from rich.console import Console

from verl_prism.report.intervals import Interval
from verl_prism.report.table import results_markdown, results_table


def results() -> dict:
    def policy(accuracy: float) -> dict:
        return {
            "folder": "outputs/sft/policy",
            "accuracy": asdict(Interval(accuracy, accuracy - 0.02, accuracy + 0.021, 2400, 600)),
            "perception": asdict(Interval(accuracy, accuracy - 0.02, accuracy + 0.021, 2400, 600)),
            "format": asdict(Interval(accuracy, accuracy - 0.02, accuracy + 0.021, 2400, 600)),
            "reasoning": asdict(Interval(None, None, None, 0, 0)),
            "length": asdict(Interval(22.81, 22.6, 23.0, 2400, 600)),
            "greedy_accuracy": asdict(Interval(0.852, 0.82, 0.88, 600, 600)),
        }

    head = {
        "heldout": "x",
        "questions": 600,
        "samples": 4,
        "temperature": 1.0,
        "top_p": 1.0,
        "seed": 0,
    }
    return head | {"policies": {"SFT": policy(0.323), "aligned": policy(0.5)}}


def test_markdown():
    assert results_markdown(results()).splitlines() == [
        "600 held-out questions, 4 sampled responses each (temperature 1, top-p 1, seed 0); "
        "rates in %, length in tokens, ± the 95 % interval over questions",
        "",
        "| policy | accuracy | perception | format | reasoning | mean length | greedy accuracy |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| SFT | 32.3 ±2.1 | 32.3 ±2.1 | 32.3 ±2.1 | none | 22.8 ±0.2 | 85.2 ±3.2 |",
        "| aligned | 50.0 ±2.1 | 50.0 ±2.1 | 50.0 ±2.1 | none | 22.8 ±0.2 | 85.2 ±3.2 |",
    ]


def test_a_few_questions_say_little():
    assert "say little" not in results_markdown(results() | {"questions": 30})
    assert "questions; so few questions say little\n" in results_markdown(
        results() | {"questions": 5}
    )


def test_the_table_fits_a_terminal_of_80_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results_table(results()))
    shown = console.export_text()
    assert "32.3 ±2.1" in shown
    assert "greedy" in shown
    assert "…" not in shown


def test_names_that_look_like_markup_are_shown_as_they_are():
    given = results()
    policy = given["policies"].pop("SFT")
    given["policies"] = {"SFT [v1]": policy | {"[b]": policy["accuracy"]}, "end [/v2]": policy}
    given["policies"]["end [/v2]"]["[b]"] = policy["accuracy"]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(results_table(given))
    shown = console.export_text()
    for name in ("SFT [v1]", "end [/v2]", "[b]"):
        assert name in shown
