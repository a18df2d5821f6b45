"""Folders in the cache of the Hugging Face Hub: their names, and what is missing in them.

Such a folder is `models--<owner>--<name>/snapshots/<commit>`, and next to it is the Hub's list of
the commit's files.
"""

import re
from pathlib import Path

from huggingface_hub import get_cached_repo_tree
from huggingface_hub.errors import CachedRepoTreeNotFoundError

WEIGHTS = "*.safetensors"
SNAPSHOT = re.compile(r"/models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[^/]+)$")


def hub_name(folder: Path) -> str | None:
    """Return `owner/name@commit` of a folder in the cache; None for any other folder."""
    match = SNAPSHOT.search(str(folder))
    return f"{match['owner']}/{match['name']}@{match['commit']}" if match else None


def missing_bytes(folder: Path) -> int:
    """Return the bytes of weights that the Hub lists for a folder, but which are not in it.

    Nothing is missing from a folder that is not in the cache.
    """
    match = SNAPSHOT.search(str(folder))
    if match is None:
        return 0
    repo = f"{match['owner']}/{match['name']}"
    cache = folder.parents[2]
    try:
        files = get_cached_repo_tree(repo, revision=match["commit"], cache_dir=cache)
    except CachedRepoTreeNotFoundError:  # an older version of huggingface_hub made the download
        return 0
    weights = [file for file in files if Path(file.path).match(WEIGHTS)]
    return sum(file.size for file in weights if not (folder / file.path).exists())
