"""``trainer.accumulate``: the batches of one optimizer step train as so many processes would.

The terms of a batch are its share of the step's terms, so a batch has to know numbers of the others
before its own backward pass. A first pass over the batches, without gradient, collects them; the
pass with gradient then looks them up. With ``accumulate_stats="batch"`` these numbers are what the
normalizers count. With "step" they are also the statistics that losses and samplers take over a
batch (densities, ranks).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Condition
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frcnn.parallel.group import SingleProcess

AccumulateStats = Literal["batch", "step"]
# A forward pass over one batch of the step, whose sites are given these "processes".
Forward = Callable[[SingleProcess], Any]


def shared(
    forwards: Sequence[Forward], detector: nn.Module, processes: SingleProcess, stats: str
) -> Iterator[SingleProcess]:
    """For each batch of a step, the ``processes`` of its sites in the pass with gradient.

    Args:
        forwards: a forward pass over each batch. It must draw the same random numbers each time.
        detector: its buffers (BatchNorm, states of methods) do not change in the first pass.
        processes: those that share each batch.
        stats: "batch" or "step". With "step" the methods' states move once per step.
    """
    if len(forwards) == 1:
        yield processes
    elif stats == "batch":
        yield from _shared_counts(forwards, detector, processes)
    else:
        yield from _shared_statistics(forwards, detector, processes)


def _shared_counts(
    forwards: Sequence[Forward], detector: nn.Module, processes: SingleProcess
) -> Iterator[SingleProcess]:
    buffers = Buffers(detector)
    parts = [Counting(processes) for _ in forwards]
    with torch.no_grad():
        for forward, part in zip(forwards, parts, strict=True):
            forward(part)
    buffers.restore()
    counts = zip(*(part.counts for part in parts), strict=True)
    totals = [processes.step_total(torch.stack(values).sum(0)) for values in counts]
    for _ in forwards:
        yield Counted(processes, totals)


def _shared_statistics(
    forwards: Sequence[Forward], detector: nn.Module, processes: SingleProcess
) -> Iterator[SingleProcess]:
    buffers, states = Buffers(detector), Buffers(detector.get_submodule("sites"))
    lockstep = Lockstep(len(forwards), detector, processes)
    lockstep.run(forwards)
    buffers.restore()
    for number in range(len(forwards)):
        states.restore()  # each batch starts from the same states and moves them to the same ones
        yield Replay(lockstep.results, number, len(forwards))


class Counting(SingleProcess):
    """First pass, "batch": notes the counts of one batch."""

    def __init__(self, processes: SingleProcess) -> None:
        self.total, self.gather = processes.total, processes.gather  # type: ignore[method-assign]
        self.counts: list[Tensor] = []

    def step_total(self, count: Tensor) -> Tensor:
        """The batch's own count: the others' are not known yet."""
        self.counts.append(count)
        return count


class Counted(SingleProcess):
    """Second pass, "batch": knows the step's counts, in the order in which they are asked for."""

    def __init__(self, processes: SingleProcess, totals: Sequence[Tensor]) -> None:
        self.total, self.gather = processes.total, processes.gather  # type: ignore[method-assign]
        self.totals = iter(totals)

    def step_total(self, count: Tensor) -> Tensor:
        """The count over the step."""
        return next(self.totals)


class Lockstep(SingleProcess):
    """First pass, "step": runs the batches in threads that exchange numbers.

    One thread runs at a time, from one exchange to the next, in the order of the batches. So all
    random numbers and all messages to other processes have a fixed order.

    Attributes:
        results: of each exchange: the total, or the gathered rows with each batch's slice.
    """

    def __init__(self, batches: int, detector: nn.Module, processes: SingleProcess) -> None:
        self.processes = processes
        self.detector = detector
        self.results: list[Any] = []
        self._values: list[Tensor] = [torch.empty(0)] * batches
        self._turn = 0
        self._failed = False
        self._changed = Condition()

    def run(self, forwards: Sequence[Forward]) -> None:
        """Run all forward passes to their ends; the first error ends all."""
        start = Context(self.detector)
        with ThreadPoolExecutor(len(forwards)) as pool:
            work = [
                pool.submit(self._thread, number, forward, start)
                for number, forward in enumerate(forwards)
            ]
        for future in work:
            error = future.exception()
            if error is not None and not isinstance(error, Ended):
                raise error

    def total(self, value: Tensor) -> Tensor:
        """Sum over the batches of the step and over the processes; no gradient in this pass."""
        return self._exchange(value, self._sum)

    def step_total(self, count: Tensor) -> Tensor:
        """The same: every number is the step's."""
        return self.total(count)

    def gather(self, rows: Tensor) -> tuple[Tensor, slice]:
        """The rows of all batches and processes, and which of them are of this batch."""
        number = self._turn
        table, slices = self._exchange(rows, self._stack)
        return table, slices[number]

    def _sum(self, values: Sequence[Tensor]) -> Tensor:
        return self.processes.total(torch.stack(list(values)).sum(0))

    def _stack(self, values: Sequence[Tensor]) -> tuple[Tensor, list[slice]]:
        table, own = self.processes.gather(torch.cat(list(values)))
        slices, first = [], own.start
        for rows in values:
            slices.append(slice(first, first := first + len(rows)))
        return table, slices

    def _exchange(self, value: Tensor, combine: Callable[[Sequence[Tensor]], Any]) -> Any:
        number = self._turn
        self._values[number] = value
        context = Context(self.detector)
        self._give_turn()
        self._wait_for_turn(number)
        context.restore()
        if number == 0:  # the turn has been once around: the values of all batches are there
            self.results.append(combine(self._values))
        return self.results[-1]

    def _thread(self, number: int, forward: Forward, start: "Context") -> None:
        try:
            self._wait_for_turn(number)
            start.restore()
            with torch.no_grad():
                forward(self)
        except BaseException:
            self._failed = True
            raise
        finally:
            self._give_turn()

    def _give_turn(self) -> None:
        with self._changed:
            self._turn = (self._turn + 1) % len(self._values)
            self._changed.notify_all()

    def _wait_for_turn(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turn == number or self._failed)
        if self._failed:
            raise Ended


class Ended(Exception):
    """Another batch of the step has failed."""


class Replay(SingleProcess):
    """Second pass, "step": one batch asks again for what the first pass exchanged.

    The gradient through a total is that of this batch's terms, times the number of batches: it
    stands for what the terms of the other batches would add.
    """

    def __init__(self, results: Sequence[Any], number: int, batches: int) -> None:
        self.results = iter(results)
        self.number = number
        self.batches = batches

    def total(self, value: Tensor) -> Tensor:
        """The total of the first pass."""
        total = next(self.results)
        if value.requires_grad:
            total = total + self.batches * (value - value.detach())
        return total

    def step_total(self, count: Tensor) -> Tensor:
        """The total of the first pass."""
        return self.total(count)

    def gather(self, rows: Tensor) -> tuple[Tensor, slice]:
        """The rows of the first pass."""
        table, slices = next(self.results)
        return table, slices[self.number]


class Buffers:
    """The values of a module's buffers at one moment."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.values = {name: buffer.clone() for name, buffer in module.named_buffers()}

    @torch.no_grad()
    def restore(self) -> None:
        """Give the buffers these values again."""
        for name, buffer in self.module.named_buffers():
            buffer.copy_(self.values[name])


class Context:
    """What a forward pass changes: buffers, and the states of torch's global generators."""

    def __init__(self, detector: nn.Module) -> None:
        self.buffers = Buffers(detector)
        self.cpu = torch.get_rng_state()
        device = next(detector.parameters()).device
        self.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self.device = device

    def restore(self) -> None:
        """Go on from here."""
        self.buffers.restore()
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)
