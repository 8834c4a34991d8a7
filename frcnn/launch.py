"""A run in several processes: started here, or joined where torchrun or Slurm started them."""

import logging
import logging.config
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from frcnn.cluster import Place, address, place
from frcnn.device import device_of
from frcnn.distributed import joined
from frcnn.errors import UserError
from frcnn.run import run
from frcnn.signals import SIGNALS, leave_to_others, stopping

log = logging.getLogger(__name__)

# Seconds that the first process has to save when all are to stop, and the others to end by
# themselves when one has failed.
TO_SAVE, TO_END = 60.0, 10.0


def run_in_all(
    config: dict[str, Any], choices: dict[str, str], folder: Path, logs: dict[str, Any]
) -> float | None:
    """Train in ``trainer.devices`` processes, or in those that a launcher started; the best AP.

    Args:
        logs: for ``logging.config``, in new processes.

    Raises:
        ConfigError: more GPUs than there are.
        UserError: a process died; or what a process raised, the one that failed first.
    """
    here = place()
    if here is not None:
        os.environ.update(address())
        follow(here)
        return member(here, "env://", config, choices, folder)
    size = config["trainer"]["devices"]
    if size == 1:
        return run(config, choices, folder)
    for rank in range(size):
        device_of(config["trainer"]["device"], rank)
    return start(size, member, config, choices, folder, logs=logs)


def member(
    here: Place, meeting: str, config: dict[str, Any], choices: dict[str, str], folder: Path
) -> float | None:
    """What each process does."""
    config["trainer"]["devices"] = here.size
    device = device_of(config["trainer"]["device"], here.local_rank)
    config["trainer"]["device"] = str(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // here.size))
    with joined(here.rank, here.size, meeting, device) as group:
        return run(config, choices, folder, group)


def start(
    size: int, task: Callable[..., Any], *arguments: Any, logs: dict[str, Any] | None = None
) -> Any:
    """Call ``task(place, meeting, *arguments)`` in so many new processes of this machine.

    Args:
        task: of a module's top level; ``meeting`` is the address for ``joined``.
        logs: for ``logging.config``.

    Returns:
        What the first process returned.

    Raises:
        Exception: what a process raised, the one that failed first; the others are ended.
        UserError: a process was killed.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as meeting:
        processes = [
            spawn.Process(
                target=work, args=(Place(rank, size, rank), meeting, logs, task, arguments)
            )
            for rank in range(size)
        ]
        try:
            for process in processes:
                process.start()
            failed = wait_for(processes)
        except BaseException:  # SIGTERM, Ctrl-C
            let_save(processes[0])
            end(processes, 0)
            raise
        end(processes, TO_END)
        if failed:
            raise cause(processes, Path(meeting))
        return pickle.loads((Path(meeting) / "result").read_bytes())


def work(
    here: Place,
    meeting: str,
    logs: dict[str, Any] | None,
    task: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """A process from its start to its end; what it raises is left for the one that waits."""
    if logs:
        logging.config.dictConfig(logs)
    # A whole group gets them, and the one that waits says it to the first.
    leave_to_others(signal.SIGINT, signal.SIGTERM)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        with stopping():
            follow(here)
            result = task(here, f"file://{meeting}/store", *arguments)
    except SystemExit as stop:
        os._exit(int(stop.code or 0))
    except Exception as error:
        text = traceback.format_exc()
        leave(Path(meeting) / f"error{here.rank}", (time.time(), known(error, text), text))
        os._exit(1)  # destructors of a broken group may wait for ever
    if here.rank == 0:
        leave(Path(meeting) / "result", result)


def follow(here: Place) -> None:
    """All but the first process are silent, and hear no signal: the first saves, all are ended."""
    if here.rank:
        logging.disable(logging.WARNING)
        leave_to_others(*SIGNALS)


def end_with_parent() -> None:
    """Wait for the parent, which may be killed, and end."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def known(error: Exception, text: str) -> Exception:
    """The error where it can travel between processes, else one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(text.splitlines()[-1])
    return error


def leave(path: Path, value: Any) -> None:
    """Write a value whole or not at all."""
    part = path.with_suffix(".part")
    part.write_bytes(pickle.dumps(value))
    part.replace(path)


def wait_for(processes: list[BaseProcess]) -> bool:
    """Wait until all have ended well, or one has not; returns whether one has not."""
    running = list(processes)
    while running:
        wait([process.sentinel for process in running])
        running = [process for process in running if process.is_alive()]
        if any(process.exitcode for process in processes):
            return True
    return False


def let_save(first: BaseProcess) -> None:
    """Have the process that keeps the run's files finish its step, save and leave."""
    if first.pid is not None and first.is_alive():
        os.kill(first.pid, signal.SIGUSR1)
        first.join(TO_SAVE)


def end(processes: list[BaseProcess], seconds: float) -> None:
    """Wait for so long for those that still run, and stop them."""
    deadline = time.monotonic() + seconds
    for process in processes:
        if process.pid is None:
            continue
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def cause(processes: list[BaseProcess], meeting: Path) -> Exception:
    """Why the run failed: a process that was killed, else the error that came first.

    The others lose their connection and fail too; that is nobody's fault.
    """
    for rank, process in enumerate(processes):
        if process.exitcode is not None and process.exitcode < 0:
            name = signal.Signals(-process.exitcode).name
            return UserError(f"process {rank} of {len(processes)} was ended by {name}")
    found = [pickle.loads(file.read_bytes()) for file in meeting.glob("error*") if not file.suffix]
    if not found:
        codes = [process.exitcode for process in processes]
        return UserError(f"a process ended without a word; exit codes {codes}")
    _, error, text = min(found, key=lambda item: item[0])
    error.add_note(text)
    return error
