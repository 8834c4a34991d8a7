"""A signal between two steps, within one, and a second one."""

import os
import signal
from collections.abc import Iterator

import pytest

from frcnn.runfolder.signals import (
    SIGNALS,
    Stop,
    block_signals,
    defer_signals,
    pass_on,
    stop_on_signals,
)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Whatever happens in a block, the handlers are as they were."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    assert [signal.getsignal(number) for number in SIGNALS] == before


CODES = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_signal_stops_at_once_with_the_shell_s_code(number: int, code: int) -> None:
    with pytest.raises(Stop) as caught, stop_on_signals():
        signal.raise_signal(number)
        pytest.fail("went on")
    assert caught.value.code == code


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_block_that_holds_signals_is_finished_first(number: int, code: int) -> None:
    done = []
    with pytest.raises(Stop) as caught, stop_on_signals():
        with defer_signals():
            signal.raise_signal(number)
            done.append("block")
        done.append("after")
    assert done == ["block"] and caught.value.code == code


def test_a_second_signal_does_not_wait_and_is_no_stop() -> None:
    """Half a block is done: what catches Stop, to save, must not catch it."""
    with pytest.raises(SystemExit) as caught, stop_on_signals(), defer_signals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")
    assert type(caught.value) is SystemExit and caught.value.code == 130


def test_an_error_in_the_block_is_what_is_raised() -> None:
    with pytest.raises(ZeroDivisionError), stop_on_signals(), defer_signals():
        signal.raise_signal(signal.SIGTERM)
        raise ZeroDivisionError


def test_a_launcher_s_own_handler_runs_once_after_what_was_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[int | str] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: heard.append(number))
    try:
        with pytest.raises(Stop) as caught, stop_on_signals():
            try:
                signal.raise_signal(signal.SIGUSR2)
            finally:
                heard.append("saved")
        pass_on(caught.value)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == ["saved", signal.SIGUSR2]


@pytest.mark.parametrize(("number", "code"), CODES)
def test_what_nobody_else_handles_is_not_passed_on(number: int, code: int) -> None:
    pass_on(Stop(code))  # SIGTERM would end this process, Python's own SIGINT raise


def test_without_a_signal_nothing_happens() -> None:
    with stop_on_signals(), defer_signals():
        pass


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As Ctrl-C is in a shell's background jobs."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals(), defer_signals():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_started_unheard_hears_neither() -> None:
    with block_signals():
        child = os.fork()
        if child == 0:
            for number in SIGNALS:
                os.kill(os.getpid(), number)
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    with pytest.raises(Stop), stop_on_signals(), block_signals():
        os.kill(os.getpid(), signal.SIGTERM)
