"""The machine's limit: a step's convolutions and matrix products, and nothing else.

What a step must compute on any machine is in its convolutions and matrix products, whose kernels
are as good as the vendor made them. They are recorded while a step runs, forward and backward, and
repeated alone on random numbers of the same shape, layout and type. A step can come near that
time; what it takes beyond is what there is left to gain.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
PRODUCTS = {
    aten.convolution, aten._convolution, aten.convolution_backward,
    aten.mm, aten.addmm, aten.bmm, aten.baddbmm,
}  # fmt: skip


class Layout(NamedTuple):
    """All of a tensor but its numbers; hashable, so that equal ones share their memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> "Layout":
        """The layout of a dense tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)

    def random(self) -> Tensor:
        """A tensor of normal numbers laid out so, also where elements share memory (stride 0)."""
        last = sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        memory = torch.randn(last + 1, device=self.device).to(self.dtype)
        return memory.as_strided(self.shape, self.stride)


class Recorder(TorchDispatchMode):
    """Within it, every convolution and matrix product is kept: (operator, arguments).

    Tensors among the arguments are kept as their ``Layout``; what else there is (stride, padding,
    which gradients are wanted) stays as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], tuple, dict[str, Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in PRODUCTS:
            self.calls.append((func, *tree_map_only(Tensor, Layout.of, (args, kwargs))))
        return func(*args, **kwargs)


class Replay:
    """The recorded calls, ready to be repeated on random numbers, in their order."""

    def __init__(self, recorder: Recorder) -> None:
        # Layout is a tuple itself, so pytrees would look into it.
        self.memory: dict[Layout, Tensor] = {}
        self.calls = [
            (func, [self._filled(a) for a in args], {k: self._filled(v) for k, v in kwargs.items()})
            for func, args, kwargs in recorder.calls
        ]

    def _filled(self, value: Any) -> Any:
        if not isinstance(value, Layout):
            return value
        if value not in self.memory:
            self.memory[value] = value.random()
        return self.memory[value]

    def __call__(self) -> None:
        """Repeat them all; results are dropped at once."""
        with torch.no_grad():
            for func, args, kwargs in self.calls:
                func(*args, **kwargs)

    def flops(self) -> int:
        """Floating-point operations of one repetition, a multiply-add as two."""
        with FlopCounterMode(display=False) as counter:
            self()
        return counter.get_total_flops()


def recorded(step: Callable[[], object]) -> Replay:
    """The convolutions and matrix products of one call of ``step``."""
    with Recorder() as recorder:
        step()
    return Replay(recorder)
