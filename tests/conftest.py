"""Fixtures shared by all tests."""

import signal
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def bccd() -> Path:
    """The folder of the real images (BCCD, VOC layout), or skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared/data/bccd"
    if not (folder / "ImageSets/Main/trainval.txt").exists():
        pytest.skip("BCCD is not beside the project")
    return folder


def pytest_configure() -> None:
    """Hear Ctrl-C, which a shell lets its background jobs ignore, and which tests send."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what long tests counted (`record_property("counts", ...)`)."""
    reports = terminalreporter.getreports("passed")
    counts = [value for r in reports for name, value in r.user_properties if name == "counts"]
    if counts:
        terminalreporter.section("counts")
        for line in counts:
            terminalreporter.line(str(line))
