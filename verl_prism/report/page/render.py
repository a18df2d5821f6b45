"""The page: a template, a script, a style sheet, and the compressed data of the runs."""

import base64
import gzip
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from verl_prism.files import write_atomically
from verl_prism.report.page.runs import display_names, read_settings, run_data
from verl_prism.report.page.samples import sample_data, samples_file
from verl_prism.run_folder import RunFolder

MAX_SAMPLES = 5000  # of all runs together
PACKAGE = "verl_prism.report.page"
SCRIPTS = ("page.js", "charts.js", "samples.js", "settings.js")


def write_report(folders: Sequence[Path], target: Path) -> None:
    """Write one HTML file about one run or several.

    It links to nothing else, and a browser makes no request for it. A run that is in progress, or
    was killed, is shown up to its last step.

    Raises:
        UserError: a folder is not that of a run.
    """
    runs = [RunFolder(folder) for folder in folders]
    settings = [read_settings(run) for run in runs]
    files = [samples_file(run, each) for run, each in zip(runs, settings, strict=True)]
    share = MAX_SAMPLES // max(1, sum(file.exists() for file in files))
    shown = []
    for run, name, own in zip(runs, display_names(list(folders)), settings, strict=True):
        shown.append(run_data(run, name, own) | sample_data(run, own, share))
    write_atomically(target, page(shown))


def page(runs: Sequence[dict[str, Any]]) -> str:
    """Return the HTML of a page about these runs."""
    environment = Environment(
        loader=PackageLoader(PACKAGE, ""), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html.jinja").render(
        title=", ".join(run["name"] for run in runs),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=_asset("page.css"),
        script="\n".join(map(_asset, SCRIPTS)),
        data=packed({"runs": list(runs)}),
    )


def packed(data: Any) -> str:
    """Return data as JSON, compressed by gzip, in base64."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _asset(name: str) -> str:
    return files(PACKAGE).joinpath(name).read_text(encoding="utf-8")
