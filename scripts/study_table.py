"""Write the tables of the study into README.md and docs/measured.md, from the results of its seeds.

python scripts/study_table.py
"""

import sys
from pathlib import Path

from generated_tables import filled

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "examples" / "digits"

sys.path.insert(0, str(DIGITS))

from study_report import (  # noqa: E402 (found through the path above)
    measures_markdown,
    options_markdown,
    read_seeds,
    short_markdown,
)


def pages() -> dict[Path, str]:
    """Return the text of each page with tables that are up to date."""
    seeds = read_seeds(DIGITS / "study")
    readme = ROOT / "README.md"
    measured = ROOT / "docs" / "measured.md"
    options = filled(measured.read_text(encoding="utf-8"), "options", options_markdown(seeds))
    return {
        readme: filled(readme.read_text(encoding="utf-8"), "study", short_markdown(seeds)),
        measured: filled(options, "measures", measures_markdown(seeds)),
    }


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
