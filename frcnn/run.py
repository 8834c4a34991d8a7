"""One training run from its configuration to its summary."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import to_pil_image

from frcnn import checkpoint
from frcnn.assemble import dataset, detector, fill_from_data
from frcnn.config import build
from frcnn.data import AspectGroupedBatches, DetectionDataset, make_loader
from frcnn.device import choose_device, choose_precision, keep_freed_memory
from frcnn.engine import Engine, Options
from frcnn.evaluation import evaluate, format_table
from frcnn.resume import checkpoint_to_resume
from frcnn.tracking import Tracker
from frcnn.validation import Detections, detect, validation_loader

log = logging.getLogger(__name__)


def run(config: dict[str, Any], choices: dict[str, str], folder: Path) -> float | None:
    """Train, validate and keep the run's files in ``folder``; returns the best AP."""
    return Run(config, choices, folder).go()


class Run:
    """The parts of one training run and what has come of it so far."""

    def __init__(self, config: dict[str, Any], choices: dict[str, str], folder: Path) -> None:
        self.config, self.choices, self.folder = config, choices, folder
        trainer = config["trainer"]
        self.device = choose_device(trainer["device"])
        if self.device.type == "cpu":
            keep_freed_memory()
        self.dtype = choose_precision(trainer["precision"], self.device)
        self.train_set, self.val_set = (self._dataset(split) for split in ("train", "val"))
        self.train_set.transform = build(config["augmentation"])
        self.train_set.seed = config["seed"]
        fill_from_data(config["loss"], self.train_set)
        torch.manual_seed(config["seed"])
        self.detector = detector(config, self.train_set.num_classes).to(self.device)
        if trainer["channels_last"]:
            self.detector.to(memory_format=torch.channels_last)
        if trainer["compile"]:
            # The one large part of fixed shape; parameters keep their names.
            self.detector.backbone.compile()
        self.best: dict[str, Any] = {"AP": None, "step": 0}
        self.since_best = 0  # validations
        self.seconds = 0.0

    def _dataset(self, split: str) -> DetectionDataset:
        found = dataset(self.config["data"], split)
        if found.problems.counts:
            log.warning("%s data: %s", split, found.problems.summary())
        return found

    def go(self) -> float | None:
        """Train to the end, from a checkpoint if there is one."""
        self._log_start()
        saved = checkpoint_to_resume(self.config, self.folder)
        start = saved["step"] if saved else 0
        with Tracker(
            self.folder, self._wandb(), self.config, self.choices, resume_step=start
        ) as tracker:
            batches = AspectGroupedBatches(
                self.train_set.aspect_ratios(),
                self.config["trainer"]["batch_size"],
                self.config["seed"],
            )
            engine = self._engine(tracker, batches)
            if saved:
                with checkpoint.usable(f"resume={self.config['resume']}"):
                    self._restore(engine, saved)
            self._train(engine, batches, tracker)
        return self.best["AP"]

    def _engine(self, tracker: Tracker, batches: AspectGroupedBatches) -> Engine:
        trainer = self.config["trainer"]
        trained = [p for p in self.detector.parameters() if p.requires_grad]
        self.steps_per_epoch = -(-len(batches) // trainer["accumulate"])
        total = self.steps_per_epoch * trainer["epochs"]
        options = Options(
            seed=self.config["seed"],
            accumulate=trainer["accumulate"],
            clip_norm=trainer["clip_norm"],
            log_every=trainer["log_every"],
            sampling_every=trainer["sampling_every"],
            device=self.device,
            dtype=self.dtype,
        )
        return Engine(
            self.detector,
            build(self.config["optimizer"])(trained),
            build(self.config["schedule"]),
            min(total, trainer["max_steps"] or total),
            tracker,
            self.folder,
            options,
        )

    def _train(self, engine: Engine, batches: AspectGroupedBatches, tracker: Tracker) -> None:
        trainer = self.config["trainer"]
        loader = make_loader(self.train_set, batches, trainer["workers"])
        val_loader = validation_loader(self.val_set, trainer["batch_size"], trainer["workers"])
        before = self.seconds
        began = time.perf_counter()
        metrics: dict[str, Any] = {}
        while engine.step < engine.total_steps and not self._out_of_patience():
            epoch = engine.step // self.steps_per_epoch
            engine.epoch(loader, batches, epoch)
            last = engine.step >= engine.total_steps
            if last or (epoch + 1) % trainer["eval_every"] == 0:
                metrics = self._validate(engine, val_loader, tracker, epoch + 1)
            self.seconds = before + time.perf_counter() - began
            self._save("last.pt", engine, resume=True)
        self._finish(engine, val_loader, tracker, metrics)

    def _out_of_patience(self) -> bool:
        patience = self.config["trainer"]["patience"]
        out = patience is not None and self.since_best >= patience
        if out:
            log.info("no better AP in %d validations: stopping", self.since_best)
        return out

    def _validate(
        self, engine: Engine, loader: DataLoader, tracker: Tracker, epoch: int
    ) -> dict[str, Any]:
        detections, losses = detect(self.detector, loader, self.device, self.dtype)
        metrics = self._metrics(detections)
        overall = {f"val/{k}": v for k, v in metrics.items() if k != "per_class"}
        terms = {f"val/{name}": value for name, value in losses.items()}
        tracker.log({"step": engine.step, "epoch": epoch, **overall, **terms})
        rows = [[name, v["AP"], v["AP50"]] for name, v in metrics["per_class"].items()]
        tracker.log_table("val/per_class", ["class", "AP", "AP50"], rows, epoch=epoch)
        pictures = self._pictures(detections)
        if pictures:
            tracker.log_images("val/pictures", pictures, self.val_set.class_names, epoch=epoch)
        log.info("epoch %d: %s  val loss %.3f", epoch, _short(metrics), losses["loss"])
        self.since_best += 1
        if self.best["AP"] is None or (metrics["AP"] or 0) > self.best["AP"]:
            self.best = {"AP": metrics["AP"] or 0.0, "step": engine.step}
            self.since_best = 0
            self._save("best.pt", engine, resume=False)
        tracker.summary({f"best/{k}": v for k, v in self.best.items()})
        return metrics

    def _metrics(self, detections: Detections) -> dict[str, Any]:
        truth, names = self.val_set.ground_truth(), self.val_set.class_names
        return evaluate(truth, detections, names, self.config["evaluation"]["backend"])

    def _pictures(self, detections: Detections) -> list[Any]:
        chosen = detections[: self.config["trainer"]["num_pictures"]]
        samples = [(self.val_set[found["image_id"]], found) for found in chosen]
        return [(to_pil_image(image), target, found) for (image, target), found in samples]

    def _finish(
        self, engine: Engine, loader: DataLoader, tracker: Tracker, metrics: dict[str, Any]
    ) -> None:
        if not metrics:  # resumed when all was done: the numbers are those of the weights
            metrics = self._metrics(detect(self.detector, loader, self.device, self.dtype)[0])
        summary = {
            **metrics,
            "best": self.best,
            "choices": self.choices,
            "seed": self.config["seed"],
            "steps": engine.step,
            "seconds": round(self.seconds, 1),
        }
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        log.info("after %d steps and %.0f s:\n%s", engine.step, self.seconds, format_table(metrics))
        tracker.summary({f"last/{k}": v for k, v in metrics.items() if k != "per_class"})

    def _save(self, name: str, engine: Engine, *, resume: bool) -> None:
        content = {
            "model": self.detector.state_dict(),
            "losses": self.detector.loss_states(),
            "config": self.config,
            "choices": self.choices,
            "class_names": list(self.val_set.class_names),
            "category_ids": list(self.val_set.category_ids),
            "step": engine.step,
            "best": self.best,
            "since_best": self.since_best,
            "seconds": self.seconds,
        }
        if resume:
            content["optimizer"] = engine.optimizer.state_dict()
            content["scaler"] = engine.scaler.state_dict()
        checkpoint.save(self.folder / "checkpoints" / name, content)

    def _restore(self, engine: Engine, saved: dict[str, Any]) -> None:
        self.detector.load_state_dict(saved["model"])
        self.detector.load_loss_states(saved.get("losses", {}))
        engine.optimizer.load_state_dict(saved["optimizer"])
        engine.scaler.load_state_dict(saved["scaler"])
        engine.step, self.seconds = saved["step"], saved["seconds"]
        if (self.folder / "checkpoints" / "best.pt").exists():
            self.best, self.since_best = saved["best"], saved["since_best"]
        log.info("resumed after step %d", engine.step)

    def _wandb(self) -> dict[str, Any]:
        node = self.config["wandb"]
        tags = [f"{group}={option}" for group, option in sorted(self.choices.items())]
        named = ("data", "sampler/rpn", "sampler/rcnn", "loss/rcnn")
        made_of = [self.choices[key] for key in named if key in self.choices]
        name = " ".join([*made_of, f"seed {self.config['seed']}", self.folder.name])
        return node | {"name": node["name"] or name, "tags": node["tags"] + tags}

    def _log_start(self) -> None:
        parts = ", ".join(f"{group}={option}" for group, option in sorted(self.choices.items()))
        log.info("%s", parts)
        images = f"{len(self.train_set)} training and {len(self.val_set)} validation images"
        trained = sum(p.numel() for p in self.detector.parameters() if p.requires_grad)
        fixed = sum(p.numel() for p in self.detector.parameters()) - trained
        log.info("%s of %d classes", images, self.train_set.num_classes - 1)
        log.info(
            "%.1fM weights trained, %.1fM frozen, on %s in %s; run folder %s",
            trained / 1e6,
            fixed / 1e6,
            self.device,
            str(self.dtype).removeprefix("torch."),
            self.folder,
        )


def _short(metrics: dict[str, Any]) -> str:
    return " ".join(f"{k} {100 * (metrics[k] or 0):.1f}" for k in ("AP", "AP50", "AP75"))
