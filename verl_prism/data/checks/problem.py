"""A mistake in a row, before its place is known."""


class RowError(Exception):
    """What is wrong with a row and how to fix it; the message starts with the column."""
