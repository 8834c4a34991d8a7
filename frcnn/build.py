"""Parts of a run from their configuration nodes."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from frcnn.config.compose import build
from frcnn.config.methods import GROUPS
from frcnn.data import DetectionDataset, drop_unusable_images
from frcnn.data.folds import of_fold, of_fraction, pool
from frcnn.errors import ConfigError, NoSplitError
from frcnn.model import Detector

# Said in the data's file, since they suit the data, and used by the model.
VIEW = ("min_size", "max_size", "anchor_sizes")
CUT = ("split_seed", "split_block")
SPLITS = ("folds", "fold", "val_fraction", *CUT)
ORDER = ("sampler", "repeat_threshold")  # of the training images
NO_READER = (*VIEW, *SPLITS, *ORDER)


def dataset(node: dict[str, Any], split: str) -> DetectionDataset:
    """The "train" or "val" split of a data node, with the images that can be used."""
    found = annotated(node, split)
    drop_unusable_images(found, split)
    return found


def annotated(node: dict[str, Any], split: str) -> DetectionDataset:
    """The same as its annotations have it, no image opened.

    Raises:
        ConfigError: ``folds`` without a ``fold`` below it, the other way round, or with a
            ``val_fraction``.
    """
    reader = build({key: value for key, value in node.items() if key not in NO_READER})
    chosen = {key: node[key] for key in SPLITS if node.get(key) is not None}
    cut = {key: value for key, value in chosen.items() if key in CUT}
    _check_splits(chosen)
    if "val_fraction" in chosen:
        return of_fraction(reader(split="train"), split, chosen["val_fraction"], **cut)
    if "folds" in chosen:
        return of_fold(_pooled(node, reader), split, chosen["folds"], chosen["fold"], **cut)
    return reader(split=split)


def _pooled(node: Mapping[str, Any], reader: Callable[..., DetectionDataset]) -> DetectionDataset:
    """All splits that the data set has."""
    tested = node.get("test_split") is not None or "test_images" in node
    parts = [reader(split="train")]
    for part in ("val", "test") if tested else ("val",):
        with suppress(NoSplitError):
            parts.append(reader(split=part))
    return pool(parts)


def _check_splits(chosen: Mapping[str, Any]) -> None:
    if "val_fraction" in chosen and chosen.keys() & {"folds", "fold"}:
        raise ConfigError("data.val_fraction and data.folds are two ways to cut: choose one")
    for key, other in (("folds", "fold"), ("fold", "folds")):
        if key not in chosen and other in chosen:
            raise ConfigError(f"data.{other}={chosen[other]} needs data.{key} too")
    if "fold" in chosen and chosen["fold"] >= chosen["folds"]:
        raise ConfigError(
            f"data.fold: expected 0 to {chosen['folds'] - 1} of data.folds={chosen['folds']}, "
            f"got {chosen['fold']}"
        )


def detector(config: dict[str, Any], num_classes: int) -> Detector:
    """The detector of a configuration; C + 1 classes.

    Methods that the configuration does not name (a checkpoint's has no samplers) are the usual
    ones of their kind of site.

    Raises:
        ConfigError: a site without a part in a group that the configuration names.
    """
    model = {key: value for key, value in config["model"].items() if key != "sites"}
    parts = {
        group: {site: build(n, f"{group}.{site}") for site, n in config[group].items() if n}
        for group in GROUPS
        if group in config
    }
    for group in parts.keys() - {"weigher"}:
        for site in config["model"]["sites"]:
            if site not in parts[group]:
                raise ConfigError(f"{group}: no part for the site {site}")
    if "loss_weight" in config:
        parts["loss_weight"] = config["loss_weight"]
    return build({**model, "_partial_": True})(num_classes=num_classes, **parts)


def fill_from_data(
    losses: dict[str, dict[str, Any]], train_set: DetectionDataset, sites: Mapping[str, str]
) -> None:
    """Write the training set's numbers where a loss node, by site, says "data".

    ``class_counts`` are the objects of each class (an RPN has one class, "object");
    ``class_frequencies`` the shares of images that show it. With the numbers in its configuration
    a checkpoint's detector can be built without the data.

    Args:
        sites: name -> kind.
    """
    counts = train_set.class_frequencies().tolist()
    of_objects = {"class_counts": [sum(counts)], "class_frequencies": [1.0]}
    shares = train_set.image_shares().tolist()
    of_classes = {"class_counts": counts, "class_frequencies": shares}
    for site, kind in sites.items():
        numbers, node = of_objects if kind == "rpn" else of_classes, losses[site]
        node |= {key: value for key, value in numbers.items() if node.get(key) == "data"}
