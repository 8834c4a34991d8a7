"""At SIGTERM (from a cluster) or Ctrl-C a run ends between two steps, and can be resumed."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Clusters can send SIGUSR1 as a warning before the time limit.
EXTERNAL_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# The parent of several training processes sends this to the first of them, which ignores the other
# signals: one to the whole process group would reach it twice.
SAVE_REQUEST = signal.SIGUSR2
SIGNALS = (*EXTERNAL_SIGNALS, SAVE_REQUEST)

Handler = Callable[[int, FrameType | None], None]


class Stop(SystemExit):
    """A signal asked this process to end; ``code`` is 128 + its number, as in shells."""

    code: int


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Each of the signals raises ``Stop`` inside the block."""

    def stop(number: int, _: FrameType | None) -> None:
        raise Stop(128 + number)

    with _handled(stop):
        yield


def pass_on(stop: Stop) -> None:
    """Call the handler that a launcher installed for the signal before this run.

    submitit's handler queues the job again, and raises.
    """
    handler = signal.getsignal(stop.code - 128)
    if callable(handler) and handler is not signal.default_int_handler:
        signal.raise_signal(stop.code - 128)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Delay a signal until the end of the block, which must not be interrupted.

    A second signal raises SystemExit at once, not Stop: after half a step there is nothing to save.
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
    """Processes started in the block never receive the signals; this one does after the block.

    A signal to a process group also reaches the data workers. Only the main process may act on it,
    and it may still need a batch from them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    """Install a handler, but not for ignored signals: shells make background jobs ignore Ctrl-C."""
    heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def ignore_signals(*numbers: signal.Signals) -> None:
    """Ignore these signals from now on; another process acts on them."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
