"""SIGTERM (a cluster's notice) and Ctrl-C: a run ends between two steps and can go on."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# SIGUSR1 is the warning that clusters can be asked for before their time is up.
EXTERNAL_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# What the process that watches several says to the first of them, which hears nothing else: a
# signal to all would reach it twice.
SAVE_REQUEST = signal.SIGUSR2
SIGNALS = (*EXTERNAL_SIGNALS, SAVE_REQUEST)

Handler = Callable[[int, FrameType | None], None]


class Stop(SystemExit):
    """A signal asked this process to leave; ``code`` is 128 + its number, as shells have it."""

    code: int


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Each of the signals raises ``Stop`` where the block stands."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stop(128 + number)

    with _handled(stop):
        yield


def pass_on(stop: Stop) -> None:
    """Have a launcher that listened before this run do what it does at the signal.

    submitit queues a job again by a handler of its own, which raises where it leaves.
    """
    handler = signal.getsignal(stop.code - 128)
    if callable(handler) and handler is not signal.default_int_handler:
        signal.raise_signal(stop.code - 128)


@contextmanager
def defer_signals() -> Iterator[None]:
    """A signal waits until the block, which must not be cut in half, is done.

    A second one leaves at once, by SystemExit: after half a step there is nothing to save.
    """
    waiting: list[int] = []

    def hold(number: int, _: FrameType | None) -> None:
        if waiting:
            raise SystemExit(128 + number)
        waiting.append(number)

    with _handled(hold):
        yield
    if waiting:
        signal.raise_signal(waiting[0])


@contextmanager
def block_signals() -> Iterator[None]:
    """Processes started in the block hear none of the signals; this one hears them after it.

    They reach every process of a group. The main process decides, and may still need a batch.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    """What is ignored stays so: a shell keeps Ctrl-C from its background jobs in this way."""
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def ignore_signals(*numbers: signal.Signals) -> None:
    """Ignore these from here on: another process hears them and decides."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
