"""The tasks `prism_*` of lmms-eval: the questions, prompts, verdicts and measures are ours.

And ours against lmms-eval's own functions: each difference is listed with its reason. The tests
install lmms-eval in an environment of its own, or use one that has it:

    PRISM_LMMS_EVAL_PYTHON=/path/to/python python -m pytest -m slow tests/examples/test_lmms_eval.py
"""

import base64
import io
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from benchmark_files import CHOICE, PUBLISHED, STANDARD, VISION, write
from lmms_eval_cases import CASES, DIFFERENCES
from PIL import Image

from verl_prism.data.messages import chat_messages
from verl_prism.prepare.convert.settings import DEFAULT_SYSTEM_PROMPT
from verl_prism.rewards.score import compute_score

HERE = Path(__file__).parent
BENCHMARKS = HERE.parents[1] / "examples" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import convert  # noqa: E402
import mmmu_pro  # noqa: E402
from measures import Answer  # noqa: E402
from sets import BENCHMARKS as SETS  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# torch and most other packages are those of this environment. latex2sympy2 asks for an older
# version of ANTLR than math-verify, but works with its version.
PACKAGES = ["evaluate", "pytablewriter", "sacrebleu", "tenacity", "Levenshtein", "pytz"]
WITHOUT_DEPENDENCIES = ["lmms-eval==0.7.3", "latex2sympy2==1.9.1"]

COLUMNS = {**PUBLISHED, "mmmu_pro_standard": STANDARD, "mmmu_pro_vision": VISION}
BENCHMARK_OF = {task: "mmmu_pro" if "mmmu_pro" in task else task for task in CASES}
TOKENS = {
    "mathvista": 16384,
    "mathverse": 16384,
    "mathvision": 24576,
    "wemath": 49152,
    "mmmu": 8192,
    "mmmu_pro_standard": 8192,
    "mmmu_pro_vision": 8192,
    "hallusion_bench": 8192,
}
BOXED = 'Please solve the problem step by step and put your answer in one "\\boxed{}".'


class Ours:
    """Our rows of a task's published rows, and our verdicts on the answers."""

    def __init__(self, task: str, folder: Path) -> None:
        self.benchmark = SETS[BENCHMARK_OF[task]]
        published = [row for row, _ in CASES[task]]
        self.answers = [answer for _, answer in CASES[task]]
        self.responses = [response(answer) for answer in self.answers]
        self.file = write(folder / f"{task}.parquet", COLUMNS[task], published)
        system = DEFAULT_SYSTEM_PROMPT.read_text(encoding="utf-8").strip()
        out = folder / f"{task}.rows.parquet"
        convert.convert(BENCHMARK_OF[task], [self.file], out, system)
        self.rows = pq.read_table(out).to_pylist()
        pairs = zip(self.responses, self.rows, strict=True)
        self.correct = [is_right(text, row) for text, row in pairs]
        pairs = zip(self.rows, self.correct, strict=True)
        self.graded = [Answer(row["extra_info"], correct) for row, correct in pairs]

    def measure(self, name: str) -> float:
        return self.benchmark.measure(self.graded)[name].value

    def texts(self) -> list[str]:
        return [row["prompt"][1]["content"] for row in self.rows]


def response(answer: str) -> str:
    """Return a response with the answer. That with the answer "Unclear" is not in the format."""
    if answer == "Unclear":
        return answer
    return f"<caption>A picture.</caption><think>I look.</think><answer>{answer}</answer>"


def is_right(text: str, row: dict) -> bool:
    """Grade a response as stage eval does."""
    return (
        compute_score("", text, row["reward_model"]["ground_truth"], row["extra_info"])["acc"] == 1
    )


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> str:
    """Return a Python with lmms-eval."""
    if given := os.environ.get("PRISM_LMMS_EVAL_PYTHON"):
        return given
    folder = tmp_path_factory.mktemp("lmms_eval")
    venv.create(folder, with_pip=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    ours = sysconfig.get_paths()["purelib"]
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    python = str(folder / "bin" / "python")
    for arguments in (PACKAGES, ["--no-deps", *WITHOUT_DEPENDENCIES]):
        command = [python, "-m", "pip", "install", "--quiet", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"pip cannot install lmms-eval: {done.stderr[-500:]}")
    return python


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> dict[str, Ours]:
    folder = tmp_path_factory.mktemp("tiny")
    return {task: Ours(task, folder) for task in CASES}


@pytest.fixture(scope="module")
def theirs(python, ours) -> dict:
    """What lmms-eval does with the same files, answers and verdicts."""
    folder = ours["mathvista"].file.parent
    names = ("answers", "responses", "correct")
    cases = {
        task: {"file": str(each.file)} | {name: getattr(each, name) for name in names}
        for task, each in ours.items()
    }
    (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    no_gold = {**CHOICE, "pid": "9", "answer": None}
    no_image = {**CHOICE, "pid": "11", "decoded_image": None}
    write(folder / "partly.parquet", PUBLISHED["mathvista"], [CHOICE, no_gold, no_image])
    write(folder / "unusual.parquet", PUBLISHED["mathvista"], [{**CHOICE, "answer": "6"}])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, HERE / "lmms_eval_side.py", folder]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return json.loads((folder / "outcome.json").read_text(encoding="utf-8"))


def test_lmms_eval_finds_our_tasks_and_groups(theirs):
    found = theirs["index"]["found"]
    kinds = {name: entry["type"] for name, entry in found.items()}
    tasks = [f"prism_{task}" for task in CASES]
    groups = ["prism", "prism_mmmu_pro"]
    assert kinds == dict.fromkeys(tasks, "task") | dict.fromkeys(groups, "group")
    members = [f"prism_{task}" for task in SETS]
    assert sorted(found["prism"]["config"]["task"]) == sorted(members)
    for task, stock in theirs["stock"].items():
        config = found[f"prism_{task}"]["config"]
        source = {key: config.get(key) for key in ("dataset_path", "dataset_name", "test_split")}
        assert source == stock["source"]


def test_a_task_of_the_same_name_does_not_replace_a_stock_task(theirs):
    assert "lmms_eval/tasks/mmmu/mmmu_val.yaml" in theirs["index"]["same_name"]


def test_the_tasks_need_neither_verl_nor_its_packages(theirs):
    assert theirs["unusable"]["loaded"] == []


def test_the_settings_are_those_of_the_paper(theirs):
    sampling = {"temperature": 1.0, "top_p": 0.7, "do_sample": True, "until": []}
    for task, settings in theirs["ours"]["settings"].items():
        assert settings == {**sampling, "max_new_tokens": TOKENS[task]}


def test_a_model_gets_the_messages_of_stage_eval(ours, theirs):
    """Also where the images are, and which."""
    for task, each in ours.items():
        for chat, row in zip(theirs["ours"]["messages"][task], each.rows, strict=True):
            images = iter(row["images"])
            assert [message["role"] for message in chat] == ["system", "user"]
            for message, expected in zip(chat, chat_messages(row), strict=True):
                parts = expected["content"]
                if isinstance(parts, str):
                    parts = [{"type": "text", "text": parts}]
                expected = [
                    part if part["type"] == "text" else seen(next(images)) for part in parts
                ]
                assert message["content"] == expected


def seen(image: dict) -> dict:
    picture = Image.open(io.BytesIO(image["bytes"])).convert("RGB")
    pixels = base64.b64encode(picture.tobytes()).decode("ascii")
    return {"type": "image", "mode": "RGB", "size": list(picture.size), "pixels": pixels}


def test_lmms_eval_measures_with_our_tasks_what_we_measure(ours, theirs):
    measured = theirs["ours"]["measures"]
    expected = {}
    for task, each in ours.items():
        in_format = sum("<answer>" in text for text in each.responses) / 30
        expected[task] = {"accuracy": sum(each.correct) / 30, "format": in_format}
    for name in ("strict", "loose"):
        expected["wemath"][f"{name}_score"] = ours["wemath"].measure(f"{name} score")
    for name in ("qAcc", "fAcc"):
        expected["hallusion_bench"][name] = ours["hallusion_bench"].measure(name)
    both = ours["mmmu_pro_standard"].graded + ours["mmmu_pro_vision"].graded
    expected["mmmu_pro"] = {"accuracy": mmmu_pro.measure(both)["mean of both"].value}
    assert measured == {task: pytest.approx(values) for task, values in expected.items()}
    assert expected["hallusion_bench"]["format"] == 29 / 30


def test_rows_that_cannot_be_used_are_left_out_or_an_error(theirs):
    assert theirs["unusable"]["kept"] == ["7"]
    value, column, simple = theirs["unusable"]["errors"]
    assert value.startswith(
        "mathvista, row 0: column 'answer' is '6', which is none of the choices"
    )
    assert column.startswith("lmms-eval, mathvista: no column 'query'; it has pid,")
    assert "leave out --force_simple" in simple


def stock_text(task: str, text: str) -> str:
    """Return a text of lmms-eval as ours would be: without the differences that we know."""
    if task == "mathvista":  # the data set's own text, `query`, has the hint first
        *question, hint = text.split("\n")
        return "\n".join([hint, *question])
    if task == "mathvision":
        return text.removeprefix(BOXED)
    if task in ("mmmu", "mmmu_pro_standard"):  # we show an image where it is mentioned
        return re.sub(r"<image \d>", "<image>", text)
    return text


@pytest.mark.parametrize("task", CASES)
def test_the_text_is_that_of_lmms_eval(ours, theirs, task):
    texts = [stock_text(task, text) for text in theirs["stock"][task]["texts"]]
    assert texts == [text.removeprefix("<image>\n") for text in ours[task].texts()]


def test_lmms_eval_loses_text_if_an_image_is_mentioned_twice(theirs):
    layout = theirs["stock"]["mmmu"]["layout"]
    assert layout[:4] == ["Compare", "<image>", "and", "<image>"]
    assert layout[4].startswith("B. it's 4")  # option A, the second image, is lost


@pytest.mark.parametrize("task", CASES)
def test_each_difference_from_lmms_evals_verdicts_has_a_reason(ours, theirs, task):
    each = ours[task]
    assert len(each.answers) == 30
    assert 5 <= sum(each.correct) <= 25
    verdicts = zip(each.answers, each.correct, theirs["stock"][task]["verdicts"], strict=True)
    different = [(answer, their) for answer, our, their in verdicts if our is not their]
    listed = [pair for answers in DIFFERENCES[task].values() for pair in answers.items()]
    assert sorted(different, key=repr) == sorted(listed, key=repr)


@pytest.mark.parametrize("task", CASES)
def test_the_measures_are_those_of_lmms_eval_for_the_same_verdicts(ours, theirs, task):
    measured = theirs["stock"][task]["measures"]
    if task == "wemath":
        measured = {name: count / 9 for name, count in measured.items()}  # of 9 problems
    rounded = 5e-5  # lmms-eval rounds to four decimals
    names = NAMES.get(task, {})
    for name, value in measured.items():
        our = ours[task].measure(names.get(name, name))
        if name.startswith("RoteMemorization"):
            our *= solved_problems(ours[task]) / 9
        assert our == pytest.approx(value, abs=rounded), name


NAMES = {
    "wemath": {
        "InadequateGeneralization": "strict IG (inadequate generalization)",
        "InsufficientKnowledge": "strict IK (insufficient knowledge)",
        "CompleteMastery_strict": "strict CM (complete mastery)",
        "CompleteMastery_loose": "loose CM (complete mastery)",
        "RoteMemorization_strict": "strict RM (rote memorization)",
        "RoteMemorization_loose": "loose RM (rote memorization)",
    },
    "mmmu_pro_standard": {"accuracy": "standard"},
    "mmmu_pro_vision": {"accuracy": "vision"},
    "hallusion_bench": {"accuracy": "aAcc"},
}


def solved_problems(wemath: Ours) -> int:
    """Return the number of problems whose whole question is right, of which RM is a share."""
    return sum(each.correct for each in wemath.graded if each.facts["key"].endswith("multi"))
