"""Links from docs/ to files outside it, for the documentation site (`mkdocs.yml`).

The site has only the pages of docs/. With `repo_url`, a link to another file of the repository
leads there. Without it, the file's path stands in the link's place.
"""

import re
from pathlib import PurePosixPath
from typing import Any

OUTSIDE = re.compile(r"\[(?P<text>[^\]]+)\]\(\.\./(?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")
BRANCH = "main"


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Return the text of a page without relative links that lead out of docs/."""
    return without_links_outside(markdown, config["repo_url"])


def without_links_outside(markdown: str, repo_url: str | None) -> str:
    """Return a page whose links to files outside docs/ are URLs, or the paths of these files."""

    def replacement(link: re.Match[str]) -> str:
        text, path, anchor = link["text"], link["path"], link["anchor"] or ""
        if repo_url:
            return f"[{text}]({repo_url.rstrip('/')}/blob/{BRANCH}/{path}{anchor})"
        if names_file(text, path):
            return f"`{path}`"
        return f"{text} (`{path}`)"

    return OUTSIDE.sub(replacement, markdown)


def names_file(text: str, path: str) -> bool:
    """Return whether the text of a link is the path, its end, or the name without its suffix."""
    text = text.strip("`")
    return f"/{path}".endswith(f"/{text}") or PurePosixPath(path).stem == text
