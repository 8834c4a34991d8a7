"""Data workers: which image each one reads, so that one that fails can be named; their signals."""

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


class Watched(Dataset):
    """A data set whose failures name the image.

    Args:
        dataset: has ``describe(index) -> str`` for the message; its keys are indices or
            (epoch, index).
        workers: processes that will read it.
    """

    def __init__(self, dataset: Any, workers: int) -> None:
        self.dataset = dataset
        # (process, image) of each worker, for when it can say nothing any more.
        self.reading = torch.zeros(workers, 2, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        """The data set's own item.

        Raises:
            UserError: it cannot be had, for whatever reason.
        """
        index = key[1] if isinstance(key, tuple) else key
        worker = get_worker_info()
        if worker is not None:
            self.reading[worker.id] = torch.tensor([os.getpid(), index])
        try:
            return self.dataset[key]
        except UserError:
            raise
        except Exception as error:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"{self.dataset.describe(index)}: {what}") from error

    def read_by(self, processes: list[int]) -> list[str]:
        """The images that these processes had begun."""
        rows = [row for row in self.reading.tolist() if row[0] in processes]
        return [self.dataset.describe(index) for _, index in rows]


class Loader(DataLoader):
    """A loader whose workers leave SIGTERM and Ctrl-C to the main process."""

    def __iter__(self) -> Any:
        with block_signals():
            return super().__iter__()


def start_worker(_: int) -> None:
    """In a new worker: of the SIGTERMs, which it does not hear, heed the main process's."""
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        threading.Thread(target=_heed_parent, daemon=True).start()


def _heed_parent() -> None:
    # torch ends a worker that hangs by SIGTERM, and the interpreter's exit would wait for it.
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


@contextmanager
def dead_workers_named(*loaders: DataLoader) -> Iterator[None]:
    """Turn torch's error for a worker that died, which it raises anywhere, into a UserError."""
    try:
        yield
    except RuntimeError as error:
        text = f"{error} {error.__cause__ or ''}"
        found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", text)
        if found is None:
            raise
        how = re.search(r"killed by signal: [^.]+|exit code \d+", text)
        pids = [int(pid) for pid in found[1].split(",")]
        images = [image for loader in loaders for image in _watched(loader).read_by(pids)]
        raise UserError(
            f"{', '.join(images) or 'before any image'}: a data worker died while it read this "
            f"({how[0] if how else 'no signal'}); if memory ran out, take fewer trainer.workers"
        ) from error


def _watched(loader: DataLoader) -> Watched:
    assert isinstance(loader.dataset, Watched)
    return loader.dataset
