"""What lmms-eval does with tiny benchmarks, as JSON. Runs in the environment of lmms-eval.

    python lmms_eval_side.py FOLDER

FOLDER has `cases.json`: for each benchmark the published file or files, a response for each of its
rows, the answer in it, and our verdict. The result is `outcome.json`:

index: our names as lmms-eval finds them, and the file of a stock task.
ours: what lmms-eval measures with our tasks, and the messages that they give to a model.
unusable: what our tasks say to rows that they cannot use.
stock: the texts, verdicts and measures of the stock tasks, without their judges.
"""

import argparse
import base64
import importlib.util
import json
import os
import sys
from pathlib import Path
from unittest import mock

os.environ |= {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none", "WANDB_MODE": "disabled"}

import yaml
from datasets import Dataset, Image
from lmms_eval import evaluator
from lmms_eval.__main__ import parse_eval_args
from lmms_eval.api.model import lmms
from lmms_eval.tasks import TaskManager

TASKS = Path(__file__).parents[2] / "examples" / "benchmarks" / "lmms_eval_tasks"
RANDOM = "picked at random"


class Parrot(lmms):
    """A chat model that gives prepared responses, and keeps the messages it gets."""

    is_simple = False

    def __init__(self, responses: dict[str, list[str]]) -> None:
        super().__init__()
        self.responses = responses
        self.messages: dict[str, list] = {}
        self.settings: dict[str, dict] = {}

    def generate_until(self, requests):
        given = []
        for request in requests:
            _, doc_to_messages, settings, number, task, split = request.args
            messages = doc_to_messages(self.task_dict[task][split][number])
            self.messages.setdefault(task, []).append(messages)
            self.settings[task] = settings
            given.append(self.responses[task][number])
        return given

    def loglikelihood(self, requests):
        raise NotImplementedError

    def generate_until_multi_round(self, requests):
        raise NotImplementedError


def as_published(file: Path) -> Path:
    """Write a parquet file with the features that the Hub's files have: images are images."""
    dataset = Dataset.from_parquet(str(file), cache_dir=str(file.parent / "cache"))
    for column, kind in dataset.features.items():
        if isinstance(kind, dict) and set(kind) == {"bytes", "path"}:
            dataset = dataset.cast_column(column, Image())
    out = file.with_suffix(".published.parquet")
    dataset.to_parquet(str(out))
    return out


def tiny_tasks(folder: Path, cases: dict) -> dict[str, str]:
    """Write our tasks with local files instead of the Hub's; return the benchmark of each."""
    names = {}
    folder.mkdir()
    for task, case in cases.items():
        ours = TASKS / f"prism_{task}.yaml"
        split = yaml.safe_load(ours.read_text().replace("!function ", ""))["test_split"]
        config = {
            "include": str(ours),
            "task": f"tiny_{task}",
            "dataset_path": "parquet",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {split: str(as_published(Path(case["file"])))},
                "cache_dir": str(folder / "cache"),
            },
        }
        (folder / f"tiny_{task}.yaml").write_text(yaml.safe_dump(config))
        names[f"tiny_{task}"] = task
    group = {
        "include": str(TASKS / "prism_mmmu_pro.yaml"),
        "group": "tiny_mmmu_pro",
        "task": ["tiny_mmmu_pro_standard", "tiny_mmmu_pro_vision"],
    }
    (folder / "tiny_mmmu_pro.yaml").write_text(yaml.safe_dump(group))
    return names


def readable(part: dict) -> dict:
    """Return a part of a message for JSON: an image as its mode and the bytes of its pixels."""
    if part["type"] != "image":
        return part
    image = part["url"]
    pixels = base64.b64encode(image.tobytes()).decode("ascii")
    return {"type": "image", "mode": image.mode, "size": image.size, "pixels": pixels}


def command_line_defaults() -> argparse.Namespace:
    """Return what the command line of lmms-eval gives by default, such as tags it removes."""
    with mock.patch("sys.argv", ["lmms_eval"]):
        _, arguments = parse_eval_args()
    return arguments


def run_ours(folder: Path, cases: dict) -> dict:
    """Evaluate our tasks on the tiny files."""
    names = tiny_tasks(folder / "tasks", cases)
    model = Parrot({name: cases[task]["responses"] for name, task in names.items()})
    groups = [name for name in names if "mmmu_pro" not in name] + ["tiny_mmmu_pro"]
    results = evaluator.simple_evaluate(
        model,
        tasks=groups,
        task_manager=TaskManager(include_path=[str(folder / "tasks"), str(TASKS)]),
        cli_args=command_line_defaults(),
        bootstrap_iters=0,
    )
    measures = {}
    for name, values in results["results"].items():
        numbers = {
            key.removesuffix(",none"): value
            for key, value in values.items()
            if key.endswith(",none") and "stderr" not in key
        }
        measures[name.removeprefix("tiny_")] = numbers
    messages = {}
    for name, task in names.items():
        messages[task] = [
            [
                {"role": each["role"], "content": [readable(part) for part in each["content"]]}
                for each in chat
            ]
            for chat in model.messages[name]
        ]
    settings = {task: model.settings[name] for name, task in names.items()}
    return {"measures": measures, "messages": messages, "settings": settings}


def unusable(folder: Path) -> dict:
    """Return which rows our task for MathVista keeps, and what it says to an unusual file."""
    path = TASKS / "utils.py"
    spec = importlib.util.spec_from_file_location("prism_utils", path)
    utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(utils)
    loaded = [name for name in ("verl", "ray", "omegaconf") if name in sys.modules]
    partly = Dataset.from_parquet(str(as_published(folder / "partly.parquet")))
    unusual = Dataset.from_parquet(str(as_published(folder / "unusual.parquet")))
    errors = []
    for rows in (unusual, unusual.remove_columns("query")):
        try:
            utils.mathvista_documents(rows)
        except utils.UserError as error:
            errors.append(str(error))
    try:
        utils.no_simple_model({})
    except utils.UserError as error:
        errors.append(str(error))
    kept = [document["name"] for document in utils.mathvista_documents(partly)]
    return {"kept": kept, "errors": errors, "loaded": loaded}


def mathvista(docs: Dataset, case: dict, settings: dict) -> dict:
    from lmms_eval.tasks.mathvista import utils

    judge = utils.mathvista_evaluator
    texts = [utils.mathvista_doc_to_text(doc, settings) for doc in docs]
    verdicts = []
    records = []
    for doc, answer, correct in zip(docs, case["answers"], case["correct"], strict=True):
        kinds = {name: doc[name] for name in ("question_type", "answer_type")}
        read = judge.normalize_extracted_answer(
            answer, doc["choices"], precision=doc["precision"], **kinds
        )
        verdicts.append(judge.safe_equal(read, doc["answer"]))
        metadata = dict(doc["metadata"])
        records.append(
            {"question_id": doc["pid"], "true_false": correct, "metadata": metadata, **kinds}
        )
    accuracy = utils.mathvista_aggregate_results(records, None) / 100
    return {"texts": texts, "verdicts": verdicts, "measures": {"accuracy": accuracy}}


def mathverse(docs: Dataset, case: dict, settings: dict) -> dict:
    from lmms_eval.tasks.mathverse import utils

    judge = utils.mathverse_evaluator
    texts = [utils.mathverse_doc_to_text(doc, settings) for doc in docs]
    verdicts = []
    records = []
    for doc, answer, correct in zip(docs, case["answers"], case["correct"], strict=True):
        verdicts.append(judge.score_answer("", doc["answer"], answer, quick_match=True))
        records.append({**doc, "prediction": answer, "true_false": correct, "image": None})
    _, scores = judge.eval_results(records, utils.config)
    measures = {"accuracy": utils.mathverse_aggregate_results_eval(case["correct"], None)}
    for name in ("problem_version", "subfield"):
        for value, score in scores[name].items():
            measures[f"{name}: {value}"] = float(score["accuracy"]) / 100
    return {"texts": texts, "verdicts": verdicts, "measures": measures}


def mathvision(docs: Dataset, case: dict, settings: dict) -> dict:
    from lmms_eval.tasks.mathvision import utils

    texts = [utils.mathvision_doc_to_text(doc, settings) for doc in docs]
    verdicts = []
    for doc, answer in zip(docs, case["answers"], strict=True):
        result = utils.mathvision_process_results(doc, [answer])
        verdicts.append(result["mathvision_standard_eval"]["scores"][0])
    records = [{"scores": [correct]} for correct in case["correct"]]
    accuracy = utils.mathvision_aggregate_results_eval(records) / 100
    return {"texts": texts, "verdicts": verdicts, "measures": {"accuracy": accuracy}}


def wemath(docs: Dataset, case: dict, settings: dict) -> dict:
    import pandas as pd
    from lmms_eval.tasks.wemath import wemath_utils
    from lmms_eval.tasks.wemath.reasoning import utils

    texts = [utils.wemath_doc_to_text_cot(doc) for doc in docs]
    verdicts = []
    records = []
    for doc, response, correct in zip(docs, case["responses"], case["correct"], strict=True):
        result = utils.wemath_reasoning_process_results(doc, [response])
        verdicts.append(result["acc_score"] == 1)
        records.append({**result["wemath_strict"], "joker": correct})
    data = pd.DataFrame(records)
    steps = [data[data["key"].str.startswith(f"{number}steps")] for number in (2, 3)]
    merged = [
        wemath_utils.process_steps_data(part.copy(), number)
        for part, number in zip(steps, (2, 3), strict=True)
    ]
    metrics = wemath_utils.calculate_metrics(*merged)
    counts, _ = wemath_utils.compute_final_scores(metrics, total_count=sum(map(len, merged)))
    return {"texts": texts, "verdicts": verdicts, "measures": counts}


def mmmu(docs: Dataset, case: dict, settings: dict) -> dict:
    from lmms_eval.tasks.mmmu import utils

    texts = [utils.mmmu_doc_to_text(doc, settings) for doc in docs]
    verdicts = []
    records = []
    for doc, answer, correct in zip(docs, case["answers"], case["correct"], strict=True):
        with mock.patch("random.choice", return_value=RANDOM):
            sample = utils.mmmu_process_results(doc, [answer])["mmmu_acc"]
        right = utils.evaluate_mmmu([sample])[1]["acc"] == 1
        verdicts.append(RANDOM if RANDOM in sample["parsed_pred"] else right)
        sample["question_type"] = "multiple-choice"
        records.append({**sample, "parsed_pred": [sample["answer"] if correct else ""]})
    measures = {"accuracy": utils.mmmu_aggregate_results(records)}
    chat = utils.mmmu_doc_to_messages(docs[0], settings)
    layout = [part.get("text", "<image>") for part in chat[0]["content"]]
    return {"texts": texts, "verdicts": verdicts, "measures": measures, "layout": layout}


def mmmu_pro(docs: Dataset, case: dict, settings: dict) -> dict:
    from lmms_eval.tasks.mmmu_pro import utils

    texts = [utils.mmmu_pro_doc_to_text(doc, settings) for doc in docs]
    verdicts = []
    records = []
    for doc, answer, correct in zip(docs, case["answers"], case["correct"], strict=True):
        with mock.patch("random.choice", return_value=RANDOM):
            sample = utils.mmmu_pro_process_results(doc, [answer])["mmmu_acc"]
        right = utils.evaluate_mmmu([sample])[1]["acc"] == 1
        verdicts.append(RANDOM if sample["parsed_pred"] == RANDOM else right)
        records.append({**sample, "parsed_pred": sample["answer"] if correct else ""})
    measures = {"accuracy": utils.mmmu_pro_aggregate_results(records)}
    return {"texts": texts, "verdicts": verdicts, "measures": measures}


def hallusion_bench(docs: Dataset, case: dict, settings: dict) -> dict:
    from lmms_eval.tasks.hallusion_bench import evaluate_hb, utils

    texts = [evaluate_hb.hb_doc_to_text(doc, settings) for doc in docs]
    verdicts = []
    records = []
    for doc, answer, correct in zip(docs, case["answers"], case["correct"], strict=True):
        sample = evaluate_hb.hb_process_results(doc, [answer])["aAcc"]
        verdicts.append(evaluate_hb.hb_aggregation_result_intern([sample], "aAcc") == 1)
        records.append({**sample, "check": str(int(correct))})
    records = utils.assign_correctness(records, "check")
    all_of = utils.get_eval_all(records, "check")
    pairs = utils.get_eval_pair_all(records, "check")
    figures = utils.get_eval_fig(records)
    measures = {
        name: counts["correct"] / counts["total"]
        for name, counts in (("accuracy", all_of), ("qAcc", pairs), ("fAcc", figures))
    }
    return {"texts": texts, "verdicts": verdicts, "measures": measures}


STOCK = {  # the task of lmms-eval whose prompt is compared, and what its functions do
    "mathvista": ("mathvista_testmini_cot", mathvista),
    "mathverse": ("mathverse_testmini", mathverse),
    "mathvision": ("mathvision_testmini", mathvision),
    "wemath": ("wemath_testmini_reasoning", wemath),
    "mmmu": ("mmmu_val", mmmu),
    "mmmu_pro_standard": ("mmmu_pro_standard", mmmu_pro),
    "mmmu_pro_vision": ("mmmu_pro_vision", mmmu_pro),
    "hallusion_bench": ("hallusion_bench_image", hallusion_bench),
}


def run_stock(cases: dict) -> dict:
    """Return what the stock tasks' own functions say about the same rows and answers."""
    stock_tasks = TaskManager().task_index
    outcome = {}
    for task, case in cases.items():
        name, function = STOCK[task]
        config = simple_config(stock_tasks[name]["yaml_path"])
        settings = config.get("lmms_eval_specific_kwargs", {}).get("default", {})
        docs = Dataset.from_parquet(str(as_published(Path(case["file"]))))
        source = {key: config.get(key) for key in ("dataset_path", "dataset_name", "test_split")}
        outcome[task] = {**function(docs, case, settings), "source": source}
    return outcome


def simple_config(file: str) -> dict:
    from lmms_eval.utils import load_yaml_config

    return load_yaml_config(file, mode="simple")


def index(folder: Path) -> dict:
    """Return our names with their kinds and configs, and where a stock name leads."""
    (folder / "same_name").mkdir()
    same = folder / "same_name" / "mmmu_val.yaml"
    same.write_text("task: mmmu_val\n")
    manager = TaskManager(include_path=[str(TASKS), str(same.parent)])
    found = {}
    for name in manager.all_tasks:
        if name == "prism" or name.startswith("prism_"):
            entry = manager.task_index[name]
            found[name] = {"type": entry["type"], "config": simple_config(entry["yaml_path"])}
    return {"found": found, "same_name": manager.task_index["mmmu_val"]["yaml_path"]}


def main() -> None:
    """Read `cases.json` and write `outcome.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    outcome = {
        "index": index(folder),
        "unusable": unusable(folder),
        "ours": run_ours(folder, cases),
        "stock": run_stock(cases),
    }
    text = json.dumps(outcome, default=str)
    (folder / "outcome.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
