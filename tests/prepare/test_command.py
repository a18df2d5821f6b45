"""The command line of `python -m verl_prism.data`."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field
from question_rows import question

from verl_prism.config import Section
from verl_prism.errors import UserError
from verl_prism.prepare.command import COMMANDS, main
from verl_prism.prepare.settings import ParquetFiles, describe, parse_settings


class Teacher(Section):
    model: str = "tiny"
    temperature: float = 1.0


class Settings(Section):
    source: str
    tries: int = 4
    teacher: Teacher = Teacher()
    splits: dict[str, float] | None = None


class Several(Section):
    names: Annotated[str | tuple[str, ...], Field(min_length=1)] = "a"
    file: Path = Path("a")
    folders: ParquetFiles | None = None
    label: str | None = "a"
    either: dict[str, Annotated[str, Field(coerce_numbers_to_str=True)]] | str = "a"


def test_values_come_from_arguments_and_a_file(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("source: a.jsonl\nteacher: {model: big, temperature: 0.5}\n")
    arguments = [f"config={file}", "teacher.temperature=1e-1", "splits={train: 0.9, dev: 0.1}"]
    settings = parse_settings(Settings, arguments)
    assert settings.teacher == Teacher(model="big", temperature=0.1)
    assert settings.splits == {"train": 0.9, "dev": 0.1}
    assert settings.source == "a.jsonl"


TEXTS = ["/data/a (1)=b.jsonl", "C: [x", "2024-01-01", "it's", "~/a b", "!tag", "@x"]


@pytest.mark.parametrize("value", [*TEXTS, "2024", "1e3", "no", "on", "Note: be brief", "[a, b]"])
def test_any_text_is_a_value(value):
    settings = parse_settings(Settings, [f"source={value}", f"teacher.model={value}"])
    assert (settings.source, settings.teacher.model) == (value, value)


def test_a_setting_that_also_takes_a_list_or_none_gets_it():
    arguments = ["names=[a, b]", "file=2024", "folders=[a, b]", "label=null"]
    settings = parse_settings(Several, arguments)
    assert settings.names == ("a", "b")
    assert settings.folders == tuple(Path(name).absolute() for name in ("a", "b"))
    assert (settings.file, settings.label) == (Path("2024"), None)
    settings = parse_settings(Several, ["names=no", "folders=7", "label=on", "either={a: 1}"])
    assert (settings.names, settings.label) == ("no", "on")
    assert settings.folders == Path("7").absolute()
    assert settings.either == {"a": "1"}
    assert parse_settings(Several, ["either=[a, b]"]).either == "[a, b]"


def test_a_text_of_a_file_may_need_quotes(tmp_path):
    (tmp_path / "settings.yaml").write_text("source: 2024\n")
    with pytest.raises(UserError, match="source=2024: input should be a valid string; put it in"):
        parse_settings(Settings, [f"config={tmp_path}/settings.yaml"])


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


WRITERS = {
    "convert": "output={}",
    "filter": "output={}",
    "pairs": "output={}",
    "score": "output={} discriminator=.",
    "sample": "output={} policy=.",
    "distill": "output={} teacher.endpoint=http://localhost teacher.model=m",
    "check": "fix={}",
}


@pytest.mark.parametrize("command", WRITERS)
def test_no_command_writes_over_its_source(command, write_rows, tmp_path, capsys):
    source = write_rows([question(0, "7", ["7"])])
    content = source.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    linked = tmp_path / "link" / source.name
    new = tmp_path / "new.parquet"
    deep = tmp_path / "a" / "b" / "new.parquet"
    for given, output, message in (
        (source, linked, "is a file of source; choose another name"),
        (tmp_path, new, f"would be a file of source={tmp_path} in the next run"),
        (tmp_path / "*.parquet", new, f"would be a file of source={tmp_path}/*.parquet in the"),
        (tmp_path / "**/*.parquet", deep, f"would be a file of source={tmp_path}/**/*.parquet in"),
    ):
        arguments = WRITERS[command].format(output).split()
        assert main([command, f"source={given}", *arguments]) == 2
        assert f": {output} {message}" in capsys.readouterr().err
    assert source.read_bytes() == content
    assert not new.exists()
    assert not deep.exists()


@pytest.mark.parametrize("command", ["convert", "filter", "pairs"])
def test_an_output_that_cannot_be_written(command, write_rows, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    responses = ["<caption>A 3.</caption><think>3</think><answer>7</answer>", "7"]
    source = write_rows([question(0, "7", responses)])
    arguments = [f"source={source}", f"output={tmp_path}/file/out.parquet"]
    assert main([command, *arguments]) == 2
    assert "file/out.parquet" in capsys.readouterr().err
