"""One training run from its configuration to its summary."""

import json
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import to_pil_image

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
from frcnn.evaluation.coco import (
    PER_CLASS,
    coco_metrics,
    format_table,
    installed_backend,
    percent,
)
from frcnn.evaluation.frequency import with_frequencies
from frcnn.evaluation.inference import (
    Detections,
    detect,
    merge_detections,
    save_detections,
    validation_loader,
)
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
from frcnn.parallel.memory import peak_mb, reset_peak
from frcnn.runfolder import checkpoint
from frcnn.runfolder.environment import record_environment, record_settings
from frcnn.runfolder.files import write_text
from frcnn.runfolder.signals import Stop, defer_signals
from frcnn.tracking.tracker import AnyTracker, NullTracker, Tracker
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
    view_in_words,
    warn_of_limits,
    warn_of_mean_over_anchors,
    warn_of_warmup,
)

log = logging.getLogger(__name__)

# Of the validation images: detections (the first process has them), losses, metrics.
Found = tuple[Detections, dict[str, float], dict[str, Any]]


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
        self.resumed = checkpoint_to_resume(config, folder)
        self.detector = self._detector().to(self.device)
        if trainer["channels_last"]:
            self.detector.to(memory_format=torch.channels_last)
        if trainer["compile"]:
            self.detector.compile_parts()
        self.best: dict[str, Any] = {"AP": None, "step": 0}
        self.since_best = 0  # validations
        self.validated = 0  # the step of the last validation
        self.seconds = 0.0
        self.peak_mb = 0.0  # of memory; 0 = the system does not tell

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
        resumed, self.resumed = self.resumed, None  # it holds all weights
        # This also waits until all have read it, before the first one writes another.
        before = self.processes.broadcast(finished(resumed, self.config, self.folder))
        if before is not None:
            log.info("finished before: %s, %s", self.folder.name, _short(before))
            return before["best"]["AP"]
        if resumed:
            refuse_other_precision(resumed, precision_name(self.dtype))
        self._log_start()
        state = resumed.saved["tracker"] if resumed and resumed.own else None
        tracker = self._tracker(state)
        data = self.config["data"]
        batches = AspectGroupedBatches(
            self.train_set.aspect_ratios(),
            self.config["trainer"]["batch_size"] * self.processes.size,
            self.config["seed"],
            self.processes.rank,
            self.processes.size,
            image_order(data["sampler"], self.train_set, data["repeat_threshold"]),
        )
        engine = self._engine(tracker, batches)
        if resumed:
            with checkpoint.as_user_error(f"resume={self.config['resume']}"):
                self._restore(engine, resumed)
        if self.processes.first:
            backend = installed_backend(self.config["evaluation"]["backend"])
            precision, step = precision_name(self.dtype), engine.step if state else 0
            record_environment(self.folder, self.device, precision, step, backend)
            record_settings(self.folder, self.config["model"].get("weights"))
            (self.folder / "summary.json").unlink(missing_ok=True)  # only a finished run has one
        self._saved = time.perf_counter()
        self._began = self._saved - self.seconds
        if state is None:
            # From here on last.pt is of this run, whatever stood in the folder before.
            self._save_last(engine, tracker)
        with tracker:
            self._train(engine, batches, tracker)
        return self.best["AP"]

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

    def _train(self, engine: Engine, batches: AspectGroupedBatches, tracker: AnyTracker) -> None:
        trainer = self.config["trainer"]
        loader = make_loader(self.train_set, batches, trainer["workers"])
        val_loader = validation_loader(
            self.val_set,
            trainer["batch_size"],
            trainer["workers"],
            self.processes.rank,
            self.processes.size,
        )
        try:
            with name_dead_workers(loader, val_loader):
                found = self._epochs(engine, batches, loader, val_loader, tracker)
        except Stop:
            self._write_last(engine, tracker)  # a second signal does not wait for it
            log.info("stopped after step %d; the same command goes on from there", engine.step)
            raise
        self._finish(engine, val_loader, tracker, found)

    def _epochs(
        self,
        engine: Engine,
        batches: AspectGroupedBatches,
        loader: DataLoader,
        val_loader: DataLoader,
        tracker: AnyTracker,
    ) -> Found | None:
        """Train and validate to the end; what the last validation found, if there was one."""
        seconds = 60 * self.config["trainer"]["checkpoint_minutes"]

        pace = Pace(engine.total_steps - engine.step)

        def after_step() -> None:
            pace.step()
            if time.perf_counter() - self._saved >= seconds:
                self._save_last(engine, tracker)

        found: Found | None = None
        while True:
            if self._validation_due(engine):  # also one that the run was stopped in
                self._save_last(engine, tracker)  # whatever ends the validation
                found = self._validate(engine, val_loader, tracker)
            if engine.step >= engine.total_steps or self._out_of_patience():
                return found
            engine.epoch(loader, batches, engine.step // self.steps_per_epoch, after_step)

    def _validation_due(self, engine: Engine) -> bool:
        epochs, more = divmod(engine.step, self.steps_per_epoch)
        at_epoch_end = not more and epochs % self.config["trainer"]["eval_every"] == 0
        due = at_epoch_end or engine.step >= engine.total_steps
        return due and self.validated != engine.step

    def _out_of_patience(self) -> bool:
        patience = self.config["trainer"]["patience"]
        out = patience is not None and self.since_best >= patience
        if out:
            log.info("no better AP in %d validations: stopping", self.since_best)
        return out

    def _validate(self, engine: Engine, loader: DataLoader, tracker: AnyTracker) -> Found:
        found = detections, losses, metrics = self._detect(loader)
        self._warn_of_nothing(detections)
        pictures = self._pictures(detections)
        epoch = -(-engine.step // self.steps_per_epoch)
        with defer_signals():  # the records, best.pt and what last.pt says of them go together
            self._record(tracker, metrics, losses, pictures, {"step": engine.step, "epoch": epoch})
            self._keep_best(engine, metrics)
            if self.config["trainer"]["keep_checkpoints"] and self.processes.first:
                checkpoint.save(self._checkpoint(f"step_{engine.step}"), self._weights(engine))
            tracker.summary({f"best/{k}": v for k, v in self.best.items()})
            self.validated = engine.step
        self._save_last(engine, tracker)
        return found

    def _warn_of_nothing(self, detections: Detections) -> None:
        if self.processes.first and not any(len(one["scores"]) for one in detections):
            log.warning(
                "no detection at all on %d validation images: train longer, start from trained "
                "weights (model.weights, model.weights_backbone), or check the boxes with "
                "python -m frcnn.check_data",
                len(detections),
            )

    def _record(
        self,
        tracker: AnyTracker,
        metrics: dict[str, Any],
        losses: dict[str, float],
        pictures: list[Any],
        axes: dict[str, int],
    ) -> None:
        overall = {f"val/{k}": v for k, v in metrics.items() if k != "per_class"}
        terms = {f"val/{name}": value for name, value in losses.items()}
        tracker.log({**axes, **overall, **terms})
        epoch = axes["epoch"]
        rows = [[name, *(v[key] for key in PER_CLASS)] for name, v in metrics["per_class"].items()]
        tracker.log_table("val/per_class", ["class", *PER_CLASS], rows, epoch=epoch)
        if pictures:
            tracker.log_images("val/pictures", pictures, self.val_set.class_names, epoch=epoch)
        log.info("epoch %d: %s  val loss %.3f", epoch, _short(metrics), losses["loss"])

    def _keep_best(self, engine: Engine, metrics: dict[str, Any]) -> None:
        self.since_best += 1
        if not self.best["step"] or _rank(metrics["AP"]) > _rank(self.best["AP"]):
            self.best = {"AP": metrics["AP"], "step": engine.step}
            self.since_best = 0
            if self.processes.first:
                checkpoint.save(self._checkpoint("best"), self._weights(engine))

    def _detect(self, loader: DataLoader) -> Found:
        """Detections (to the first process), losses and metrics on the validation set."""
        own, losses = detect(self.detector, loader, self.device, self.dtype, self.processes)
        detections = merge_detections(self.processes.gather_objects(own))
        metrics = self._metrics(detections) if self.processes.first else None
        return detections, losses, self.processes.broadcast(metrics)

    def _metrics(self, detections: Detections) -> dict[str, Any]:
        truth, names = self.val_set.ground_truth(), self.val_set.class_names
        metrics = coco_metrics(truth, detections, names, **self.config["evaluation"])
        return with_frequencies(metrics, self.train_set.class_images().tolist())

    def _pictures(self, detections: Detections) -> list[Any]:
        chosen = detections[: self.config["trainer"]["num_pictures"]]
        samples = [(self.val_set[found["image_id"]], found) for found in chosen]
        return [(to_pil_image(image), target, found) for (image, target), found in samples]

    def _finish(
        self, engine: Engine, loader: DataLoader, tracker: AnyTracker, found: Found | None
    ) -> None:
        if found is None:  # resumed when all was done: the numbers are those of the weights
            with name_dead_workers(loader):
                found = self._detect(loader)
        if not self.processes.first:
            return
        detections, _, metrics = found
        save_detections(self.folder / "detections.npz", detections)
        summary = {
            **metrics,
            "best": self.best,
            "choices": self.choices,
            "seed": self.config["seed"],
            "steps": engine.step,
            "seconds": round(self.seconds, 1),
            "peak_memory_mb": round(self.peak_mb, 1) or None,
        }
        write_text(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        log.info("after %d steps and %.0f s:\n%s", engine.step, self.seconds, format_table(metrics))
        last = {k: v for k, v in metrics.items() if k != "per_class"}
        last["seconds"] = summary["seconds"]
        tracker.summary({f"last/{k}": v for k, v in last.items()})

    def _save_last(self, engine: Engine, tracker: AnyTracker) -> None:
        """Write ``last.pt``; a signal waits until it is there."""
        with defer_signals():
            self._write_last(engine, tracker)

    def _write_last(self, engine: Engine, tracker: AnyTracker) -> None:
        """All that the run needs to go on from here, records included."""
        self._saved = time.perf_counter()
        if not self.processes.first:
            return
        self.seconds = time.perf_counter() - self._began
        if self.measures_memory:
            self.peak_mb = max(self.peak_mb, peak_mb(self.device))
        content = self._weights(engine) | engine.state_dict()
        content |= {
            "tracker": tracker.state_dict(),
            "best": self.best,
            "since_best": self.since_best,
            "validated": self.validated,
            "seconds": self.seconds,
            "peak_memory_mb": self.peak_mb,
        }
        checkpoint.save(self._checkpoint("last"), content)

    def _weights(self, engine: Engine) -> dict[str, Any]:
        """The detector and what it takes to use it."""
        return {
            "model": self.detector.state_dict(),
            "sites": self.detector.sites.state_dict(),
            "config": self.config,
            "choices": self.choices,
            "class_names": list(self.val_set.class_names),
            "category_ids": list(self.val_set.category_ids),
            "class_images": self.train_set.class_images().tolist(),
            "step": engine.step,
        }

    def _checkpoint(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"{name}.pt"

    def _restore(self, engine: Engine, resumed: Resumed) -> None:
        saved = resumed.saved
        self.detector.load_state_dict(saved["model"])
        self.detector.sites.load_state_dict(saved["sites"])
        engine.load_state_dict(saved)
        self.seconds, self.validated = saved["seconds"], saved["validated"]
        self.peak_mb = float(saved.get("peak_memory_mb", 0.0))  # earlier versions had none
        if resumed.own and self._checkpoint("best").exists():
            self.best, self.since_best = saved["best"], saved["since_best"]
        log.info("resumed after step %d", engine.step)
        self._report_rate_jump(engine, saved["config"]["trainer"])

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
        *_, last = sites = list(self.config["model"]["sites"])
        named = ["data", *(f"sampler/{site}" for site in sites), f"loss/{last}"]
        made_of = [self.choices[key] for key in named if key in self.choices]
        name = " ".join([*made_of, f"seed {self.config['seed']}", self.folder.name])
        return node | {"name": node["name"] or name, "tags": node["tags"] + tags}

    def _log_start(self) -> None:
        parts = ", ".join(f"{group}={option}" for group, option in sorted(self.choices.items()))
        log.info("%s", parts)
        images = f"{len(self.train_set)} training and {len(self.val_set)} validation images"
        if self.config["trainer"]["accumulate"] > 1:
            log.info(
                "normalizers count the %d batches of a step; ranks and densities are over one %s",
                self.config["trainer"]["accumulate"],
                self.config["trainer"]["accumulate_stats"],
            )
        trained = sum(p.numel() for p in self.detector.parameters() if p.requires_grad)
        fixed = sum(p.numel() for p in self.detector.parameters()) - trained
        log.info("%s of %d classes", images, self.train_set.num_classes - 1)
        log.info("%s", view_in_words(self.detector))
        limit = self.config["evaluation"]["max_detections"]
        warn_of_limits(self.val_set, self.config["model"], limit)
        warn_of_mean_over_anchors(self.detector.sites)
        log.info(
            "%.1fM weights trained, %.1fM frozen, on %s in %s; run folder %s",
            trained / 1e6,
            fixed / 1e6,
            self.device,
            str(self.dtype).removeprefix("torch."),
            self.folder,
        )


def _rank(ap: float | None) -> float:
    """Validation images without any object have no AP: that counts as less than 0."""
    return -1.0 if ap is None else ap


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


def _short(metrics: dict[str, Any]) -> str:
    return " ".join(f"{k} {percent(metrics[k])}" for k in ("AP", "AP50", "AP75"))
