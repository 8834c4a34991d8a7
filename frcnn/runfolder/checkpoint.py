"""Checkpoints: written atomically, and read without running code from them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frcnn.errors import UserError
from frcnn.runfolder.files import atomic_write
from frcnn.runfolder.versions import from_version_1

VERSION = 2
REQUIRED = {
    "version": int,
    "model": dict,
    "config": dict,
    "class_names": list,
    "category_ids": list,
    "step": int,
}


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically: the old one or the new one is there, whatever happens.

    Raises:
        UserError: the folder cannot be written or the disk is full; the old file is as it was.
    """
    with atomic_write(path) as file:
        torch.save({"version": VERSION, **content}, file)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; it may hold only tensors and plain values.

    Raises:
        UserError: missing, truncated, or no checkpoint of this project.
    """
    content = read(path, "checkpoint")
    if not isinstance(content, dict) or not content.keys() >= REQUIRED.keys():
        raise UserError(f"{path}: not a checkpoint of this project")
    for key, kind in REQUIRED.items():
        if not isinstance(content[key], kind):
            raise UserError(
                f"{path}: not a checkpoint of this project ({key!r} is no {kind.__name__})"
            )
    version, names, ids = (content[key] for key in ("version", "class_names", "category_ids"))
    if version not in (1, VERSION):
        raise UserError(f"{path}: checkpoint version {version}, this code reads 1 and {VERSION}")
    if not is_state_dict(content["model"]):
        raise UserError(f"{path}: its model is no state dict")
    if len(names) != len(ids) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: its class names are not one text per category id")
    if version == 1:
        with as_user_error(path):
            return from_version_1(content)
    return content


def read(path: Path, what: str) -> Any:
    """Read tensors and plain values from a file of torch's onto the CPU; run no code from it.

    Args:
        what: the kind of file, for messages.

    Raises:
        UserError: missing, truncated, or with other objects in it.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}") from None
    except Exception as error:  # a truncated or foreign file fails in many ways inside torch
        raise UserError(f"{path}: not a readable {what} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Why torch refuses a file, without its advice on how to run the file's code."""
    text = str(error)
    if found := re.search(r"Unsupported global: GLOBAL ([\w.]+)", text):
        return (
            f"it holds an object of {found[1]}, whose code is not run: save the module's "
            "state_dict() alone"
        )
    if "TorchScript" in text:
        return "it is a TorchScript archive: save the module's state_dict() alone"
    inner = re.search(r"WeightsUnpickler error: (.*)", text)
    lines = (inner[1] if inner else text).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


@contextmanager
def as_user_error(path: str | Path) -> Iterator[None]:
    """Turn an error that a checkpoint's content causes into a UserError that names the file.

    A foreign file may hold any value anywhere, and only the code that uses a value knows what it
    must be.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: its content cannot be used ({reason[:300]})") from error


def is_state_dict(content: Any) -> bool:
    """Whether this is a dict of at least one tensor by name."""
    return (
        isinstance(content, dict)
        and len(content) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )
