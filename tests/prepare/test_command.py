"""The command line of `python -m verl_prism.data`."""

import pytest
from question_rows import question

from verl_prism.config import Section
from verl_prism.errors import UserError
from verl_prism.prepare.command import COMMANDS, main
from verl_prism.prepare.settings import describe, parse_settings


class Teacher(Section):
    model: str = "tiny"
    temperature: float = 1.0


class Settings(Section):
    source: str
    tries: int = 4
    teacher: Teacher = Teacher()
    splits: dict[str, float] | None = None


def test_values_come_from_arguments_and_a_file(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("source: a.jsonl\nteacher: {model: big, temperature: 0.5}\n")
    arguments = [f"config={file}", "teacher.temperature=1e-1", "splits={train: 0.9, dev: 0.1}"]
    settings = parse_settings(Settings, arguments)
    assert settings.teacher == Teacher(model="big", temperature=0.1)
    assert settings.splits == {"train": 0.9, "dev": 0.1}
    assert settings.source == "a.jsonl"


@pytest.mark.parametrize(
    "value", ["/data/a (1)=b.jsonl", "C: [x", "2024-01-01", "it's", "~/a b", "!tag", "@x"]
)
def test_any_text_is_a_value(value):
    assert parse_settings(Settings, [f"source={value}"]).source == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "source is not set; write source=..."),
        (["source=a", "teacher.mdel=b"], "unknown key teacher.mdel; did you mean teacher.model?"),
        (["source=a", "tries=many"], "tries=many: input should be a valid integer"),
        (["source"], "source: write key=value"),
        (["source=a", "source.b=c"], "source.b: source is not a section"),
        (["config=/nowhere.yaml"], "/nowhere.yaml: No such file"),
    ],
)
def test_a_mistake_names_the_key(arguments, message):
    with pytest.raises(UserError) as caught:
        parse_settings(Settings, arguments)
    assert str(caught.value).startswith(message)


def test_the_help_describes_every_setting():
    text = describe(Settings)
    for key in ("source=", "tries=", "teacher.model=", "splits="):
        assert key in text


def test_an_unknown_command(capsys):
    assert main(["destill"]) == 2
    assert "unknown command destill; use " in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"python -m verl_prism.data {name} ")
    assert " []" not in text


@pytest.mark.parametrize("command", ["convert", "filter", "pairs"])
def test_an_output_that_cannot_be_written(command, write_rows, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    responses = ["<caption>A 3.</caption><think>3</think><answer>7</answer>", "7"]
    source = write_rows([question(0, "7", responses)])
    arguments = [f"source={source}", f"output={tmp_path}/file/out.parquet"]
    assert main([command, *arguments]) == 2
    assert "file/out.parquet" in capsys.readouterr().err
