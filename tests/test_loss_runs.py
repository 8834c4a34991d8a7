"""Losses in whole tiny runs: what they take from the data, and how their heads are read."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import SMALL, call, composed, lines, small_network, tiny

from frcnn import train
from frcnn.build import dataset, detector, fill_from_data
from frcnn.evaluation.load import Trained, load_trained
from frcnn.losses import Equalization
from frcnn.runfolder import checkpoint
from frcnn.training.run import run

TWO_STEPS = ["trainer.epochs=1", "trainer.max_steps=2"]


@pytest.fixture(autouse=True, scope="module")
def network() -> Iterator[None]:
    with small_network():
        yield


def trained(folder: Path, *overrides: str) -> Trained:
    """A run of two steps, loaded from its checkpoint as evaluate and predict do."""
    run(*tiny(*TWO_STEPS, *overrides), folder)
    return load_trained(str(folder / "checkpoints/last.pt"), "cpu", "fp32")


@pytest.mark.parametrize(
    ("loss", "activation"),
    [
        ("cross_entropy", lambda logits: logits.softmax(1)),
        ("focal", lambda logits: logits.softmax(1)),
        ("focal_sigmoid", torch.sigmoid),
        ("focal_star", torch.sigmoid),
        ("ghm_c", torch.sigmoid),
        ("equalization", torch.sigmoid),
        ("quality_focal", torch.sigmoid),
        ("varifocal", torch.sigmoid),
        ("equalization_v2", lambda x: x.sigmoid() * (1 - x[:, :1].sigmoid())),
        ("seesaw", lambda x: x[:, 1:].softmax(1) * (1 - x[:, :1].sigmoid())),
        ("federated", torch.sigmoid),
    ],
)
def test_a_head_is_read_as_it_was_trained(tmp_path: Path, loss: str, activation) -> None:
    model = trained(tmp_path, f"loss={loss}").detector
    model.roi_heads.score_thresh = 0.0
    seen: list[torch.Tensor] = []
    model.roi_heads.box_predictor.register_forward_hook(lambda *args: seen.append(args[2][0]))
    with torch.inference_mode():
        (found,) = model([torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0))])
    assert len(found["scores"]) and ((found["scores"] > 0) & (found["scores"] < 1)).all()
    possible = activation(seen[0])[:, -3:].flatten()
    gap = (found["scores"][:, None] - possible).abs().amin(1)
    assert gap.max() < 1e-6


def test_every_loss_term_has_a_weight(tmp_path: Path) -> None:
    keys = ("rcnn.class", "rcnn.box", "rpn.class", "rpn.box")
    terms = ("classifier", "box_reg", "objectness", "rpn_box_reg")
    weights = dict(zip(terms, (0, 2, 3, 5), strict=True))
    set_so = [f"loss_weight.{k}={w}" for k, w in zip(keys, weights.values(), strict=True)]
    found = {}
    for name, more in (("plain", []), ("weighted", set_so)):
        run(*tiny("trainer.max_steps=1", *more), tmp_path / name)
        (found[name],) = (r for r in lines(tmp_path / name) if "train/loss" in r)
    for name, weight in weights.items():
        key = f"train/loss_{name}"
        assert found["weighted"][key] == pytest.approx(weight * found["plain"][key])
        assert found["plain"][key] > 0


def test_numbers_of_the_data_stand_in_the_checkpoint(tmp_path: Path) -> None:
    model = trained(tmp_path, "loss/rcnn=equalization")
    images = dataset(tiny()[0]["data"], "train")
    saved = checkpoint.load(tmp_path / "checkpoints/last.pt")["config"]["loss"]
    assert saved["rcnn"]["class_frequencies"] == images.image_shares().tolist()
    assert isinstance(model.detector.roi_heads.site.class_loss, Equalization)


def test_given_numbers_are_not_replaced() -> None:
    images = dataset(tiny()[0]["data"], "train")
    config, _ = tiny("loss.rcnn.class_weights=data")
    fill_from_data(config["loss"], images, config["model"]["sites"])
    assert config["loss"]["rcnn"]["class_counts"] == images.class_frequencies().tolist()
    config, _ = tiny("loss.rcnn.class_weights=data", "loss.rcnn.class_counts=[5,6,7]")
    fill_from_data(config["loss"], images, config["model"]["sites"])
    assert config["loss"]["rcnn"]["class_counts"] == [5, 6, 7]
    table = detector(config, 4).roi_heads.site.class_loss.alpha.table
    assert table[1] > table[2] > table[3]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("loss/rpn=equalization", "Equalization cannot serve at the rpn: "),
        ("loss.rpn.class_weights=data", "CrossEntropy at the rpn: class_weights=data compares "),
    ],
)
def test_a_loss_at_a_site_it_cannot_serve_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, says: str
) -> None:
    small = ["data.train_images=2", "data.val_images=1", f"hydra.run.dir={tmp_path}"]
    assert call(train.main, override, *small) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {says}")


def test_guided_all_goes_with_any_loss_and_site_options_still_win() -> None:
    config, choices = composed("sampler=guided_all", "loss=focal_sigmoid")
    assert [config["sampler"][site]["_target_"] for site in ("rpn", "rcnn")] == ["samplers.All"] * 2
    nodes = [config["loss"][site] for site in ("rpn", "rcnn")]
    assert [(n["per"], n["guided_scale"]) for n in nodes] == [("guided", 1), ("guided", 2)]
    assert {node["_target_"] for node in nodes} == {"frcnn.losses.FocalSigmoid"}
    assert config["box_loss"]["rcnn"]["per"] == "coordinate"
    config, choices = composed("sampler/rcnn=ohem", "sampler=guided_all", "loss.rpn.per=sample")
    assert config["sampler"]["rcnn"]["_target_"] == "samplers.OHEM"
    assert config["loss"]["rpn"]["per"] == "sample"
    assert choices["sampler"] == "guided_all" and choices["sampler/rcnn"] == "ohem"


def test_a_guided_run_has_class_terms_of_its_box_terms(tmp_path: Path) -> None:
    run(*composed("sampler=guided_all", *SMALL, *TWO_STEPS), tmp_path)
    for record in (r for r in lines(tmp_path) if "train/loss" in r):
        term = {k.removeprefix("train/loss_"): v for k, v in record.items()}
        assert term["objectness"] == pytest.approx(term["rpn_box_reg"], rel=1e-4)
        assert term["classifier"] == pytest.approx(2 * term["box_reg"], rel=1e-4)
