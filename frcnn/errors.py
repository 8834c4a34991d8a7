"""What goes wrong on the user's side."""


class UserError(Exception):
    """A problem the user can solve; its message is one clear line that says how.

    Entry points print the message without a traceback and exit with ``exit_code``.
    """

    exit_code = 1


class ConfigError(UserError):
    """A configuration that cannot be used: unknown key, wrong type, value out of range."""

    exit_code = 2
