"""What every sampler of conf/sampler keeps to, at its site; a new option is found by itself."""

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from small import CODER, assigned, batch, part, quick, stacked
from torch import Tensor, nn

from frcnn.config.compose import CONF, build
from frcnn.losses import CrossEntropy, SmoothL1
from frcnn.sites.assigners import MaxIoU
from frcnn.sites.kinds import KINDS
from frcnn.sites.site import Site
from samplers import All, Candidates, Prediction, Sampler
from samplers.candidates import single_process

OPTIONS = [
    (site, file.stem)
    for site in ("rpn", "rcnn")
    for file in sorted(Path(CONF, "method/sampler").glob("*.yaml"))
]
# What may be chosen beside an option's defaults and is another path through its code.
VARIANTS = {
    "ohem": ("nms_iou=null", "positive_fraction=0.5 rank_by=class_loss"),
    "hard_negative": ("ratio=0.5",),
    "iou_balanced": (
        "edges=max_overlap",
        "edges=max_overlap floor=0.0",
        "floor=0.1 num_bins=2",
    ),
    "libra": ("edges=max_overlap floor=0.0",),
    "pisa": (
        "rank_scale=n_j beta_p=0.2 beta_n=0.1",
        "score_hlr=false",
        "isr_p=false",
        "isr_n=false",
        "score_hlr=false isr_p=false isr_n=false",
    ),
}
CHOICES = [
    (site, name, values) for site, name in OPTIONS for values in ("", *VARIANTS.get(name, ()))
]
# These draw nothing at random, `pisa` if nothing has to be left out.
FIXED = ("all", "ohem", "ohem_quota", "hard_negative", "pisa")
PRESETS = sorted(file.stem for file in Path(CONF, "preset/sampler").glob("*.yaml"))
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


def node_of(site: str, name: str) -> dict[str, Any]:
    """An option's node; composed for both sites at once, where both have it."""
    sites = [where for where, option in OPTIONS if option == name]
    return composed(*(f"sampler/{where}={name}" for where in sites))[site]


def sampler_of(
    site: str, name: str, values: str = "", budget: int | None = 8
) -> tuple[Sampler, int | None]:
    """The sampler of an option, with a small budget if it has one, and the budget.

    Args:
        values: other values than the option's, as after its keys on the command line.
    """
    node = dict(node_of(site, name))
    for key, value in OmegaConf.from_dotlist(values.split()).items():
        node[key] = value
    if "batch_size_per_image" not in node:
        return build(node), None
    node |= {} if budget is None else {"batch_size_per_image": budget}
    return build(node), node["batch_size_per_image"]


def parts_of(case: str, site: str) -> list[dict[str, Tensor]]:
    """The images of a case; at the RPN there is one class."""
    most = CLASSES[site]
    labels = [[min(label, most) for label in image] for image in CASES[case]]
    return [part(image, most, seed) for seed, image in enumerate(labels)]


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize(("site", "name", "values"), CHOICES)
def test_weights_are_weights(site: str, name: str, values: str, seeded: bool) -> None:
    sampler, budget = sampler_of(site, name, values)
    for case in CASES:
        parts = parts_of(case, site)
        candidates = stacked(parts, range(len(parts)) if seeded else None)
        weights = sampler(candidates)
        assert weights.shape == candidates.labels.shape, case
        assert weights.dtype == torch.float32 and not weights.requires_grad, case
        assert weights.isfinite().all() and (weights >= 0).all(), case
        assert not weights[candidates.labels < 0].any(), case
        if budget is not None:
            picked = candidates.image[weights > 0].bincount(minlength=1)
            assert max(picked) <= budget, case


@pytest.mark.parametrize(("site", "name", "values"), CHOICES)
def test_something_is_sampled_of_every_image_that_has_something(
    site: str, name: str, values: str
) -> None:
    sampler, _ = sampler_of(site, name, values)
    for case in ("three images", "no objects", "one negative", "fewer than asked"):
        candidates = stacked(parts_of(case, site))
        weights = sampler(candidates)
        assert all((weights[candidates.image == i] > 0).any() for i in candidates.image.unique())


@pytest.mark.parametrize(("site", "name", "values"), CHOICES)
def test_the_full_budget_takes_small_images(site: str, name: str, values: str) -> None:
    sampler, budget = sampler_of(site, name, values, budget=None)
    candidates = stacked(parts_of("three images", site), range(3))
    weights = sampler(candidates)
    assert (weights[candidates.labels >= 0] > 0).any()
    assert budget is None or budget > len(weights)


@pytest.mark.parametrize(("site", "name", "values"), CHOICES)
def test_the_same_seed_gives_the_same_weights(site: str, name: str, values: str) -> None:
    sampler, _ = sampler_of(site, name, values)
    parts = parts_of("three images", site)
    first, second = (sampler(stacked(parts, (5, 6, 7))) for _ in range(2))
    assert first.tolist() == second.tolist()
    torch.manual_seed(3)
    first = sampler(stacked(parts))
    torch.manual_seed(3)
    assert first.tolist() == sampler(stacked(parts)).tolist()


@pytest.mark.parametrize(("site", "name", "values"), CHOICES)
def test_the_picks_of_an_image_do_not_depend_on_the_others(
    site: str, name: str, values: str
) -> None:
    sampler, _ = sampler_of(site, name, values)
    parts = parts_of("three images", site)
    together = sampler(stacked(parts, (5, 6, 7))).split([len(p["labels"]) for p in parts])
    for alone, seed, expected in zip(parts, (5, 6, 7), together, strict=True):
        weights = sampler(stacked([alone], (seed,)))
        assert (weights > 0).tolist() == (expected > 0).tolist()


def rounded(image: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """What half precision leaves of an image's IoUs and predictions, in float32."""
    halved = ("ious", "logits", "loss", "class_loss")
    return image | {key: image[key].to(dtype).float() for key in halved}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("site", "name", "values"), CHOICES)
def test_half_precision_is_computed_in_float32(
    site: str, name: str, values: str, dtype: torch.dtype
) -> None:
    sampler, _ = sampler_of(site, name, values)
    parts = parts_of("three images", site)
    expected = sampler(stacked([rounded(image, dtype) for image in parts], range(3)))
    with torch.autocast("cpu", dtype):
        weights = sampler(stacked(parts, range(3), dtype))
    assert weights.dtype == torch.float32
    assert weights.equal(expected)


def at_a_site(
    site: str, parts: list[dict[str, Tensor]], columns: int, dtype: torch.dtype = torch.float32
) -> Candidates:
    """Candidates that see what a site makes of logits and of one box a candidate.

    Args:
        columns: how often that box stands there, as the one for all classes or for each.
    """
    candidates = stacked(parts, range(len(parts)))
    found = assigned(candidates)
    here = Site(site, MaxIoU(0.5, 0.5), All(), CrossEntropy(), SmoothL1(), CODER)
    logits = torch.cat([image["logits"] for image in parts]).to(dtype).float()
    g = torch.Generator().manual_seed(1)
    deltas = torch.randn(len(logits), 1, 4, generator=g).to(dtype).float()

    def predict(rows: Tensor) -> Prediction:
        return here.prediction(found, rows, logits[rows], deltas[rows].expand(-1, columns, -1))

    return replace(candidates, predict=predict)


@pytest.mark.parametrize(("name", "values"), [o[1:] for o in CHOICES if o[0] == "rcnn"])
def test_boxes_for_all_classes_are_those_of_each(name: str, values: str) -> None:
    sampler, _ = sampler_of("rcnn", name, values)
    for case in CASES:
        parts = parts_of(case, "rcnn")
        agnostic, each = (sampler(at_a_site("rcnn", parts, n)) for n in (1, CLASSES["rcnn"] + 1))
        assert agnostic.isfinite().all() and agnostic.equal(each), case


@pytest.mark.parametrize(("site", "name", "values"), CHOICES)
def test_what_a_site_shows_under_autocast_is_weighed_as_without(
    site: str, name: str, values: str
) -> None:
    sampler, _ = sampler_of(site, name, values)
    parts = parts_of("three images", site)
    expected = sampler(at_a_site(site, parts, 1, torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        assert sampler(at_a_site(site, parts, 1, torch.bfloat16)).equal(expected)


@pytest.mark.parametrize(("site", "name", "values"), [o for o in CHOICES if o[1] in FIXED])
def test_the_order_of_the_candidates_does_not_matter(site: str, name: str, values: str) -> None:
    sampler, _ = sampler_of(site, name, values, budget=64 if name == "pisa" else 8)
    parts = parts_of("three images", site)
    for image in parts:  # decoded onto its object: no two overlap theirs by nothing
        image["decoded"] = image["gt_boxes"][image["gt"]] + torch.rand_like(image["boxes"])
    orders = [torch.randperm(len(image["labels"])) for image in parts]
    mixed = [
        {key: value if key == "gt_boxes" else value[order] for key, value in image.items()}
        for image, order in zip(parts, orders, strict=True)
    ]
    before = sampler(stacked(parts)).split([len(order) for order in orders])
    expected = torch.cat([w[order] for w, order in zip(before, orders, strict=True)])
    torch.testing.assert_close(sampler(stacked(mixed)), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("site", "name", "values"), CHOICES)
def test_losses_that_are_all_equal_still_fill_the_budget(site: str, name: str, values: str) -> None:
    sampler, budget = sampler_of(site, name, values)
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


@pytest.mark.parametrize(("site", "name", "values"), CHOICES)
def test_a_loss_that_is_not_a_number_is_refused_by_those_who_look(
    site: str, name: str, values: str
) -> None:
    looked: set[str] = set()

    class Watched(Prediction):
        def __post_init__(self) -> None:
            """Making one is no look at it."""

        def __getattribute__(self, key: str) -> Any:
            if key in ("loss", "class_loss"):
                looked.add(key)
            return super().__getattribute__(key)

    sampler, _ = sampler_of(site, name, values, budget=64)  # so that all are drawn
    parts = parts_of("three images", site)
    sampler(stacked(parts, range(3), make=Watched))
    for label in (0, 1):  # some look at one side alone
        row = int(torch.where(parts[1]["labels"] == label)[0][0])
        for key in ("loss", "class_loss"):
            parts[1][key][row] = float("nan")
    if looked:
        with pytest.raises(FloatingPointError):
            sampler(stacked(parts, range(3)))
    else:
        assert sampler(stacked(parts, range(3))).isfinite().all()


@pytest.mark.parametrize(("site", "name", "values"), CHOICES)
def test_every_draw_waits_for_other_processes_equally_often(
    site: str, name: str, values: str
) -> None:
    sampler, _ = sampler_of(site, name, values)
    found: dict[str, Counter[str]] = {}
    for case in CASES:
        candidates, calls = stacked(parts_of(case, site)), Counter[str]()

        def predict(rows: Tensor, before: Any = candidates.predict, calls: Any = calls) -> Any:
            calls["predict"] += 1
            return before(rows)

        def gather(rows: Tensor, calls: Any = calls) -> tuple[Tensor, slice]:
            calls["gather"] += 1
            return single_process(rows)

        sampler(replace(candidates, predict=predict, gather=gather))
        found[case] = calls
    # A process that calls less often, for instance without any row, makes all others wait for ever.
    assert all(calls == found["three images"] for calls in found.values()), found


@pytest.mark.parametrize(("site", "name", "values"), CHOICES)
def test_every_option_trains(site: str, name: str, values: str) -> None:
    sampler, _ = sampler_of(site, name, values, budget=16)
    model = quick(sampler={site: sampler})
    if values:  # half of them meet class-agnostic boxes
        model.roi_heads.box_predictor.bbox_pred = nn.Linear(32, 4)
    losses = model(*batch(3, 0))
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    head = model.rpn.head.cls_logits if site == "rpn" else model.roi_heads.box_predictor.cls_score
    assert head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_sets_every_kind_of_site(preset: str) -> None:
    nodes = composed(f"sampler={preset}")
    assert set(KINDS) <= set(nodes)
    for node in nodes.values():
        assert callable(build(node))


def test_options_were_found() -> None:
    assert {("rpn", "random"), ("rcnn", "random"), ("rpn", "ohem"), ("rcnn", "ohem")} <= set(
        OPTIONS
    )
