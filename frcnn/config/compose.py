"""Command line and configuration files -> checked plain values, through Hydra."""

import difflib
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import hydra
import yaml
from hydra._internal.utils import _locate
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from frcnn.config.checks import check_numbers, check_schema, check_target, text_keys
from frcnn.config.methods import (
    CONF,
    GROUPS,
    clashes,
    folders_of,
    keep_sites,
    own_choices,
    store_methods,
)
from frcnn.config.schema import SCHEMAS, ImageOrder, Splits, View
from frcnn.errors import ConfigError, UserError
from frcnn.parallel.cluster import detect_launcher
from frcnn.runfolder.files import locked
from frcnn.runfolder.signals import Stop, defer_signals, pass_on, stop_on_signals
from frcnn.runfolder.status import record_status
from frcnn.runfolder.sweeps import finished_elsewhere, summed_up

log = logging.getLogger(__name__)

Task = Callable[[dict[str, Any], dict[str, str], Path], Any]
LONGEST = 120  # of a job's folder, in characters
# Options of these groups change values of others; they are no part of what a run is made of.
RECIPES = ("experiment", "sweep")
# Keys that take one value or a mapping from class names to values.
BY_CLASS = ("min_score",)
# Keys of earlier versions.
RENAMED = {
    "model.rpn_fg_iou_thresh": "assigner.rpn.high",
    "model.rpn_bg_iou_thresh": "assigner.rpn.low",
    "model.box_fg_iou_thresh": "assigner.rcnn.high",
    "model.box_bg_iou_thresh": "assigner.rcnn.low",
    "model.ignore_ioa": "assigner.rpn.ignore_ioa and assigner.rcnn.ignore_ioa",
    "budget.rpn": "site.rpn.budget",
    "budget.rcnn": "site.rcnn.budget",
    "loss_weight.classifier": "loss_weight.rcnn.class",
    "loss_weight.box_reg": "loss_weight.rcnn.box",
    "loss_weight.objectness": "loss_weight.rpn.class",
    "loss_weight.rpn_box_reg": "loss_weight.rpn.box",
}
# Stand-ins for what a loss takes from the training set, of two classes, until the data is read
# (`frcnn.build.fill_from_data`).
STAND_INS = {"class_counts": [1, 1], "class_frequencies": [1.0, 1.0]}
# Errors of the user, shown in one line; any other exception is a bug and shows its traceback.
KNOWN = (UserError, HydraException, OmegaConfBaseException, yaml.YAMLError)


def label(text: str) -> str:
    """A folder's name for overrides: `seed=1,sampler/rcnn=ohem` -> `seed-1_sampler-rcnn-ohem`.

    Chosen options come before values. A long name is cut, as file names end at 255 bytes, and ends
    in a hash of the full text.
    """
    parts = re.split(r",(?=[^,=]+=)", text)
    parts = sorted((part.lstrip("+") for part in parts), key=_is_value)
    name = re.sub(r"[^\w.-]+", "-", "_".join(parts)) or "defaults"
    if len(name) <= LONGEST:
        return name
    digest = sha256(text.encode()).hexdigest()[:8]
    return f"{name[: LONGEST - 9]}-{digest}"


def _is_value(part: str) -> bool:
    return "." in part.partition("=")[0]


def environment(variable: str, default: str | None) -> str | None:
    """An environment variable, or the default where it is absent or empty."""
    return os.environ.get(variable) or default


def environment_list(variable: str) -> list[str]:
    """The parts between commas of an environment variable."""
    return [part.strip() for part in os.environ.get(variable, "").split(",") if part.strip()]


OmegaConf.register_new_resolver("label", label)
OmegaConf.register_new_resolver("environment", environment)
OmegaConf.register_new_resolver("environment_list", environment_list)
store_methods()


def command(name: str, task: Task, run_folder: bool = False) -> None:
    """Run a command: compose ``conf/<name>.yaml`` with the command line, check it, call the task.

    Args:
        run_folder: whether the command's folder is a run's, with a lock and a status.

    The task gets the configuration as plain values, the chosen options by group, and the run's
    folder, which no other process uses until the task is done. A user's mistake ends in one line
    on stderr and exit code 1, or 2 for the configuration; HYDRA_FULL_ERROR=1 shows the traceback.
    SIGTERM ends in exit code 143, Ctrl-C in 130.
    """
    job = Job(name, task, run_folder)
    full_error = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own error pages have many lines
    logging.raiseExceptions = False  # where the log cannot be written, the run's files say so
    sys.argv = [sys.argv[0], *keep_texts(name, sys.argv[1:])]
    try:
        folders = folders_of(sys.argv[1:])
        if folders:
            store_methods(folders)
        with summed_up():
            hydra.main(version_base="1.3", config_path=CONF, config_name=name)(job)()
        if job.failure is not None:
            raise job.failure
    except KeyboardInterrupt:
        sys.exit(130)
    except (*KNOWN, ValueError, OSError) as error:
        # Hydra raises a ValueError for `experiment=null` and an OSError for a folder that it cannot
        # write; one that comes out of a job is a bug.
        if full_error == "1" or (job.composed and not isinstance(error, KNOWN)):
            raise
        print(f"error: {one_line(name, error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2 if isinstance(error, (*KNOWN, ValueError)) else 1))
    finally:
        os.environ["HYDRA_FULL_ERROR"] = full_error


def keep_texts(name: str, arguments: Sequence[str]) -> list[str]:
    """The command line with quotes around names and paths that Hydra would read as numbers.

    ``run_name=2024_01_01`` would be the number 20240101.
    """
    parser = OverridesParser.create()
    texts = text_keys(SCHEMAS[name]) | {"data.root"}
    kept = []
    for text in arguments:
        key, equals, value = text.partition("=")
        if equals and key.lstrip("+") in texts and re.fullmatch(r"[-+\d][\w.+-]*", value):
            read = parser.parse_override(text).value()
            text = f"{key}='{value}'" if isinstance(read, int | float) else text
        kept.append(text)
    return kept


class Job:
    """What Hydra calls with a composed configuration, once, or once for each run of a sweep.

    Attributes:
        composed: Hydra has called it.
        failure: the user's mistake that ended a single run.
    """

    def __init__(self, name: str, task: Task, run_folder: bool = False) -> None:
        self.name, self.task, self.run_folder = name, task, run_folder
        self.composed = False
        self.failure: Exception | None = None
        functools.update_wrapper(self, task)  # Hydra asks a job for its name and file

    def __call__(self, config: DictConfig) -> Any:
        """Check the configuration and call the task in the run's folder."""
        self.composed = True
        settings = HydraConfig.get()
        folder = Path(settings.runtime.output_dir)
        try:
            if settings.mode == RunMode.MULTIRUN and config.get("done"):
                run = folder.absolute().relative_to(Path(settings.sweep.dir).absolute())
                known = finished_elsewhere(Path(config.done), run)
                if known is not None:
                    return known
            with _run_folder(settings, folder, self.run_folder) as keeps:
                with defer_signals():  # Hydra would turn a signal into an error of its own
                    plain, choices = self._checked(config, settings)
                if (
                    keeps and settings.output_subdir is not None
                ):  # Hydra saved the sites that the network lacks, too
                    OmegaConf.save(config, folder / str(settings.output_subdir) / "config.yaml")
                return self.task(plain, choices, folder)
        except Stop as stop:
            pass_on(stop)
            raise
        except Exception as error:
            # A sweep goes on with its next job; of a single run Hydra shall print nothing.
            if settings.mode == RunMode.MULTIRUN:
                _log_failed_job(error, folder)
                raise
            if not isinstance(error, KNOWN):
                raise
            self.failure = error
            return None

    def _checked(
        self, config: DictConfig, settings: HydraConf
    ) -> tuple[dict[str, Any], dict[str, str]]:
        overrides = list(settings.overrides.task)
        options = settings.runtime.choices.items()
        choices = {key: value for key, value in options if value and not key.startswith("hydra/")}
        parts = _without_appended(choices, overrides)
        plain = checked(self.name, config, parts, [*overrides, *settings.overrides.hydra])
        if "model" in plain:
            sites = list(plain["model"]["sites"])
            choices = own_choices(choices, sites)
            for line in clashes(choices, sites):
                log.warning("%s; .hydra/config.yaml has the value that the run uses", line)
        return plain, choices


@contextmanager
def _run_folder(settings: HydraConf, folder: Path, is_run: bool) -> Iterator[bool]:
    """Lock a run's folder and record the run's status, in the process that keeps the folder.

    Yields whether this process does.
    """
    launched = detect_launcher()
    # Of a launcher's processes the first one keeps the run's folder.
    keeps = is_run and (launched is None or launched.rank == 0)
    with ExitStack() as stack:
        stack.enter_context(stop_on_signals())
        if keeps:
            stack.enter_context(locked(folder))
            stack.enter_context(record_status(folder, settings.overrides.task))
        yield keeps


def _log_failed_job(error: Exception, folder: Path) -> None:
    trace = folder / "traceback.txt"
    kept = trace.exists()  # not in the folder of a finished run, which stays as it is
    bug = not (kept or isinstance(error, KNOWN))
    log.error("job failed: %s (%s)", error, trace if kept else folder, exc_info=bug)


def build(node: Mapping[str, Any], path: str = "") -> Any:
    """The object that a node's ``_target_`` names, made with the node's other values.

    Args:
        path: the node's full key, for messages.

    Raises:
        ConfigError: the constructor refuses a value.
    """
    try:
        return hydra.utils.instantiate(dict(node), _convert_="all")  # plain lists and dicts
    except hydra.errors.InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        reason = str(error.__cause__ or error).splitlines()[0]
        if path and isinstance(error.__cause__, ValueError):
            raise ConfigError(f"{path}.{reason}") from error
        raise ConfigError(f"{path or node['_target_']}: {reason}") from error


def checked(
    name: str, config: DictConfig, choices: Mapping[str, str], overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """The configuration as plain values.

    A key must stand in one of the chosen options. A value must suit the annotation of what takes
    it: the callable that ``_target_`` names, or the command's schema.

    Args:
        choices: the chosen option of each group.
        overrides: the command line; it must not name a site that the network lacks. Options may
            lie in the folders of its ``hydra.searchpath``.

    Raises:
        ConfigError: naming the key, and what is allowed.
    """
    groups = [f"{k}={v}" for k, v in choices.items() if k not in RECIPES]
    groups += [text for text in overrides if text.startswith("hydra.searchpath=")]
    composed = hydra.compose(name, groups)
    if "model" in config:
        keep_sites(config, overrides)
        composed.model.sites = config.model.sites
        keep_sites(composed, ())
    reference = plain_values(composed, resolve=False)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"{missing[0]} is required: add {missing[0]}=VALUE")
    plain = plain_values(config)
    _check_keys("", plain, reference)
    check_schema(plain, SCHEMAS[name], reference)
    if "data" in plain and isinstance(plain["data"], dict):
        for schema in (View, Splits, ImageOrder):
            check_schema(plain["data"], schema, reference["data"], "data.")
    _check_targets("", plain, reference)
    _try_methods(plain)
    return plain


def plain_values(config: Any, resolve: bool = True) -> dict[str, Any]:
    """A configuration as dicts, lists and scalars; interpolations stay unless resolved."""
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=resolve))


def _without_appended(choices: Mapping[str, str], overrides: Sequence[str]) -> dict[str, str]:
    """A group like ``+method=ohem``, of the user's own ``--config-dir``, is a recipe too."""
    keys = {text.partition("=")[0] for text in overrides}
    return {group: option for group, option in choices.items() if f"+{group}" not in keys}


def _check_keys(prefix: str, node: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """Raise ConfigError for a key too many or too few, or a value where a node should be."""
    for key in reference.keys() - node.keys():  # ~key on the command line
        raise ConfigError(f"{prefix}{key} is missing")
    for key, value in node.items():
        path = f"{prefix}{key}"
        if key not in reference:
            raise ConfigError(unknown_key(path, reference))
        if isinstance(value, dict) and isinstance(reference[key], dict):
            _check_keys(f"{path}.", value, reference[key])
        elif isinstance(value, dict) and path in BY_CLASS:
            continue
        elif isinstance(value, dict) or isinstance(reference[key], dict):
            kind = "a group of keys" if isinstance(reference[key], dict) else "a single value"
            raise ConfigError(f"{path}: expected {kind}, got {value!r}")
        else:
            check_numbers(path, value)


def _check_targets(prefix: str, node: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """Check every node below against the signature of its ``_target_``."""
    for key, value in node.items():
        if isinstance(value, dict):
            path = f"{prefix}{key}"
            if "_target_" in value:
                check_target(path, target_of(path, value), value, reference[key])
            _check_targets(f"{path}.", value, reference[key])


def target_of(path: str, node: Mapping[str, Any]) -> Any:
    """The callable that a node's ``_target_`` names; ConfigError where it cannot be imported."""
    try:
        return _locate(str(node["_target_"]))
    except Exception as error:  # whatever the user's own module raises when it is imported
        reason = " ".join(str(error.__cause__ or error).split())
        raise ConfigError(f"{path}: {node['_target_']} cannot be imported ({reason})") from error


def _try_methods(plain: Mapping[str, Any]) -> None:
    """Construct each method once, so that it can refuse its values before any data is read."""
    for group in GROUPS:
        for site, node in plain.get(group, {}).items():
            if node:
                numbers = {k: v for k, v in STAND_INS.items() if node.get(k) == "data"}
                build(node | numbers, f"{group}.{site}")
    if "optimizer" in plain:
        import torch

        try:
            build(plain["optimizer"], "optimizer")([torch.nn.Parameter(torch.zeros(1))])
        except ValueError as error:
            raise ConfigError(f"optimizer: {error}") from error


def unknown_key(path: str, siblings: Mapping[str, Any]) -> str:
    """One line: the key, the most likely meant one, and the known ones."""
    if path in RENAMED:
        return f"{path} is now {RENAMED[path]}"
    parent, _, key = path.rpartition(".")
    names = [str(name) for name in siblings if not str(name).startswith("_")]
    deeper = [f"{n}.{key}" for n in names if isinstance(siblings[n], dict) and key in siblings[n]]
    close = deeper or difflib.get_close_matches(key, names, 1)
    close = [f"{parent}.{name}" for name in close] if parent else close
    close = difflib.get_close_matches(path, names, 1, 0.8) or close  # data.root for data_root
    meant = f"; did you mean {close[0]}?" if close else "."
    return f"unknown key {path}{meant} Known here: {', '.join(names)}"


def one_line(name: str, error: Exception) -> str:
    """Any error of Hydra's, OmegaConf's or ours as one line that names the key."""
    text = " ".join(str(error).split()).partition(" Config search path:")[0]
    plugin = re.search(
        r"Could not \w+ 'hydra/(?:launcher|sweeper)/(joblib|submitit|optuna|ray)", text
    )
    if plugin:
        return f"{text.rstrip('.')}: pip install -e '.[{plugin[1]}]'"
    override = re.match(r"Could not override '(.+?)'\. To append", text)
    if override is None:
        return text
    return unknown_key(override[1], _siblings(name, override[1]))


def _siblings(name: str, path: str) -> Mapping[str, Any]:
    """What stands beside a key, with the options that the command line chose."""
    GlobalHydra.instance().clear()
    chosen = [text for text in sys.argv[1:] if "=" in text]
    groups = [a for a in chosen if (Path(CONF) / a.partition("=")[0]).is_dir()]
    groups += [a for a in chosen if a.partition("=")[0].partition("/")[0] in GROUPS]
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        try:
            config = hydra.compose(name, groups)
        except HydraException:  # a sweep over options, or options of a folder of the user's
            config = hydra.compose(name)
    plain = plain_values(config, resolve=False)
    parent: Any = plain
    for part in path.split(".")[:-1]:
        parent = parent.get(part) if isinstance(parent, dict) else None
    return parent if isinstance(parent, dict) else plain
