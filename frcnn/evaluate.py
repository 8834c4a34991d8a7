"""Evaluate a checkpoint: ``python -m frcnn.evaluate checkpoint=PATH [data=...]``."""

import json
import logging
from pathlib import Path
from typing import Any

from frcnn.config.compose import command

log = logging.getLogger(__name__)


def evaluate(config: dict[str, Any], choices: dict[str, str], folder: Path) -> float | None:
    """Write metrics.json, and results.json and ground_truth.json in COCO's format; returns AP."""
    from frcnn.evaluation.coco import coco_metrics, format_table, write_results
    from frcnn.evaluation.frequency import with_frequencies
    from frcnn.evaluation.inference import detect, validation_loader
    from frcnn.evaluation.load import chosen_data, load_trained
    from frcnn.runfolder.files import write_text

    trained = load_trained(
        config["checkpoint"], config["device"], config["precision"], config["trust"]
    )
    images = chosen_data(trained, config, config["split"])
    for line in images.warnings():
        log.warning("%s data: %s", config["split"], line)
    batch_size = config["batch_size"] or trained.batch_size
    loader = validation_loader(images, batch_size, config["workers"])
    detections, losses = detect(trained.detector, loader, trained.device, trained.dtype)
    truth = images.ground_truth()
    limits = config["evaluation"]
    limits["max_detections"] = limits["max_detections"] or trained.max_detections
    metrics = coco_metrics(truth, detections, images.class_names, **limits)
    if trained.class_images:
        metrics = with_frequencies(metrics, trained.class_images)
    source = Path(config["checkpoint"]).resolve()
    run = source.parents[1] if source.parent.name == "checkpoints" else source.parent
    output = Path(config["output"] or run / "evaluation" / f"{source.stem}_{config['split']}")
    text = json.dumps({"checkpoint": str(source), **metrics, "loss": losses["loss"]}, indent=2)
    write_text(output / "metrics.json", text + "\n")
    write_results(output, detections, truth, images.image_ids, images.category_ids)
    log.info("%d images\n%s\nwritten to %s", len(images), format_table(metrics), output)
    return metrics["AP"]


def main() -> None:
    """Entry point."""
    command("evaluate", evaluate)


if __name__ == "__main__":
    main()
