"""Peak memory of an action.

On a GPU the allocator counts. On a CPU the system does, for the whole process, and what a process
once held it may keep: each action gets a fresh one. Linux only, through /proc.
"""

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

MB = 1e6
NO_PROC = "needs the /proc of Linux"


def can_measure() -> bool:
    """Whether this system tells what a process holds."""
    return Path("/proc/self/smaps_rollup").exists()


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """What ``function`` returns in a fresh process; function and arguments must pickle."""
    # Forked from a server that has run nothing: no threads, no memory of ours.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        method = multiprocessing.get_start_method()
        return pool.submit(_usual, method, function, *args).result()


def _usual(method: str, function: Callable[..., Any], *args: Any) -> Any:
    """``function`` in a process whose own children start as those of any program."""
    multiprocessing.set_start_method(method, force=True)
    return function(*args)


def rise(action: Callable[[], object]) -> int:
    """Bytes by which this process's memory peaked above what it held before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of now
    before = _status("VmRSS")
    action()
    return _status("VmHWM") - before


def cuda_rise(action: Callable[[], object]) -> int:
    """Bytes by which the GPU memory in use peaked above that before."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    action()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(key)


def shared_out(pids: Iterable[int | str]) -> int:
    """Bytes that processes hold together, a page that n of them share counted once (PSS)."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += 1024 * int(line.split()[1])
    return total
