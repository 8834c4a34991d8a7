"""Atomic writes, and an exclusive lock per run folder."""

import fcntl
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from frcnn.errors import UserError

log = logging.getLogger(__name__)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which replaces ``path`` when the block ends without an error.

    It is synced to the disk before it gets its name. So the old file or the new one is there,
    whatever ends the program or the machine.

    Raises:
        UserError: the folder cannot be written or the disk is full; the old file is as it was.
    """
    part = path.with_name(path.name + ".part")
    handled = sys.exception()  # the caller's, which this write did not cause
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_names(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError for a full disk
        _raise_signal_in(error, handled)
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def cannot_write(path: Path, error: Exception) -> UserError:
    """An error of one line that names the file and the system's reason."""
    reason: BaseException | None = error
    # torch raises its own error while it handles the OSError.
    while reason is not None and not isinstance(reason, OSError):
        reason = reason.__context__
    return UserError(f"{path}: cannot be written ({getattr(reason, 'strerror', None) or error})")


def _raise_signal_in(error: BaseException | None, handled: BaseException | None) -> None:
    """Raise the exception of a signal that ended a write; torch's writer hides it in an error.

    Args:
        handled: where to stop in the chain of contexts; it and all before it are the caller's.
    """
    while error is not None and error is not handled:
        if not isinstance(error, Exception):
            raise error
        error = error.__context__


def sync_names(folder: Path) -> None:
    """Sync the names of a folder's files to the disk, if the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system syncs folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a run's folder until the block ends or this process dies.

    It is a POSIX lock: the kernel releases it when the process ends, also after kill -9, and data
    workers do not inherit it.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115 (closed below; closing it early would unlock)
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        _lock(file.fileno(), folder)
        try:
            os.ftruncate(file.fileno(), 0)
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        except OSError as error:
            raise cannot_write(path, error) from error
        yield


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        owner = (folder / ".lock").read_text().strip() or "another process"
        raise UserError(
            f"{folder}: in use by process {owner}; wait for it, or give this run another run_name"
        ) from None
    except OSError as error:
        log.warning("%s: no locks here (%s); start no second run in it", folder, error.strerror)
