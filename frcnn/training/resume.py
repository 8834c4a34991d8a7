"""The checkpoint that a run resumes from, and the checks that it fits the run."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from reprlib import Repr
from typing import Any, NamedTuple

from frcnn.errors import ConfigError, UserError
from frcnn.model.backbones import AUTO
from frcnn.runfolder import checkpoint

log = logging.getLogger(__name__)

# These must be equal when a run resumes, except data.root; durations and intervals may change.
PARTS = (
    "model", "data", "augmentation", "assigner", "sampler", "loss", "box_loss", "weigher",
    "loss_weight", "optimizer", "schedule",
)  # fmt: skip
SAME = ("seed", *PARTS)
SHOWN = 3  # changed settings in a message
ABSENT = object()  # the value of a setting that a configuration lacks
# Short texts of values: a list may have thousands of numbers, and a hostile file any depth.
SHORT = Repr()
SHORT.maxstring = SHORT.maxother = 80
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


def checkpoint_to_resume(
    config: dict[str, Any], folder: Path, class_images: dict[str, int]
) -> Resumed | None:
    """The checkpoint that ``config["resume"]`` asks for; None for a new run.

    If the folder's run began with the same ``resume=PATH``, it resumes from its own last.pt.

    Args:
        class_images: training images by class; data that have moved must have as many.

    Raises:
        UserError: the file cannot be read or holds weights only.
        ConfigError: it is of a run with another configuration.
    """
    wanted = config["resume"]
    last = folder / "checkpoints" / "last.pt"
    if wanted == "never" or (wanted == "auto" and not last.exists()):
        return None
    path = last if wanted == "auto" or _began_with(last, wanted) else Path(wanted)
    own = path.resolve() == last.resolve()
    saved = _load(path, own)
    with checkpoint.as_user_error(path):
        changed = _changed(saved["config"], config)
        changed += _other_data(saved, config, class_images)
    if changed and path == last and saved["step"] == 0:
        return None  # nothing is lost
    if changed:
        more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
        raise ConfigError(
            f"{path} was trained with other settings ({', '.join(changed[:SHOWN])}{more}): give "
            "the run another run_name, or resume=never to train anew"
        )
    before, now = _root(saved["config"]), _root(config)
    if before != now:
        log.info("data.root: the data were in %s and are now in %s", SHORT.repr(before), repr(now))
    return Resumed(saved, own, _precision(path.parent.parent))


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
    return last.exists() and _load(last, own=True)["config"].get("resume") == wanted


def _load(path: Path, own: bool) -> dict[str, Any]:
    try:
        saved = checkpoint.load(path)
    except UserError as error:
        if not own:
            raise
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
    """The settings that differ: ``optimizer.lr: 0.02 -> 0.01``."""
    now = now | {"model": _with_weights_of(before["model"], now["model"])}
    old, new = _compared(before), _compared(now)
    then, here = _steps(before["trainer"]), _steps(now["trainer"])
    parts = [(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in old | new]
    steps = [(f"trainer.{key}", then[key], here[key]) for key in here if key in then]
    return [_change(key, was, is_now) for key, was, is_now in parts + steps if was != is_now]


def _compared(config: dict[str, Any]) -> dict[str, Any]:
    """The values of ``SAME`` by their full key, without data.root."""
    leaves = dict(_leaves({key: config[key] for key in SAME if key in config}))
    leaves.pop("data.root", None)
    return leaves


def _leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dicts by their full key; an empty dict is a value."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _change(key: str, before: Any, now: Any) -> str:
    old, new = ("absent" if value is ABSENT else SHORT.repr(value) for value in (before, now))
    return f"{key}: {old} -> {new}"


def _root(config: dict[str, Any]) -> Any:
    """The folder of a run's data; None where its data have none."""
    return config["data"].get("root")


def _other_data(
    saved: dict[str, Any], config: dict[str, Any], class_images: dict[str, int]
) -> list[str]:
    """The change of data.root, if the new folder has other images."""
    before, now = _root(saved["config"]), _root(config)
    # Earlier versions did not count images.
    counts = saved.get("class_images", class_images.values())
    if before == now or dict(zip(saved["class_names"], counts, strict=False)) == class_images:
        return []
    return [f"{_change('data.root', before, now)}, with other training images"]


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
