"""Fixtures shared by all tests."""

import copy
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra


@pytest.fixture(scope="session")
def bccd() -> Path:
    """The folder of the real images (BCCD, VOC layout), or skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared/data/bccd"
    if not (folder / "ImageSets/Main/trainval.txt").exists():
        pytest.skip("BCCD is not beside the project")
    return folder


@pytest.fixture(autouse=True, scope="session")
def compose_once() -> Iterator[None]:
    """Hydra takes half a second to compose a configuration, and most tests compose the same."""
    compose, known = hydra.compose, {}

    def cached(name: str, overrides: Sequence[str] = (), **options: Any) -> Any:
        place = str(GlobalHydra.instance().config_loader().get_search_path())
        key = (place, name, *overrides, *options.items())
        if key not in known:
            known[key] = compose(name, list(overrides), **options)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hydra, "compose", cached)
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
