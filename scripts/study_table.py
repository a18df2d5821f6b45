"""Write the table of the study into README.md, from the results of its seeds.

python scripts/study_table.py
"""

import sys
from pathlib import Path

from generated_tables import filled

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "examples" / "digits"
PAGE = ROOT / "README.md"

sys.path.insert(0, str(DIGITS))

from study_report import read_seeds, short_markdown  # noqa: E402 (found through the path above)


def page() -> str:
    """Return the text of README.md with a table that is up to date."""
    return filled(PAGE, "study", short_markdown(read_seeds(DIGITS / "study")))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
