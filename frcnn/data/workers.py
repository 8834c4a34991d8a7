"""Data workers: errors name the image that was read, and the main process handles signals."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from frcnn.errors import UserError
from frcnn.runfolder.signals import block_signals


class TracedDataset(Dataset):
    """Wraps a data set so that an error names the image, also if a worker dies while it reads.

    Args:
        dataset: has ``describe(index) -> str`` for the message; its keys are indices or
            (epoch, index).
        workers: number of worker processes that will read it.
    """

    def __init__(self, dataset: Any, workers: int) -> None:
        self.dataset = dataset
        # Row w: (process id, index of the image that worker w reads), shared with the workers.
        self.current = torch.zeros(workers, 2, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        """The data set's own item.

        Raises:
            UserError: the item cannot be read, for any reason.
        """
        index = key[1] if isinstance(key, tuple) else key
        worker = get_worker_info()
        if worker is not None:
            self.current[worker.id] = torch.tensor([os.getpid(), index])
        try:
            return self.dataset[key]
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"{self.dataset.describe(index)}: {reason}") from error

    def images_of(self, processes: list[int]) -> list[str]:
        """The images that the workers with these process ids read last."""
        rows = [row for row in self.current.tolist() if row[0] in processes]
        return [self.dataset.describe(index) for _, index in rows]


class SignalSafeLoader(DataLoader):
    """A loader whose workers block SIGTERM, Ctrl-C and the like: the main process handles them."""

    def __iter__(self) -> Any:
        with block_signals():
            return super().__iter__()


def start_worker(_: int) -> None:
    """Make a new worker exit on SIGTERM from its parent, and on no other SIGTERM."""
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        threading.Thread(target=_exit_on_parent_sigterm, daemon=True).start()


def _exit_on_parent_sigterm() -> None:
    # torch ends a hanging worker with SIGTERM. If that stayed blocked, the exit of the main process
    # would wait for the worker.
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


@contextmanager
def name_dead_workers(*loaders: DataLoader) -> Iterator[None]:
    """Replace torch's error for a dead worker by a UserError that names the image.

    torch raises that error in a signal handler, so it can come from any line.
    """
    try:
        yield
    except RuntimeError as error:
        text = f"{error} {error.__cause__ or ''}"
        workers = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", text)
        if workers is None:
            raise
        cause = re.search(r"killed by signal: [^.]+|exit code \d+", text)
        pids = [int(pid) for pid in workers[1].split(",")]
        images = [image for loader in loaders for image in _dataset_of(loader).images_of(pids)]
        raise UserError(
            f"{', '.join(images) or 'before any image'}: a data worker died while it read this "
            f"({cause[0] if cause else 'no signal'}); if memory ran out, lower trainer.workers"
        ) from error


def _dataset_of(loader: DataLoader) -> TracedDataset:
    assert isinstance(loader.dataset, TracedDataset)
    return loader.dataset
