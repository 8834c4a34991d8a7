"""What a run says in its first lines, and the settings that it refuses or warns of."""

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMALL, composed, small_network, tiny

from frcnn.build import dataset, detector
from frcnn.errors import ConfigError, UserError
from frcnn.evaluation.coco import coco_metrics
from frcnn.losses import CrossEntropy
from frcnn.model import build_detector
from frcnn.training import start
from frcnn.training.run import run
from frcnn.training.start import Pace, check_image_size, objects_per_image, warn_of_limits
from samplers import Random

ONE_PIXEL = ["data.width=32", "data.height=32", "model.min_size=32", "model.max_size=32"]


@pytest.fixture(autouse=True, scope="module")
def network() -> Iterator[None]:
    with small_network():
        yield


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO):
        yield caplog


def lines(said: pytest.LogCaptureFixture, start: str) -> list[str]:
    return [r.getMessage() for r in said.records if r.getMessage().startswith(start)]


def test_first_lines(said: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(start, "TIMED_STEPS", 2)
    run(*tiny("trainer.max_steps=5"), tmp_path)
    (view,) = lines(said, "images of ")
    assert view == (
        "images of 48 pixels (longer side at most 64), anchors of 12, 24, 48, 96, 192 pixels"
    )
    (time,) = [r.getMessage() for r in said.records if "s per step: about " in r.getMessage()]
    assert "for the 2 steps left" in time
    assert not lines(said, "the warm-up")
    (weights,) = lines(said, "starting weights: ")
    assert weights.startswith("starting weights: none (from scratch); docs/finetuning.md")


def test_the_expected_time(said: pytest.LogCaptureFixture, monkeypatch) -> None:
    clock = itertools.count(100.0, 30.2)  # the ends of the steps; it is said after the third
    monkeypatch.setattr(start.time, "perf_counter", lambda: next(clock))
    pace = Pace(203)
    for _ in range(5):
        pace.step()
    (line,) = [record.getMessage() for record in said.records]
    assert line == "30 s per step: about 1 h 41 min for the 200 steps left, validations not counted"


def test_a_warm_up_that_the_run_ends_in(said: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    run(*tiny("schedule.warmup_steps=3", "trainer.max_steps=2"), tmp_path)
    (line,) = lines(said, "the warm-up of 3 steps")
    assert "run of 2" in line and "schedule.warmup_steps" in line


def test_a_longer_run_says_how_the_rate_jumps(
    said: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    run(*tiny("trainer.max_steps=2"), tmp_path)
    run(*tiny("trainer.max_steps=2"), tmp_path)
    assert not lines(said, "the run has ")
    run(*tiny("trainer.max_steps=4"), tmp_path)
    assert len(lines(said, "starting weights: ")) == 1  # of the first start alone
    (line,) = lines(said, "the run has ")
    # Half a cosine from 0.02: a half of it after one step of two, and again after two of four.
    assert line.startswith(
        "the run has 4 steps now, it had 2: the learning rate goes from 0.01 to 0.01"
    )


@pytest.mark.parametrize("sizes", [(100, 90), ([60, 100], 90)])
def test_a_shorter_side_above_the_longer_one(sizes: tuple) -> None:
    with pytest.raises(ConfigError, match="model.min_size=100 .* above model.max_size=90"):
        check_image_size(dict(zip(("min_size", "max_size"), sizes, strict=True)))
    check_image_size({"min_size": 90, "max_size": 90})


def test_a_run_refuses_such_sizes_before_it_reads_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model.min_size"):
        run(*tiny("model.min_size=65", "data.train_images=0"), tmp_path)


def test_more_objects_than_are_counted(said: pytest.LogCaptureFixture) -> None:
    config = tiny("data.num_objects=[1,4]", "data.val_images=20")[0]
    data = dataset(config["data"], "val")
    objects = objects_per_image(data)
    counts, of_class = objects.sum(1), objects.max(1)
    truth = data.ground_truth()["annotations"]
    assert counts.sum() == len(truth) and counts.max() == 3
    assert (of_class <= counts).all() and of_class.max() > 1
    warn_of_limits(data, {"box_detections_per_img": 2}, max_detections=int(of_class.max()) - 1)
    evaluated, detected = (record.getMessage() for record in said.records)
    assert f"{(of_class == of_class.max()).sum()} validation image" in evaluated
    assert evaluated.endswith(f"set evaluation.max_detections={of_class.max()}")
    assert f"{(counts == 3).sum()} validation image has" in detected
    assert detected.endswith("set model.box_detections_per_img=3")
    said.clear()
    warn_of_limits(data, {"detections_per_img": 4}, max_detections=4)
    assert not said.records


def test_the_evaluation_counts_as_many_detections_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []

    def metrics(*args: Any, **options: Any) -> dict[str, Any]:
        given.append(options)
        return coco_metrics(*args, **options)

    monkeypatch.setattr("frcnn.training.validation.coco_metrics", metrics)
    run(*tiny("trainer.max_steps=1", "evaluation.max_detections=7"), tmp_path)
    assert given == [{"backend": "pycocotools", "max_detections": 7}]


def test_a_validation_without_detections(said: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    run(*tiny("trainer.max_steps=1", "model.box_score_thresh=1.0"), tmp_path)
    assert len(lines(said, "no detection at all on 4 validation images")) == 1
    said.clear()
    run(*tiny("trainer.max_steps=1", "model.box_score_thresh=0.0"), tmp_path / "more")
    assert not lines(said, "no detection at all")


def test_one_image_of_one_pixel_in_the_last_map(tmp_path: Path) -> None:
    line = [*ONE_PIXEL, "data.object_size=[8,16]", "trainer.max_steps=1"]
    with pytest.raises(UserError, match="too small for BatchNorm.*trainer.batch_size"):
        run(*tiny(*line, "trainer.batch_size=1"), tmp_path / "one")
    run(*tiny(*line, "trainer.batch_size=2"), tmp_path / "two")


@pytest.mark.parametrize(
    ("parts", "warned"),
    [
        ({"loss": CrossEntropy()}, True),
        ({"loss": CrossEntropy("positive")}, False),
        ({"loss": CrossEntropy(), "sampler": Random(8, 0.25)}, False),
        ({}, False),  # focal loss per image, as torchvision
    ],
)
def test_a_mean_over_all_anchors(
    said: pytest.LogCaptureFixture, parts: dict[str, Any], warned: bool
) -> None:
    own = {group: {"dense": part} for group, part in parts.items()}
    detector = build_detector(4, "retinanet_resnet18_fpn", fpn_channels=16, **own)
    start.warn_of_mean_over_anchors(detector.sites)
    assert ("set loss.dense.per=positive" in said.text) == warned


def test_each_image_of_a_batch_has_one_of_several_sizes() -> None:
    config, _ = composed(*SMALL, "model.min_size=[40,48,56]", "model.max_size=200")
    with small_network():
        model = detector(config, 4)
    torch.manual_seed(0)
    sides = {model.transform([torch.rand(3, 60, 80)])[0].image_sizes[0][0] for _ in range(20)}
    assert sides == {40, 48, 56}
    assert model.eval().transform([torch.rand(3, 60, 80)])[0].image_sizes[0][0] == 56
