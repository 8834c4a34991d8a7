"""The figures of PISA: prime samples of an image, and what it is worth to raise their scores."""

import numpy as np
import pytest
import torch
from hand_made import as_trained, hand_made
from small import OPTIONS, batch, quick
from torch import Tensor
from torch.testing import assert_close
from torchvision.ops import box_iou

from experiments.figures.prime_precision import (
    Raised,
    heads_of,
    lowered_losses,
    prime_precision,
    raise_scores,
    raised,
    with_score,
)
from experiments.figures.prime_samples import first_three, prime_samples
from experiments.figures.seen import image_hlr
from frcnn.data import DetectionDataset
from frcnn.data.problems import Problems
from frcnn.data.records import Classes, Images, Objects
from frcnn.evaluation.coco import coco_metrics
from frcnn.evaluation.inference import detect, validation_loader
from frcnn.model import build_cascade_rcnn
from frcnn.model.roi_heads import SamplingRoIHeads


def by_loops(ious: list[float], gt: list[int], image: list[int]) -> list[int]:
    """IoU-HLR: the rank of each by the number of better boxes of its object, then by its IoU."""
    local = [
        sum(other > own and g == gt[row] for other, g in zip(ious, gt, strict=True))
        for row, own in enumerate(ious)
    ]
    keys = [(rank, -own) for rank, own in zip(local, ious, strict=True)]
    return [
        sum(other < own and i == image[row] for other, i in zip(keys, image, strict=True))
        for row, own in enumerate(keys)
    ]


def test_the_places_of_positives_by_hand() -> None:
    # Image 0: 0.9 and 0.85 are the best of their objects, then 0.8 and 0.6, then 0.7.
    ious, gt, image = [0.9, 0.8, 0.7, 0.85, 0.6, 0.5], [0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 0, 1]
    found = image_hlr(torch.tensor(ious), torch.tensor(gt), torch.tensor(image), 3, 2)
    assert found.tolist() == by_loops(ious, gt, image) == [0, 2, 4, 1, 3, 0]


def test_the_places_of_positives_are_those_of_plain_loops() -> None:
    g = torch.Generator().manual_seed(0)
    for _ in range(300):
        count = int(torch.randint(0, 12, (), generator=g))
        gt = torch.randint(0, 4, (count,), generator=g)
        image, order = (gt // 2).sort(stable=True)
        gt, ious = gt[order], torch.rand(count, generator=g)
        found = image_hlr(ious, gt, image, 4, 2)
        assert found.tolist() == by_loops(ious.tolist(), gt.tolist(), image.tolist())


def test_three_samples_per_image_of_each_kind() -> None:
    # Two images of 4 and 2 positives; the first candidate is background.
    one = hand_made(
        [0, 1, 1, 2, 1, 3, 1],
        image=[0, 0, 0, 0, 0, 1, 1],
        class_loss=[9.0, 1.0, 4.0, 2.0, 3.0, 5.0, 6.0],
        box_ious=[0.5, 0.6, 0.7, 0.8, 0.9, 0.55],
        hlr=[3, 2, 1, 0, 0, 1],
    )
    random, hard, prime = prime_samples({"rcnn": one}).axes
    grey, taken = (part.get_offsets().tolist() for part in hard.collections)
    assert len(grey) == 6
    hardest = [(0.6, 4), (0.7, 2), (0.8, 3), (0.9, 5), (0.55, 6)]
    assert sorted(map(tuple, taken)) == [pytest.approx(dot) for dot in sorted(hardest)]
    label = prime.collections[1].get_label()  # of the places 0, 1, 2 and both of image 1
    assert label == f"5: IoU {(0.6 + 0.7 + 0.8 + 0.9 + 0.55) / 5:.2f}, loss 4.00"
    assert len(random.collections[1].get_offsets()) == 5
    kinds = first_three(one)
    assert kinds["random"][4:].all() and kinds["random"][:4].sum() == 3
    assert kinds["prime"].tolist() == [False, True, True, True, True, True]


def test_the_lowered_losses_by_hand() -> None:
    # Image 0 has 10 to lower by 1: two that have 5 keep 4 fifths. Image 1 has only 0.1 to give.
    loss = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.1, 9.9])
    image = torch.tensor([0, 0, 0, 0, 1, 1])
    chosen = torch.tensor([False, True, True, False, True, False])
    found = lowered_losses(loss, image, chosen, 2)
    assert_close(found, torch.tensor([4.0, 2.4, 1.6, 1.0, 0.0, 9.9]))
    every = lowered_losses(loss, image, chosen | True, 2)
    assert_close(every, 0.9 * loss)
    assert torch.equal(lowered_losses(loss, image, chosen & False, 2), loss)


def test_a_raised_score_by_hand() -> None:
    # Two classes beside a background of 0.3: what is left for the others falls from 0.8 to 0.4.
    scores, label = torch.tensor([[0.2, 0.5], [0.0, 1.0]]), torch.tensor([1, 2])
    right = torch.tensor([0.6, 1.0]).double()
    found = with_score(scores, label, right, exclusive=True)
    assert_close(found, torch.tensor([[0.6, 0.25], [0.0, 1.0]]))
    assert_close(with_score(scores, label, right, exclusive=False)[0], torch.tensor([0.6, 0.5]))


@pytest.fixture(scope="module")
def images() -> DetectionDataset:
    """Two images whose objects are proposals of ``quick``, so that it has positives."""
    pictures, targets = batch(2, 3)
    detector, proposed = quick().eval(), []
    detector.roi_heads.register_forward_pre_hook(lambda _, inputs: proposed.extend(inputs[1]))
    with torch.no_grad():
        detector(pictures, targets)
    boxes = np.concatenate([own[:4].numpy() for own in proposed]).astype(np.float32)
    heights, widths = np.array([picture.shape[1:] for picture in pictures]).T
    return DetectionDataset(
        lambda index: (255 * pictures[index]).byte(),
        Images([0, 1], np.array(["a", "b"]), widths, heights),
        Objects(
            np.array([0, 4, 8]),
            boxes,
            np.array([1, 2, 3, 1, 2, 3, 1, 2]),
            np.zeros(8, dtype=bool),
            np.full(8, 100.0),
        ),
        Classes(["one", "two", "three"], [1, 2, 3]),
        Problems(),
    )


def test_scores_of_the_first_positives_rise_and_no_others(
    images: DetectionDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything anew from what the head is given, with plain loops."""
    detector, calls = quick().eval(), []
    plain = SamplingRoIHeads.detections

    def noted(head: SamplingRoIHeads, *inputs: object) -> list[dict[str, Tensor]]:
        calls.append((head, *inputs))
        return plain(head, *inputs)

    monkeypatch.setattr(SamplingRoIHeads, "detections", noted)
    pictures, targets = zip(*(images[index] for index in (0, 1)), strict=True)
    pictures = [picture / 255 for picture in pictures]
    with torch.no_grad():
        detector(pictures, list(targets))
        with raised(detector, 2) as change:
            detector(pictures, list(targets))
    (head, before, deltas, proposals, _), (_, after, *_) = calls
    boxes = head.box_coder.decode(deltas.flatten(1), proposals).reshape(deltas.shape)
    first, expected = 0, before.clone().double()
    for own, target in zip(proposals, targets, strict=True):
        ious, gt = box_iou(own, target["boxes"]).max(1)
        rows = [row for row, value in enumerate(ious.tolist()) if value >= 0.5]
        objects, labels = gt[rows].tolist(), target["labels"][gt[rows]].tolist()
        found = [
            box_iou(boxes[first + row, label][None], target["boxes"][g][None]).item()
            for row, label, g in zip(rows, labels, objects, strict=True)
        ]
        place = by_loops(found, objects, [0] * len(rows))
        loss = [-before[first + r, k - 1].log().item() for r, k in zip(rows, labels, strict=True)]
        top = [row for row, at in enumerate(place) if at < 2]
        assert len(top) == 2 < len(rows)
        keep = 1 - 0.1 * sum(loss) / sum(loss[row] for row in top)
        for row in top:
            at, column = first + rows[row], labels[row] - 1
            right = np.exp(-keep * loss[row])
            expected[at] *= (1 - right) / (1 - before[at, column].item())
            expected[at, column] = right
        first += len(own)
    assert_close(after.double(), expected, rtol=1e-4, atol=1e-6)
    assert change.after / change.before == pytest.approx(0.9)


def test_raised_scores_leave_the_detector_as_it_was(images: DetectionDataset) -> None:
    trained = as_trained(quick())
    loader = validation_loader(images, 2, 0)
    detections, _ = detect(trained.detector, loader, trained.device, trained.dtype)
    trained.class_names = images.class_names
    found = raise_scores(trained, images, loader)
    metrics = coco_metrics(images.ground_truth(), detections, images.class_names, "pycocotools")
    assert found[0].precision.mean() == pytest.approx(metrics["AP"])
    assert [one.lowered for one in found.values()] == pytest.approx([0, 0.1, 0.1])
    assert found[5].precision.mean() > found[0].precision.mean()
    again, _ = detect(trained.detector, loader, trained.device, trained.dtype)
    for one, other in zip(detections, again, strict=True):
        assert torch.equal(one["scores"], other["scores"])
    head = trained.detector.roi_heads
    assert not head._forward_pre_hooks and "detections" not in vars(head)


def test_the_last_head_of_a_cascade_is_raised(images: DetectionDataset) -> None:
    torch.manual_seed(0)
    name = "cascade_rcnn_resnet18_fpn"
    cascade = build_cascade_rcnn(4, name, fpn_channels=16, backbone_width=0.25, **OPTIONS)
    trained = as_trained(cascade)
    with raised(cascade, 5) as change:
        detect(cascade, validation_loader(images, 2, 0), trained.device, trained.dtype)
    *others, last = heads_of(cascade)
    assert change.head is last and len(others) == 2
    assert len(change.targets) == 2 and change.after <= change.before
    assert "detections" not in vars(last)


def test_a_line_of_precision_by_recall_per_detector() -> None:
    found = {top: np.full((10, 101), 0.5 + top / 100) for top in (0, 5, 25)}
    found[5][8] = 0.25
    figure = prime_precision({top: Raised(one, top / 250) for top, one in found.items()})
    at_half, _, at_90 = figure.axes
    assert [line.get_ydata()[7] for line in at_half.lines] == [50, pytest.approx(55), 75]
    assert [line.get_label() for line in at_90.lines] == [
        "as trained: AP 50.0",
        "top 5, loss -2.0%: AP 25.0",
        "top 25, loss -10.0%: AP 75.0",
    ]
