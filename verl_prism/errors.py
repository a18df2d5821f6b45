"""Exceptions that end a stage before its last step, and the file of an unexpected one."""

import tempfile


class UserError(Exception):
    """A mistake in a config, a data file or a command. The message names the place and the fix."""


class EndedEarly(Exception):
    """The stage was asked to end, and has saved the step that it had reached."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


def write_traceback(text: str) -> str:
    """Write the traceback of an unexpected error to a file, and return its path."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="verl_prism-", suffix=".log", encoding="utf-8", delete=False
    ) as file:
        file.write(text)
    return file.name
