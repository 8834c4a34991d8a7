"""How a run ended: ``status.json`` in its folder, and ``traceback.txt`` where it failed."""

import json
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from frcnn.errors import ConfigError, UserError
from frcnn.runfolder.files import write_text

STATUS, TRACEBACK, SUMMARY = "status.json", "traceback.txt", "summary.json"


@contextmanager
def record_status(folder: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Write RUNNING, then COMPLETED, FAILED or INTERRUPTED, and the overrides of the command.

    If the command is refused, or ends before it changes a finished run, the old record is restored.
    A run that is killed stays RUNNING, but no process holds the lock of its folder.
    """
    before = _texts(folder)
    try:
        write_status(folder, "RUNNING", overrides)
        (folder / TRACEBACK).unlink(missing_ok=True)
        yield
    except BaseException as error:
        with suppress(UserError):  # a full disk must not change how the process ends
            if _left_run_unchanged(error, before, _texts(folder)):
                _restore(folder, before)
            else:
                _write_end(folder, overrides, error)
        raise
    write_status(folder, "COMPLETED", overrides)


def write_status(
    folder: Path, status: str, overrides: Sequence[str], error: str | None = None
) -> None:
    """Write ``status.json``; a reader never finds half of it."""
    record = {"status": status, "overrides": list(overrides), "error": error}
    write_text(folder / STATUS, json.dumps(record, indent=2) + "\n")


def _texts(folder: Path) -> dict[str, str]:
    """The content of the files that say how the folder's run ended, by name."""
    names = (STATUS, TRACEBACK, SUMMARY)
    return {name: (folder / name).read_text() for name in names if (folder / name).exists()}


def _left_run_unchanged(error: BaseException, before: dict[str, str], now: dict[str, str]) -> bool:
    """Whether the folder held a run before this command, and the command did not change it."""
    if STATUS not in before:
        return False
    if isinstance(error, ConfigError):  # refused
        return True
    completed = '"status": "COMPLETED"' in before[STATUS]
    # A finished run that goes on removes its summary, and writes another one at its end.
    return completed and SUMMARY in before and before[SUMMARY] == now.get(SUMMARY)


def _restore(folder: Path, before: dict[str, str]) -> None:
    for name in before.keys() & {STATUS, TRACEBACK}:
        write_text(folder / name, before[name])


def _write_end(folder: Path, overrides: Sequence[str], error: BaseException) -> None:
    """FAILED with a traceback for an error; INTERRUPTED for what else ends a process."""
    if not isinstance(error, Exception):
        write_status(folder, "INTERRUPTED", overrides)
        return
    write_status(folder, "FAILED", overrides, f"{type(error).__name__}: {error}")
    write_text(folder / TRACEBACK, "".join(traceback.format_exception(error)))
