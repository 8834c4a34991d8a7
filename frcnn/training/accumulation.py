"""Several batches per optimizer step (``trainer.accumulate``).

The batches train as processes would: the terms of a batch are its share of the step's terms. So a
batch has to know numbers of the others before its own backward pass. A first pass over the batches,
without gradient, collects these numbers; then each batch is trained.

With ``accumulate_stats="batch"`` they are what the normalizers count. With "step" they are also the
statistics that losses and samplers take over a batch (densities, ranks).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Condition
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frcnn.errors import UserError
from frcnn.parallel.group import Exchange, SingleProcess

AccumulateStats = Literal["batch", "step"]
# A forward pass over one batch of the step, whose sites exchange numbers through the argument.
Forward = Callable[[Exchange], Any]
UNEQUAL = (
    "the batches of a step exchange different numbers of values: a sampler, loss, assigner or "
    "weigher must call total, step_total and gather equally often for every batch"
)


def exchanges(
    forwards: Sequence[Forward], detector: nn.Module, processes: SingleProcess, stats: str
) -> Iterator[Exchange]:
    """Yields, for each batch, the object through which its sites exchange numbers in training.

    Args:
        forwards: a forward pass over each batch. It must draw the same random numbers each time.
        detector: its buffers (BatchNorm, states of methods) do not change in the first pass.
        processes: those that share each batch.
        stats: "batch" or "step". With "step" the methods' states move once per step. With "batch"
            they move with every batch, except those of weighers.

    Raises:
        UserError: a method exchanges more numbers for one batch than for another.
    """
    if len(forwards) == 1:
        yield processes
    elif stats == "batch":
        yield from _shared_counts(forwards, detector, processes)
    else:
        yield from _shared_statistics(forwards, detector, processes)


def _shared_counts(
    forwards: Sequence[Forward], detector: nn.Module, processes: SingleProcess
) -> Iterator[Exchange]:
    buffers, states = Buffers(detector), Buffers(weighers(detector))
    parts = [CollectCounts(processes) for _ in forwards]
    with torch.no_grad():
        for forward, part in zip(forwards, parts, strict=True):
            forward(part)
    buffers.restore()
    if len({len(part.counts) for part in parts}) > 1:
        raise UserError(UNEQUAL)
    counts = zip(*(part.counts for part in parts), strict=True)
    totals = [processes.step_total(torch.stack(values).sum(0)) for values in counts]
    for _ in forwards:
        states.restore()  # what a weigher counts is the step's, the same for each batch
        yield KnownCounts(processes, totals)


def _shared_statistics(
    forwards: Sequence[Forward], detector: nn.Module, processes: SingleProcess
) -> Iterator[Exchange]:
    buffers, states = Buffers(detector), Buffers(detector.get_submodule("sites"))
    lockstep = Lockstep(len(forwards), detector, processes)
    lockstep.run(forwards)
    buffers.restore()
    shares = len(forwards) * processes.size
    for number in range(len(forwards)):
        states.restore()  # each batch starts from the same states and moves them to the same ones
        yield Replay(lockstep.results, number, shares)


def weighers(detector: nn.Module) -> nn.ModuleList:
    """The weighers of all sites that have a state or parameters."""
    found = [getattr(site, "weigher", None) for site in detector.get_submodule("sites").children()]
    return nn.ModuleList(weigher for weigher in found if isinstance(weigher, nn.Module))


class CollectCounts:
    """First pass, "batch": notes the counts of one batch."""

    def __init__(self, processes: SingleProcess) -> None:
        self.processes = processes
        self.counts: list[Tensor] = []

    def total(self, value: Tensor) -> Tensor:
        """Sum over the processes that share the batch."""
        return self.processes.total(value)

    def gather(self, rows: Tensor) -> tuple[Tensor, slice]:
        """Rows of the processes that share the batch."""
        return self.processes.gather(rows)

    def step_total(self, count: Tensor) -> Tensor:
        """The batch's own count: the others' are not known yet."""
        self.counts.append(count)
        return count


class KnownCounts(CollectCounts):
    """Second pass, "batch": knows the step's counts, in the order in which they are asked for."""

    def __init__(self, processes: SingleProcess, totals: Sequence[Tensor]) -> None:
        super().__init__(processes)
        self.totals = iter(totals)

    def step_total(self, count: Tensor) -> Tensor:
        """The count over the step."""
        return next(self.totals)


class Lockstep:
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
        self._made = [0] * batches  # exchanges of each batch
        self._ended_after: int | None = None  # exchanges of the first batch that has ended
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
            if error is not None and not isinstance(error, OtherBatchFailed):
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
        self._made[number] += 1
        context = Context(self.detector)
        self._check_equal(number)
        self._give_turn()
        self._wait_for_turn(number)
        self._check_equal(number)
        context.restore()
        if number == 0:  # the turn has been once around: the values of all batches are there
            self.results.append(combine(self._values))
        return self.results[-1]

    def _check_equal(self, number: int) -> None:
        """Raise UserError if a batch has ended before it made this exchange too."""
        if self._ended_after is not None and self._made[number] > self._ended_after:
            raise UserError(UNEQUAL)

    def _thread(self, number: int, forward: Forward, start: "Context") -> None:
        try:
            self._wait_for_turn(number)
            start.restore()
            with torch.no_grad():
                forward(self)
            if self._ended_after is None:
                self._ended_after = self._made[number]
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
            raise OtherBatchFailed


class OtherBatchFailed(Exception):
    """Ends the thread of a batch when another batch of the step has failed."""


class Replay:
    """Second pass, "step": one batch asks again for what the first pass exchanged.

    The gradient through a total is that of this batch's terms, times the number of shares: it
    stands for what the terms of the other batches and processes would add.
    """

    def __init__(self, results: Sequence[Any], number: int, shares: int) -> None:
        self.results = iter(results)
        self.number = number
        self.shares = shares

    def total(self, value: Tensor) -> Tensor:
        """The total of the first pass."""
        total = next(self.results)
        if value.requires_grad:
            total = total + self.shares * (value - value.detach())
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
