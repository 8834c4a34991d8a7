"""What every option of conf/loss and conf/box_loss keeps to; a new one is found by itself."""

from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from small import CODER, part
from torch import Tensor

from frcnn.assemble import fill_from_data
from frcnn.config import CONF, build
from frcnn.data import shapes
from frcnn.errors import ConfigError
from frcnn.losses import CrossEntropy, SmoothL1
from frcnn.model.detector import check_fit, initial_bias
from frcnn.model.matching import Matched, Matcher
from frcnn.model.site import Site
from samplers import All

COLUMNS = {"rpn": 2, "rcnn": 4}
ALL = [
    (group, site, file.stem)
    for group in ("loss", "box_loss")
    for site in COLUMNS
    for file in sorted(Path(CONF, group, site).glob("*.yaml"))
]
REFUSED = [("loss", "rpn", "equalization")]
OPTIONS = [option for option in ALL if option not in REFUSED]
CASES = {
    "mixed": [0, 0, 1, -1, 0, 2, 0, 0, 3, 0, 1],
    "no objects": [0] * 12,
    "no negatives": [1, 2, 3, 1, 2, -1],
    "one positive": [2],
    "one negative": [0],
    "nothing": [],
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
            fill_from_data(plain["loss"], shapes("train", train_images=4))
            found |= {(g, s, n): plain[g][s] for g, s, n in options}
    return found


def made(group: str, site: str, name: str, **values: Any) -> Any:
    """The loss of an option, told how many classes there are."""
    loss = build(nodes()[group, site, name] | values)
    if group == "loss":
        initial_bias(site, loss, COLUMNS[site])
    return loss


def site_with(name: str, **losses: Any) -> Site:
    losses = {"class_loss": CrossEntropy(), "box_loss": SmoothL1()} | losses
    return Site(name, Matcher(0.5, 0.5), All(), box_coder=CODER, **losses)


def kept(
    site: str, case: str, dtype: torch.dtype = torch.float32, agnostic: bool = False
) -> tuple[Matched, Tensor, Tensor, Tensor, Tensor]:
    """Arguments of ``Site.losses``: what was matched, rows, weights, logits, deltas."""
    labels = [min(label, COLUMNS[site] - 1) for label in CASES[case]]
    made_up = part(labels, COLUMNS[site] - 1, seed=3)
    names = ("boxes", "labels", "ious", "gt", "gt_boxes")
    matched = Matched(
        **{name: made_up[name] for name in names}, image=torch.zeros(len(labels)).long()
    )
    rows = torch.where(matched.labels >= 0)[0]
    g = torch.Generator().manual_seed(1)
    weights = torch.rand(len(rows), generator=g) + 0.5
    columns = 1 if agnostic or site == "rpn" else COLUMNS[site]
    deltas = torch.randn(len(rows), columns, 4, generator=g)
    logits = made_up["logits"][rows]
    if site == "rpn":
        logits[:, 0] = 0
    return matched, rows, weights, *(t.to(dtype).requires_grad_() for t in (logits, deltas))


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float32) for case in CASES]
    + [("mixed", torch.bfloat16), ("mixed", torch.float16)],
)
@pytest.mark.parametrize(("group", "site", "name"), OPTIONS)
def test_terms_and_gradients_are_finite(
    group: str, site: str, name: str, case: str, dtype: torch.dtype
) -> None:
    loss = made(group, site, name)
    for agnostic in (False, True):
        arguments = kept(site, case, dtype, agnostic)
        here = site_with(site, **{"class_loss" if group == "loss" else group: loss})
        terms = torch.stack(here.losses(*arguments))
        assert terms.dtype == torch.float32 and terms.isfinite().all() and (terms >= 0).all()
        terms.sum().backward()
        assert all(tensor.grad.isfinite().all() for tensor in arguments[3:])
        matched, rows, *_, logits, deltas = (t.detach() if isinstance(t, Tensor) else t
                                             for t in arguments)  # fmt: skip
        shown = here.prediction(matched, rows, logits.float(), deltas.float())
        assert shown.loss.isfinite().all() and shown.loss.shape == rows.shape


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("group", "site", "name"), OPTIONS)
def test_values_are_unreduced_and_the_normalizer_is_above_zero(
    group: str, site: str, name: str, case: str
) -> None:
    loss = made(group, site, name)
    samples = site_with(site)._samples(*kept(site, case))
    values = loss(samples)
    assert values.shape == (samples.labels if group == "loss" else samples.positive).shape
    assert (values >= 0).all()
    assert float(loss.normalizer(samples)) > 0
    assert float(build(nodes()[group, site, name] | {"per": 7.0}).normalizer(samples)) == 7


@pytest.mark.parametrize(("group", "site", "name"), [o for o in OPTIONS if o[0] == "loss"])
def test_scores_are_shares_and_follow_the_logits(group: str, site: str, name: str) -> None:
    loss = made(group, site, name)
    logits = torch.tensor([[0.0, 0, 0, 0], [5, -5, 1, 2], [-3, 80, -80, 0], [0, -9, -9, -9]])
    for given in (logits, logits.bfloat16(), logits.half()):
        scores = loss.scores(given[:, : COLUMNS[site]])
        assert scores.dtype == torch.float32 and scores.shape == (4, COLUMNS[site])
        assert ((scores >= 0) & (scores <= 1)).all()
    order = logits[:, 1 : COLUMNS[site]].argsort(dim=1, stable=True)
    assert torch.equal(scores[:, 1:].argsort(dim=1, stable=True), order)


@pytest.mark.parametrize(("group", "site", "name"), OPTIONS)
def test_gradients_are_those_of_the_values(group: str, site: str, name: str) -> None:
    """In float64, against finite differences; the examples of GHM stay in their bins."""
    loss, here = made(group, site, name), site_with(site)
    matched, rows, weights, logits, deltas = kept(site, "mixed", torch.float64, agnostic=True)
    for key in ("boxes", "gt_boxes"):
        setattr(matched, key, getattr(matched, key).double())

    def total(logits: Tensor, deltas: Tensor) -> Tensor:
        values = loss(here._samples(matched, rows, weights, logits, deltas))
        assert values.dtype == torch.float64
        return values.sum() + 0 * (logits.sum() + deltas.sum())

    assert torch.autograd.gradcheck(total, (logits, deltas))


@pytest.mark.parametrize("per", ["sample", "guided"])
@pytest.mark.parametrize(("group", "site", "name"), [o for o in OPTIONS if o[0] == "loss"])
def test_every_class_loss_can_be_guided_by_the_box_loss(
    group: str, site: str, name: str, per: str
) -> None:
    loss = made(group, site, name, per=per, guided_scale=3.0)
    class_term, box_term = site_with(site, class_loss=loss).losses(*kept(site, "mixed"))
    guided = class_term.item() == pytest.approx(3 * box_term.item(), rel=1e-5)
    assert guided == (per == "guided")


@pytest.mark.parametrize(("group", "site", "name"), REFUSED)
def test_a_loss_at_a_site_it_cannot_serve_is_refused_with_the_reason(
    group: str, site: str, name: str
) -> None:
    loss = build(nodes()[group, site, name])
    with pytest.raises(ConfigError, match="Equalization cannot serve at the rpn: .*one class"):
        check_fit(site, CrossEntropy(), loss)
    check_fit("rcnn", loss)


def test_options_were_found() -> None:
    names = {group: {n for g, _, n in ALL if g == group} for group in ("loss", "box_loss")}
    assert names["loss"] >= {"cross_entropy", "focal", "focal_sigmoid", "focal_star", "ghm_c"}
    assert names["box_loss"] >= {"smooth_l1", "l1", "balanced_l1", "giou", "ghm_r", "carl"}
    assert set(REFUSED) <= set(ALL)
