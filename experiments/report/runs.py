"""Run folders -> runs."""

import json
import math
import re
import shlex
import statistics
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
# Of rare, common and frequent classes, where a data set has classes of different groups; AP of LVIS
# with a limit of detections per class alone.
BY_FREQUENCY = ("APr", "APc", "APf", "AP_fixed")
UNREADABLE = "UNREADABLE"
# Each of these files makes a folder a run's.
RUN_FILES = ("status.json", "metrics.jsonl")
# What environment.json says of code and machine, and the weights that the run started from.
MADE = ("commit", "torch", "processor", "instructions", "threads", "gpu", "machine", "weights")
# Runs are compared in time only where these are equal.
MACHINE = ("processor", "threads", "gpu", "machine")
# What all runs share and a reader wants to know first.
FACTS = ("data", "model")
# Prefixes of figures: the AP50 that a kind of error costs, the mean of a loss term over the run,
# the metrics of a class.
COST, LOSS = "dAP50 ", "loss "
BY_CLASS = ("AP ", "AP50 ", "AP75 ", "AP90 ", "AR ")
MEMORY = "peak_memory_mb"
STEP = "seconds_per_step"
NORM = "grad_norm"
# All other metrics train/NAME are loss terms.
NO_TERMS = {"loss", "lr", "images_per_second", STEP, NORM, "data_wait"}

# The errors of files that were cut short, or written by another program.
UNUSABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError)

# Compared runs must share these: the data, the network, and the length of the training.
CONDITIONS = re.compile(
    r"(data|augmentation)([./].*)?|model|model\.(name|weights|weights_backbone)|steps"
    r"|model\.(fpn_channels|representation_size|backbone_width)"
    r"|trainer\.(epochs|max_steps|devices|batch_size|accumulate(_stats)?|precision|patience)"
)
# The order of the images is part of a method, though it stands with the data.
ORDER = ("data.sampler", "data.repeat_threshold")
# Runs of a method may differ in this as in the seed.
FOLD = "data.fold"
# These do not change what is learnt: names, folders, speed, what is recorded.
IGNORED = re.compile(
    r"seed|run_name|resume|done|sweep|data\.root|(hydra|wandb|evaluation|trainer)[./].*"
)


@dataclass(frozen=True)
class Run:
    """One run folder.

    Args:
        name: the folder, relative to the one that was read.
        status: COMPLETED, FAILED, INTERRUPTED, RUNNING, or UNREADABLE where files are missing.
        error: why it failed or cannot be read.
        method: its value of each key that the command line of any run has, without seed,
            conditions and names: ``{"sampler": "ohem", "sampler/rpn": "random"}``.
        settings: its value of each setting that is not the same in all runs.
        seed, steps, seconds: None where the run does not say.
        step_seconds: seconds per step, the median of the log lines, or None.
        memory: the peak in MB of 10^6 bytes, or None.
        grad_norm: of all gradients before clipping, the mean over the run, or None.
        figures: ``METRICS``, ``BY_FREQUENCY``, ``AP <class>`` and the others of ``BY_CLASS``, and
            ``dAP50 <kind of error>`` as fractions, NaN where there is no such object;
            ``loss <term>``.
        curve: AP as a fraction by epoch.
        precision: by IoU in percent ("50"), at the recalls 0.00, 0.01 .. 1.00: the mean over
            classes, three decimals.
        lacks: why the run's detections cannot be used, if that is known.
        made: ``MADE`` as text, of all starts of the run, ``FACTS`` and the number of test
            ``images``; empty where the run does not say.
    """

    name: str
    status: str
    error: str = ""
    method: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    steps: int | None = None
    seconds: float | None = None
    step_seconds: float | None = None
    memory: float | None = None
    grad_norm: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    curve: Mapping[int, float] = field(default_factory=dict)
    precision: Mapping[str, Sequence[float]] = field(default_factory=dict)
    lacks: str = ""
    made: Mapping[str, str] = field(default_factory=dict)

    @property
    def fold(self) -> int | None:
        """The fold that is its validation data; None where all runs have the same, or have none."""
        fold = self.settings.get(FOLD)
        return None if fold is None else int(fold)


def is_condition(key: str) -> bool:
    """Whether all compared runs must share a setting."""
    return bool(CONDITIONS.fullmatch(key)) and key not in ("data.root", FOLD, *ORDER)


def is_ignored(key: str) -> bool:
    """Whether a setting does not change what is learnt."""
    free = key == "trainer.clip_norm" or is_condition(key)
    return not free and bool(IGNORED.fullmatch(key))


def read(folder: Path, beside: Sequence[Run] = ()) -> list[Run]:
    """The runs below a folder: a run is a folder with a ``status.json``.

    A folder with records of a run but without its status is a run that cannot be read.

    Args:
        beside: runs that these are compared with. The keys of their methods and settings are read
            of these runs too.
    """
    found = {file.parent for name in RUN_FILES for file in folder.rglob(name)}
    contents = [_content(run, folder) for run in sorted(found)]
    said = set().union(*(content["said"] for content in contents), *(run.method for run in beside))
    terms = {key for key in said - {FOLD} if not is_condition(key)}
    differing = _different([content["values"] for content in contents if content["values"]])
    differing |= set().union(*(run.settings for run in beside))
    return [_run(content, terms, differing) for content in contents]


def _content(folder: Path, top: Path) -> dict[str, Any]:
    """What the files of a run folder say."""
    name = {"name": folder.relative_to(top).as_posix()}
    try:
        return name | _files(folder)
    except UNUSABLE as error:
        text = f"{type(error).__name__}: {error}"
        return name | {"values": {}, "said": (), "status": UNREADABLE, "error": text}


def _files(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "status.json").read_text())
    values = _values(folder)
    starts = _starts(folder / "environment.json")
    # The precision that auto chose, which depends on the machine.
    computed = {"trainer.precision": _all(starts, "precision")}
    values |= computed if computed["trainer.precision"] else {}
    if found["status"] == "COMPLETED":
        summary = json.loads((folder / "summary.json").read_text())
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        found |= {"summary": summary, "figures": _figures(summary) | _losses(records)}
        found |= {"curve": _curve(records), STEP: _step(records), NORM: _norm(records)}
        if values.get("trainer.patience") is None:  # with it, runs of one recipe differ
            values["steps"] = summary["steps"]
    keys = [text.lstrip("+~").partition("=")[0] for text in found["overrides"]]
    said = {key for key in keys if not is_ignored(key)}
    made = {key: value for key in MADE if (value := _all(starts, key))}
    weights = values.get("model.weights") or values.get("model.weights_backbone")
    made |= {"weights": str(weights)} if weights else {}
    made |= {key: str(values[key]) for key in FACTS if values.get(key)}
    return found | {"seed": values["seed"], "values": _told(values), "said": said, "made": made}


def settings_file(folder: Path, name: str = "config") -> Path:
    """Hydra's file of the run, or of the last command if an earlier version made the run."""
    own = folder / ".hydra/run" / f"{name}.yaml"
    return own if own.exists() else folder / ".hydra" / f"{name}.yaml"


def _values(folder: Path) -> dict[str, Any]:
    """A run's settings by key, and its options by group."""
    config = yaml.safe_load(settings_file(folder).read_text())
    hydra = yaml.safe_load(settings_file(folder, "hydra").read_text())
    choices = hydra["hydra"]["runtime"]["choices"]
    values = dict(_flat(config))
    # A copy of the seed (data.seed=${seed}) adds nothing.
    values = {
        key: values.get(_reference(value), value)
        for key, value in values.items()
        if _reference(value) != "seed"
    }
    return values | {k: v for k, v in choices.items() if not k.startswith("hydra/")}


def _reference(value: Any) -> str:
    """``${a.b}`` -> ``a.b``, the key whose value it is; "" for any other value."""
    found = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
    return found[1] if found else ""


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:  # 10.0 and 10 are the same value
            whole = isinstance(value, float) and value.is_integer()
            yield f"{prefix}{key}", int(value) if whole else value


def _starts(file: Path) -> list[dict[str, str]]:
    """One record per start of the run; none if an earlier version wrote no such file."""
    try:
        return [_start(start) for start in json.loads(file.read_text())]
    except UNUSABLE:
        return []


def _start(start: Mapping[str, Any]) -> dict[str, str]:
    found = {key: str(start[key]) for key in ("torch", "processor", "threads")}
    later = ("precision", "instructions")  # older runs have none
    found |= {key: start[key] for key in later if key in start}
    found |= {"machine": f"{zlib.crc32(start['host'].encode()):08x}"} if "host" in start else {}
    return found | {"commit": _commit(start), "gpu": (start["gpu"] or {"name": "none"})["name"]}


def _all(starts: Sequence[Mapping[str, str]], key: str) -> str:
    """The distinct values of all starts, as text."""
    return ", ".join(dict.fromkeys(start[key] for start in starts if key in start))


def _commit(start: Mapping[str, Any]) -> str:
    return (start["commit"] or "unknown")[:8] + (" with changes" if start["dirty"] else "")


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not is_ignored(key)}


def _curve(records: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    return {r["epoch"]: r["val/AP"] for r in records if r.get("val/AP") is not None}


def _figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """COCO's metrics, of all classes together and of each."""
    found = {name: summary[name] for name in (*METRICS, *BY_FREQUENCY) if name in summary}
    classes = summary.get("per_class", {})
    for prefix in BY_CLASS:
        key = prefix.strip()
        # Runs of earlier versions have fewer.
        found |= {f"{prefix}{name}": own[key] for name, own in classes.items() if key in own}
    return {name: math.nan if value is None else value for name, value in found.items()}


def _losses(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each loss term over the log lines."""
    values: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for key, value in record.items():
            kind, _, name = key.partition("/")
            if kind == "train" and name not in NO_TERMS:
                values[LOSS + name.removeprefix("loss_")].append(value)
    return {name: math.fsum(found) / len(found) for name, found in values.items()}


def _step(records: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds per step: the median of the log lines, which a pause of the run does not change."""
    key = f"train/{STEP}"
    found = [record[key] for record in records if key in record]
    return statistics.median(found) if found else None


def _norm(records: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean over the log lines; None where a run has none that is finite."""
    found = [record[f"train/{NORM}"] for record in records if record.get(f"train/{NORM}")]
    return statistics.fmean(found) if found else None


def _different(nodes: Sequence[Mapping[str, Any]]) -> set[str]:
    """The keys whose values are not the same in all."""
    keys = set().union(*nodes)
    return {k for k in keys if len({json.dumps(node.get(k, "absent")) for node in nodes}) > 1}


def _run(content: Mapping[str, Any], terms: set[str], differing: set[str]) -> Run:
    values, summary = content["values"], content.get("summary", {})
    return Run(
        name=content["name"],
        status=content["status"],
        error=content.get("error") or "",
        method={key: _text(values[key]) for key in sorted(terms & values.keys())},
        settings={key: values[key] for key in sorted(differing & values.keys())},
        seed=content.get("seed"),
        steps=summary.get("steps"),
        seconds=summary.get("seconds"),
        step_seconds=content.get(STEP),
        memory=summary.get(MEMORY),
        grad_norm=content.get(NORM),
        figures=content.get("figures", {}),
        curve=content.get("curve", {}),
        made=content.get("made", {}),
    )


def _text(value: Any) -> str:
    """As on the command line."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def machine(run: Run) -> tuple[str | None, ...]:
    """What must be equal of two runs whose times are compared."""
    return tuple(run.made.get(key) for key in MACHINE)


def terms(text: str) -> dict[str, str]:
    """``sampler=ohem seed=3`` as values by key."""
    return {key: value for key, _, value in (part.partition("=") for part in shlex.split(text))}
