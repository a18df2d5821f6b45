"""Recipes and data cards."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from question_rows import question, respond

from verl_prism.prepare.command import main
from verl_prism.prepare.recipe import input_files

RIGHT = respond("A 3 and a 4.", "3 + 4 is 7.", "7")
WRONG = respond("A 3 and a 5.", "3 + 5 is 8.", "8")
RECIPE = """\
name: digits
steps:
  - filter: {source: source.parquet, output: kept.parquet, min: 0.5}
  - pairs: {source: kept.parquet, output: pairs.parquet, config: pairs.yaml}
"""


@pytest.fixture
def recipe(write_rows, tmp_path):
    solved = [question(number, "7", [RIGHT, WRONG]) for number in range(5)]
    write_rows([*solved, question(5, "7", [WRONG, WRONG])])
    (tmp_path / "pairs.yaml").write_text("match_length: false\nper_question: 1\n")
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE)
    return file


def test_a_recipe_makes_the_data_and_a_card(recipe, tmp_path, capsys):
    assert main(["recipe", f"file={recipe}"]) == 0
    assert pq.read_table(tmp_path / "pairs.parquet").num_rows == 5
    record = json.loads((tmp_path / "data_card.json").read_text())
    assert [step["command"] for step in record["steps"]] == ["filter", "pairs"]
    first, second = record["steps"]
    assert first["rejects"] == {"pass rate below 0.5": 1}
    output = str(tmp_path / "kept.parquet")
    assert first["outputs"][output] == second["inputs"][output]
    card = (tmp_path / "DATA_CARD.md").read_text()
    assert "| 0 | filter | 6 rows read, 5 rows kept | 1 |" in card
    assert "left out, pass rate below 0.5: 1" in card
    assert first["outputs"][output] in card


def test_only_changed_steps_run_again(recipe, tmp_path, capsys):
    main(["recipe", f"file={recipe}"])
    capsys.readouterr()
    recipe.write_text(
        RECIPE + "  - filter: {source: pairs.parquet, output: last.parquet, max: 1}\n"
    )
    assert main(["recipe", f"file={recipe}"]) == 0
    shown = capsys.readouterr().out
    assert "steps[0] filter: unchanged" in shown
    assert "steps[1] pairs: unchanged" in shown
    assert "steps[2] filter\n" in shown
    (tmp_path / "kept.parquet").unlink()
    main(["recipe", f"file={recipe}"])
    shown = capsys.readouterr().out
    assert "steps[0] filter\n" in shown
    assert "steps[1] pairs: unchanged" in shown


FILES = """\
name: digits
steps:
  - convert: {source: raw.jsonl, output: converted.parquet, system_prompt: system.txt}
  - filter: {source: source.parquet, output: kept.parquet, reward: "own.py:reward"}
"""
COMMANDS = ((0, "convert"), (1, "filter"))
REWARD = "def reward(data_source, solution_str, ground_truth, extra_info):\n    return 0.5\n"


@pytest.mark.parametrize(("changed", "step"), [("raw.jsonl", 0), ("system.txt", 0), ("own.py", 1)])
def test_a_changed_file_runs_the_step_that_reads_it(changed, step, recipe, tmp_path, capsys):
    recipe.write_text(FILES)
    (tmp_path / "raw.jsonl").write_text('{"question": "What?", "answer": "9"}\n')
    (tmp_path / "system.txt").write_text("Be brief.\n")
    (tmp_path / "own.py").write_text(REWARD)
    assert main(["recipe", f"file={recipe}"]) == 0
    record = json.loads((tmp_path / "data_card.json").read_text())
    assert str(tmp_path / changed) in record["steps"][step]["inputs"]
    with open(tmp_path / changed, "a") as file:
        file.write("\n")
    capsys.readouterr()
    assert main(["recipe", f"file={recipe}"]) == 0
    shown = capsys.readouterr().out
    unchanged = [f"steps[{number}] {name}: unchanged" in shown for number, name in COMMANDS]
    assert unchanged == [number != step for number, _ in COMMANDS]


def test_inputs_are_the_files_that_settings_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl", "raw/c.jsonl", "own.py", "prompt.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(**node) -> list[str]:
        return [str(file.relative_to(tmp_path)) for file in input_files(node)]

    assert found(source=["?.jsonl", "raw"]) == ["a.jsonl", "b.jsonl", "raw/c.jsonl"]
    assert found(source="**/*.jsonl") == ["a.jsonl", "b.jsonl", "raw/c.jsonl"]
    assert found(images=str(tmp_path / "raw")) == ["raw/c.jsonl"]
    assert found(prompt="prompt.txt", teacher={"model": "a/b"}) == ["prompt.txt"]
    assert found(reward=f"{tmp_path}/own.py:reward") == ["own.py"]
    assert found(output=str(tmp_path / "a.jsonl")) == []


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "raw", "*", "org/name@main", "llama:8b", "~nobody/here.txt", "plain"),
        *("a\0b", "Look.\nAnswer: {gold}\n", "Be brief. " * 1000, "a/" * 3000),
    ],
)
def test_a_text_that_names_no_file_is_no_input(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jsonl").touch()
    assert input_files({"system_prompt": text, "add_prefix": f"{tmp_path}/raw/"}) == []


@pytest.mark.parametrize("source", ["org/name@main", "a\0*", "x" * 1000 + "/*", "~nobody/*"])
def test_a_source_elsewhere_is_no_input(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert input_files({"source": source}) == []


def test_a_clean_copy_is_used_and_not_made_again(recipe, tmp_path, capsys):
    checked = "  - check: {source: source.parquet, fix: clean.parquet, report: found, workers: 0}\n"
    recipe.write_text(f"name: digits\nsteps:\n{checked}" + RECIPE.split("steps:\n")[1])
    table = pq.read_table(tmp_path / "source.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), tmp_path / "source.parquet")
    assert main(["recipe", f"file={recipe}"]) == 0
    assert pq.read_table(tmp_path / "clean.parquet").num_rows == table.num_rows
    capsys.readouterr()
    assert main(["recipe", f"file={recipe}"]) == 0
    assert "steps[0] check: unchanged" in capsys.readouterr().out


def test_problems_stop_a_recipe(recipe, tmp_path, capsys):
    checked = "  - check: {source: source.parquet, workers: 0}\n"
    recipe.write_text(f"name: digits\nsteps:\n{checked}" + RECIPE.split("steps:\n")[1])
    table = pq.read_table(tmp_path / "source.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), tmp_path / "source.parquet")
    assert main(["recipe", f"file={recipe}"]) == 1
    assert "steps[0].check: 1 row: " in capsys.readouterr().err
    assert not (tmp_path / "kept.parquet").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\n", "steps is not set"),
        ("name: x\nsteps: []\n", "steps=[]: tuple should have at least 1 item"),
        ("name: x\nsteps: [{distil: {}}]\n", "steps[0]: unknown command distil; use "),
        ("name: x\nsteps: [{recipe: {}}]\n", "steps[0]: unknown command recipe; use "),
        ("name: x\nsteps: [{filter: {}, pairs: {}}]\n", "steps[0]: write one command"),
        (
            "name: x\nsteps: [{filter: {source: a, ouput_: b}}]\n",
            "unknown key steps[0].filter.ouput_; did you mean output?",
        ),
        (
            "name: x\nsteps: [{filter: {source: a, output: b.parquet}}]\n",
            "steps[0].filter: source=",
        ),
        ("name: [\n", "recipe.yaml: not a YAML file"),
    ],
)
def test_a_mistake_names_the_step(text, message, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    assert main(["recipe", f"file={file}"]) == 2
    assert message in capsys.readouterr().err
