"""Reads of a GPU's numbers, put together so that the host seldom waits.

The host launches a GPU's work ahead of time. Before it can read a number of the GPU it must wait
until all launched work is done, and then the GPU waits for the host. So every number that the host
needs is asked for as early as possible and read as late as possible, many at a time.
"""

from collections.abc import Callable, Sequence
from threading import local
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor


def reads_are_free(device: torch.device) -> bool:
    """Whether the host may read numbers of this device without waiting: those of a CPU."""
    return device.type == "cpu"


class Numbers:
    """Integers or truth values that the host needs.

    >>> Numbers(torch.tensor(3), torch.tensor([[True, False]])).read()
    [3, [[True, False]]]

    Args:
        parts: tensors of integers or of truth values, on one device.
    """

    def __init__(self, *parts: Tensor) -> None:
        self._parts = parts
        self._values: list[Any] | None = None
        if not all(reads_are_free(part.device) for part in parts):
            _asked().add(self)

    def read(self) -> list[Any]:
        """A number, or nested lists of numbers, for each part.

        A GPU's numbers are copied with all others that this thread has asked for, in one wait.
        """
        if self._values is None:
            asked = list(_asked()) if self in _asked() else [self]
            _asked().clear()
            _copy(asked)
        assert self._values is not None
        return self._values


_thread = local()


def _asked() -> WeakSet[Numbers]:
    """What this thread has asked for and not read; numbers that nobody waits for leave it."""
    if not hasattr(_thread, "asked"):
        _thread.asked = WeakSet()
    return _thread.asked


def _copy(asked: Sequence[Numbers]) -> None:
    parts = [part for numbers in asked for part in numbers._parts]
    if not all(reads_are_free(part.device) for part in parts):
        joined = torch.cat([part.reshape(-1).long() for part in parts]).cpu()
        copied = joined.split([part.numel() for part in parts])
        parts = [c.to(p.dtype).reshape(p.shape) for c, p in zip(copied, parts, strict=True)]
    on_host = iter(parts)
    for numbers in asked:
        numbers._values = [next(on_host).tolist() for _ in numbers._parts]
        numbers._parts = ()


def ask_rows(*masks: Tensor) -> Callable[[], list[Tensor]]:
    """A function that returns the ascending rows of each [N] mask.

    On a GPU the host waits when it is called, not now; see ``Numbers``.
    """
    if all(reads_are_free(mask.device) for mask in masks):
        return lambda: [torch.where(mask)[0] for mask in masks]
    counts = Numbers(*(mask.sum() for mask in masks))
    return lambda: [
        rows_where(mask, count) for mask, count in zip(masks, counts.read(), strict=True)
    ]


def rows_where(mask: Tensor, count: int) -> Tensor:
    """[count] ascending rows of an [N] mask that holds ``count`` times; a GPU's host goes on."""
    if reads_are_free(mask.device):
        return torch.where(mask)[0]
    return torch.nonzero_static(mask, size=count)[:, 0]
