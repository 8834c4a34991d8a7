"""The device and the precision of a run, and settings of torch and of the memory allocator."""

import ctypes
import os
from contextlib import AbstractContextManager

import torch

from frcnn.errors import ConfigError

# glibc, malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of this name; ``auto`` is the GPU if there is one, else the CPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device: {name!r} cannot be used here ({reason})") from error
    return device


def wants_gpu(name: str) -> bool:
    """Whether ``trainer.device`` names a GPU, or is ``auto`` on a machine that has one."""
    return name.startswith("cuda") or (name == "auto" and torch.cuda.is_available())


def refuse_numbered_gpu(name: str) -> None:
    """Refuse a GPU's number where several processes share a run.

    Raises:
        ConfigError: ``trainer.device`` has one.
    """
    if name.startswith("cuda:"):
        raise ConfigError(
            f"trainer.device={name}: each of several processes has a GPU of its own, counted from "
            "0; give trainer.device=cuda, and choose GPUs with CUDA_VISIBLE_DEVICES=2,3"
        )


def rank_device(name: str, local_rank: int) -> torch.device:
    """The device of one of several processes on a machine: one GPU each, or the CPU for all.

    Raises:
        ConfigError: this machine has no such device, or the name has a GPU's number.
    """
    refuse_numbered_gpu(name)
    return choose_device(f"cuda:{local_rank}" if wants_gpu(name) else name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of this name; ``auto`` is bf16 if the hardware computes in bf16, else fp32.

    Raises:
        ConfigError: fp16 on a CPU. Its small range needs a loss scaler, which CPUs do not support.
    """
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("precision: fp16 needs a GPU; choose auto, fp32 or bf16")
    if name != "auto":
        return DTYPES[name]
    return torch.bfloat16 if _computes_bf16(device) else torch.float32


def precision_name(dtype: torch.dtype) -> str:
    """The name of a precision: ``fp32``, ``bf16`` or ``fp16``."""
    return next(name for name, own in DTYPES.items() if own == dtype)


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    # A CPU that is held to older instructions computes bf16 many times slower than fp32.
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """The context in which a forward pass computes at this precision."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def set_deterministic(wanted: bool) -> None:
    """Make every operation give the same bits each time, or let torch choose the fastest one.

    Call it before a GPU is used: cuBLAS reads its variable when it starts. An operation without a
    deterministic version then raises (https://docs.pytorch.org/docs/stable/notes/randomness.html).
    """
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.deterministic = wanted
    torch.backends.cudnn.benchmark = False


def keep_freed_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the system.

    Every step on a CPU frees and allocates the same large tensors. The page faults for them cost
    about a tenth of a step. No-op without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
