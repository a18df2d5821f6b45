"""The one exception that stands for a mistake of the user."""


class UserError(Exception):
    """A mistake in a config, a data file or a command; the message names the place and how to mend it."""
