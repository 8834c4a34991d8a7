"""Command line and configuration files -> checked plain values, through Hydra."""

import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from frcnn.config.checks import check_order, check_value
from frcnn.errors import ConfigError, UserError
from frcnn.parallel.cluster import place
from frcnn.runfolder.files import locked
from frcnn.runfolder.signals import Stop, held, pass_on, stopping
from frcnn.runfolder.status import recorded
from frcnn.runfolder.sweeps import summed_up

log = logging.getLogger(__name__)

CONF = str(Path(__file__).resolve().parents[2] / "conf")
LONGEST = 120  # of a job's folder, in characters
# Options of these groups change values of others; they are no part of what a run is made of.
RECIPES = ("experiment", "sweep")
# What is said in one line; all else is a bug and shows where.
KNOWN = (UserError, HydraException, OmegaConfBaseException, yaml.YAMLError)


def label(text: str) -> str:
    """A folder's name for overrides: `seed=1,sampler/rcnn=ohem` -> `seed-1_sampler-rcnn-ohem`.

    What is chosen stands before how it is set. A name ends at 255 bytes: of a long one the end is
    cut, and a digest of all of it tells it from others.
    """
    parts = re.split(r",(?=[^,=]+=)", text)
    parts.sort(key=lambda part: "." in part.partition("=")[0])
    name = re.sub(r"[^\w.-]+", "-", "_".join(parts)) or "defaults"
    if len(name) <= LONGEST:
        return name
    digest = sha256(text.encode()).hexdigest()[:8]
    return f"{name[: LONGEST - 9]}-{digest}"


OmegaConf.register_new_resolver("label", label)


def command(name: str, task: Callable[[dict[str, Any], dict[str, str], Path], Any]) -> None:
    """Run a command: compose ``conf/<name>.yaml`` with the command line, check it, call the task.

    The task gets the configuration as plain values, the chosen options by group, and the run's
    folder, which is this process's alone until the task is done. A problem of the user's ends in
    one line on stderr and exit code 1, or 2 for the configuration; with HYDRA_FULL_ERROR=1 in the
    traceback. SIGTERM ends in exit code 143, Ctrl-C in 130.
    """

    failure: list[Exception] = []
    composed = False

    def job(config: DictConfig) -> Any:
        nonlocal composed
        composed = True
        settings = HydraConfig.get()
        folder = Path(settings.runtime.output_dir)
        choices = {
            k: v for k, v in settings.runtime.choices.items() if v and not k.startswith("hydra/")
        }
        here = place()
        # Of a launcher's processes the first one keeps the run's folder.
        has_folder = settings.output_subdir is not None and (here is None or here.rank == 0)
        try:
            with ExitStack() as around:
                around.enter_context(stopping())
                if has_folder:
                    around.enter_context(locked(folder))
                    around.enter_context(recorded(folder, settings.overrides.task))
                parts = _without_appended(choices, settings.overrides.task)
                with held():  # Hydra makes an error of its own of a signal
                    plain = checked(name, config, parts)
                return task(plain, choices, folder)
        except Stop as stop:
            pass_on(stop)
            raise
        except Exception as error:
            # A sweep goes on with its next job; a single run has Hydra say nothing of its own.
            if settings.mode == RunMode.MULTIRUN:
                trace = folder / "traceback.txt"
                kept = trace.exists()  # not in the folder of a finished run, which stays as it is
                bug = not (kept or isinstance(error, KNOWN))
                log.error("job failed: %s (%s)", error, trace if kept else folder, exc_info=bug)
                raise
            if not isinstance(error, KNOWN):
                raise
            failure.append(error)

    full_error = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own error pages run over many lines
    logging.raiseExceptions = False  # where the log cannot be written, the run's files say so
    try:
        with summed_up():
            hydra.main(version_base="1.3", config_path=CONF, config_name=name)(job)()
        if failure:
            raise failure[0]
    except KeyboardInterrupt:
        sys.exit(130)
    except (*KNOWN, ValueError, OSError) as error:
        # Hydra has a ValueError for `experiment=null` and an OSError for a folder that it cannot
        # write; one that comes out of a job is a bug.
        if full_error == "1" or (composed and not isinstance(error, KNOWN)):
            raise
        print(f"error: {one_line(name, error)}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 2 if isinstance(error, (*KNOWN, ValueError)) else 1))
    finally:
        os.environ["HYDRA_FULL_ERROR"] = full_error


def build(node: Mapping[str, Any]) -> Any:
    """The object that a node's ``_target_`` names, made with the node's other values."""
    try:
        return hydra.utils.instantiate(dict(node))
    except hydra.errors.InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(f"{node['_target_']}: {reason}") from error


def checked(name: str, config: DictConfig, choices: Mapping[str, str]) -> dict[str, Any]:
    """The configuration as plain values.

    The option files are the schema: a key must stand in one of the chosen options, and a value
    be of the type that stands there, within the range that ``frcnn.config.checks`` gives its key.

    Raises:
        ConfigError: naming the key, and what is allowed.
    """
    groups = [f"{k}={v}" for k, v in choices.items() if k not in RECIPES]
    reference = OmegaConf.to_container(hydra.compose(name, groups), resolve=False)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"{missing[0]} is required: add {missing[0]}=VALUE")
    plain = OmegaConf.to_container(config, resolve=True)
    _check_node("", plain, reference)
    if "model" in plain:
        check_order(plain["model"])
    return plain


def _without_appended(choices: Mapping[str, str], overrides: Sequence[str]) -> dict[str, str]:
    """A group like ``+method=ohem``, of the user's own ``--config-dir``, is a recipe too."""
    keys = {text.partition("=")[0] for text in overrides}
    return {group: option for group, option in choices.items() if f"+{group}" not in keys}


def _check_node(prefix: str, node: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    for key in reference.keys() - node.keys():  # ~key on the command line
        raise ConfigError(f"{prefix}{key} is missing")
    for key, value in node.items():
        path = f"{prefix}{key}"
        if key not in reference:
            raise ConfigError(unknown_key(path, reference))
        if isinstance(value, dict) and isinstance(reference[key], dict):
            _check_node(f"{path}.", value, reference[key])
        elif isinstance(value, dict) or isinstance(reference[key], dict):
            raise ConfigError(f"{path}: expected what the option files have there, got {value!r}")
        else:
            check_value(path, value, reference[key])


def unknown_key(path: str, siblings: Mapping[str, Any]) -> str:
    """One line: the key, the likeliest meant one, and those that there are."""
    parent, _, key = path.rpartition(".")
    names = [str(name) for name in siblings if not str(name).startswith("_")]
    deeper = [f"{n}.{key}" for n in names if isinstance(siblings[n], dict) and key in siblings[n]]
    close = deeper or difflib.get_close_matches(key, names, 1)
    meant = f"; did you mean {f'{parent}.' if parent else ''}{close[0]}?" if close else "."
    return f"unknown key {path}{meant} Known here: {', '.join(names)}"


def one_line(name: str, error: Exception) -> str:
    """Any error of Hydra's, OmegaConf's or ours as one line that names the key."""
    text = " ".join(str(error).split()).partition(" Config search path:")[0]
    plugin = re.search(r"Could not \w+ 'hydra/(?:launcher|sweeper)/(joblib|submitit|optuna)", text)
    if plugin:
        return f"{text.rstrip('.')}: pip install -e '.[{plugin[1]}]'"
    override = re.match(r"Could not override '(.+?)'\. To append", text)
    if override is None:
        return text
    return unknown_key(override[1], _siblings(name, override[1]))


def _siblings(name: str, path: str) -> Mapping[str, Any]:
    """What stands beside a key, with the options that the command line chose."""
    GlobalHydra.instance().clear()
    groups = [a for a in sys.argv[1:] if (Path(CONF) / a.partition("=")[0]).is_dir()]
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        try:
            config = hydra.compose(name, groups)
        except HydraException:  # a sweep over options, or options of a folder of the user's
            config = hydra.compose(name)
    plain = OmegaConf.to_container(config, resolve=False)
    parent = plain
    for part in path.split(".")[:-1]:
        parent = parent.get(part) if isinstance(parent, dict) else None
    return parent if isinstance(parent, dict) else plain
