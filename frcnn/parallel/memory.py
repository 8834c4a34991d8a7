"""The most memory that a run held."""

import contextlib
import ctypes
from pathlib import Path

import torch

MB = 1e6
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> bool:
    """Begin to measure anew: what runs before this one held counts no more.

    Returns:
        Whether ``peak_mb`` can tell; on a CPU it takes Linux's /proc.
    """
    if device.type == "cuda":
        torch.cuda.init()  # before it there are no figures to reset, which is an error
        torch.cuda.reset_peak_memory_stats(device)
        return True
    # Freed memory that `keep_freed_memory` kept for later tensors goes back.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR_REFS.write_text("5")  # proc(5): VmHWM, the peak, becomes what is held now
    except OSError:
        return False
    return STATUS.exists()


def peak_mb(device: torch.device) -> float:
    """The peak since ``reset_peak`` in megabytes of 10^6 bytes.

    On a GPU what its allocator gave out; on a CPU the resident set of this process, libraries and
    weights included, data workers and further processes not.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MB
    (peak,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(peak.split()[1]) / MB
