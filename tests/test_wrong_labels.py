"""The share of wrong labels among hard examples."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hand_made import as_trained, hand_made, lines
from small import quick

from experiments.figures import wrong_labels as figure
from experiments.figures.__main__ import checkpoints
from experiments.figures.wrong_labels import Share, corrected, look_at_noise, shares, wrong
from experiments.style import legends
from frcnn.data import shapes
from frcnn.errors import UserError
from frcnn.sites.assigners import MaxIoU

BUDGET = {"rpn": 16, "rcnn": 8}
SIZE: dict[str, Any] = {"width": 64, "height": 64, "num_objects": (1, 3), "train_images": 5}


def test_a_label_is_wrong_if_the_true_objects_give_another() -> None:
    given = hand_made([1, 0, 2, 0, 1], image=[0, 0, 0, 1, 1], place=[0, 2, 3, 0, 4])
    # Of image 0 the candidate 3 is ignored; candidate 2 is an object, and so is 4 of image 1.
    true = hand_made([1, 3, 2, 0, 2, 1], image=[0, 0, 0, 1, 1, 1], place=[0, 1, 2, 0, 4, 5])
    assert wrong(given, true).tolist() == [False, True, False, False, True]
    nothing = hand_made([], image=torch.zeros(0).long().tolist())
    assert not wrong(given, nothing).any() and not len(wrong(nothing, given))


def test_shares_by_hand() -> None:
    # 29/30 is where the last bin begins: 1 - p_t of 0.97, in any of two classes.
    right = [[0.03, 0.9], [0.9, 0.02], [0.04, 0.5], [0.01, 0.5]]
    picks = {"random": [1.0, 0.0, 1.0, 0.0], "ohem": [0.0, 0.5, 0.0, 0.0]}
    one = hand_made([0, 1, 1, 0], picks, right=right)
    assert shares(one, torch.tensor([True, False, True, False])) == {
        "all": Share(2, 4),
        "random": Share(2, 2),
        "OHEM": Share(0, 1),
        "GHM's last bin": Share(1, 3),
    }
    assert Share(1, 4).percent == 25 and Share(0, 0).percent != Share(0, 0).percent


def noisy(number: int = 5, **rates: float) -> figure.Shares:
    """What the RPN and the head of an untrained detector have of wrong labels."""
    detector = quick(assigner={"rcnn": MaxIoU(0.2, 0.2), "rpn": MaxIoU(0.3, 0.3)})
    data = shapes("train", **SIZE, **rates)
    return look_at_noise(as_trained(detector), data, number, BUDGET, 2, 0)


def test_swapped_classes_are_wrong_at_the_head_alone() -> None:
    """With every class swapped each positive is wrong, and the RPN does not mind."""
    found = noisy(swapped_classes=1.0)
    dropped = noisy(dropped_boxes=1.0)
    assert found["rpn"]["all"].wrong == 0
    # Without any annotation the same candidates are wrong: those that lie on an object.
    assert 0 < found["rcnn"]["all"].wrong == dropped["rcnn"]["all"].wrong
    assert dropped["rpn"]["all"].wrong > 0


def test_moved_boxes_are_wrong_at_both_sites_and_some_images_have_less() -> None:
    found = noisy(moved_boxes=1.0)
    assert all(0 < site["all"].wrong < site["all"].total for site in found.values())
    fewer = noisy(2, moved_boxes=1.0)
    for site, one in fewer.items():
        assert 0 < one["all"].total < 0.5 * found[site]["all"].total
        assert one["all"].wrong < found[site]["all"].wrong


@pytest.mark.parametrize("split, rates", [("train", {}), ("val", {"dropped_boxes": 0.5})])
def test_right_annotations_are_refused(split: str, rates: dict[str, float]) -> None:
    with pytest.raises(UserError, match="data=shapes with"):
        corrected(shapes(split, **SIZE, val_images=2, **rates))


def test_a_line_per_way_to_choose_over_the_steps() -> None:
    run = {
        step: {
            "rpn": dict.fromkeys(figure.COLOURS, Share(0, 40)),  # nothing wrong: no panel
            "rcnn": dict.fromkeys(figure.COLOURS, Share(step // 10, 40)) | {"OHEM": Share(1, 4)},
        }
        for step in (200, 100)
    }
    (axes,) = figure.wrong_labels({"ohem": run}).axes
    drawn = lines(axes)
    assert {name: (x.tolist(), y.tolist()) for name, (x, y) in drawn.items()} == {
        f"{name}: {'1 of 4' if name == 'OHEM' else '20 of 40'}": (
            [100, 200],
            [25, 25] if name == "OHEM" else [25, 50],
        )
        for name in figure.COLOURS
    }
    (row,) = (line for line in legends({"wrong": axes.figure}).splitlines() if "OHEM" in line)
    assert row == "wrong,ohem: rcnn,wrong labels in percent,OHEM: 1 of 4"
    assert axes.get_title() == "ohem: rcnn"
    assert [text.get_text() for text in axes.texts] == ["40", "40"]
    rows = figure.table({"ohem": run}).splitlines()
    assert rows[:2] == ["run,site,step,group,wrong,total", "ohem,rpn,100,all,0,40"]
    assert "ohem,rcnn,200,OHEM,1,4" in rows and len(rows) == 1 + 2 * 2 * len(figure.COLOURS)


def test_a_folder_stands_for_the_checkpoints_of_its_validations(tmp_path: Path) -> None:
    kept = tmp_path / "run/checkpoints"
    kept.mkdir(parents=True)
    with pytest.raises(UserError, match="no checkpoints/step_N.pt"):
        checkpoints([str(tmp_path / "run")])
    for name in ("step_2", "step_4", "last", "best"):
        (kept / f"{name}.pt").touch()
    found = checkpoints(["other.pt", str(tmp_path / "run")])
    assert found == ["other.pt", str(kept / "step_2.pt"), str(kept / "step_4.pt")]
