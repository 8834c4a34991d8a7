"""Peak memory of an action.

On a GPU the allocator counts it. On a CPU the system counts it for the whole process, which may
keep freed memory: so each action runs in a fresh process. Linux only, through /proc.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

MB = 1e6
NO_PROC = "needs the /proc of Linux"


def can_measure() -> bool:
    """Whether this system reports the memory of a process."""
    return Path("/proc/self/smaps_rollup").exists()


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function`` in a fresh process and return its result; all must pickle."""
    (result,) = in_children(function, [args])
    return result


def in_children(function: Callable[..., Any], calls: Sequence[Sequence[Any]]) -> list[Any]:
    """The same for several calls, each in a process of its own, as many at a time as cores."""
    # The server that forks them has run nothing: no threads, little memory.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision"])
    method = multiprocessing.get_start_method()
    with ProcessPoolExecutor(os.cpu_count(), context, max_tasks_per_child=1) as pool:
        asked = [pool.submit(_usual, method, function, *args) for args in calls]
        return [one.result() for one in asked]


def _usual(method: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function`` with the usual start method for its own child processes."""
    multiprocessing.set_start_method(method, force=True)
    return function(*args)


def rise(action: Callable[[], object]) -> int:
    """Bytes by which the memory of this process rises at most during an action."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present memory
    before = _status("VmRSS")
    action()
    return _status("VmHWM") - before


def cuda_rise(action: Callable[[], object]) -> int:
    """Bytes by which the GPU memory in use rises at most during an action."""
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
    """Bytes that processes hold together; a shared page counts once (PSS)."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += 1024 * int(line.split()[1])
    return total
