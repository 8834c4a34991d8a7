"""What becomes of the runs of a sweep, whichever launcher starts them, said at its end."""

import csv
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from frcnn.errors import UserError
from frcnn.runfolder.files import write_text

log = logging.getLogger(__name__)

OUTCOMES = ("finished before", "resumed", "new", "failed")
NOTE = ".outcome"  # a file of each job's folder


class Sweep(Callback):
    """Notes in the folder of each job what became of it.

    Jobs may run in other processes and on other machines, where Hydra calls a copy of this object.
    """

    folder: ClassVar[Path | None] = None  # in the process that was told to sweep
    by_clock: ClassVar[bool] = False  # whether the same command would make another folder

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Forget the notes of the time before."""
        Sweep.folder = Path(config.hydra.sweep.dir)
        Sweep.by_clock = _by_clock(config)
        for note in Sweep.folder.rglob(NOTE):
            note.unlink()

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """A job that is killed or interrupted stays unfinished."""
        if config.hydra.mode == RunMode.MULTIRUN:
            _note(config, "unfinished")
            self.starts = _starts(config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """A run that began has said so in ``environment.json``, and after which step."""
        if config.hydra.mode == RunMode.MULTIRUN:
            starts = _starts(config)
            if job_return.status != JobStatus.COMPLETED:
                _note(config, "failed")
            elif starts == self.starts:
                _note(config, "finished before")
            else:
                _note(config, "resumed" if starts[-1]["step"] else "new")


@contextmanager
def summed_up() -> Iterator[None]:
    """Log at the block's end what became of the jobs of the sweep in it, if there was one.

    Where not all are done, and the same command would begin anew, also which one goes on.
    Not ``on_multirun_end``: Hydra does not call it where a job failed.
    """
    Sweep.folder, ended = None, False
    try:
        yield
        ended = True
    finally:
        folder = Sweep.folder
        notes: list[Path] = list(folder.rglob(NOTE)) if folder else []
        counts: Counter[str] = Counter(note.read_text() for note in notes)
        if counts:
            more = [name for name in counts if name not in OUTCOMES]
            text = ", ".join(f"{counts[name]} {name}" for name in (*OUTCOMES, *more))
            log.info("runs in %s: %s", folder, text)
            # Optuna's search ends well where jobs have failed.
            if folder and Sweep.by_clock and (counts["failed"] or not ended):
                log.info("to go on: the same command with run_name=%s", folder.name)


def finished_elsewhere(file: Path, run: Path) -> float | None:
    """AP of a finished run that a report's ``runs.csv`` names, made by this very commit.

    The name of a sweep's run says what the command line set, the commit all other settings. A clone
    with changes is no commit.

    Args:
        run: its folder, relative to the sweep's.

    Raises:
        UserError: there is no such file.
    """
    from frcnn.runfolder.environment import commit  # torch takes seconds to load

    now = commit()
    if now["dirty"] or now["commit"] is None:
        log.warning("done=%s is of no use: this is no commit, or files differ from it", file)
        return None
    try:
        with file.open(newline="") as rows:
            for row in csv.DictReader(rows):
                same = row["run"] == run.as_posix() and row["status"] == "COMPLETED"
                if same and json.loads(row["made"])["commit"] == now["commit"][:8]:
                    log.info("finished before: %s, as %s says", run, file)
                    return float(row["AP"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"done={file}: cannot be read ({error})") from error
    return None


def _by_clock(config: DictConfig) -> bool:
    """Whether the sweep's folder is called after the time, and run_name= says which one it is."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    by_name = plain["hydra"]["sweep"]["dir"] == "runs/${run_name}"
    return by_name and "${now:" in str(plain["run_name"])


def _note(config: DictConfig, outcome: str) -> None:
    write_text(Path(config.hydra.runtime.output_dir) / NOTE, outcome)


def _starts(config: DictConfig) -> list[dict[str, Any]]:
    file = Path(config.hydra.runtime.output_dir) / "environment.json"
    return json.loads(file.read_text()) if file.exists() else []
