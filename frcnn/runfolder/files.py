"""A run's files: each one whole, old or new, and all of them one process's."""

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
    """A file to write, which takes the place of ``path`` when the block is done.

    It is on the disk before it has its name, so that whatever ends the program or the machine
    leaves the old file or the new one.

    Raises:
        UserError: the folder cannot be written or the disk is full; the old file is as it was.
    """
    part = path.with_name(path.name + ".part")
    handled = sys.exception()  # of the caller's: no part of what goes wrong here
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_names(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer has a RuntimeError for a full disk
        _raise_signal_in(error, handled)
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a small file as ``atomic_write`` does."""
    with atomic_write(path) as file:
        file.write(text.encode())


def cannot_write(path: Path, error: Exception) -> UserError:
    """The one line that names the file, and the system's reason."""
    reason: BaseException | None = error
    while reason is not None and not isinstance(reason, OSError):  # torch buries it
        reason = reason.__context__
    return UserError(f"{path}: cannot be written ({getattr(reason, 'strerror', None) or error})")


def _raise_signal_in(error: BaseException | None, handled: BaseException | None) -> None:
    """Raise what ended a write if it was a signal: torch's writer makes an error of its own of it.

    Args:
        handled: where the chain of errors ends that belong to this write.
    """
    while error is not None and error is not handled:
        if not isinstance(error, Exception):
            raise error
        error = error.__context__


def sync_names(folder: Path) -> None:
    """Have the names of a folder's files on the disk, where the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every file system syncs folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder until the block ends or this process dies.

    A POSIX lock: the kernel drops it with the process, also after kill -9, and data workers do
    not inherit it.

    Raises:
        UserError: another process has it, or the folder cannot be written.
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
