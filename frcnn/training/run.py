"""One training run from its configuration to its summary."""

import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from frcnn.build import dataset, detector, fill_from_data
from frcnn.config.compose import build
from frcnn.data import (
    AspectGroupedBatches,
    DetectionDataset,
    count_shared_images,
    image_order,
    make_loader,
)
from frcnn.data.workers import name_dead_workers
from frcnn.evaluation.coco import format_table, installed_backend
from frcnn.evaluation.inference import save_detections
from frcnn.model import Detector
from frcnn.model.backbones import AUTO
from frcnn.parallel.device import (
    choose_device,
    choose_precision,
    keep_freed_memory,
    precision_name,
    set_deterministic,
)
from frcnn.parallel.group import SingleProcess
from frcnn.parallel.memory import reset_peak
from frcnn.runfolder import checkpoint
from frcnn.runfolder.environment import record_environment, record_settings
from frcnn.runfolder.files import write_text
from frcnn.runfolder.signals import Stop, defer_signals
from frcnn.tracking.tracker import AnyTracker, NullTracker, Tracker
from frcnn.training.checkpoints import Checkpoints
from frcnn.training.loop import Engine, Options
from frcnn.training.resume import (
    Resumed,
    checkpoint_to_resume,
    finished,
    refuse_other_precision,
)
from frcnn.training.start import (
    Pace,
    check_image_size,
    starting_weights,
    view_in_words,
    warn_of_limits,
    warn_of_mean_over_anchors,
    warn_of_warmup,
    weights_in_words,
)
from frcnn.training.validation import Found, Validation, metrics_in_words

log = logging.getLogger(__name__)


def run(
    config: dict[str, Any],
    choices: dict[str, str],
    folder: Path,
    processes: SingleProcess | None = None,
) -> float | None:
    """Train, validate and keep the run's files in ``folder``; returns the best AP.

    ``processes`` is the process group; None = a single process.
    """
    return Run(config, choices, folder, processes).go()


class Run:
    """The parts of one training run and what has come of it so far."""

    def __init__(
        self,
        config: dict[str, Any],
        choices: dict[str, str],
        folder: Path,
        processes: SingleProcess | None = None,
    ) -> None:
        self.config, self.choices, self.folder = config, choices, folder
        self.processes = processes or SingleProcess()
        trainer = config["trainer"]
        set_deterministic(trainer["deterministic"])
        check_image_size(config["model"])
        self.device = choose_device(trainer["device"])
        self.measures_memory = reset_peak(self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.dtype = choose_precision(trainer["precision"], self.device)
        self.train_set, self.val_set = datasets(config["data"])
        self.train_set.transform = build(config["augmentation"])
        self.train_set.seed = config["seed"]
        fill_from_data(config["loss"], self.train_set, config["model"]["sites"])
        self.class_images = self.train_set.class_images().tolist()
        counts = dict(zip(self.train_set.class_names, self.class_images, strict=True))
        self.resumed = checkpoint_to_resume(config, folder, counts)
        self.detector = self._detector().to(self.device)
        if trainer["channels_last"]:
            self.detector.to(memory_format=torch.channels_last)
        if trainer["compile"]:
            self.detector.compile_parts()

    def _detector(self) -> Detector:
        """The detector at its start; ``model.weights`` gets the value that "auto" came to.

        A run that goes on keeps the value that it began with.
        """
        model, classes = self.config["model"], self.train_set.num_classes
        if model.get("weights") == AUTO and self.resumed:
            model["weights"] = self.resumed.saved["config"]["model"]["weights"]
        if model.get("weights") != AUTO:
            return self._seeded(classes)
        built = self._seeded(classes) if self.processes.first else None
        model["weights"] = self.processes.broadcast(built and built.initial_weights)
        return built or self._seeded(classes)

    def _seeded(self, classes: int) -> Detector:
        torch.manual_seed(self.config["seed"])
        return detector(self.config, classes)

    def go(self) -> float | None:
        """Train to the end, from a checkpoint if there is one, unless that has been done."""
        resumed, self.resumed = self.resumed, None
        # This also waits until all have read it, before the first one writes another.
        before = self.processes.broadcast(finished(resumed, self.config, self.folder))
        if before is not None:
            log.info("finished before: %s, %s", self.folder.name, metrics_in_words(before))
            return before["best"]["AP"]
        if resumed:
            refuse_other_precision(resumed, precision_name(self.dtype))
        self._log_start(new=resumed is None)
        state = resumed.saved["tracker"] if resumed and resumed.own else None
        tracker, batches = self._tracker(state), self._batches()
        engine = self._engine(tracker, batches)
        self.checkpoints = Checkpoints(engine, self._described(), self.measures_memory)
        if resumed:
            with checkpoint.as_user_error(f"resume={self.config['resume']}"):
                self._restore(engine, resumed)
        del resumed  # release the checkpoint: it holds a copy of all weights
        if self.processes.first:
            self._record_start(engine.step if state else 0)
        if state is None:
            # From here on last.pt is of this run, whatever stood in the folder before.
            self.checkpoints.save_last()
        with tracker:
            self._train(engine, batches)
        return self.checkpoints.best["AP"]

    def _record_start(self, step: int) -> None:
        """Write the files that say what this start of the run is made with."""
        backend = installed_backend(self.config["evaluation"]["backend"])
        record_environment(self.folder, self.device, precision_name(self.dtype), step, backend)
        record_settings(self.folder, self.config["model"].get("weights"))
        (self.folder / "summary.json").unlink(missing_ok=True)  # only a finished run has one

    def _batches(self) -> AspectGroupedBatches:
        data = self.config["data"]
        return AspectGroupedBatches(
            self.train_set.aspect_ratios(),
            self.config["trainer"]["batch_size"] * self.processes.size,
            self.config["seed"],
            self.processes.rank,
            self.processes.size,
            image_order(data["sampler"], self.train_set, data["repeat_threshold"]),
        )

    def _described(self) -> dict[str, Any]:
        """What it takes to use the weights of a checkpoint."""
        return {
            "config": self.config,
            "choices": self.choices,
            "class_names": list(self.val_set.class_names),
            "category_ids": list(self.val_set.category_ids),
            "class_images": self.class_images,
        }

    def _tracker(self, state: dict[str, Any] | None) -> AnyTracker:
        if not self.processes.first:
            return NullTracker()
        return Tracker(self.folder, self._wandb(), self.config, self.choices, state)

    def _engine(self, tracker: AnyTracker, batches: AspectGroupedBatches) -> Engine:
        trainer = self.config["trainer"]
        own_optimizers = methods_optimizers(self.detector)
        trained = parameters_for(self.detector, own_optimizers.values())
        self.steps_per_epoch = -(-len(batches) // trainer["accumulate"])
        total = self._total_steps(trainer)
        schedule = build(self.config["schedule"])
        warn_of_warmup(schedule, total)
        options = Options(
            seed=self.config["seed"],
            accumulate=trainer["accumulate"],
            accumulate_stats=trainer["accumulate_stats"],
            clip_norm=trainer["clip_norm"],
            log_every=trainer["log_every"],
            sampling_every=trainer["sampling_every"],
            device=self.device,
            dtype=self.dtype,
            processes=self.processes,
            describe=self.train_set.describe,
        )
        return Engine(
            self.detector,
            build(self.config["optimizer"])(trained),
            schedule,
            total,
            tracker,
            self.folder,
            options,
            own_optimizers,
        )

    def _total_steps(self, trainer: dict[str, Any]) -> int:
        total = self.steps_per_epoch * trainer["epochs"]
        return min(total, trainer["max_steps"] or total)

    def _train(self, engine: Engine, batches: AspectGroupedBatches) -> None:
        loader = make_loader(self.train_set, batches, self.config["trainer"]["workers"])
        validation = Validation(
            self.detector,
            self.val_set,
            self.class_images,
            self.config,
            self.device,
            self.dtype,
            self.processes,
        )
        try:
            with name_dead_workers(loader, validation.loader):
                found = self._epochs(engine, batches, loader, validation)
        except Stop:
            self.checkpoints.write_last()  # a second signal does not wait for it
            self._log_stop(engine.step)
            raise
        if found is None:  # resumed when all was done: the numbers are those of the weights
            with name_dead_workers(validation.loader):
                found = validation.find()
        if self.processes.first:
            self._finish(engine, found)

    def _log_stop(self, step: int) -> None:
        """Say how the run goes on; of a sweep's runs the sweep says it."""
        # The usual run_name is the time, so the same command would start another run.
        name = self.config["run_name"]
        hint = f"; to go on, add run_name={name} to the same command"
        log.info("stopped after step %d%s", step, hint if self.folder.name == name else "")

    def _epochs(
        self,
        engine: Engine,
        batches: AspectGroupedBatches,
        loader: DataLoader,
        validation: Validation,
    ) -> Found | None:
        """Train and validate to the end; what the last validation found, if there was one."""
        seconds = 60 * self.config["trainer"]["checkpoint_minutes"]

        pace = Pace(engine.total_steps - engine.step)

        def after_step() -> None:
            pace.step()
            if time.perf_counter() - self.checkpoints.saved >= seconds:
                self.checkpoints.save_last()

        found: Found | None = None
        while True:
            if self._validation_due(engine):  # also a validation that was interrupted
                self.checkpoints.save_last()  # so that a failing validation loses no training
                found = self._validate(engine, validation)
            if engine.step >= engine.total_steps or self._out_of_patience():
                return found
            engine.epoch(loader, batches, engine.step // self.steps_per_epoch, after_step)

    def _validation_due(self, engine: Engine) -> bool:
        epochs, more = divmod(engine.step, self.steps_per_epoch)
        at_epoch_end = not more and epochs % self.config["trainer"]["eval_every"] == 0
        due = at_epoch_end or engine.step >= engine.total_steps
        return due and self.checkpoints.validated != engine.step

    def _out_of_patience(self) -> bool:
        patience = self.config["trainer"]["patience"]
        since_best = self.checkpoints.since_best
        out = patience is not None and since_best >= patience
        if out:
            log.info("no better AP in %d validations: stopping", since_best)
        return out

    def _validate(self, engine: Engine, validation: Validation) -> Found:
        found = validation.find()
        validation.warn_of_nothing(found.detections)
        pictures = validation.pictures(found.detections)
        epoch = -(-engine.step // self.steps_per_epoch)
        with defer_signals():  # the records, best.pt and what last.pt says of them go together
            validation.record(engine.tracker, found, pictures, engine.step, epoch)
            self.checkpoints.keep_best(found.metrics["AP"])
            if self.config["trainer"]["keep_checkpoints"]:
                self.checkpoints.save_weights(f"step_{engine.step}")
            engine.tracker.summary({f"best/{k}": v for k, v in self.checkpoints.best.items()})
            self.checkpoints.validated = engine.step
        self.checkpoints.save_last()
        return found

    def _finish(self, engine: Engine, found: Found) -> None:
        """Write the detections and the summary."""
        save_detections(self.folder / "detections.npz", found.detections)
        metrics, seconds = found.metrics, self.checkpoints.seconds
        summary = {
            **metrics,
            "best": self.checkpoints.best,
            "choices": self.choices,
            "seed": self.config["seed"],
            "steps": engine.step,
            "seconds": round(seconds, 1),
            "peak_memory_mb": round(self.checkpoints.peak_mb, 1) or None,
        }
        write_text(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        log.info("after %d steps and %.0f s:\n%s", engine.step, seconds, format_table(metrics))
        last = {k: v for k, v in metrics.items() if k != "per_class"}
        last["seconds"] = summary["seconds"]
        engine.tracker.summary({f"last/{k}": v for k, v in last.items()})

    def _restore(self, engine: Engine, resumed: Resumed) -> None:
        self.checkpoints.restore(resumed)
        log.info("resumed after step %d", engine.step)
        self._report_rate_jump(engine, resumed.saved["config"]["trainer"])

    def _report_rate_jump(self, engine: Engine, before: dict[str, Any]) -> None:
        """Say how the learning rate jumps where the run has another length than it had."""
        planned = self._total_steps(before)
        if engine.total_steps == planned or not engine.step:
            return
        base = engine.base_rates[0][0]
        last = engine.schedule(engine.step - 1, planned)
        log.warning(
            "the run has %d steps now, it had %d: the learning rate goes from %.2g to %.2g, since "
            "the schedule spans the whole run",
            engine.total_steps,
            planned,
            base * last,
            base * engine.schedule(engine.step, engine.total_steps),
        )

    def _wandb(self) -> dict[str, Any]:
        node = self.config["wandb"]
        tags = [f"{group}={option}" for group, option in sorted(self.choices.items())]
        sites = list(self.config["model"]["sites"])
        named = ["data", *(f"sampler/{site}" for site in sites), f"loss/{sites[-1]}"]
        made_of = [self.choices[key] for key in named if key in self.choices]
        name = " ".join([*made_of, f"seed {self.config['seed']}", self.folder.name])
        return node | {"name": node["name"] or name, "tags": node["tags"] + tags}

    def _log_start(self, new: bool) -> None:
        parts = ", ".join(f"{group}={option}" for group, option in sorted(self.choices.items()))
        log.info("%s", parts)
        images = f"{len(self.train_set)} training and {len(self.val_set)} validation images"
        if self.config["trainer"]["accumulate"] > 1:
            log.info(
                "loss normalizers cover the %d batches of a step; rank and density statistics "
                "cover one %s",
                self.config["trainer"]["accumulate"],
                self.config["trainer"]["accumulate_stats"],
            )
        log.info("%s of %d classes", images, self.train_set.num_classes - 1)
        log.info("%s", view_in_words(self.detector))
        if new:
            log.info("%s", starting_weights(self.config["model"]))
        limit = self.config["evaluation"]["max_detections"]
        warn_of_limits(self.val_set, self.config["model"], limit)
        warn_of_mean_over_anchors(self.detector.sites)
        log.info(
            "%s, on %s in %s; run folder %s",
            weights_in_words(self.detector),
            self.device,
            str(self.dtype).removeprefix("torch."),
            self.folder,
        )


def datasets(node: dict[str, Any]) -> tuple[DetectionDataset, DetectionDataset]:
    """The training and the validation split of a data node; logs what is odd about them."""
    train, val = dataset(node, "train"), dataset(node, "val")
    count_shared_images(train, val)
    for split, data in (("train", train), ("val", val)):
        for line in data.warnings():
            log.warning("%s data: %s", split, line)
    return train, val


def methods_optimizers(detector: Detector) -> dict[str, torch.optim.Optimizer]:
    """The optimizers that methods name for their own parameters, by the method's place."""
    return {
        name: module.own_optimizer()
        for name, module in detector.sites.named_modules()
        if hasattr(module, "own_optimizer")
    }


def parameters_for(
    detector: Detector, others: Iterable[torch.optim.Optimizer]
) -> list[torch.nn.Parameter]:
    """The trained parameters that no other optimizer has."""
    taken = {id(p) for other in others for group in other.param_groups for p in group["params"]}
    return [p for p in detector.parameters() if p.requires_grad and id(p) not in taken]
