"""Which checkpoint a run goes on from, and whether it may."""

from pathlib import Path
from typing import Any

from frcnn import checkpoint
from frcnn.errors import ConfigError, UserError

# A run that resumes must be made of the same parts; how long and how often may change.
PARTS = ("model", "data", "augmentation", "sampler", "loss", "box_loss", "optimizer", "schedule")
SAME = ("seed", *PARTS)
# The place in an epoch is counted in steps.
SAME_STEPS = ("batch_size", "accumulate")


def checkpoint_to_resume(config: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """The checkpoint that ``config["resume"]`` asks for; None for a new run.

    Raises:
        UserError: the file cannot be read or holds weights only.
        ConfigError: it is of a run made of other parts.
    """
    wanted = config["resume"]
    last = folder / "checkpoints" / "last.pt"
    if wanted == "never" or (wanted == "auto" and not last.exists()):
        return None
    path = last if wanted == "auto" else Path(wanted)
    saved = checkpoint.load(path)
    if "optimizer" not in saved:
        raise UserError(f"{path}: holds weights only; use last.pt, or model.weights={path}")
    with checkpoint.usable(path):
        changed = _changed(saved["config"], config)
    if changed:
        raise ConfigError(
            f"{path} was trained with another {', '.join(changed)}: give the run another "
            "run_name, or resume=never to train anew"
        )
    return saved


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    parts = [key for key in SAME if before.get(key) != now[key]]
    steps = [key for key in SAME_STEPS if before["trainer"][key] != now["trainer"][key]]
    return parts + [f"trainer.{key}" for key in steps]
