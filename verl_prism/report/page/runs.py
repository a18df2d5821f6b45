"""What the report shows of a run besides its samples: settings, state, and metrics of each step."""

import json
import math
from pathlib import Path
from typing import Any

import yaml

from verl_prism.config import flatten
from verl_prism.errors import UserError
from verl_prism.report.metrics import read_records
from verl_prism.report.page.charts import charts_of
from verl_prism.report.step_samples import evenly
from verl_prism.run_folder import RunFolder

MAX_STEPS = 2000  # of a run, that are drawn
FAULT = "/fault/"

Settings = dict[str, Any]


def read_settings(run: RunFolder) -> Settings:
    """Return the section `prism` of the run's config.

    Raises:
        UserError: the folder is not that of a run.
    """
    try:
        config = yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{run.path} is not the folder of a run: {run.config.name} cannot be read ({error})"
        ) from error
    return config["prism"]


def run_data(run: RunFolder, name: str, settings: Settings) -> dict[str, Any]:
    """Return the run as the page's script reads it."""
    records = [record for record in read_records(run) if "data" in record]
    drawn = evenly(records, MAX_STEPS)
    if records and drawn[-1] is not records[-1]:
        drawn[-1] = records[-1]
    names = {metric for record in records for metric in record["data"]}
    series = {metric: values_of(metric, drawn) for metric in sorted(names)}
    series = {metric: values for metric, values in series.items() if any(map(is_number, values))}
    return {
        "name": name,
        "stage": settings["stage"],
        "settings": {key: str(value) for key, value in flatten(settings)},
        "state": state(run, settings, records),
        "steps": [record["step"] for record in drawn],
        "left_out": len(records) - len(drawn),
        "series": series,
        "charts": charts_of(
            {metric for metric, values in series.items() if varies(metric, values)}
        ),
        "results": run.results_table.read_text() if run.results_table.exists() else "",
    }


def values_of(metric: str, records: list[dict[str, Any]]) -> list[float | None]:
    """Return the metric of each step. A step in which a fault did not happen does not name it."""
    missing = 0.0 if FAULT in metric else None
    return [number(record["data"].get(metric, missing)) for record in records]


def state(run: RunFolder, settings: Settings, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how far the run is, and its summary if it is complete."""
    if run.summary.exists():
        summary = json.loads(run.summary.read_text(encoding="utf-8"))
        return {
            "text": f"complete, {summary['seconds'] / 60:.1f} min",
            "summary": summary["metrics"],
        }
    if not records:
        return {"text": "no step yet", "summary": {}}
    return {"text": f"step {records[-1]['step']} of {settings['steps']}", "summary": {}}


def number(value: Any) -> float | None:
    """Return a number with six digits; None for what is missing, no number, or not finite."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def is_number(value: float | None) -> bool:
    """Return whether there is something to draw."""
    return value is not None


def varies(metric: str, values: list[float | None]) -> bool:
    """Return whether a metric is drawn with others: a fault that never happened is not."""
    return FAULT not in metric or any(values)


def display_names(folders: list[Path]) -> list[str]:
    """Return the folders' names, with as many of their parents as tell them apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
