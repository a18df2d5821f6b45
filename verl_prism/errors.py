"""Exceptions that end a stage before its last step."""


class UserError(Exception):
    """A mistake in a config, a data file or a command. The message names the place and the fix."""


class EndedEarly(Exception):
    """The stage was asked to end, and has saved the step that it had reached."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step
