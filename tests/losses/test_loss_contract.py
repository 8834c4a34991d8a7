"""What every option of conf/loss and conf/box_loss keeps to; a new one is found by itself."""

from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from small import CODER, assigned, part, stacked
from torch import Tensor

from frcnn.build import fill_from_data
from frcnn.config.compose import CONF, build
from frcnn.data import shapes
from frcnn.errors import ConfigError
from frcnn.losses import CrossEntropy, SmoothL1
from frcnn.model.sites import check_fit, prepare_loss
from frcnn.sites.assigners import Assigned, MaxIoU
from frcnn.sites.site import Site
from samplers import All

COLUMNS = {"rpn": 2, "rcnn": 4}
ALL = [
    (group, site, file.stem)
    for group in ("loss", "box_loss")
    for site in COLUMNS
    for file in sorted(Path(CONF, "method", group).glob("*.yaml"))
]
LONG_TAIL = ("equalization", "equalization_v2", "federated", "seesaw")
REFUSED = [("loss", "rpn", name) for name in LONG_TAIL]
OPTIONS = [option for option in ALL if option not in REFUSED]
# What may be chosen beside an option's defaults and is another path through its code.
VARIANTS = {
    "cross_entropy": (
        "class_weights=0.25",
        "class_weights=[0.5,1,2,4]",
        "class_weights=batch",
        "class_weights=batch_objects",
        "class_weights=batch keep_scale=true",
        "class_weights=data",
        "class_weights=effective",
    ),
    "focal": ("gamma=0.5", "class_weights=data keep_scale=true"),
    "focal_sigmoid": ("gamma=0.5 alpha=null",),
    "focal_star": ("gamma=4 beta=0 alpha=0.25",),
    "ghm_c": ("nonempty_bins=true", "exact_window=true"),
    "equalization": (
        "class_frequencies=[0.5,0.001,0.5]",
        "class_frequencies=[0.5,0.001,0.5] spared_at=background",
        "rare_below=2 spared_at=all",
    ),
    "federated": ("num_classes=2", "num_classes=1 power=0"),
    "seesaw": ("q=0", "p=0 q=0"),
    "quality_focal": ("beta=0.5", "start=3"),
    "rank_sort": ("delta=2",),
    "varifocal": ("gamma=0.5 start=0",),
    "noisy_anchors": ("labels=released", "alpha=1 focal_gamma=0.5", "alpha=1 labels=released"),
    "balanced_l1": ("beta=0.2",),
    "dynamic_smooth_l1": ("beta=0.1 top=1 interval=1",),
    "ghm_r": ("nonempty_bins=true weight=10", "exact_window=true"),
    "carl": ("added=false", "k=0.5 bias=0", "base=ghm_r", "base=giou added=false"),
}
CHOICES = [
    (*option, values)
    for option in OPTIONS
    for values in ("", *VARIANTS.get(option[2], ()))
    if option[1] == "rcnn" or "class_weights" not in values  # the RPN knows one class
]
CLASS = [choice for choice in CHOICES if choice[0] == "loss"]
CASES = {
    "one image": [[0, 1, -1, 2, 0, 3]],
    "two images": [[0, 0, 1, -1, 0, 2, 0, 0, 3, 0, 1], [0, 3, -1, 1, 0, 0, 1]],
    "four images": [[0] * 5, [0, 1, 0, 2, 1, 0], [-1] * 3, [2, 0]],
    "no objects": [[0] * 12],
    "no negatives": [[1, 2, 3, 1, 2, -1], [3]],
    "one positive": [[2]],
    "one negative": [[0]],
    "all ignored": [[-1] * 4, [-1]],
    "nothing": [[]],
}


@cache
def nodes() -> dict[tuple[str, str, str], dict[str, Any]]:
    """The loss nodes of the training configuration, with the numbers of a data set."""
    found = {}
    names = {key: [n for *k, n in ALL if tuple(k) == key] for key in {o[:2] for o in ALL}}
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        # A configuration has one option of each group: as many as the longest has options.
        for row in zip_longest(*([(*key, n) for n in names[key]] for key in names)):
            options = [option for option in row if option]
            config = hydra.compose("train", [f"{g}/{s}={n}" for g, s, n in options])
            plain = OmegaConf.to_container(config, resolve=True)
            fill_from_data(plain["loss"], shapes("train", train_images=4), plain["model"]["sites"])
            found |= {(g, s, n): plain[g][s] for g, s, n in options}
    return found


def made(group: str, site: str, name: str, values: str = "", **more: Any) -> Any:
    """The loss of an option, told how many classes there are.

    Args:
        values: other values than the option's, as after its keys on the command line; the name of
            an option for ``base``.
        more: values by key, beside these.
    """
    node = dict(nodes()[group, site, name])
    for key, value in OmegaConf.to_container(OmegaConf.from_dotlist(values.split())).items():
        if key == "base":
            value = nodes()[group, site, value]
        node[key] = value
    loss = build(node | more)
    if group == "loss":
        prepare_loss(site, loss, COLUMNS[site])
    return loss


def site_with(name: str, **losses: Any) -> Site:
    losses = {"class_loss": CrossEntropy(), "box_loss": SmoothL1()} | losses
    site = Site(name, MaxIoU(0.5, 0.5), All(), box_coder=CODER, **losses)
    site.seed = 0  # of losses that draw
    return site


def site_of(group: str, site: str, loss: Any) -> Site:
    """A site with this class or box loss."""
    return site_with(site, **{"class_loss" if group == "loss" else group: loss})


def kept(
    site: str, case: str, dtype: torch.dtype = torch.float32, agnostic: bool = False
) -> tuple[Assigned, Tensor, Tensor, Tensor, Tensor]:
    """Arguments of ``Site.losses``: what was matched, rows, weights, logits, deltas."""
    most = COLUMNS[site] - 1
    labels = [[min(label, most) for label in image] for image in CASES[case]]
    parts = [part(image, most, seed) for seed, image in enumerate(labels, 3)]
    found = assigned(stacked(parts))
    rows = torch.where(found.labels >= 0)[0]
    g = torch.Generator().manual_seed(1)
    weights = torch.rand(len(rows), generator=g) + 0.5
    columns = 1 if agnostic or site == "rpn" else COLUMNS[site]
    deltas = torch.randn(len(rows), columns, 4, generator=g)
    logits = torch.cat([image["logits"] for image in parts])[rows]
    if site == "rpn":
        logits[:, 0] = 0
    return found, rows, weights, *(t.to(dtype).requires_grad_() for t in (logits, deltas))


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize(("group", "site", "name", "values"), CHOICES)
def test_terms_and_gradients_are_finite(
    group: str, site: str, name: str, values: str, agnostic: bool
) -> None:
    here = site_of(group, site, made(group, site, name, values))
    for case in CASES:
        arguments = kept(site, case, agnostic=agnostic)
        terms = torch.stack(list(here.losses(*arguments).values()))
        assert terms.isfinite().all() and (terms >= 0).all(), case
        terms.sum().backward()
        assert all(tensor.grad.isfinite().all() for tensor in arguments[3:]), case
        found, rows, *_, logits, deltas = arguments
        shown = here.prediction(found, rows, logits.detach(), deltas.detach())
        assert shown.loss.isfinite().all() and shown.loss.shape == rows.shape, case


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("group", "site", "name", "values"), CHOICES)
def test_half_precision_is_computed_in_float32(
    group: str, site: str, name: str, values: str, dtype: torch.dtype
) -> None:
    half = kept(site, "two images", dtype)
    wide = *half[:3], *(tensor.detach().float().requires_grad_() for tensor in half[3:])
    first, second = (site_of(group, site, made(group, site, name, values)) for _ in range(2))
    expected = torch.stack(list(first.losses(*wide).values()))
    with torch.autocast("cpu", dtype):
        terms = torch.stack(list(second.losses(*half).values()))
    assert terms.dtype == torch.float32
    assert terms.equal(expected)
    terms.sum().backward()
    expected.sum().backward()
    for found, full in zip(half[3:], wide[3:], strict=True):
        assert found.grad.equal(full.grad.to(dtype))


@pytest.mark.parametrize(("group", "site", "name", "values"), CHOICES)
def test_what_is_not_a_number_shows(group: str, site: str, name: str, values: str) -> None:
    """In the term, so that the step is refused; and what a loss has learned stays a number."""
    loss, arguments = made(group, site, name, values), kept(site, "two images")
    positive = torch.where(arguments[0].labels[arguments[1]] > 0)[0][0]
    term = ("loss", "box_loss").index(group)
    with torch.no_grad():
        arguments[3 + term][positive] = float("nan")  # its logits or its deltas
    assert list(site_of(group, site, loss).losses(*arguments).values())[term].isnan()
    state = loss.state_dict().values() if hasattr(loss, "state_dict") else ()
    assert all(tensor.isfinite().all() for tensor in state)


@pytest.mark.parametrize(("group", "site", "name", "values"), CHOICES)
def test_values_are_unreduced_and_the_normalizer_is_above_zero(
    group: str, site: str, name: str, values: str
) -> None:
    loss, constant = (made(group, site, name, values, **more) for more in ({}, {"per": 7.0}))
    for case in CASES:
        samples = site_with(site)._samples(*kept(site, case))
        found = loss(samples)
        like = samples.labels if group == "loss" else samples.positive
        assert found.shape == like.shape and (found >= 0).all(), case
        assert float(loss.normalizer(samples)) > 0, case
        assert float(constant.normalizer(samples)) == 7


@pytest.mark.parametrize(("group", "site", "name", "values"), CHOICES)
def test_the_order_of_the_samples_does_not_matter(
    group: str, site: str, name: str, values: str
) -> None:
    found, *tensors = kept(site, "two images")
    order = torch.randperm(len(tensors[0]))
    here = site_with(site)
    before = here._samples(found, *tensors)
    after = here._samples(found, *(tensor[order] for tensor in tensors))
    value, mixed = (made(group, site, name, values)(given) for given in (before, after))
    if group == "box_loss":
        order = torch.searchsorted(before.positive, order[after.positive])
    torch.testing.assert_close(mixed, value[order])


@pytest.mark.parametrize(("group", "site", "name", "values"), CLASS)
def test_scores_are_shares_and_follow_the_logits(
    group: str, site: str, name: str, values: str
) -> None:
    loss = made(group, site, name, values)
    logits = torch.tensor([[0.0, 0, 0, 0], [5, -5, 1, 2], [-3, 80, -80, 0], [0, -9, -9, -9]])
    for given in (logits, logits.bfloat16(), logits.half()):
        scores = loss.scores(given[:, : COLUMNS[site]])
        assert scores.dtype == torch.float32 and scores.shape == (4, COLUMNS[site])
        assert ((scores >= 0) & (scores <= 1)).all()
    order = logits[:, 1 : COLUMNS[site]].argsort(dim=1, stable=True)
    assert torch.equal(scores[:, 1:].argsort(dim=1, stable=True), order)


RANKINGS = ("rank_sort", "bucketed_rank_sort", "alrp")


def has_constants(group: str, name: str, values: str) -> bool:
    """Whether a part of the loss has no gradient by definition, whatever it depends on.

    Such are CARL's scale in its base's place, a density that moves with each norm, seesaw's
    compensation, and the label of noisy anchors (with alpha=1 it depends on boxes alone). Losses
    over rankings have errors in the place of gradients.
    """
    return (
        "added=false" in values
        or "exact_window=true" in values
        or (name == "seesaw" and "q=0" not in values)
        or (name == "noisy_anchors" and "alpha=1" not in values)
        or (group == "loss" and name in RANKINGS)
    )


@pytest.mark.parametrize(
    ("group", "site", "name", "values"),
    [o for o in CHOICES if not has_constants(o[0], *o[2:])],
)
def test_gradients_are_those_of_the_values(group: str, site: str, name: str, values: str) -> None:
    """In float64, against finite differences; the examples of GHM stay in their bins."""
    loss, here = made(group, site, name, values), site_with(site)
    found, rows, weights, logits, deltas = kept(site, "one image", torch.float64, agnostic=True)
    for key in ("boxes", "gt_boxes"):
        setattr(found, key, getattr(found, key).double())

    if group == "loss":
        deltas = deltas.detach()  # a class loss may read boxes (quality_focal), as constants
    if name in ("ranked_giou", "alrp"):
        logits = logits.detach()  # as weights of boxes

    def total(logits: Tensor, deltas: Tensor) -> Tensor:
        values = loss(here._samples(found, rows, weights, logits, deltas))
        assert values.dtype == torch.float64
        return values.sum() + 0 * (logits.sum() + deltas.sum())

    assert torch.autograd.gradcheck(total, (logits, deltas))


@pytest.mark.parametrize("per", ["sample", "guided"])
@pytest.mark.parametrize(("group", "site", "name", "values"), CLASS)
def test_every_class_loss_can_be_guided_by_the_box_loss(
    group: str, site: str, name: str, values: str, per: str
) -> None:
    loss = made(group, site, name, values, per=per, guided_scale=3.0)
    class_term, box_term = site_of(group, site, loss).losses(*kept(site, "two images")).values()
    guided = class_term.item() == pytest.approx(3 * box_term.item(), rel=1e-5)
    assert guided == (per == "guided")


@pytest.mark.parametrize(("group", "site", "name"), REFUSED)
def test_a_loss_at_a_site_it_cannot_serve_is_refused_with_the_reason(
    group: str, site: str, name: str
) -> None:
    loss = build(nodes()[group, site, name])
    with pytest.raises(
        ConfigError, match=f"{type(loss).__name__} cannot serve at the rpn: .*one class"
    ):
        check_fit(site, site, CrossEntropy(), loss)
    check_fit("rcnn", "rcnn", loss)


def test_options_were_found() -> None:
    names = {group: {n for g, _, n in ALL if g == group} for group in ("loss", "box_loss")}
    assert names["loss"] >= {"cross_entropy", "focal", "focal_sigmoid", "focal_star", "ghm_c"}
    assert names["box_loss"] >= {"smooth_l1", "l1", "balanced_l1", "giou", "ghm_r", "carl"}
    assert set(REFUSED) <= set(ALL)
