"""The figures of the papers: ``python -m experiments.figures checkpoint=PATH [data=...]``."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frcnn.config.compose import command
from frcnn.errors import UserError
from frcnn.runfolder.files import atomic_write, write_text

log = logging.getLogger(__name__)


def figures(config: dict[str, Any], choices: dict[str, str], folder: Path) -> None:
    """Write a PNG for each figure, ``legends.csv`` with the numbers in their legends, and
    ``wrong_labels.csv`` where that figure is drawn.
    """
    try:
        from experiments.figures import wrong_labels
        from experiments.style import legends, png
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install -e '.[report]'") from error
    from frcnn.evaluation.inference import validation_loader
    from frcnn.evaluation.load import chosen_data

    trained = loaded(config, config["checkpoint"])
    images = chosen_data(trained, config, config["split"])
    images.keep(first(len(images), config["images"]))
    loader = validation_loader(images, config["batch_size"], config["workers"])
    output = Path(config["output"] or "figures")
    drawn = of_candidates(config, trained, loader, len(images))
    drawn |= of_detections(trained, images, loader)
    drawn |= of_classes(config, trained)
    if config["forgetting"]:
        drawn["forgetting"] = forgetting_figure(config, loader)
    if config["wrong_labels"]:
        noisy = noisy_runs(config)
        drawn["wrong_labels"] = wrong_labels.wrong_labels(noisy)
        write_text(output / "wrong_labels.csv", wrong_labels.table(noisy))
    for name, figure in drawn.items():
        with atomic_write(output / f"{name}.png") as file:
            file.write(png(figure))
    write_text(output / "legends.csv", legends(drawn))
    log.info("%d images of %s; figures in %s", len(images), config["split"], output)


def loaded(config: dict[str, Any], path: str) -> Any:
    """The detector of a checkpoint."""
    from frcnn.evaluation.load import load_trained

    return load_trained(path, config["device"], config["precision"], config["trust"])


def of_candidates(
    config: dict[str, Any], trained: Any, loader: Any, num_images: int
) -> dict[str, Any]:
    """The figures of what the sites see of the images."""
    from experiments.figures import (
        confidence,
        gradients,
        learned_weights,
        losses,
        prime_samples,
        quadrants,
        sampling,
    )
    from experiments.figures.look import look

    seen = look(trained, loader, config["budget"])
    drawn = {
        "cumulative_loss": losses.focal_loss(seen),
        "confidence": confidence.confidence(seen),
        "gradients": gradients.gradients(seen),
        "box_gradients": gradients.box_gradients(seen),
        "loss_curves": losses.curves(),
        "quadrants": quadrants.quadrants(seen, config["alpha"], config["gamma"]),
        "negative_ious": sampling.negative_ious(seen),
        "negatives_by_iou": sampling.negatives_by_iou(seen),
        "prime_samples": prime_samples.prime_samples(seen),
        "candidates": sampling.counts(seen, num_images),
    }
    learning = {site: one for site, one in seen.items() if one.learned}
    if learning:
        drawn["learned_weights"] = learned_weights.learned_weights(learning)
    return drawn


def of_detections(trained: Any, images: Any, loader: Any) -> dict[str, Any]:
    """The figure of detections, for detectors with an RCNN head."""
    from experiments.figures.prime_precision import heads_of, prime_precision, raise_scores

    if not heads_of(trained.detector):
        return {}
    return {"prime_precision": prime_precision(raise_scores(trained, images, loader))}


def of_classes(config: dict[str, Any], trained: Any) -> dict[str, Any]:
    """The figure of the training split, if it is there."""
    from experiments.figures import sampling
    from frcnn.evaluation.load import chosen_data

    try:
        train_set = chosen_data(trained, config, "train")
    except UserError as error:
        log.warning("no classes.png, which needs the training split: %s", error)
        return {}
    counts = train_set.class_frequencies().tolist()
    return {"classes": sampling.classes(trained.class_names, counts)}


def forgetting_figure(config: dict[str, Any], loader: Any) -> Any:
    """The figure of the runs that ``forgetting`` names, over the same images."""
    from experiments.figures.forgetting import forgetting, look_twice

    runs = {}
    for name, *paths in config["forgetting"]:
        earlier, later = (loaded(config, path) for path in paths)
        runs[name] = look_twice(earlier, later, loader, config["budget"])
    return forgetting(runs)


def noisy_runs(config: dict[str, Any]) -> dict[str, Any]:
    """Of the runs that ``wrong_labels`` names, what their checkpoints show of training images."""
    from experiments.figures.wrong_labels import look_at_noise
    from frcnn.evaluation.load import chosen_data
    from frcnn.runfolder import checkpoint

    names = "images", "budget", "batch_size", "workers"
    options = [config[name] for name in names]
    runs: dict[str, Any] = {}
    for name, *paths in config["wrong_labels"]:
        runs[name] = {}
        for path in checkpoints(paths):
            trained = loaded(config, path)
            train_set = chosen_data(trained, config | {"checkpoint": path}, "train")
            step = checkpoint.load(Path(path))["step"]
            runs[name][step] = look_at_noise(trained, train_set, *options)
    return runs


def checkpoints(paths: Sequence[str]) -> list[str]:
    """The checkpoints themselves, and for a run's folder those of its validations.

    Raises:
        UserError: the run has kept none.
    """
    found: list[str] = []
    for path in paths:
        kept = sorted(Path(path).glob("checkpoints/step_*.pt")) if Path(path).is_dir() else [path]
        if not kept:
            raise UserError(f"{path}: no checkpoints/step_N.pt (trainer.keep_checkpoints=true)")
        found += map(str, kept)
    return found


def first(size: int, number: int) -> Any:
    """[size] bool array, true for the first ``number``."""
    import numpy as np

    return np.arange(size) < number


def main() -> None:
    """Entry point."""
    command("figures", figures)


if __name__ == "__main__":
    main()
