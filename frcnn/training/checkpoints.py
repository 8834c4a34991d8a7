"""The checkpoints that a run writes, and the state of the run that ``last.pt`` keeps."""

import time
from pathlib import Path
from typing import Any

from frcnn.parallel.memory import peak_mb
from frcnn.runfolder import checkpoint
from frcnn.runfolder.signals import defer_signals
from frcnn.training.loop import Engine
from frcnn.training.resume import Resumed


class Checkpoints:
    """Writes ``last.pt``, ``best.pt`` and ``step_N.pt``; only the first process does.

    Args:
        described: what every checkpoint holds beside the weights: configuration and classes.
        measures_memory: whether the system tells the peak of memory.

    Attributes:
        best: AP and step of the best validation; step 0 = there was none.
        since_best: validations after the best one.
        validated: the step of the last validation.
        seconds: what the run took until ``last.pt`` was written.
        peak_mb: of memory; 0 = not measured.
        saved: when ``last.pt`` was written, by the clock of ``time.perf_counter``.
    """

    def __init__(self, engine: Engine, described: dict[str, Any], measures_memory: bool) -> None:
        self.engine, self.described, self.measures_memory = engine, described, measures_memory
        self.best: dict[str, Any] = {"AP": None, "step": 0}
        self.since_best = 0
        self.validated = 0
        self.seconds = 0.0
        self.peak_mb = 0.0
        self.saved = self.began = time.perf_counter()

    def restore(self, resumed: Resumed) -> None:
        """Go on from a checkpoint: the detector, the engine and this state."""
        saved = resumed.saved
        self.engine.detector.load_state_dict(saved["model"])
        self.engine.detector.sites.load_state_dict(saved["sites"])
        self.engine.load_state_dict(saved)
        self.seconds, self.validated = saved["seconds"], saved["validated"]
        self.peak_mb = float(saved.get("peak_memory_mb", 0.0))  # earlier versions had none
        if resumed.own and self._path("best").exists():
            self.best, self.since_best = saved["best"], saved["since_best"]
        self.began = time.perf_counter() - self.seconds

    def save_last(self) -> None:
        """Write ``last.pt``; a signal waits until it is there."""
        with defer_signals():
            self.write_last()

    def write_last(self) -> None:
        """All that the run needs to go on from here, records included."""
        self.saved = time.perf_counter()
        if not self.engine.processes.first:
            return
        self.seconds = self.saved - self.began
        if self.measures_memory:
            self.peak_mb = max(self.peak_mb, peak_mb(self.engine.options.device))
        content = self._weights() | self.engine.state_dict()
        content |= {
            "tracker": self.engine.tracker.state_dict(),
            "best": self.best,
            "since_best": self.since_best,
            "validated": self.validated,
            "seconds": self.seconds,
            "peak_memory_mb": self.peak_mb,
        }
        checkpoint.save(self._path("last"), content)

    def keep_best(self, ap: float | None) -> None:
        """Write ``best.pt`` if this validation's AP is the best one."""
        self.since_best += 1
        if not self.best["step"] or _rank(ap) > _rank(self.best["AP"]):
            self.best = {"AP": ap, "step": self.engine.step}
            self.since_best = 0
            self.save_weights("best")

    def save_weights(self, name: str) -> None:
        """Write a checkpoint to use the detector; no run can resume from it."""
        if self.engine.processes.first:
            checkpoint.save(self._path(name), self._weights())

    def _weights(self) -> dict[str, Any]:
        """The detector and what it takes to use it."""
        detector = self.engine.detector
        state = {"model": detector.state_dict(), "sites": detector.sites.state_dict()}
        return state | self.described | {"step": self.engine.step}

    def _path(self, name: str) -> Path:
        return self.engine.folder / "checkpoints" / f"{name}.pt"


def _rank(ap: float | None) -> float:
    """Validation images without any object have no AP: that counts as less than 0."""
    return -1.0 if ap is None else ap
