"""The documentation site: links out of docs/, and a strict build without external requests."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
MKDOCS = ROOT / ".venv-docs" / "bin" / "mkdocs"
# What a browser loads by itself, unlike a link.
LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\"\s>]+)")
LINKED = re.compile(r"<link\b[^>]*\bhref=\"?([^\"\s>]+)")
STYLE = re.compile(r"url\([\"']?([^\"')]+)")


def load_hooks() -> ModuleType:
    path = ROOT / "scripts" / "mkdocs_hooks.py"
    spec = importlib.util.spec_from_file_location("mkdocs_hooks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load_hooks()


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[config.py](../verl_prism/config.py)", "`verl_prism/config.py`"),
        ("[`config.py`](../verl_prism/config.py)", "`verl_prism/config.py`"),
        ("[README](../README.md#measured)", "`README.md`"),
        ("[A\ntest](../tests/test_x.py)", "A\ntest (`tests/test_x.py`)"),
        ("[data](data.md#checks)", "[data](data.md#checks)"),
        ("[verl](https://example.org/../x)", "[verl](https://example.org/../x)"),
    ],
)
def test_links_outside_become_paths_without_a_repository(link, expected):
    assert hooks.without_links_outside(f"See {link}.", None) == f"See {expected}."


def test_links_outside_become_urls_with_a_repository():
    page = hooks.without_links_outside("[R](../README.md#measured)", "https://example.org/r/")
    assert page == "[R](https://example.org/r/blob/main/README.md#measured)"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; skips if neither `make docs` nor the user has installed mkdocs."""
    command = str(MKDOCS) if MKDOCS.exists() else shutil.which("mkdocs")
    if command is None:
        pytest.skip("mkdocs is not installed; `make docs` installs it")
    folder = tmp_path_factory.mktemp("site")
    build = [command, "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_site_has_every_page(site):
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {page.stem for page in site.glob("*.html")}


def test_the_site_loads_nothing_from_elsewhere(site):
    loaded = []
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded += LOADED.findall(text) + LINKED.findall(text)
    for style in site.rglob("*.css"):
        loaded += STYLE.findall(style.read_text(encoding="utf-8"))
    assert loaded
    assert [url for url in loaded if url.startswith(("http:", "https:", "//"))] == []
