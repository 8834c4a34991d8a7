"""The machine's limit: a step's convolutions and matrix products alone.

They are recorded while a step of ours runs, forward and backward, and repeated alone on random
numbers of the same shape, layout and type, with the vendor's kernels. The time of the step beyond
that is what can still be gained without fewer products.
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
    """A tensor without its numbers; hashable, so that equal layouts share one memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> "Layout":
        """The layout of a dense tensor."""
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device)

    def random(self) -> Tensor:
        """A tensor of normal numbers with this layout; elements may share memory (stride 0)."""
        last = sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        memory = torch.randn(last + 1, device=self.device).to(self.dtype)
        return memory.as_strided(self.shape, self.stride)


class Recorder(TorchDispatchMode):
    """A context that records every convolution and matrix product: (operator, arguments).

    Tensors among the arguments are recorded as their ``Layout``, all others (stride, padding, the
    wanted gradients) as they are.
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
    """Repeats the recorded calls in their order, on random numbers."""

    def __init__(self, recorder: Recorder) -> None:
        # Not by pytree: it would look into a Layout, which is a tuple.
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
        """Repeat all calls; results are dropped at once."""
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
