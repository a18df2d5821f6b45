"""The tables of a report, as markdown."""

from collections.abc import Iterator, Mapping
from typing import Any

from verl_prism.gpu_check.runner import Report

Values = Mapping[str, Any]

SIZES = "size-"
# Column of the table of sizes, and the value of a step that it shows.
SIZE_COLUMNS = {
    "responses": "students",
    "tokens": "tokens",
    "tokens per pack": "micro_batch_tokens",
    "seconds": "median_seconds",
    "model TFLOP/s": "model_tflops",
    "MFU": "mfu",
    "peak GiB": "peak_gib",
    "weights GiB": "model_gib",
}


def markdown(report: Report) -> str:
    """Return the host, a table of all steps, and a table of the steps at real sizes."""
    parts = [
        describe_host(report),
        "\n".join(_steps(report)),
        "\n".join(_sizes(report)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def describe_host(report: Report) -> str:
    """Return one sentence about the devices, the packages and the run."""
    values = _values(report, "environment")
    packages = values.get("packages", {})
    devices = [device["name"] for device in values.get("devices", [])]
    smi = values.get("nvidia_smi") or ["unknown"]
    where = f"{', '.join(devices)} (nvidia-smi: {smi[0]})" if devices else "no GPU"
    versions = f"torch {packages.get('torch')}, transformers {packages.get('transformers')}"
    size = "tiny sizes" if report["quick"] else "full sizes"
    end = "" if report["complete"] else ", not complete"
    return (
        f"{where}; Python {values.get('python')}, {versions}; {size}; {report['started']}, "
        f"{report['seconds']:.0f} s{end}."
    )


def _steps(report: Report) -> Iterator[str]:
    yield "| step | result | seconds | found |"
    yield "|---|---|---:|---|"
    for step in report["steps"]:
        found = _escaped(_found(step))
        yield f"| {step['name']} | {step['status']} | {step.get('seconds', '')} | {found} |"


def _found(step: Report) -> str:
    """Return why a step failed or was skipped, or what it measured."""
    if step["status"] != "pass":
        last = (step.get("error") or [""])[-1]
        return "; ".join(filter(None, [step.get("reason", ""), last]))
    values = step["values"]
    match step["name"]:
        case "environment":
            speed = values.get("matmul_tflops")
            return f"{speed} TFLOP/s in a bf16 matrix product" if speed else ""
        case "learning":
            return f"loss {values['losses'][0]:.3f} to {values['losses'][-1]:.3f}"
        case "recompilations":
            return f"{values['recompilations']} in {len(values['graphs'])} steps"
        case "reference":
            return f"ours is {values['gain']} times as fast as the published algorithm"
    return _largest_error(step["checks"])


def _largest_error(checks: list[Report]) -> str:
    """Return the check that came closest to its limit."""
    limited = [check for check in checks if check.get("limit")]
    if not limited:
        return ""
    worst = max(limited, key=lambda check: check["value"] / check["limit"])
    return f"{worst['name']}: {worst['value']:.1e}, limit {worst['limit']:.0e}"


def _sizes(report: Report) -> Iterator[str]:
    steps = [step for step in report["steps"] if step["name"].startswith(SIZES)]
    measured = [step for step in steps if step.get("values", {}).get("median_seconds")]
    if not measured:
        return
    yield f"| prompt / caption / reasoning | {' | '.join(SIZE_COLUMNS)} |"
    yield "|---|" + "---:|" * len(SIZE_COLUMNS)
    for step in measured:
        shape = step["name"].removeprefix(SIZES).replace("-", " / ")
        cells = [_cell(name, step["values"].get(name)) for name in SIZE_COLUMNS.values()]
        yield f"| {shape} | {' | '.join(cells)} |"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "mfu":
        return f"{value:.0%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def _values(report: Report, name: str) -> Values:
    steps = [step for step in report["steps"] if step["name"] == name]
    return steps[0].get("values", {}) if steps else {}


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
