"""A run in several processes: all of them started here, or the one that torchrun or srun asks for.

The process that was called only watches: it keeps the run's folder, hears the signals, starts those
that train and ends them. What ends a run is reported once, in the store where all meet. The first
report counts: those that fail because another one did come later.
"""

import json
import logging
import logging.config
import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
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
from frcnn.parallel.device import rank_device, wants_gpu
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

# Seconds that the first process has to save when all are to stop, and the others to end by
# themselves when one has failed.
TO_SAVE, TO_END = 60.0, 10.0
# Seconds between two looks at what was reported elsewhere, and before a report that may be of
# another's making: a lost connection.
TO_LOOK, TO_WAIT = 0.5, 1.0
WORD, RESULT = "word", "result"
KINDS = {kind.__name__: kind for kind in (UserError, ConfigError, Stop)}


def launch_run(
    config: dict[str, Any], choices: dict[str, str], folder: Path, logs: dict[str, Any]
) -> float | None:
    """Train in ``trainer.devices`` processes, or in those of a launcher; the best AP.

    Args:
        logs: for ``logging.config``, in new processes.

    Raises:
        ConfigError: more GPUs than there are.
        UserError: a process died; or what a process raised, the one that failed first.
        SystemExit: the same, in a process of a launcher that is not the first: that one says it.
    """
    here, size = detect_launcher(), config["trainer"]["devices"]
    if here is not None:
        follow(here)
        try:
            return start([here], train_rank, config, choices, folder, logs=logs, at=rendezvous())
        except Exception as error:
            ignore_signals(*SIGNALS)  # torchrun's, for this very failure
            if here.rank:
                raise SystemExit(getattr(error, "exit_code", 1)) from error
            raise
    if size == 1:
        return run(config, choices, folder)
    # Counted, not tried: a GPU that this process touched would hold memory for it.
    if wants_gpu(config["trainer"]["device"]) and size > torch.cuda.device_count():
        raise ConfigError(f"trainer.devices={size}: {torch.cuda.device_count()} GPUs are here")
    return start(local_ranks(size), train_rank, config, choices, folder, logs=logs)


def local_ranks(size: int) -> list[RankInfo]:
    """Of so many processes on one machine."""
    return [RankInfo(rank, size, rank) for rank in range(size)]


def train_rank(
    here: RankInfo, store: dist.Store, config: dict[str, Any], choices: dict[str, str], folder: Path
) -> float | None:
    """What each process does."""
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
    """Call ``task(place, store, *arguments)`` in a new process of this machine for each member.

    Args:
        task: of a module's top level.
        logs: for ``logging.config``.
        at: where they meet members that are started elsewhere; None where these are all.

    Returns:
        What the task of rank 0 returned, through JSON; None without that one.

    Raises:
        Exception: what a process raised, here or elsewhere, the one that failed first.
        UserError: a process was killed.
        Stop: a signal, once the first process has saved.
    """
    store, at = opened(members[0], at)
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(
            target=work,
            args=(here, at, logs, task, arguments),
            name=f"process {here.rank} of {here.size}",
        )
        for here in members
    ]
    try:
        word = outcome(processes, store)
        if isinstance(word, Exception):
            with defer_signals():  # torchrun sends a signal for this very failure
                all_ended_well(processes, TO_END)
                raise word
    finally:
        end(processes)
    if word is not None:
        raise word
    return json.loads(store.get(RESULT)) if members[0].rank == 0 else None


def opened(first: RankInfo, at: Rendezvous | None) -> tuple[dist.Store, Rendezvous]:
    """The store where all meet, and where it is; a new one, which only this machine can reach."""
    if at is not None:
        return connected(at, is_master=first.rank == 0 and not at.launcher_store), at
    listener = socket.create_server(("localhost", 0))
    at = Rendezvous("localhost", listener.getsockname()[1])
    return connected(at, is_master=True, master_listen_fd=listener.detach()), at


def connected(at: Rendezvous, **options: Any) -> dist.Store:
    """The store there; what was reported before torchrun started all anew is not seen."""
    store = dist.TCPStore(at.host, at.port, wait_for_workers=False, **options)
    return dist.PrefixStore(at.attempt, store)


def work(
    here: RankInfo,
    at: Rendezvous,
    logs: dict[str, Any] | None,
    task: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """A process from its start to its end; what it raises is reported to those that watch."""
    if logs:
        logging.config.dictConfig(logs)
    # A whole group gets them, and the one that watches says it to the first.
    ignore_signals(*EXTERNAL_SIGNALS)
    threading.Thread(target=end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which os._exit would leave behind
    store = connected(at, is_master=False)
    try:
        with stop_on_signals():
            follow(here)
            result = task(here, store, *arguments)
    except SystemExit as stop:
        os._exit(int(stop.code or 0))
    except Exception as error:
        if not isinstance(error, UserError):
            time.sleep(TO_WAIT)
        with suppress(dist.DistError):
            report_error(store, error)
        os._exit(1)  # destructors of a broken group may wait for ever
    if here.rank == 0:
        store.set(RESULT, json.dumps(result))


def follow(here: RankInfo) -> None:
    """All but the first process are silent, and hear no signal: the first saves, all are ended."""
    if here.rank:
        logging.disable(logging.WARNING)
        ignore_signals(*SIGNALS)


def end_with_parent() -> None:
    """Wait for the parent, which may be killed, and end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def report_error(store: dist.Store, error: BaseException) -> None:
    """Leave word of what ends the run, unless another process was first."""
    kind = type(error).__name__
    says = error.args[0] if kind in KINDS else f"{kind}: {error}"
    word = {"kind": kind, "says": says, "trace": "".join(traceback.format_exception(error))}
    store.compare_set(WORD, "", json.dumps(word))


def reported_error(store: dist.Store) -> BaseException | None:
    """What ends the run, in any process, to be raised here; None while it goes on."""
    if not store.check([WORD]):
        return None
    word = json.loads(store.get(WORD))
    error = KINDS.get(word["kind"], RuntimeError)(word["says"])
    error.add_note(word["trace"])
    return error


def outcome(processes: Sequence[BaseProcess], store: dist.Store) -> BaseException | None:
    """Start them and wait; what has ended the run, or None once all have ended well."""
    try:
        for process in processes:
            process.start()
        watch(processes, store)
        return reported_error(store)
    except Stop as stop:
        # torchrun says in this way too that a process elsewhere has failed.
        if reported_error(store) is None:
            let_save(processes[0])
            report_error(store, stop)
        return reported_error(store)
    except dist.DistError:  # who keeps the store has left; well, if these do
        well = all_ended_well(processes, TO_END)
        return None if well else UserError("the launcher or the first process has left")


def watch(processes: Sequence[BaseProcess], store: dist.Store) -> None:
    """Wait until all have ended well, or there is word of what ends the run."""
    running = list(processes)
    while running and not store.check([WORD]):
        wait([process.sentinel for process in running], TO_LOOK)
        running = [process for process in running if process.exitcode is None]
        for process in processes:
            if process.exitcode:  # by itself: nobody has been ended yet
                report_error(store, UserError(f"{process.name} {end_of(process.exitcode)}"))


def end_of(exit_code: int) -> str:
    """How a process ended that could not report its end."""
    if exit_code < 0:
        return f"was ended by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code} and without a word"


def let_save(first: BaseProcess) -> None:
    """Have the process that keeps the run's files finish its step, save and leave."""
    if first.pid is not None and first.is_alive():
        os.kill(first.pid, SAVE_REQUEST)
        first.join(TO_SAVE)


def all_ended_well(processes: Sequence[BaseProcess], seconds: float) -> bool:
    """Wait for so long at most; whether all that were started have ended, and well."""
    deadline = time.monotonic() + seconds
    begun = [process for process in processes if process.pid is not None]
    for process in begun:
        process.join(max(0.0, deadline - time.monotonic()))
    return all(process.exitcode == 0 for process in begun)


def end(processes: Sequence[BaseProcess]) -> None:
    """Stop those that still run."""
    begun = [process for process in processes if process.pid is not None]
    for process in begun:
        process.kill()
    for process in begun:
        process.join()
