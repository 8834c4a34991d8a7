"""What the host reads of a GPU, as seldom as possible.

The host launches a GPU's work ahead of time. Before it can read a number of the GPU it must wait
until all launched work is done, and then the GPU waits for the host. So every number that the host
needs is asked for as early as possible and read as late as possible, many at a time.
"""

from collections.abc import Callable
from threading import local
from typing import Any

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
            _asked().append(self)

    def read(self) -> list[Any]:
        """A number, or nested lists of numbers, for each part.

        The first read copies everything that this thread has asked for by then, in one wait.
        """
        if self._values is None and self in _asked():
            _copy_all(_asked())
        elif self._values is None:
            self._values = [part.tolist() for part in self._parts]
        assert self._values is not None
        return self._values


_thread = local()


def _asked() -> list[Numbers]:
    """What this thread has asked for and not read."""
    if not hasattr(_thread, "asked"):
        _thread.asked = []
    return _thread.asked


def _copy_all(asked: list[Numbers]) -> None:
    parts = [part for numbers in asked for part in numbers._parts]
    copied = torch.cat([part.reshape(-1).long() for part in parts]).cpu()
    on_host = iter(copied.split([part.numel() for part in parts]))
    for numbers in asked:
        numbers._values = [
            next(on_host).to(part.dtype).reshape(part.shape).tolist() for part in numbers._parts
        ]
        numbers._parts = ()
    asked.clear()


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
    return torch.nonzero_static(mask, size=count)[:, 0]
