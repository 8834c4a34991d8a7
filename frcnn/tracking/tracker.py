"""Records a run's metrics in ``metrics.jsonl``, the reference, and in Weights & Biases."""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from frcnn.errors import ConfigError, UserError
from frcnn.runfolder.files import cannot_write, sync_names
from frcnn.time_limit import within
from frcnn.tracking.service import TEARDOWN_SECONDS, end_service

logger = logging.getLogger(__name__)

MODES = ("offline", "online", "disabled")
# The x axis of each group of metrics. W&B's own counter counts calls, not steps.
AXES = {"train/*": "step", "sampling/*": "step", "val/*": "epoch"}
# By default W&B's service writes its file every 15 s. kill -9 ends the service too, so rows from
# before the last checkpoint would be lost.
WRITE_EVERY = 0.1  # seconds
# A call of W&B that takes longer ends the run's W&B part, and training goes on.
CALL_SECONDS, FINISH_SECONDS = 20.0, 30.0

Boxes = Mapping[str, Tensor]
BoxedImage = tuple[Image.Image, Boxes, Boxes]
Histogram = tuple[Sequence[int], Sequence[float]]


class Tracker:
    """Context manager that owns a run's ``metrics.jsonl`` and its W&B run.

    Only the main process makes one. Leaving the block finishes the W&B run, so that the next run
    of a sweep in the same process gets its own; an exception marks it as failed.

    Args:
        folder: the run's folder, made if absent.
        wandb: ``mode`` (offline, online or disabled), ``project``, ``entity``, ``group``, ``name``,
            ``method``, ``tags``, ``dir``. W&B writes to ``<dir>/wandb``; runs that share it can be
            compared.
        config: the whole configuration as plain values, with ``seed``. Its W&B columns are
            ``config.<key>``, which leaves the short names to the choices.
        choices: the option chosen in each group, ``{"sampler/rcnn": "ohem"}``. These, ``seed`` and
            ``method`` become top-level W&B columns (``sampler_rcnn``) to group and filter by: one
            chart can group by one column only, which is ``method``.
        state: ``state_dict`` from the checkpoint that the run resumes from; None for a new run. A
            new run empties ``metrics.jsonl`` and gets a new W&B id. A resumed run keeps its id,
            removes the lines written after the checkpoint, and gives its W&B rows the same
            numbers again: W&B drops a row whose number it already has.

    Raises:
        ConfigError: if ``wandb["mode"]`` is none of the three.
        UserError: ``metrics.jsonl`` or W&B's folder cannot be written, or ``metrics.jsonl`` lacks
            lines that it had when ``state`` was saved.
    """

    def __init__(
        self,
        folder: Path,
        wandb: Mapping[str, Any],
        config: Mapping[str, Any],
        choices: Mapping[str, str],
        state: Mapping[str, Any] | None = None,
    ) -> None:
        if wandb["mode"] not in MODES:
            raise ConfigError(f"wandb.mode={wandb['mode']} is none of {', '.join(MODES)}")
        self.folder = folder
        self.options = wandb
        self.columns = {
            **{group.replace("/", "_"): choice for group, choice in choices.items()},
            "method": wandb["method"],
            "seed": config["seed"],
            "config": dict(config),
        }
        state = state or {"bytes": 0, "rows": 0, "wandb_id": secrets.token_hex(4)}
        self._bytes, self._rows, self._run_id = state["bytes"], state["rows"], state["wandb_id"]
        self._path = folder / "metrics.jsonl"
        self._file: Any = None
        self._run: Any = None

    def __enter__(self) -> Tracker:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._refuse_gaps()
            self._file = self._path.open("ab")
            self._file.truncate(self._bytes)
            sync_names(self.folder)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        try:
            if self.options["mode"] != "disabled":
                self._run = _start(self.options, self.columns, self._run_id)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError):  # a full disk has already raised an error in `log`
            self._file.close()
        # W&B's own context manager would print the traceback of errors that we report in one line.
        code = 0 if kind is None else 1
        self._call(lambda run: run.finish(exit_code=code), FINISH_SECONDS)

    def _refuse_gaps(self) -> None:
        found = self._path.stat().st_size if self._path.exists() else 0
        if found < self._bytes:
            raise UserError(
                f"{self._path}: {found} bytes, but the checkpoint was saved after {self._bytes}; "
                "put the file back, or go on without its records from a copy of the checkpoint, "
                "resume=FILE, or train anew, resume=never"
            )

    def state_dict(self) -> dict[str, Any]:
        """The end of the records, for a checkpoint. They are on the disk when this returns.

        Raises:
            UserError: the disk is full; some file systems report that only here.
        """
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise cannot_write(self._path, error) from error
        return {"bytes": self._bytes, "rows": self._rows, "wandb_id": self._run_id}

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends one line of scalars to ``metrics.jsonl`` and sends it to W&B.

        Args:
            record: ``step`` (optimizer steps done), for ``val/`` metrics also ``epoch``, and the
                metrics by name. Values that JSON cannot hold (NaN, infinity) become null there
                and a gap in W&B's chart.
        """
        plain = {name: _plain(value) for name, value in record.items()}
        line = json.dumps(plain, allow_nan=False) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._bytes = self._file.tell()
        self._send({name: value for name, value in plain.items() if value is not None})

    def log_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], **axes: int
    ) -> None:
        """Sends a table to W&B. As in all media, ``axes`` (``step=``, ``epoch=``) default to those
        of the last record, and ``name`` begins with ``train/``, ``val/`` or ``sampling/``."""
        if self._run is None:
            return
        import wandb

        data = [[_plain(cell) for cell in row] for row in rows]
        self._send({name: wandb.Table(columns=list(columns), data=data), **axes})

    def log_images(
        self,
        name: str,
        images: Sequence[Image.Image | BoxedImage],
        class_names: Sequence[str],
        **axes: int,
    ) -> None:
        """Sends pictures to W&B, where true and predicted boxes can be shown and hidden.

        Args:
            images: at least one picture, bare or as ``(picture, truth, predictions)`` with
                ``boxes`` [N, 4] xyxy in pixels of the picture, ``labels`` [N] and maybe
                ``scores`` [N] in 0..1.
            class_names: the names of labels 1..C.
        """
        if self._run is None:
            return
        self._send({name: _pictures(images, class_names), **axes})

    def log_histograms(self, histograms: Mapping[str, Histogram], **axes: int) -> None:
        """Sends histograms, name -> (counts [B], edges [B + 1]), to W&B. W&B keeps all bins of
        each one in its history, so send them once per epoch at most."""
        if self._run is None:
            return
        import wandb

        pairs = {name: (np.asarray(c), np.asarray(e)) for name, (c, e) in histograms.items()}
        media = {name: wandb.Histogram(np_histogram=pair) for name, pair in pairs.items()}
        self._send({**media, **axes})

    def summary(self, values: Mapping[str, Any]) -> None:
        """Sets columns of the run in W&B's table of runs, such as ``best/AP``."""
        plain = {name: _plain(value) for name, value in values.items()}
        self._call(lambda run: run.summary.update(plain))

    def _send(self, values: Mapping[str, Any]) -> None:
        if self._run is not None:
            step = self._rows
            self._call(lambda run: run.log(values, step=step, commit=True))
            self._rows += 1

    def _call(self, call: Callable[[Any], object], seconds: float | None = None) -> None:
        """Call W&B's run. Where it takes too long, the run goes on without W&B."""
        run = self._run
        if run is None:
            return
        seconds = seconds or CALL_SECONDS
        try:
            within(seconds, lambda: call(run))
        except TimeoutError:
            self._run = None
            end_service()
            folder = Path(run.dir).parent
            logger.warning(
                "W&B did not answer for %g s: going on without it, upload with `wandb sync %s`",
                seconds,
                folder,
            )


class NullTracker:
    """A tracker that records nothing, for all ranks but the first."""

    def __enter__(self) -> NullTracker:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def log(self, record: Mapping[str, Any]) -> None:
        """No-op, as the other methods are."""

    def state_dict(self) -> None:
        """None: there are no records."""

    log_table = log_images = log_histograms = summary = lambda *_, **__: None


AnyTracker = Tracker | NullTracker


def _plain(value: Any) -> Any:
    """A 0-d tensor or numpy scalar as its Python value, and None for what JSON cannot hold."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _start(options: Mapping[str, Any], columns: Mapping[str, Any], run_id: str) -> Any:
    """Start a W&B run: online if that is requested and possible, else offline."""
    import wandb

    folder = Path(options["dir"]).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    common = {key: options[key] for key in ("project", "entity", "group", "name")}
    common |= {"tags": list(options["tags"] or []), "config": columns, "dir": folder}
    common |= {"id": run_id, "resume": "allow", "job_type": "train"}
    run = _start_online(common) if options["mode"] == "online" else None
    if run is None:
        # Silent, since W&B's banner says no more than our own line of the log.
        run = wandb.init(mode="offline", settings=_settings(silent=True), **common)
        logger.info("W&B offline, to look at it: wandb leet %s", folder / "wandb")
    for metrics, axis in AXES.items():
        run.define_metric(metrics, step_metric=axis)
    return run


def _settings(**more: Any) -> Any:
    import wandb

    return wandb.Settings(console="wrap", x_transaction_log_flush_interval=WRITE_EVERY, **more)


def _start_online(common: Mapping[str, Any]) -> Any:
    """Start an online run; without a key or a network warn once and return None."""
    import wandb

    try:
        # Asking for a key at the terminal would stop an unattended sweep.
        if not wandb.login(prompt=False):
            raise wandb.Error("no API key, get one with `wandb login`")
        return wandb.init(mode="online", settings=_settings(init_timeout=30), **common)
    except wandb.Error as error:
        reason = str(error).splitlines()[0]
        logger.warning("W&B is not online (%s): going on offline, upload with `wandb sync`", reason)
        try:  # otherwise the service refuses the same id for the offline run
            within(TEARDOWN_SECONDS, wandb.teardown)
        except TimeoutError:
            end_service()
        return None


def _pictures(images: Sequence[Image.Image | BoxedImage], class_names: Sequence[str]) -> list[Any]:
    """W&B images with their box sets.

    W&B shows a list in one size and warns if sizes differ. So pictures are padded with black on the
    right and at the bottom, where it moves no box.
    """
    import wandb

    triples = [image if isinstance(image, tuple) else (image, None, None) for image in images]
    sizes = [picture.size for picture, _, _ in triples]
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    media = []
    for picture, *found in triples:
        canvas = Image.new("RGB", (width, height))
        canvas.paste(picture)
        named = zip(("ground_truth", "predictions"), found, strict=True)
        boxes = {name: _box_set(b, class_names) for name, b in named if b is not None}
        media.append(wandb.Image(canvas, file_type="jpg", boxes=boxes or None))
    return media


def _box_set(found: Boxes, class_names: Sequence[str]) -> dict[str, Any]:
    """Boxes as plain numbers: W&B refuses tensors and numpy's integers."""
    finite = found["boxes"].isfinite().all(dim=1)  # a diverged run must not fail here
    boxes, labels = found["boxes"][finite].tolist(), found["labels"][finite].tolist()
    scores = found["scores"][finite].tolist() if "scores" in found else [None] * len(boxes)
    rows = zip(boxes, labels, scores, strict=True)
    return {
        "box_data": [_box(box, label, score, class_names) for box, label, score in rows],
        "class_labels": dict(enumerate(class_names, start=1)),
    }


def _box(
    box: list[float], label: int, score: float | None, class_names: Sequence[str]
) -> dict[str, Any]:
    """One box. Its score is in the caption, and in the value that W&B's slider filters by."""
    position = dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True))
    name = class_names[label - 1]
    # Without the domain W&B silently reads pixels as fractions of the image.
    drawn = {"position": position, "domain": "pixel", "class_id": label, "box_caption": name}
    if score is not None:
        drawn |= {"scores": {"score": score}, "box_caption": f"{name} {score:.2f}"}
    return drawn
