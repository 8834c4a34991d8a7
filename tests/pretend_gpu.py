"""Tensors that say they are on a GPU while their numbers lie in host memory.

Under ``pretend_gpu()`` the code takes the paths that it takes on a GPU, computes real numbers, and
every operation that would make the host wait for the device is noted with its place.
"""

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_map_only

GPU = torch.device("cuda", 0)
ROOT = Path(__file__).parent.parent
PACKAGES = ("frcnn", "samplers")
# Methods with which the host reads a number.
READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "equal"}
# Operations whose result has a size that depends on numbers, or whose kernel reads a number.
SIZED = {
    "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "nms",
    "repeat_interleave",
}  # fmt: skip


class OnGpu(Tensor):
    """A tensor that says it is on a GPU."""

    @property
    def device(self) -> torch.device:
        return GPU

    @property
    def is_cuda(self) -> bool:
        return True


def to_gpu(value: Any) -> Any:
    """The tensors of a value as tensors on the pretended GPU."""
    return tree_map_only(Tensor, lambda tensor: tensor.as_subclass(OnGpu), value)


def to_host(value: Any) -> Any:
    """The tensors of a value as what they are."""
    return tree_map_only(Tensor, lambda tensor: tensor.as_subclass(Tensor), value)


@contextmanager
def pretend_gpu() -> Iterator[Counter[str]]:
    """Counts the waits of the code inside by "file:line operation"."""
    waits: Counter[str] = Counter()

    def note(operation: str) -> None:
        waits[f"{_place()} {operation}"] += 1

    # torch has no generator of a GPU that is not there; its draws go to the host's.
    generator = mock.patch("torch.Generator", lambda device=None: HOST_GENERATOR())
    with generator, _Functions(note), _Operations(note):
        yield waits


HOST_GENERATOR = torch.Generator


class _Functions(TorchFunctionMode):
    """Notes copies between host and GPU and reads; makes what is asked for on the GPU."""

    def __init__(self, note: Any) -> None:
        super().__init__()
        self.note = note

    def __torch_function__(self, function, types, args=(), kwargs=None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        on_gpu = bool(args) and isinstance(args[0], OnGpu)
        if name == "to":
            return self._copy(on_gpu, args, kwargs)
        if name in READS and on_gpu:
            self.note(name)
            return to_host(function(*to_host(args), **kwargs))
        if not _is_gpu(kwargs.get("device")):
            return function(*args, **kwargs)
        if name in ("tensor", "as_tensor"):  # made on the host, then copied
            self.note(name)
        return to_gpu(function(*to_host(args), **(kwargs | {"device": "cpu"})))

    def _copy(self, on_gpu: bool, args: tuple, kwargs: dict) -> Tensor:
        wanted = [*args[1:], *kwargs.values()]
        devices = [x.device if isinstance(x, Tensor) else x for x in wanted if _names_device(x)]
        goes_to_gpu = any(map(_is_gpu, devices)) if devices else on_gpu
        if goes_to_gpu != on_gpu and not (goes_to_gpu and kwargs.get("non_blocking")):
            self.note("to")
        dtypes = [x.dtype if isinstance(x, Tensor) else x for x in wanted if _names_dtype(x)]
        moved = to_host(args[0])
        for dtype in dtypes:
            moved = moved.to(dtype)
        return to_gpu(moved) if goes_to_gpu else moved


class _Operations(TorchDispatchMode):
    """Notes operations on tensors of the GPU that cannot be launched without waiting."""

    def __init__(self, note: Any) -> None:
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None) -> Any:
        name = operation._schema.name.split("::")[1]
        # A backward pass hands over bare tensors.
        backward = torch._C._current_graph_task_id() != -1
        if backward or tree_any(lambda value: isinstance(value, OnGpu), args):
            sized = name in SIZED and not (kwargs or {}).get("output_size")
            if sized or _has_mask(name, args):
                self.note(name)
        return operation(*args, **(kwargs or {}))


def _has_mask(name: str, args: tuple) -> bool:
    """Whether an index is a mask, which becomes row numbers first; a fill needs none."""
    if name not in ("index", "index_put", "index_put_", "_unsafe_index"):
        return False
    masks = any(index is not None and index.dtype == torch.bool for index in args[1])
    return masks and not (name.startswith("index_put") and args[2].numel() == 1)


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _names_device(value: Any) -> bool:
    return isinstance(value, torch.device | str | Tensor)


def _names_dtype(value: Any) -> bool:
    return isinstance(value, torch.dtype | Tensor)


def _place() -> str:
    """File and line of the project's innermost code, or torchvision's that it calls."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES:
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "elsewhere"
