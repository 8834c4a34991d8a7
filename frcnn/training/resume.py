"""The checkpoint that a run resumes from, and the checks that it fits the run."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from frcnn.errors import ConfigError, UserError
from frcnn.model.backbones import AUTO
from frcnn.runfolder import checkpoint

# These must be equal when a run resumes; durations and intervals may change.
PARTS = (
    "model", "data", "augmentation", "assigner", "sampler", "loss", "box_loss", "weigher",
    "loss_weight", "optimizer", "schedule",
)  # fmt: skip
SAME = ("seed", *PARTS)
# What last.pt holds in addition to the weights.
STATE = {
    "optimizer": dict,
    "scaler": dict,
    "window": list,
    "tracker": dict,
    "sites": dict,
    "own_optimizers": dict,
    "best": dict,
    "since_best": int,
    "validated": int,
    "seconds": float,
}


class Resumed(NamedTuple):
    """A checkpoint to resume from.

    Args:
        own: whether it is this folder's own, not another run's.
        precision: that its run computed in; "" where the run does not say.
    """

    saved: dict[str, Any]
    own: bool
    precision: str = ""


def checkpoint_to_resume(config: dict[str, Any], folder: Path) -> Resumed | None:
    """The checkpoint that ``config["resume"]`` asks for; None for a new run.

    If the folder's run began with the same ``resume=PATH``, it resumes from its own last.pt.

    Raises:
        UserError: the file cannot be read or holds weights only.
        ConfigError: it is of a run with another configuration.
    """
    wanted = config["resume"]
    last = folder / "checkpoints" / "last.pt"
    if wanted == "never" or (wanted == "auto" and not last.exists()):
        return None
    path = last if wanted == "auto" or _began_with(last, wanted) else Path(wanted)
    saved = _load(path)
    with checkpoint.as_user_error(path):
        changed = _changed(saved["config"], config)
    if changed and path == last and saved["step"] == 0:
        return None  # nothing is lost
    if changed:
        raise ConfigError(
            f"{path} was trained with another {', '.join(changed)}: give the run another "
            "run_name, or resume=never to train anew"
        )
    return Resumed(saved, path.resolve() == last.resolve(), _precision(path.parent.parent))


def _precision(folder: Path) -> str:
    """The precision of a run's last start; "" where it does not say, as earlier versions."""
    try:
        return str(json.loads((folder / "environment.json").read_text())[-1]["precision"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""


def refuse_other_precision(resumed: Resumed, precision: str) -> None:
    """Refuse to go on in another precision, which "auto" may choose on another machine.

    Raises:
        ConfigError: it is another.
    """
    if resumed.saved["step"] and resumed.precision not in ("", precision):
        raise ConfigError(
            f"trainer.precision: the run computed in {resumed.precision} and would go on in "
            f"{precision}: give trainer.precision={resumed.precision}, or resume=never to train "
            "anew"
        )


def finished(
    resumed: Resumed | None, config: dict[str, Any], folder: Path
) -> dict[str, Any] | None:
    """The summary of the folder's run if the same command has finished it; None if work remains.

    A run writes its summary at its end, and removes it when it goes on.
    """
    summary = folder / "summary.json"
    if resumed is None or not resumed.own or not summary.exists():
        return None
    before = resumed.saved["config"]
    # Earlier versions had fewer keys.
    same = all(config[key] | before[key] == config[key] for key in ("trainer", "evaluation"))
    return json.loads(summary.read_text()) if same else None


def _began_with(last: Path, wanted: str) -> bool:
    return last.exists() and _load(last)["config"].get("resume") == wanted


def _load(path: Path) -> dict[str, Any]:
    try:
        saved = checkpoint.load(path)
    except UserError as error:
        raise UserError(f"{error}; resume=FILE goes on from a copy, resume=never anew") from error
    if not saved.keys() >= STATE.keys():
        raise UserError(f"{path}: holds weights only; use last.pt, or model.weights={path}")
    with checkpoint.as_user_error(path):
        _check_state(saved)
    return saved


def _check_state(saved: dict[str, Any]) -> None:
    """Raise an error if no run can have saved this; most values are used long after loading."""
    for key, kind in STATE.items():
        if not isinstance(saved[key], kind):
            raise TypeError(f"{key!r} is no {kind.__name__}")
    tracker, best = saved["tracker"], saved["best"]
    counts = [saved["step"], saved["since_best"], saved["validated"], best["step"]]
    for count in [*counts, tracker["bytes"], tracker["rows"]]:
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"{count!r} stands where a count should")
    if not re.fullmatch("[0-9a-f]{8}", tracker["wandb_id"]):  # part of the names of W&B's files
        raise ValueError(f"{tracker['wandb_id']!r} stands where W&B's id should")
    values = [value for terms in saved["window"] for value in terms.values()]
    if not isinstance(best["AP"], float | None) or not all(isinstance(v, float) for v in values):
        raise TypeError("the best AP or the losses since the last record are no numbers")


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    now = now | {"model": _with_weights_of(before["model"], now["model"])}
    parts = [key for key in SAME if before.get(key) != now[key]]
    then, here = _steps(before["trainer"]), _steps(now["trainer"])
    return parts + [f"trainer.{key}" for key in here if key in then and then[key] != here[key]]


def _with_weights_of(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """A model node with what "auto" came to in an earlier one: a name, or nothing. No file."""
    weights = before.get("weights")
    if now.get("weights") != AUTO or (weights and Path(weights).suffix):
        return now
    return now | {"weights": weights}


def _steps(trainer: dict[str, Any]) -> dict[str, Any]:
    """The settings that define a step; they must not change: a run's position is a step."""
    batch, accumulate = trainer["batch_size"] * trainer.get("devices", 1), trainer["accumulate"]
    found = {"batch_size x devices": batch, "accumulate": accumulate}
    if accumulate > 1:  # earlier versions had "batch" only
        found["accumulate_stats"] = trainer.get("accumulate_stats", "batch")
    return found
