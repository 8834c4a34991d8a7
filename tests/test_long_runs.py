"""What must not grow: memory with the steps of a run, open files and processes with the runs."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import SMALL, call, small_network, tiny

from frcnn import train
from frcnn.training import launch, run
from frcnn.training.loop import Engine

STEPS, WARM_UP, RUNS = 2000, 500, 30


@pytest.fixture(autouse=True, scope="module")
def network() -> Iterator[None]:
    with small_network():
        yield


def resident() -> float:
    """Memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
def test_memory_stays_flat_over_two_thousand_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    seen: list[tuple[int, float]] = []
    report = Engine._report

    def watched(self: Engine, epoch: int) -> None:
        report(self, epoch)
        seen.append((self.step, resident()))

    monkeypatch.setattr(Engine, "_report", watched)
    size = ["data.train_images=200", "trainer.epochs=100", "trainer.eval_every=5"]
    often = ["trainer.log_every=10", "trainer.sampling_every=50"]
    run.run(*tiny(*size, *often, f"trainer.max_steps={STEPS}"), tmp_path)
    steps, megabytes = np.array([row for row in seen if row[0] > WARM_UP]).T
    slope = 1000 * np.polyfit(steps, megabytes, 1)[0]
    record_property(
        "counts",
        f"memory: {slope:+.2f} MB per 1,000 steps over steps {WARM_UP} to {seen[-1][0]}, "
        f"{megabytes[-1]:.0f} MB at the end",
    )
    assert seen[-1][0] == STEPS and slope < 1


def held() -> tuple[int, int]:
    """Open files and child processes of this one."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return len(os.listdir("/proc/self/fd")), len(children)


@pytest.mark.slow
def test_files_and_processes_stay_flat_over_thirty_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    seen: list[tuple[int, int]] = []
    one = launch.run

    def watched(*arguments: Any) -> Any:
        seen.append(held())
        return one(*arguments)

    monkeypatch.setattr(launch, "run", watched)
    short = ["trainer.max_steps=1", "trainer.workers=1", "data.val_images=1"]
    seeds = "seed=" + ",".join(map(str, range(RUNS)))
    offline = ["wandb.mode=offline", f"wandb.dir={tmp_path}", f"hydra.sweep.dir={tmp_path}/runs"]
    assert call(train.main, *SMALL, *short, *offline, seeds, "-m") == 0
    seen.append(held())
    # The first run starts W&B's service, which stays.
    files, children = zip(*seen[2:], strict=True)
    record_property(
        "counts",
        f"{RUNS} runs in one process: {min(files)} to {max(files)} open files, "
        f"{min(children)} to {max(children)} child processes from the second on",
    )
    assert len(seen) == RUNS + 1
    assert max(files) - min(files) <= 2 and max(children) == min(children)
