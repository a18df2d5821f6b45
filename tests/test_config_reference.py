"""docs/config-reference.md has every key, with its comment, type and default."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field, NonNegativeFloat, PositiveInt

from verl_prism.config import Prism, Section, flatten

ROOT = Path(__file__).parents[1]
PRISM = ROOT / "trainer_configs" / "prism.yaml"
GRPO = ROOT / "trainer_configs" / "algorithm" / "grpo.yaml"


def load_script() -> ModuleType:
    path = ROOT / "scripts" / "config_reference.py"
    spec = importlib.util.spec_from_file_location("config_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_script()


@pytest.fixture(scope="module")
def text() -> str:
    return reference.PAGE.read_text(encoding="utf-8")


def keys_of(kind: type[Section], prefix: str) -> list[str]:
    """Return the keys of a section by its types."""
    keys = []
    for name, field in kind.model_fields.items():
        key = f"{prefix}.{name}"
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            keys += keys_of(annotation, key)
        else:
            keys.append(key)
    return keys


def comments(file: Path) -> list[str]:
    """Return the paragraphs of all comments in a file below its first key, on one line each."""
    _, below = file.read_text(encoding="utf-8").split("\nprism:\n")
    found: list[list[str]] = [[]]
    for line in map(str.strip, below.splitlines()):
        if line.startswith("# "):
            found[-1].append(line.removeprefix("# "))
        else:
            found.append([])
    return [" ".join(lines) for lines in found if lines]


def test_the_page_is_up_to_date(text):
    assert text == reference.page(), "run: python scripts/config_reference.py"


def test_every_key_is_on_the_page_once(text):
    for key in keys_of(Prism, "prism"):
        assert text.count(f"**`{key}`**") == 1, key


def test_every_comment_is_on_the_page(text):
    found = comments(PRISM)
    assert len(found) > 80
    for comment in found:
        assert reference.formatted(comment) in text, comment


def test_every_default_is_on_the_page(text):
    prism = yaml.safe_load(PRISM.read_text(encoding="utf-8"))["prism"]
    algorithm = yaml.safe_load(GRPO.read_text(encoding="utf-8"))
    defaults = dict(flatten(prism, "prism")) | dict(flatten(algorithm, "prism.algorithm"))
    written = {entry.key: entry.value for entry in reference.all_entries() if entry.value}
    assert written.keys() == defaults.keys()
    for key, value in written.items():
        parsed = yaml.safe_load(value)
        assert parsed == ([defaults[key]] if isinstance(parsed, list) else defaults[key])
        if value != reference.NO_DEFAULT:
            line = next(line for line in text.splitlines() if f"**`{key}`**" in line)
            assert f"default `{value}`" in line


def test_keys_that_share_a_comment_have_none_of_their_own():
    texts = {entry.key: entry.text for entry in reference.all_entries()}
    assert [texts[key] for key in reference.SHARE_A_COMMENT if texts[key]] == []


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (bool, "`true` or `false`"),
        (PositiveInt | None, "integer > 0 or `null`"),
        (NonNegativeFloat, "number ≥ 0"),
        (Annotated[float, Field(gt=0.0, lt=0.5)], "number > 0 and < 0.5"),
        (Literal["a", "b", "c"], "`a`, `b` or `c`"),
        (list[Literal["a", "b"]], "list of `a` or `b`"),
    ],
)
def test_types_in_words(kind, words):
    assert reference.words(kind) == words


def test_a_type_without_words_is_refused():
    with pytest.raises(TypeError, match="no words for the type"):
        reference.words(complex)


def test_a_preset_contains_what_it_builds_on():
    values = reference.values_of("hardware", "8xh100")
    assert values["prism.hardware.device"] == "cuda"
    assert values["prism.hardware.devices_per_node"] == "8"


def test_a_note_is_about_the_keys_that_follow():
    source = "prism:\n  # of both\n  #\n  # of\n  # a\n  a: 1\n  b: 1.0e-6\n"
    a, b = list(reference.walk(yaml.compose(source), "", source))[1:]
    assert (a.key, a.value, a.notes, a.text) == ("prism.a", "1", ("of both",), "of a")
    assert (b.key, b.value, b.notes, b.text) == ("prism.b", "1.0e-6", (), "")


def test_comments_are_formatted():
    comment = "see docs/data.md, prism.data.train and stage=eval: <image> *"
    expected = r"see [data.md](data.md), `prism.data.train` and `stage=eval`: &lt;image&gt; \*"
    assert reference.formatted(comment) == expected
