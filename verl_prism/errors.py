"""What ends a stage otherwise than by its last step."""


class UserError(Exception):
    """A mistake in a config, a data file or a command; the message names the place and how to mend it."""


class EndedEarly(Exception):
    """The stage was asked to end, and has saved the step that it was at."""

    def __init__(self, step: int):
        super().__init__(step)
        self.step = step
