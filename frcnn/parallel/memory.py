"""The peak memory of a run."""

import contextlib
import ctypes
from pathlib import Path

import torch

MB = 1e6
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> bool:
    """Start a new measurement, which ignores the memory of earlier runs of this process.

    Returns:
        Whether ``peak_mb`` can measure; on a CPU it needs Linux's /proc.
    """
    if device.type == "cuda":
        torch.cuda.init()  # else there are no statistics yet, and the reset raises
        torch.cuda.reset_peak_memory_stats(device)
        return True
    # Return to the system what `keep_freed_memory` kept for later tensors.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR_REFS.write_text("5")  # proc(5): sets VmHWM, the peak, to the current size
    except OSError:
        return False
    return STATUS.exists()


def peak_mb(device: torch.device) -> float:
    """The peak since ``reset_peak`` in megabytes of 10^6 bytes.

    On a GPU this is the memory that torch's allocator gave out. On a CPU it is the resident set of
    this process, with libraries and weights, without data workers and other processes.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MB
    (peak,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(peak.split()[1]) / MB
