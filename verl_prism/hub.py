"""Models on the Hugging Face Hub: the driver downloads them once, before it starts other processes.

In the config a hub id is then replaced with the folder of the download in the Hub's cache.
"""

import errno
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from huggingface_hub import constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm

from verl_prism.config import HUB_ID, Prism
from verl_prism.data.checks import model_folders
from verl_prism.errors import UserError
from verl_prism.hub_cache import WEIGHTS, missing_bytes

SMALL_FILES = ("*.json", "*.jinja", "*.txt")  # config, tokenizer, image processor
GIB = 2**30


class HubModel(NamedTuple):
    """A config key and the model on the Hub that it names."""

    key: str
    repo: str
    revision: str | None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.key}={self.repo}{revision}"


class NoBar(tqdm):
    """A progress bar that is not shown."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


def with_local_models(prism: Prism, weights: bool, say: Callable[[str], None]) -> Prism:
    """Return `prism` with a local folder for each hub id that its stage loads.

    weights: download the weights too. If false, only the small files are downloaded.
    say: receives a line about each download of weights.

    Raises UserError that names the key, and what to do.
    """
    node = prism.model_dump(mode="json")
    for key, path in model_folders(prism).items():
        folder = local_model(key, path, prism.hub.offline, weights, say)
        # The name of a policy of stage eval, the fourth part, may contain dots.
        _, *parents, last = key.split(".", maxsplit=3)
        section = node
        for parent in parents:
            section = section[parent]
        section[last] = str(folder)
    return Prism.model_validate(node)


def local_model(
    key: str, path: Path, offline: bool, weights: bool, say: Callable[[str], None]
) -> Path:
    """Return the folder of a model that the value of a config key names: itself, or of a hub id."""
    if path.is_absolute():
        return path
    return local_folder(parse_hub_id(key, path), offline, weights, say)


def local_folder(model: HubModel, offline: bool, weights: bool, say: Callable[[str], None]) -> Path:
    """Return the folder of a model in the Hub's cache, after downloading what is missing."""
    folder = _download(model, model.revision, SMALL_FILES, offline)
    commit = folder.name
    size = missing_bytes(folder)
    if size == 0:
        return folder
    if offline or constants.is_offline_mode():
        raise UserError(_not_cached(model, offline))
    _check_disk(model, size)
    if not weights:
        say(f"{model}: {size / GIB:.3g} GiB of weights are not downloaded yet")
        return folder
    say(f"{model}: downloading {size / GIB:.3g} GiB of weights to {folder}")
    return _download(model, commit, (*SMALL_FILES, WEIGHTS), offline)


def parse_hub_id(key: str, path: Path) -> HubModel:
    """Return the model that the value of a config key names."""
    match = HUB_ID.fullmatch(str(path))
    assert match is not None
    return HubModel(key, match["repo"], match["revision"])


def _download(
    model: HubModel, revision: str | None, patterns: tuple[str, ...], offline: bool
) -> Path:
    """Download files of a model and return their folder.

    Progress bars are shown for weights, and only on a terminal.
    """
    try:
        folder = snapshot_download(
            model.repo,
            revision=revision,
            allow_patterns=list(patterns),
            local_files_only=offline,
            tqdm_class=tqdm if WEIGHTS in patterns and sys.stderr.isatty() else NoBar,
        )
    except GatedRepoError:
        raise UserError(_gated(model)) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{model}: there is no such folder, and {constants.ENDPOINT} has no such model, or it "
            "is private. Check the name; for a private model set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{model}: the model has no revision {model.revision}") from None
    except HFValidationError as error:
        raise UserError(f"{model}: neither a folder nor a hub id ({error})") from None
    except LocalEntryNotFoundError as error:
        if offline or constants.is_offline_mode():
            raise UserError(_not_cached(model, offline)) from None
        raise UserError(_unreachable(model, error.__cause__ or error)) from None
    except (HfHubHTTPError, httpx.HTTPError) as error:
        raise UserError(_unreachable(model, error)) from None
    except OSError as error:
        raise UserError(_unwritable(model, error)) from None
    return Path(folder)


def _check_disk(model: HubModel, size: int) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise UserError(
            f"{model}: {size / GIB:.3g} GiB of weights are to be downloaded, but {cache} has "
            f"{free / GIB:.3g} GiB free. Set HF_HOME to a folder on a larger disk"
        )


def _gated(model: HubModel) -> str:
    conditions = f"accept its conditions at {constants.ENDPOINT}/{model.repo}"
    if get_token() is None:
        return f"{model}: the model is gated; {conditions} and set HF_TOKEN"
    return f"{model}: the model is gated, and your token gives no access to it; {conditions}"


def _not_cached(model: HubModel, offline: bool) -> str:
    setting = "prism.hub.offline=true" if offline else "HF_HUB_OFFLINE"
    return (
        f"{model}: there is no such folder, and the model is not completely in "
        f"{constants.HF_HUB_CACHE}, and {setting} forbids downloads. Download it first: "
        f"{_download_command(model)}"
    )


def _unreachable(model: HubModel, error: BaseException) -> str:
    reason = str(error).strip().partition("\n")[0]
    return (
        f"{model}: there is no such folder, the model is not completely in "
        f"{constants.HF_HUB_CACHE}, and {constants.ENDPOINT} does not deliver it "
        f"({type(error).__name__}: {reason}). Run the command again to continue the download, or "
        f"download on a host with access and share the cache: {_download_command(model)}"
    )


def _unwritable(model: HubModel, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full"
    else:
        reason = error.strerror or str(error)
    return (
        f"{model}: cannot be written to {constants.HF_HUB_CACHE}: {reason}. "
        "Set HF_HOME to a folder on another disk"
    )


def _download_command(model: HubModel) -> str:
    revision = f" --revision {model.revision}" if model.revision else ""
    return f"hf download {model.repo}{revision}"
