"""What every sampler of conf/sampler keeps to, at its site; a new option is found by itself."""

from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from small import batch, part, quick, stacked

from frcnn.config import CONF, build
from samplers import Prediction, Sampler

OPTIONS = [
    (site, file.stem)
    for site in ("rpn", "rcnn")
    for file in sorted(Path(CONF, "sampler", site).glob("*.yaml"))
]
PRESETS = sorted(file.stem for file in Path(CONF, "sampler").glob("*.yaml"))
CLASSES = {"rpn": 1, "rcnn": 3}
MIXED = [0, 0, 1, -1, 0, 2, 0, 0, 3, 0, 1, 0, -1, 0, 0, 0, 1, 2, 0, 0]
CASES = {
    "three images": [MIXED, [0] * 15 + [1], MIXED[::-1] * 2],
    "no objects": [[0] * 30],
    "no negatives": [[1, 2, 3, 1, 2, -1] * 4],
    "one negative": [[0]],
    "one positive": [[1]],
    "no candidates": [[]],
    "an image without candidates": [MIXED, [], MIXED],
    "the last image without candidates": [MIXED, []],
    "all ignored": [[-1] * 6],
    "fewer than asked": [[0, 1, 0, -1, 2]],
}


@cache
def composed(*choices: str) -> Any:
    """The sampler nodes of the training configuration."""
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        config = hydra.compose("train", list(choices))
    return OmegaConf.to_container(config.sampler, resolve=True)


def sampler_of(site: str, name: str, budget: int | None = 8) -> tuple[Sampler, int | None]:
    """The sampler of an option, with a small budget if it has one, and the budget."""
    node = composed(f"sampler/{site}={name}")[site]
    if "batch_size_per_image" not in node:
        return build(node), None
    node = node | ({} if budget is None else {"batch_size_per_image": budget})
    return build(node), node["batch_size_per_image"]


def parts_of(case: str, site: str) -> list[dict[str, torch.Tensor]]:
    """The images of a case; at the RPN there is one class."""
    most = CLASSES[site]
    labels = [[min(label, most) for label in image] for image in CASES[case]]
    return [part(image, most, seed) for seed, image in enumerate(labels)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("site", "name"), OPTIONS)
@pytest.mark.parametrize("seeded", [True, False])
def test_weights_are_weights(site: str, name: str, case: str, seeded: bool) -> None:
    sampler, budget = sampler_of(site, name)
    parts = parts_of(case, site)
    candidates = stacked(parts, range(len(parts)) if seeded else None)
    weights = sampler(candidates)
    assert weights.shape == candidates.labels.shape
    assert weights.dtype == torch.float32
    assert not weights.requires_grad
    assert weights.isfinite().all()
    assert (weights >= 0).all()
    assert not weights[candidates.labels < 0].any()
    if budget is not None:
        picked = [int((weights[candidates.image == i] > 0).sum()) for i in range(len(parts))]
        assert max(picked) <= budget


@pytest.mark.parametrize(("site", "name"), OPTIONS)
def test_something_is_sampled_of_every_image_that_has_something(site: str, name: str) -> None:
    sampler, _ = sampler_of(site, name)
    for case in ("three images", "no objects", "one negative", "fewer than asked"):
        candidates = stacked(parts_of(case, site))
        weights = sampler(candidates)
        assert all((weights[candidates.image == i] > 0).any() for i in candidates.image.unique())


@pytest.mark.parametrize(("site", "name"), OPTIONS)
def test_the_full_budget_takes_small_images(site: str, name: str) -> None:
    sampler, budget = sampler_of(site, name, budget=None)
    candidates = stacked(parts_of("three images", site), range(3))
    weights = sampler(candidates)
    assert (weights[candidates.labels >= 0] > 0).any()
    assert budget is None or budget > len(weights)


@pytest.mark.parametrize(("site", "name"), OPTIONS)
def test_the_same_seed_gives_the_same_weights(site: str, name: str) -> None:
    sampler, _ = sampler_of(site, name)
    parts = parts_of("three images", site)
    first, second = (sampler(stacked(parts, (5, 6, 7))) for _ in range(2))
    assert first.tolist() == second.tolist()
    torch.manual_seed(3)
    first = sampler(stacked(parts))
    torch.manual_seed(3)
    assert first.tolist() == sampler(stacked(parts)).tolist()


@pytest.mark.parametrize(("site", "name"), OPTIONS)
def test_the_picks_of_an_image_do_not_depend_on_the_others(site: str, name: str) -> None:
    sampler, _ = sampler_of(site, name)
    parts = parts_of("three images", site)
    together = sampler(stacked(parts, (5, 6, 7))).split([len(p["labels"]) for p in parts])
    for alone, seed, expected in zip(parts, (5, 6, 7), together, strict=True):
        weights = sampler(stacked([alone], (seed,)))
        assert (weights > 0).tolist() == (expected > 0).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("site", "name"), OPTIONS)
def test_half_precision_is_enough(site: str, name: str, dtype: torch.dtype) -> None:
    sampler, budget = sampler_of(site, name)
    candidates = stacked(parts_of("three images", site), range(3), dtype)
    weights = sampler(candidates)
    assert weights.dtype == torch.float32
    assert weights.isfinite().all()
    assert (weights > 0).any()
    assert not weights[candidates.labels < 0].any()


@pytest.mark.parametrize(("site", "name"), OPTIONS)
def test_losses_that_are_all_equal_still_fill_the_budget(site: str, name: str) -> None:
    sampler, budget = sampler_of(site, name)
    parts = parts_of("three images", site)
    for image in parts:
        image["loss"], image["class_loss"] = torch.ones(2, len(image["labels"]))
        # Apart from each other, so that no NMS takes from the budget.
        image["boxes"] = image["boxes"] + torch.arange(len(image["labels"]))[:, None] * 100
    candidates = stacked(parts, range(3))
    weights = sampler(candidates)
    for index in range(3):
        here = candidates.image == index
        wanted = int((candidates.labels[here] >= 0).sum())
        assert budget is None or int((weights[here] > 0).sum()) == min(budget, wanted)


@pytest.mark.parametrize(("site", "name"), OPTIONS)
def test_a_loss_that_is_not_a_number_is_refused_by_those_who_look(site: str, name: str) -> None:
    looked: set[str] = set()

    class Watched(Prediction):
        def __post_init__(self) -> None:
            """Making one is no look at it."""

        def __getattribute__(self, key: str) -> Any:
            if key in ("loss", "class_loss"):
                looked.add(key)
            return super().__getattribute__(key)

    sampler, _ = sampler_of(site, name)
    parts = parts_of("three images", site)
    sampler(stacked(parts, range(3), make=Watched))
    row = int(torch.where(parts[1]["labels"] == 0)[0][0])
    for key in ("loss", "class_loss"):
        parts[1][key][row] = float("nan")
    if looked:
        with pytest.raises(FloatingPointError):
            sampler(stacked(parts, range(3)))
    else:
        assert sampler(stacked(parts, range(3))).isfinite().all()


@pytest.mark.parametrize(("site", "name"), OPTIONS)
def test_every_option_trains(site: str, name: str) -> None:
    sampler, _ = sampler_of(site, name, budget=16)
    model = quick(**{f"{site}_sampler": sampler})
    losses = model(*batch(3, 0))
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    head = model.rpn.head.cls_logits if site == "rpn" else model.roi_heads.box_predictor.cls_score
    assert head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_sets_both_sites(preset: str) -> None:
    nodes = composed(f"sampler={preset}")
    assert set(nodes) == {"rpn", "rcnn"}
    for node in nodes.values():
        assert callable(build(node))


def test_options_were_found() -> None:
    assert {("rpn", "random"), ("rcnn", "random"), ("rpn", "ohem"), ("rcnn", "ohem")} <= set(
        OPTIONS
    )
