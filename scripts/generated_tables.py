"""Tables in the documentation that scripts write."""


def filled(page: str, name: str, table: str) -> str:
    """Return the text of a page with a new table.

    The table is between the lines `<!-- begin NAME -->` and `<!-- end NAME -->`.
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->\n"
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{table}\n{end}{after}"
