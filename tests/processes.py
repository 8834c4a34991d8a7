"""What the tests let two processes do that meet over gloo."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny import small_network

from frcnn.errors import UserError
from frcnn.parallel.cluster import RankInfo
from frcnn.parallel.group import join_group
from frcnn.runfolder.signals import SAVE_REQUEST
from frcnn.training.launch import local_ranks, start
from frcnn.training.run import run

CPU = torch.device("cpu")
Composed = tuple[dict[str, Any], dict[str, str]]


def run_in_two(runs: Mapping[str, Composed], folder: Path) -> None:
    """Every run (configuration and choices by name) in ``folder/name``, one after another."""
    start(local_ranks(2), several, dict(runs), folder)


def several(here: RankInfo, store: dist.Store, runs: dict[str, Composed], folder: Path) -> None:
    """What each process of ``run_in_two`` does."""
    torch.set_num_threads(1)
    with small_network(), join_group(here, store, CPU) as group:
        for name, (config, choices) in runs.items():
            run(config, choices, folder / name, group)


def one_fails(here: RankInfo, store: dist.Store) -> None:
    """The second process gives up while the first waits for it."""
    with join_group(here, store, CPU) as group:
        if here.rank == 1:
            raise UserError("a.png: no such image")
        group.total(torch.ones(1))


def one_is_killed(here: RankInfo, store: dist.Store) -> None:
    """The second process dies without a word while the first waits for it."""
    with join_group(here, store, CPU) as group:
        if here.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        group.total(torch.ones(1))


def one_fails_as_one_is_busy(here: RankInfo, store: dist.Store) -> None:
    """The second process gives up; the first hears nothing of it for a long time."""
    if here.rank == 1:
        raise UserError("a.png: no such image")
    time.sleep(600)


def one_that_does_not_leave(here: RankInfo, store: dist.Store, folder: Path) -> None:
    """It goes on when it is asked to stop, which it writes down."""
    signal.signal(SAVE_REQUEST, lambda *_: (folder / "asked").touch())
    (folder / "begun").touch()
    while True:
        time.sleep(60)


def sums(
    here: RankInfo, store: dist.Store, factor: float
) -> tuple[float, list[float], list[str], str]:
    """What the first process knows after each way of talking."""
    with join_group(here, store, CPU) as group:
        weight = torch.tensor(float(here.rank + 1), requires_grad=True)
        # Both processes' losses hold the sum of both squares: each weight's slope is twice 2 w.
        (group.total(weight**2) * factor).backward()
        rows, mine = group.gather(torch.arange(here.rank + 2.0))
        assert rows[mine].tolist() == list(range(here.rank + 2))
        names = group.gather_objects(f"process {here.rank}")
        return weight.grad.item(), rows.tolist(), names, group.broadcast(f"said by {here.rank}")
