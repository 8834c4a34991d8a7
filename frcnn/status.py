"""How a run ended: ``status.json`` in its folder, and the traceback where it failed."""

import json
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from frcnn.errors import ConfigError


@contextmanager
def recorded(folder: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Write RUNNING, then COMPLETED, FAILED or INTERRUPTED, with what was asked for."""
    file = folder / "status.json"
    before = file.read_text() if file.exists() else None
    write(folder, "RUNNING", overrides)
    (folder / "traceback.txt").unlink(missing_ok=True)
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        write(folder, "INTERRUPTED", overrides)
        raise
    except Exception as error:
        if isinstance(error, ConfigError) and before is not None:
            # A command that is refused says nothing of the run that the folder holds.
            file.write_text(before)
            raise
        write(folder, "FAILED", overrides, f"{type(error).__name__}: {error}")
        (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)))
        raise
    write(folder, "COMPLETED", overrides)


def write(folder: Path, status: str, overrides: Sequence[str], error: str | None = None) -> None:
    """One status file; a reader never finds half of it."""
    record = {"status": status, "overrides": list(overrides), "error": error}
    part = folder / "status.json.part"
    part.write_text(json.dumps(record, indent=2) + "\n")
    part.replace(folder / "status.json")
