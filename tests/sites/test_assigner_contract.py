"""What every option of conf/method/assigner keeps to; a new one is found by itself."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from plain import batch, one_image
from torch import Tensor, nn

from frcnn.config.compose import CONF, build
from frcnn.config.methods import definition, read
from frcnn.errors import ConfigError
from frcnn.model.sites import check_fit
from frcnn.sites.assigners import Assigned, Outputs, Unassigned

FILES = {file.stem: file for file in sorted(Path(CONF, "method/assigner").glob("*.yaml"))}
ALL = [(name, kind) for name in FILES for kind in ("rpn", "rcnn", "dense")]
CLASSES = {"rpn": 1, "rcnn": 3, "dense": 3}


@cache
def node(name: str, kind: str) -> dict[str, Any]:
    return definition(read(FILES[name]), kind, kind)


def made(name: str, kind: str) -> Any:
    return build(node(name, kind))


def unfit(name: str, kind: str) -> bool:
    return kind in getattr(made(name, kind), "unfit", {})


OPTIONS = [option for option in ALL if not unfit(*option)]
REFUSED = [option for option in ALL if unfit(*option)]
each = pytest.mark.parametrize(("name", "kind"), OPTIONS)


def given_at(kind: str, seed: int = 0) -> Unassigned:
    """A batch as a site of this kind has it."""
    columns = CLASSES[kind] + 1 if kind == "rcnn" else 1
    return batch(seed, CLASSES[kind], columns, levels=kind != "rcnn")[0]


def part_of(given: Unassigned, order: Sequence[int]) -> Unassigned:
    """The same batch with these images alone, in this order."""
    rows = torch.arange(len(given.stacked)).split(given.sizes)
    chosen = torch.cat([rows[i] for i in order])
    names = ("boxes", "objects", "object_labels", "ignore")
    lists = {name: [getattr(given, name)[i] for i in order] for name in names}
    predict = given.predict
    return replace(given, **lists, predict=lambda wanted: predict(chosen[wanted]))


def per_image(found: Assigned) -> list[tuple[list, ...]]:
    columns = [found.labels, found.ious]
    columns += [t for t in (found.soft_targets, found.weights) if t is not None]
    rows = [column.split(list(found.sizes)) for column in columns]
    return [tuple(part.tolist() for part in image) for image in zip(*rows, strict=True)]


@each
def test_labels_ious_and_objects_agree(name: str, kind: str) -> None:
    for seed in range(5):
        given = given_at(kind, seed)
        found = made(name, kind)(given)
        n, objects = len(given.stacked), torch.cat(list(given.objects))
        assert found.labels.shape == found.ious.shape == found.gt.shape == (n,)
        assert found.labels.dtype == found.gt.dtype == torch.int64
        assert found.gt_boxes.equal(objects)
        owner = torch.arange(len(objects)).split([len(o) for o in given.objects])
        for image in range(4):
            gt = found.gt[found.image == image]
            assert set(gt.tolist()) <= set(owner[image].tolist() or [-1])
        positive = found.labels > 0
        assert positive.any()
        assert found.labels[positive].equal(
            torch.cat(list(given.object_labels))[found.gt[positive]]
        )
        assert ((found.ious >= 0) & (found.ious <= 1)).all()
        for extra in (found.soft_targets, found.weights):
            if extra is not None:
                assert extra.shape == (n,) and (extra >= 0).all() and extra.isfinite().all()
        if found.soft_targets is not None:
            assert (found.soft_targets <= 1).all()


@each
def test_an_image_is_labelled_alone(name: str, kind: str) -> None:
    given = given_at(kind)
    whole = per_image(made(name, kind)(given))
    turned = per_image(made(name, kind)(part_of(given, [3, 1, 0, 2])))
    assert [turned[i] for i in (2, 1, 3, 0)] == whole
    assert per_image(made(name, kind)(part_of(given, [3]))) == whole[3:]


@each
def test_ignore_areas_turn_background_only(name: str, kind: str) -> None:
    given = given_at(kind)
    everywhere = torch.tensor([[-999.0, -999, 999, 999]]).double()
    plain = made(name, kind)(replace(given, ignore=[everywhere[:0]] * 4))
    found = made(name, kind)(replace(given, ignore=[everywhere] * 4))
    assert found.labels.equal(torch.where(plain.labels == 0, -1, plain.labels))


@each
def test_without_objects_or_candidates(name: str, kind: str) -> None:
    given = part_of(given_at(kind), [1])
    found = made(name, kind)(given)
    assert set(found.labels.tolist()) <= {0, -1} and 0 in found.labels.tolist()
    assert set(found.gt.tolist()) == {-1} and found.ious.abs().max() == 0
    levels = {} if kind == "rcnn" else {"level": torch.zeros(0).long(), "strides": (8,)}

    def predict(rows: Tensor) -> Outputs:
        assert not len(rows)
        return Outputs(torch.zeros(0, 4), torch.zeros(0, 1, 4))

    for objects in ([], [[0.0, 0, 9, 9]]):
        found = made(name, kind)(one_image([], objects, predict=predict, **levels))
        assert found.labels.shape == found.ious.shape == found.gt.shape == (0,)


@each
def test_every_process_asks_for_predictions_equally_often(name: str, kind: str) -> None:
    counts = []
    for images in ([0, 1, 2, 3], [1], [3]):
        given, calls = part_of(given_at(kind), images), []

        def predict(rows: Tensor, given: Unassigned = given, calls: list = calls) -> Outputs:
            calls.append(rows)
            return given.predict(rows)

        made(name, kind)(replace(given, predict=predict))
        counts.append(len(calls))
    assert len(set(counts)) == 1


@each
def test_a_state_is_a_module_and_stays_in_eval_mode(name: str, kind: str) -> None:
    assigner = made(name, kind)
    if isinstance(assigner, nn.Module):
        before = {key: value.clone() for key, value in assigner.eval().state_dict().items()}
        assigner(given_at(kind))
        assert all(value.equal(before[key]) for key, value in assigner.state_dict().items())
        assigner.train()(given_at(kind))
        assert any(not value.equal(before[key]) for key, value in assigner.state_dict().items())


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_a_site_that_it_cannot_serve_is_refused_and_its_preset_has_max_iou(
    name: str, kind: str
) -> None:
    with pytest.raises(ConfigError, match=f"cannot serve at the {kind}: ..."):
        check_fit(kind, kind, made(name, kind))
    assert OmegaConf.load(Path(CONF, f"preset/assigner/{name}.yaml"))[kind] == "max_iou"


def test_options_were_found() -> None:
    assert {"max_iou", "atss", "top_n", "task_aligned", "sim_ota", "dynamic_iou"} <= FILES.keys()
    assert {("atss", "rcnn"), ("sim_ota", "rcnn"), ("dynamic_iou", "rpn")} <= set(REFUSED)
    assert {("max_iou", "rcnn"), ("task_aligned", "rcnn"), ("dynamic_iou", "rcnn")} <= set(OPTIONS)
