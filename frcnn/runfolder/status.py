"""How a run ended: ``status.json`` in its folder, and the traceback where it failed."""

import json
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from frcnn.errors import ConfigError, UserError
from frcnn.runfolder.files import write_text


@contextmanager
def record_status(folder: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Write RUNNING, then COMPLETED, FAILED or INTERRUPTED, with what was asked for.

    A command that is refused says nothing of the run that the folder holds, nor does whatever ends
    one before a finished run went on: the record stays that of the run.
    A run that was killed stays RUNNING, and nobody holds its folder's lock.
    """
    status, trace = folder / "status.json", folder / "traceback.txt"
    before = {file: file.read_text() for file in (status, trace) if file.exists()}
    completed = '"status": "COMPLETED"' in before.get(status, "")
    summary = _summary(folder)
    try:
        write_status(folder, "RUNNING", overrides)
        trace.unlink(missing_ok=True)
        yield
    except BaseException as error:
        refused = isinstance(error, ConfigError) and status in before
        # A run that goes on removes its summary, and writes another one at its end.
        untouched = completed and summary is not None and summary == _summary(folder)
        with suppress(UserError):  # a full disk must not change how the process ends
            if refused or untouched:
                for file, text in before.items():
                    write_text(file, text)
            elif isinstance(error, Exception):
                write_status(folder, "FAILED", overrides, f"{type(error).__name__}: {error}")
                write_text(trace, "".join(traceback.format_exception(error)))
            else:
                write_status(folder, "INTERRUPTED", overrides)
        raise
    write_status(folder, "COMPLETED", overrides)


def write_status(
    folder: Path, status: str, overrides: Sequence[str], error: str | None = None
) -> None:
    """One status file; a reader never finds half of it."""
    record = {"status": status, "overrides": list(overrides), "error": error}
    write_text(folder / "status.json", json.dumps(record, indent=2) + "\n")


def _summary(folder: Path) -> str | None:
    file = folder / "summary.json"
    return file.read_text() if file.exists() else None
