"""A run in several processes: started here, or by a launcher (torchrun, srun).

The parent process does not train. It keeps the run's folder, receives the signals, starts the
training processes and ends them. Under a launcher each process of the launcher's is the parent of
one training process.

All parents and training processes share a store of torch.distributed's. The first error that any
of them writes to it is the one that every parent raises: later errors are usually consequences.
"""

import json
import logging
import logging.config
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from frcnn.errors import ConfigError, UserError
from frcnn.parallel.cluster import RankInfo, Rendezvous, detect_launcher, rendezvous
from frcnn.parallel.device import rank_device, refuse_numbered_gpu, wants_gpu
from frcnn.parallel.group import join_group
from frcnn.runfolder.signals import (
    EXTERNAL_SIGNALS,
    SAVE_REQUEST,
    SIGNALS,
    Stop,
    defer_signals,
    ignore_signals,
    stop_on_signals,
)
from frcnn.training.run import run
from frcnn.training.store import connect_store, open_store, report_error, reported_error

# Seconds that the first process has to save when the run is to stop.
SAVE_SECONDS = 60.0
# Seconds that the other processes have to end by themselves when one has failed.
END_SECONDS = 10.0
# Seconds between two looks at the store.
POLL_SECONDS = 0.5
# Seconds before an unexpected error is reported: it may be the consequence of an error elsewhere.
REPORT_DELAY = 1.0
# The key of the store under which rank 0 leaves what its task returned.
RESULT = "result"
# How gloo and NCCL describe a process of the group that has gone.
LOST_PROCESS = re.compile(r"gloo/transport/|ncclRemoteError|closed by remote peer")


class StoreLost(UserError):
    """The process that hosts the store has gone, and with it every report."""


def launch_run(
    config: dict[str, Any], choices: dict[str, str], folder: Path, logs: dict[str, Any]
) -> float | None:
    """Train in ``trainer.devices`` processes, or in those of a launcher; returns the best AP.

    Args:
        logs: for ``logging.config``, in new processes.

    Raises:
        ConfigError: more GPUs are asked for than there are, or a GPU by its number.
        Exception: the first error that a process raised; a UserError where one was killed.
        SystemExit: under a launcher, in a process that does not print the error.
    """
    here, size = detect_launcher(), config["trainer"]["devices"]
    if here is not None:
        return join_launcher(here, config, choices, folder, logs)
    if size == 1:
        return run(config, choices, folder)
    refuse_numbered_gpu(config["trainer"]["device"])
    # Counted, not tried: a GPU that this process touched would hold memory for it.
    if wants_gpu(config["trainer"]["device"]) and size > (gpus := torch.cuda.device_count()):
        raise ConfigError(
            f"trainer.devices={size}, but this machine has {gpus} GPU{'s' * (gpus != 1)}"
        )
    return start(local_ranks(size), train_rank, config, choices, folder, logs=logs)


def join_launcher(
    here: RankInfo,
    config: dict[str, Any],
    choices: dict[str, str],
    folder: Path,
    logs: dict[str, Any],
) -> float | None:
    """Train as one process of a launcher; only the first one reports an error to the user.

    Where the store is lost the first one may be dead: then one process per machine reports it.
    """
    silence_all_but_first(here)
    try:
        return start([here], train_rank, config, choices, folder, logs=logs, at=rendezvous())
    except Exception as error:
        ignore_signals(*SIGNALS)  # torchrun sends one because of this very error
        if here.rank == 0 or (isinstance(error, StoreLost) and here.local_rank == 0):
            raise
        raise SystemExit(getattr(error, "exit_code", 1)) from error


def local_ranks(size: int) -> list[RankInfo]:
    """The ranks of ``size`` processes on one machine."""
    return [RankInfo(rank, size, rank) for rank in range(size)]


def train_rank(
    here: RankInfo, store: dist.Store, config: dict[str, Any], choices: dict[str, str], folder: Path
) -> float | None:
    """The task of each training process."""
    config["trainer"]["devices"] = here.size
    device = rank_device(config["trainer"]["device"], here.local_rank)
    config["trainer"]["device"] = str(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // here.size))
    with join_group(here, store, device) as group:
        return run(config, choices, folder, group)


def start(
    members: Sequence[RankInfo],
    task: Callable[..., Any],
    *arguments: Any,
    logs: dict[str, Any] | None = None,
    at: Rendezvous | None = None,
) -> Any:
    """Call ``task(rank_info, store, *arguments)`` in a new process of this machine per member.

    Args:
        members: the processes to start here.
        task: a function at a module's top level.
        logs: for ``logging.config``.
        at: where they meet members that are started elsewhere; None where these are all.

    Returns:
        What the task of rank 0 returned, through JSON; None where rank 0 is elsewhere.

    Raises:
        Exception: the first error that a process raised, here or elsewhere.
        UserError: a process was killed.
        Stop: a signal came; the first process has saved.
    """
    store, at = open_store(members[0], at)
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(
            target=run_task, args=(here, at, logs, task, arguments), name=process_name(here)
        )
        for here in members
    ]
    try:
        error = run_to_end(processes, store)
        if error is not None:
            raise_once_others_ended(error, processes)
    finally:
        kill(processes)
    return json.loads(store.get(RESULT)) if members[0].rank == 0 else None


def process_name(here: RankInfo) -> str:
    """The name of a process in messages."""
    return f"process {here.rank} of {here.size}"


def run_to_end(processes: Sequence[BaseProcess], store: dist.Store) -> BaseException | None:
    """Start the processes and wait; the error that ended the run, None if all ended well."""
    try:
        return watch_until_stopped(processes, store)
    except dist.DistError:  # the store is gone: its host has failed, or has finished first
        if all_ended_well(processes, END_SECONDS):
            return None
        return StoreLost(
            "lost the connection to the launcher or the first process: it has ended, or its "
            "machine has failed"
        )


def watch_until_stopped(
    processes: Sequence[BaseProcess], store: dist.Store
) -> BaseException | None:
    """As ``run_to_end``; at a signal let the first process save, and report the signal."""
    try:
        for process in processes:
            process.start()
        watch(processes, store)
        return reported_error(store)
    except Stop as stop:
        # torchrun also sends a signal when a process elsewhere has failed.
        if reported_error(store) is None:
            let_save(processes[0])
            report_error(store, stop)
        return reported_error(store)


def watch(processes: Sequence[BaseProcess], store: dist.Store) -> None:
    """Wait until all have ended well or an error is reported; report those that died."""
    running = list(processes)
    while running and reported_error(store) is None:
        wait([process.sentinel for process in running], POLL_SECONDS)
        running = [process for process in running if process.exitcode is None]
        for process in processes:
            if process.exitcode:  # by itself: the parent has killed none yet
                report_error(store, UserError(f"{process.name} {how_ended(process.exitcode)}"))


def how_ended(exit_code: int) -> str:
    """How a process ended that could not report its error."""
    if exit_code < 0:
        return f"was ended by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code} and without a message"


def let_save(first: BaseProcess) -> None:
    """Let the process that writes the run's files finish its step, save and leave."""
    if first.pid is not None and first.is_alive():
        os.kill(first.pid, SAVE_REQUEST)
        first.join(SAVE_SECONDS)


def raise_once_others_ended(error: BaseException, processes: Sequence[BaseProcess]) -> None:
    """Raise the error; after a failure the other processes have time to end by themselves."""
    if not isinstance(error, Exception):
        raise error
    with defer_signals():  # torchrun sends one because of this very error, which it must not hide
        all_ended_well(processes, END_SECONDS)
        raise error


def all_ended_well(processes: Sequence[BaseProcess], seconds: float) -> bool:
    """Wait for at most so many seconds; whether all that were started have ended with code 0."""
    deadline = time.monotonic() + seconds
    begun = [process for process in processes if process.pid is not None]
    for process in begun:
        process.join(max(0.0, deadline - time.monotonic()))
    return all(process.exitcode == 0 for process in begun)


def kill(processes: Sequence[BaseProcess]) -> None:
    """End those that still run."""
    begun = [process for process in processes if process.pid is not None]
    for process in begun:
        process.kill()
    for process in begun:
        process.join()


def run_task(
    here: RankInfo,
    at: Rendezvous,
    logs: dict[str, Any] | None,
    task: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """A training process from its start to its end; it reports its error to the parents."""
    if logs:
        logging.config.dictConfig(logs)
    # They reach every process of a group. The parent hears them, and asks the first one to save.
    ignore_signals(*EXTERNAL_SIGNALS)
    threading.Thread(target=end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which os._exit would leave behind
    store = connect_store(at, is_master=False)
    try:
        with stop_on_signals():
            silence_all_but_first(here)
            result = task(here, store, *arguments)
    except SystemExit as stop:
        os._exit(int(stop.code or 0))
    except Exception as error:
        if not isinstance(error, UserError):
            time.sleep(REPORT_DELAY)
        with suppress(dist.DistError):
            report_error(store, explain_lost_process(here, error))
        os._exit(1)  # destructors of a broken group may wait for ever
    if here.rank == 0:
        store.set(RESULT, json.dumps(result))


def silence_all_but_first(here: RankInfo) -> None:
    """Only the first process logs, and saves at a signal; the others are killed after it."""
    if here.rank:
        logging.disable(logging.WARNING)
        ignore_signals(*SIGNALS)


def end_with_parent() -> None:
    """Wait for the end of the parent, which may be killed, and end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def explain_lost_process(here: RankInfo, error: Exception) -> Exception:
    """One clear line for the error of a collective whose other process has gone."""
    if not LOST_PROCESS.search(str(error)):
        return error
    lost = UserError(
        f"{process_name(here)} lost the connection to another one: it has ended, or its machine "
        "has failed"
    )
    lost.__cause__ = error  # for the traceback file
    return lost
