"""The documentation names only what exists: Python names, commands, config keys, links, tests."""

import importlib
import importlib.util
import pkgutil
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from omegaconf import OmegaConf

from verl_prism.compose import compose_run

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "examples" / "digits" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
# The changelog names what was renamed or removed.
CURRENT_PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]

PYTHON_NAME = re.compile(r"(?<![\w/.])verl_prism(?:\.[A-Za-z_]\w*)+")
IMPORT = re.compile(r"^from (verl_prism[\w.]*) import (.+)$", re.MULTILINE)
COMMAND = re.compile(r"python -m (verl_prism[\w.]*)")
CONFIG_KEY = re.compile(r"(?<![\w/.])prism(?:\.[a-z_]\w*)+")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
TEST_NAME = re.compile(r"`((?:\w+/)*test_\w+\.py)(?:::(test_\w+))?`")
REGISTRY = re.compile(r"pypi\.org|anaconda\.org|pythonhosted\.org")


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def resolve(name: str) -> Any:
    """Return the module or attribute that a dotted name stands for, and import what it needs."""
    root, *parts = name.split(".")
    path, found = root, importlib.import_module(root)
    for part in parts:
        path = f"{path}.{part}"
        if not hasattr(found, part):
            importlib.import_module(path)
        found = getattr(found, part)
    return found


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    text = CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))
    slugs = set()
    for heading in HEADING.findall(text):
        words = re.sub(r"[^\w\- ]", "", heading.lower())
        slugs.add(words.replace(" ", "-"))
    return slugs


@cache
def stage_configs() -> list[Any]:
    return [compose_run([f"stage={stage}"])[0] for stage in ("sft", "align", "rlvr")]


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=page_id)
def test_python_names_can_be_imported(page):
    names = sorted(set(PYTHON_NAME.findall(page.read_text(encoding="utf-8"))))
    for name in names:
        try:
            resolve(name)
        except (AttributeError, ImportError) as error:
            pytest.fail(f"{page_id(page)} names {name}: {error}")


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=page_id)
def test_import_statements_work(page):
    for module, names in IMPORT.findall(page.read_text(encoding="utf-8")):
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), (
                f"{page_id(page)}: {module} has no {name.strip()}"
            )


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=page_id)
def test_commands_exist(page):
    for module in COMMAND.findall(page.read_text(encoding="utf-8")):
        spec = importlib.util.find_spec(module)
        assert spec is not None, f"{page_id(page)}: no module {module}"
        if spec.submodule_search_locations is not None:
            children = {
                child.name for child in pkgutil.iter_modules(spec.submodule_search_locations)
            }
            assert "__main__" in children, f"{page_id(page)}: {module} is no command"


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=page_id)
def test_config_keys_exist(page):
    missing = object()
    for key in sorted(set(CONFIG_KEY.findall(page.read_text(encoding="utf-8")))):
        if key == "prism.yaml":
            continue
        found = [OmegaConf.select(config, key, default=missing) for config in stage_configs()]
        assert any(value is not missing for value in found), f"{page_id(page)}: no key {key}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        assert not REGISTRY.search(link), f"{page_id(page)} links to a package registry: {link}"
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page_id(page)}: {link} does not exist"
        if anchor:
            assert anchor in anchors(target), f"{page_id(page)}: {link} has no such heading"


@pytest.mark.parametrize("page", CURRENT_PAGES, ids=page_id)
def test_named_tests_exist(page):
    for file, test in TEST_NAME.findall(page.read_text(encoding="utf-8")):
        path = ROOT / "tests" / file.removeprefix("tests/")
        assert path.is_file(), f"{page_id(page)}: no {file}"
        if test:
            source = path.read_text(encoding="utf-8")
            assert f"def {test}(" in source, f"{page_id(page)}: {file} has no {test}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_config_keys_is_up_to_date():
    config_table = script("config_table")
    assert config_table.PAGE.read_text(encoding="utf-8") == config_table.page(), (
        "run: python scripts/config_table.py"
    )


def test_the_tables_of_the_study_are_up_to_date():
    for page, text in script("study_table").pages().items():
        assert page.read_text(encoding="utf-8") == text, "run: python scripts/study_table.py"


@pytest.mark.slow  # it composes all presets
def test_the_table_of_memory_is_up_to_date():
    memory_table = script("memory_table")
    assert memory_table.PAGE.read_text(encoding="utf-8") == memory_table.page(), (
        "run: python scripts/memory_table.py"
    )


@pytest.mark.slow  # it composes all presets
def test_the_table_of_gpu_hours_is_up_to_date():
    cost_table = script("cost_table")
    assert cost_table.PAGE.read_text(encoding="utf-8") == cost_table.page(), (
        "run: python scripts/cost_table.py"
    )
