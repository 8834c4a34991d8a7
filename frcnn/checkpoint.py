"""Checkpoints: written whole or not at all, read without running code from them."""

from pathlib import Path
from typing import Any

import torch

from frcnn.errors import UserError
from frcnn.files import replacing

VERSION = 1
REQUIRED = {"version", "model", "config", "class_names", "category_ids", "step"}


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint; whatever happens meanwhile leaves the old one or the new one.

    Raises:
        UserError: the folder cannot be written or the disk is full; the old file is as it was.
    """
    with replacing(path) as file:
        torch.save({"version": VERSION, **content}, file)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, tensors and plain values only.

    Raises:
        UserError: missing, truncated, or no checkpoint of this project.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as error:  # a truncated or foreign file fails in many ways inside torch
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(content, dict) or not content.keys() >= REQUIRED:
        raise UserError(f"{path}: not a checkpoint of this project")
    if content["version"] != VERSION:
        version = content["version"]
        raise UserError(f"{path}: checkpoint version {version}, this code reads {VERSION}")
    return content
