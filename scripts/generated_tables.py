"""Tables in the documentation that scripts write."""

from pathlib import Path


def filled(page: Path, name: str, table: str) -> str:
    """Return the text of a page with a new table.

    The table is between the lines `<!-- begin NAME -->` and `<!-- end NAME -->`.
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{table}\n{end}{after}"
