"""Write the table of our config keys and verl's into docs/configuration.md.

python scripts/config_table.py
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from generated_tables import filled

from verl_prism.config import flatten

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"
STAGES_OF_FILE = {  # a later file replaces keys of an earlier one
    "verl/sft.yaml": ("sft", "dpo"),
    "stage/dpo.yaml": ("dpo",),
    "verl/ppo.yaml": ("align", "rlvr"),
    "stage/align.yaml": ("align",),
    "stage/rlvr.yaml": ("rlvr",),
}
INTERPOLATION = re.compile(r"\$\{(prism\.[\w.]+)\}")

Row = tuple[str, str]


def table() -> str:
    """Return one row per pair of our key and a key of verl that is set from it, with its stages."""
    owners: dict[tuple[str, str], list[str]] = {}  # (verl's key, stage): our keys
    for name, names in STAGES_OF_FILE.items():
        text = (ROOT / "trainer_configs" / name).read_text(encoding="utf-8")
        for stage in names:
            owners |= {(verls, stage): ours for verls, ours in owned(yaml.safe_load(text))}
    stages: dict[Row, list[str]] = defaultdict(list)
    for (verls, stage), ours in owners.items():
        for key in ours:
            stages[key, verls].append(stage)
    lines = ["| our key | verl's key | stages |", "|---|---|---|"]
    for (ours, verls), names in sorted(stages.items()):
        lines.append(f"| `{ours}` | `{verls}` | {', '.join(names)} |")
    return "\n".join(lines) + "\n"


def owned(config: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield each key of verl whose value is interpolated from `prism`, with our keys in it."""
    for key, value in flatten(config):
        if isinstance(value, str) and not key.startswith(("prism.", "defaults")):
            ours = INTERPOLATION.findall(value)
            if ours:
                yield key, ours


def page() -> str:
    """Return the text of docs/configuration.md with a table that is up to date."""
    return filled(PAGE.read_text(encoding="utf-8"), "table", table())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
