"""The setting of each arm for each set: the best mean AP over the other sets."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean

from experiments.report.runs import Run

SETS = ("bccd", "chess", "cards", "raccoon")
ARMS = ("random", "ohem", "iou_balanced", "pisa", "focal")
PRESET = "lr0.02_class1_box1"
SETTINGS = (
    PRESET,
    "lr0.02_class2_box1",
    "lr0.02_class2_box3",
    "lr0.02_class4_box1",
    "lr0.04_class1_box1",
    "lr0.01_class2_box3",
)
VALUES = ("optimizer.lr", "loss_weight.rcnn.class", "loss_weight.rcnn.box")

Key = tuple[str, str, str]  # arm, setting, set


def surface(runs: Sequence[Run]) -> dict[Key, float]:
    """AP of each tuning run as a fraction; 0 of one that diverged.

    Raises:
        LookupError: a run is missing, or two runs have the same arm, setting and set.
    """
    found: dict[Key, float] = {}
    for run in runs:
        key = (run.settings["arm"], run.settings["setting"], run.settings["set"])
        if key in found:
            raise LookupError(f"two runs of {' '.join(key)}")
        found[key] = run.figures.get("AP", 0.0)
    wanted = [(arm, setting, name) for arm in ARMS for setting in SETTINGS for name in SETS]
    missing = [" ".join(key) for key in wanted if key not in found]
    if missing:
        raise LookupError(f"{len(missing)} tuning runs are missing: {missing[0]}, ...")
    return found


def chosen(ap: Mapping[Key, float]) -> dict[tuple[str, str], str]:
    """(set, arm) -> setting; of equal ones the first of ``SETTINGS``.

    A setting with which an arm diverged on any set is not chosen for it, also not for other sets.

    Raises:
        LookupError: an arm diverged with every setting.
    """
    found = {}
    for name, arm in product(SETS, ARMS):
        others = [other for other in SETS if other != name]
        means = {
            setting: fmean(ap[arm, setting, other] for other in others)
            for setting in SETTINGS
            if all(ap[arm, setting, one] > 0 for one in SETS)
        }
        if not means:
            raise LookupError(f"{arm} diverged with every setting")
        found[name, arm] = max(means, key=means.__getitem__)
    return found


def values_of(setting: str) -> dict[str, str]:
    """What a setting sets, as text: its name has the values."""
    numbers = re.fullmatch(r"lr(.+)_class(.+)_box(.+)", setting)
    assert numbers is not None
    return dict(zip(VALUES, numbers.groups(), strict=True))


def write_cases(found: Mapping[tuple[str, str], str], folder: Path) -> None:
    """Write the option ``case`` of each set and arm, and random sampling as preset.

    Where tuning chose the preset for random sampling, that is no case of its own: its runs would
    be the same bit for bit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.yaml"):
        old.unlink()  # the sweep takes all files
    for name in SETS:
        if found[name, "random"] != PRESET:
            _write(folder / f"{name}_preset.yaml", name, "random", PRESET)
        for arm in ARMS:
            _write(folder / f"{name}_{arm}.yaml", name, arm, found[name, arm])


def _write(file: Path, name: str, arm: str, setting: str) -> None:
    options = "".join(f"  - /{part}\n" for part in (f"set/{name}", f"arm/{arm}"))
    text = f"# @package _global_\ndefaults:\n{options}  - /setting/{setting}\n"
    file.write_text(text)
