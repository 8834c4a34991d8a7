"""Training and validation of this checkout against those of another one.

Each checkout runs in a process of its own, with its own code. The two take turns, step by step, so
that a machine that slows down slows both.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.benchmark import setting, worker
from experiments.benchmark.machine import machine
from experiments.benchmark.report import WHY, Row, table
from experiments.benchmark.setting import ON_CPU, ON_CUDA, Workload
from experiments.benchmark.targets import AGAINST, FASTER, THERE, compared
from experiments.benchmark.timing import interleaved, ratio, spread

HERE = Path(__file__).resolve().parents[2]
# What ``worker`` can do; the first is what mining is compared with.
WORK = ("random", "ohem", "pisa", "validation", "make-train")
PRECISIONS = ("fp32", "bf16")
Step = tuple[str, str]  # work, precision


class Worker:
    """The process of one checkout.

    Raises:
        SystemExit: the folder is no checkout, or the process ended; the message says why.
    """

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder, self.process = folder, process
        file = Path(self._answer())
        if not file.is_relative_to(folder.resolve()):
            raise SystemExit(f"{folder}: not a checkout: its process imported {file}")

    def step(self, work: str, precision: str) -> None:
        """Do a piece of work; returns when it is done."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{work} {precision}\n")
        self.process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise SystemExit(f"{self.folder}: the process of this checkout failed: see above")
        return answer


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[Worker]:
    """The worker of a checkout; its process ends with the block."""
    if not (folder / "experiments/benchmark").is_dir():
        raise SystemExit(f"{folder}: no checkout of this project")
    # -P: the script's own folder must not be searched for modules.
    command = [sys.executable, "-P", worker.__file__, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder.resolve())}
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Worker(folder, process)
        finally:
            process.kill()


def measure(
    folder: Path, device: torch.device, seconds: float, workload: Workload | None = None
) -> dict[str, Any]:
    """A table of the steps of this checkout and of the one in ``folder``.

    Args:
        seconds: the budget of the timed rounds; there are at least three.
        workload: by default the smallest one of the device.
    """
    workload = workload or (ON_CPU if device.type == "cpu" else ON_CUDA[0])
    with ExitStack() as stack:
        arguments = str(device), *workload.overrides()
        workers = {
            name: stack.enter_context(started(checkout, *arguments))
            for name, checkout in {"here": HERE, "there": folder}.items()
        }
        found = _in_turns(workers, steps(device), seconds)
    title = f"This checkout against {folder}: {workload}"
    note = (
        "A ratio above 1: this checkout is slower. `make-train` is an eighth of the steps and "
        "validations of `make train`."
    )
    tables = [table(title, rows(found, device), note)]
    results = {"machine": machine(device), "parts": {"against": {"tables": tables}}}
    judged = compared(results, AGAINST, "Targets, of a checkout of 832344e")
    return {"tables": [*tables, judged], "seconds": found}


def steps(device: torch.device) -> list[Step]:
    """What is measured: all work in each precision that the hardware computes in."""
    precisions = [p for p in PRECISIONS if p != "bf16" or setting.computes_bf16(device)]
    return [(work, precision) for precision in precisions for work in WORK]


def _in_turns(
    workers: Mapping[str, Worker], measured: Sequence[Step], seconds: float
) -> dict[str, list[float]]:
    """Seconds of every step in every round: ``here, random fp32``, ``there, random fp32``, ..."""
    calls = {
        f"{name}, {' '.join(step)}": partial(worker.step, *step)
        for step in measured
        for name, worker in workers.items()
    }
    return interleaved(calls, seconds)


def rows(found: Mapping[str, Sequence[float]], device: torch.device) -> list[Row]:
    """One row per piece of work and precision; a precision that was not measured says why."""
    return [_row(work, precision, found, device) for precision in PRECISIONS for work in WORK]


def _row(
    work: str, precision: str, found: Mapping[str, Sequence[float]], device: torch.device
) -> Row:
    name = f"{work} {precision}"
    here, there = found.get(f"here, {name}"), found.get(f"there, {name}")
    if here is None or there is None:
        return {"step": name, WHY: setting.no_bf16(device)}
    random = found.get(f"there, {WORK[0]} {precision}")
    return {
        "step": name,
        "seconds here / there": ratio(here, there),
        FASTER: ratio(there, here),
        **({} if random is None else {THERE: ratio(here, random)}),
        "seconds here": spread(here),
        "seconds there": spread(there),
        "rounds": len(here),
    }
