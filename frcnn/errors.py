"""What goes wrong on the user's side."""

import re

MAX_LENGTH = 1000  # characters of a message
DIVERGED = "not finite at step"  # in the message of a run whose loss was


def printable(text: str) -> str:
    """Text as one line for a terminal or a log: file names and ids are other people's.

    What is not printable (line ends, control sequences, halves of surrogates) is shown escaped.
    """
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if len(shown) <= MAX_LENGTH:
        return shown
    # The reason stands at the end.
    return f"{shown[: MAX_LENGTH // 2]} ... {shown[-MAX_LENGTH // 2 :]}"


class UserError(Exception):
    """A problem the user can solve; its message is one clear line that says how.

    Entry points print the message without a traceback and exit with ``exit_code``.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        # torch's loader raises a worker's error anew with the worker's traceback as its message.
        worker = re.search(r"\nfrcnn\.errors\.\w+: (.+)\s*\Z", message)
        super().__init__(printable(worker[1] if worker else message))
        if worker:
            self.add_note(message)  # for the traceback file


class ConfigError(UserError):
    """A configuration that cannot be used: unknown key, wrong type, value out of range."""

    exit_code = 2


class NoSplitError(UserError):
    """The data set does not have the split that was asked for."""

    def __init__(self, place: object, split: str) -> None:
        super().__init__(
            f"{place}: has no {split} split; data.val_fraction=0.2 cuts one from the training split"
        )
