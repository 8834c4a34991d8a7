"""The figures of the papers: ``python -m experiments.figures checkpoint=PATH [data=...]``."""

import logging
from pathlib import Path
from typing import Any

from frcnn.config.compose import command
from frcnn.errors import UserError
from frcnn.runfolder.files import atomic_write

log = logging.getLogger(__name__)


def figures(config: dict[str, Any], choices: dict[str, str], folder: Path) -> None:
    """Write a PNG for each figure."""
    try:
        from experiments.figures import learned_weights, losses, quadrants, sampling
        from experiments.style import png
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install -e '.[report]'") from error
    from experiments.figures.seen import look
    from frcnn.evaluation.inference import validation_loader
    from frcnn.evaluation.load import chosen_data, load_trained

    trained = load_trained(
        config["checkpoint"], config["device"], config["precision"], config["trust"]
    )
    images = chosen_data(trained, config, config["split"])
    images.keep(first(len(images), config["images"]))
    loader = validation_loader(images, config["batch_size"], config["workers"])
    seen = look(trained, loader, config["budget"])
    drawn = {
        "cumulative_loss": losses.focal_loss(seen),
        "gradients": losses.gradients(seen),
        "box_gradients": losses.box_gradients(seen),
        "loss_curves": losses.curves(),
        "quadrants": quadrants.quadrants(seen, config["alpha"], config["gamma"]),
        "negative_ious": sampling.negative_ious(seen),
        "negatives_by_iou": sampling.negatives_by_iou(seen),
        "prime_samples": sampling.prime_samples(seen),
        "candidates": sampling.counts(seen, len(images)),
    }
    learning = {site: one for site, one in seen.items() if one.learned}
    if learning:
        drawn["learned_weights"] = learned_weights.learned_weights(learning)
    try:
        train_set = chosen_data(trained, config, "train")
    except UserError as error:
        log.warning("no classes.png, which needs the training split: %s", error)
    else:
        counts = train_set.class_frequencies().tolist()
        drawn["classes"] = sampling.classes(trained.class_names, counts)
    if config["forgetting"]:
        drawn["forgetting"] = forgetting_figure(config, loader)
    output = Path(config["output"] or "figures")
    for name, figure in drawn.items():
        with atomic_write(output / f"{name}.png") as file:
            file.write(png(figure))
    log.info("%d images of %s; figures in %s", len(images), config["split"], output)


def forgetting_figure(config: dict[str, Any], loader: Any) -> Any:
    """The figure of the runs that ``forgetting`` names, over the same images."""
    from experiments.figures.forgetting import forgetting, look_twice
    from frcnn.evaluation.load import load_trained

    runs = {}
    for name, *paths in config["forgetting"]:
        earlier, later = (
            load_trained(path, config["device"], config["precision"], config["trust"])
            for path in paths
        )
        runs[name] = look_twice(earlier, later, loader, config["budget"])
    return forgetting(runs)


def first(size: int, number: int) -> Any:
    """[size] bool array, true for the first ``number``."""
    import numpy as np

    return np.arange(size) < number


def main() -> None:
    """Entry point."""
    command("figures", figures)


if __name__ == "__main__":
    main()
