"""Ways to run a network: without a graph, in eval mode, compiled."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn


@contextmanager
def no_graph(device: torch.device) -> Iterator[None]:
    """No gradient, and no entries in autocast's weight cache.

    Weights cast under ``no_grad`` must not enter that cache: the pass with gradient would use them,
    and they have no connection to the parameters.
    """
    kind = device.type
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    with torch.no_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
        yield


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Modules in eval mode, then back in the mode that each was in.

    In a preview BatchNorm's statistics must not move, and dropout must be off.
    """
    training = {module: module.training for root in modules for module in root.modules()}
    for root in modules:
        root.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def compile_methods(module: nn.Module, *names: str, **options: Any) -> None:
    """Put ``torch.compile`` around methods of one module; ``options`` are its own."""
    for name in names:
        # A partial function, and not the bound method: a copy of the module then calls its own.
        function = torch.compile(getattr(type(module), name), **options)
        setattr(module, name, partial(function, module))
