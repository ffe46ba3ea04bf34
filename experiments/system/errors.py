"""The errors that a command tells in one line."""


class UserError(Exception):
    """A mistake in what the user asked for; its message says what to do."""
