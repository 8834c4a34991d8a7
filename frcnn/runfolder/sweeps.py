"""What became of each run of a sweep, with any launcher of Hydra's; logged when the sweep ends."""

import csv
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from frcnn.errors import DIVERGED, UserError
from frcnn.runfolder.files import write_text

log = logging.getLogger(__name__)

OUTCOMES = ("finished before", "resumed", "new", "failed")
UNFINISHED = "unfinished"  # the outcome of a job that runs, or was killed or interrupted
OUTCOME_FILE = ".outcome"  # in each job's folder

Starts = list[dict[str, Any]]  # what environment.json holds: an entry per start of the run


class Sweep(Callback):
    """Hydra's callback, which writes a file with the outcome of each job to the job's folder.

    Jobs may run in other processes and on other machines, on a copy of this object. So the process
    that started the sweep reads their outcomes from the files.
    """

    # Of the process that started the sweep; None before a sweep begins.
    folder: ClassVar[Path | None] = None
    # Whether the same command would make another folder.
    named_by_time: ClassVar[bool] = False

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Remove the outcomes of an earlier start of this sweep, and name all its folders apart."""
        Sweep.folder = Path(config.hydra.sweep.dir)
        Sweep.named_by_time = _named_by_time(config)
        _name_swept(config)
        for file in Sweep.folder.rglob(OUTCOME_FILE):
            file.unlink()

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Keep the outcome of a job that does not get to its end."""
        if config.hydra.mode == RunMode.MULTIRUN:
            folder = Path(config.hydra.runtime.output_dir)
            self.starts_before = _starts(folder)
            write_text(folder / OUTCOME_FILE, UNFINISHED)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Write the outcome of a job that has ended."""
        if config.hydra.mode == RunMode.MULTIRUN:
            folder = Path(config.hydra.runtime.output_dir)
            completed = job_return.status == JobStatus.COMPLETED
            outcome = _outcome(completed, self.starts_before, _starts(folder))
            write_text(folder / OUTCOME_FILE, outcome)


@contextmanager
def summed_up() -> Iterator[None]:
    """Log the outcomes of the sweep that runs in the block, if one does, when the block ends.

    Hydra's ``on_multirun_end`` cannot do this: it is not called where a job failed.
    """
    Sweep.folder, ended = None, False
    try:
        yield
        ended = True
    finally:
        if Sweep.folder is not None:
            _log_outcomes(Sweep.folder, ended)


def _log_outcomes(folder: Path, ended: bool) -> None:
    """Log how many jobs had each outcome, and how to go on where not all jobs are done."""
    counts = Counter(file.read_text() for file in folder.rglob(OUTCOME_FILE))
    if not counts:  # refused before the first job
        return
    shown = [*OUTCOMES, UNFINISHED] if counts[UNFINISHED] else OUTCOMES
    log.info("runs in %s: %s", folder, ", ".join(f"{counts[name]} {name}" for name in shown))
    # Optuna's sweeper raises no error where jobs have failed.
    not_done = counts["failed"] or not ended
    if not_done and Sweep.named_by_time:
        log.info("to go on: the same command with run_name=%s", folder.name)


def finished_elsewhere(file: Path, run: Path) -> float | None:
    """AP of a run that a report's ``runs.csv`` names, made by this very commit; 0 if it diverged.

    The name of a sweep's run says what the command line set, the commit all other settings. A clone
    with changes is no commit.

    Args:
        run: its folder, relative to the sweep's.

    Raises:
        UserError: the file cannot be read, or files of this clone differ from its commit.
    """
    from frcnn.runfolder.environment import commit  # torch takes seconds to load

    now = commit()
    if now["dirty"] or now["commit"] is None:
        raise UserError(
            f"done={file}: needs a clone without changes (git status), whose commit the rows name; "
            "keep the file outside of it"
        )
    try:
        with file.open(newline="") as rows:
            for row in csv.DictReader(rows):
                diverged = row["status"] == "FAILED" and DIVERGED in row["error"]
                ended = row["status"] == "COMPLETED" or diverged
                same = row["run"] == run.as_posix() and ended
                if same and json.loads(row["made"])["commit"] == now["commit"][:8]:
                    log.info("finished before: %s, as %s says", run, file)
                    return 0.0 if diverged else float(row["AP"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"done={file}: cannot be read ({error})") from error
    return None


def _outcome(completed: bool, before: Starts, now: Starts) -> str:
    """What became of a job; a run that begins, or goes on after a step, adds a start."""
    if not completed:
        return "failed"
    if now == before:
        return "finished before"
    return "resumed" if now[-1]["step"] else "new"


def _starts(folder: Path) -> Starts:
    file = folder / "environment.json"
    return json.loads(file.read_text()) if file.exists() else []


def _name_swept(config: DictConfig) -> None:
    """Have each job's folder name the keys that the sweep has several values of.

    ``exclude_keys`` leaves some keys out, as ``data.root``, so that runs are found again after the
    data have moved. Jobs that differ in such a key only would share a folder.
    """
    params = config.hydra.sweeper.get("params") or {}  # of the sweep's file
    texts = [*config.hydra.overrides.task, *(f"{key}={value}" for key, value in params.items())]
    parsed = OverridesParser.create().parse_overrides(texts)
    swept = {one.get_key_element() for one in parsed if one.is_sweep_override()}
    names = "hydra.job.config.override_dirname.exclude_keys"
    excluded = list(OmegaConf.select(config, names))
    kept = [key for key in excluded if key not in swept]
    if kept != excluded:
        with open_dict(config), read_write(config):
            config.hydra.overrides.hydra.append(f"{names}=[{','.join(kept)}]")


def _named_by_time(config: DictConfig) -> bool:
    """Whether the sweep's folder has the time as its name, and run_name= can name the folder."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    by_name = plain["hydra"]["sweep"]["dir"] == "runs/${run_name}"
    return by_name and "${now:" in str(plain["run_name"])
