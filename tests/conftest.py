"""Fixtures shared by all tests."""

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from compose_once import compose_once


@pytest.fixture(scope="session")
def bccd() -> Path:
    """The folder of the real images (BCCD, VOC layout), or skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared/data/bccd"
    if not (folder / "ImageSets/Main/trainval.txt").exists():
        pytest.skip("BCCD is not beside the project")
    return folder


@pytest.fixture(autouse=True, scope="session")
def composed_once() -> Iterator[None]:
    with compose_once():
        yield


@pytest.fixture
def fresh_wandb() -> Iterator[None]:
    """W&B reads the environment once a process."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


def pytest_configure() -> None:
    """Hear Ctrl-C, which a shell lets its background jobs ignore, and which tests send."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests that passed counted.

    That is a line each, `record_property("counts", text)`, and what is summed up over all of them,
    `record_property("counted", {what: number})`. A bad input is a test of its own.
    """
    lines: list[str] = []
    sums: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        file = Path(report.nodeid.partition("::")[0])
        if file.parent.name == "bad_input" and file.stem != "test_fuzz":
            sums[f"bad-input cases, {file.stem}"] += 1
        for name, value in report.user_properties:
            if name == "counts":
                lines.append(value)
            elif name == "counted":
                sums.update(value)
    lines += [f"{what}: {number:,}" for what, number in sorted(sums.items())]
    if lines:
        terminalreporter.section("counts")
    for line in lines:
        terminalreporter.line(line)
