"""Local clusters worked by hand; Score-HLR's tests compare them with loops."""

import pytest
import torch

from samplers import clusters
from samplers.clusters import local_clusters
from samplers.iou import iou


def test_iou_of_pairs() -> None:
    a = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [5, 5, 5, 5]])
    b = torch.tensor([[5.0, 0, 15, 10], [20, 20, 30, 30], [0, 0, 9, 9]])
    # 50 of 150; apart; no area.
    found = iou(a.T, b.T)
    assert found[0].item() == pytest.approx(1 / 3)
    assert found[1:].tolist() == [0, 0]


def test_a_box_at_the_threshold_heads_its_own_cluster() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])  # IoU 1/2 exactly
    image, needed = torch.tensor([0, 0]), torch.tensor([2])
    assert local_clusters(boxes, image, needed, 0.5).tolist() == [0, 1]
    assert local_clusters(boxes, image, needed, 0.4999).tolist() == [0, 0]


def test_a_head_takes_its_own_neighbours_in_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    # IoU of neighbours 7/13, of the ends of the chain 4/16: 1 falls to 0, 2 heads its own and takes
    # 3. Image 1 has the boxes of 0 and 1 once more.
    left = torch.tensor([0.0, 3, 6, 9, 0, 3])
    boxes = torch.stack([left, 0 * left, left + 10, 0 * left + 10], 1)
    image = torch.tensor([0, 0, 0, 0, 1, 1])
    every = local_clusters(boxes, image, torch.tensor([4, 2]), 0.5)
    assert every.tolist() == [0, 0, 2, 2, 4, 4]
    # Two heads are enough of image 0, one of image 1: then nothing more is looked at.
    monkeypatch.setattr(clusters, "BLOCK", 1)
    first = local_clusters(boxes, image, torch.tensor([2, 1]), 0.5)
    assert first.tolist() == [0, 0, 2, 0, 4, 4]
