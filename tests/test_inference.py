"""The inference loop with a stub in place of the network."""

import torch
from torch import Tensor, nn

from frcnn.evaluation.inference import detect


class Stub(nn.Module):
    """Finds the brightness of each image; the losses are those given, one per batch."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.sites: dict = {}
        self.losses = iter(losses)

    def forward(self, images: list[Tensor], targets: list[dict]) -> tuple[list[dict], dict]:
        assert not self.training and len(images) == len(targets) > 0
        loss = torch.tensor(next(self.losses))
        return [{"scores": image.mean()[None]} for image in images], {"a": loss, "b": 2 * loss}


def test_each_batch_counts_by_its_images_and_each_detection_keeps_its_id() -> None:
    white, black = (torch.full((3, 8, 8), value, dtype=torch.uint8) for value in (255, 0))
    first = [white, black, black], [{"image_id": number} for number in (7, 6, 5)]
    loader = [first, ([], []), ([white], [{"image_id": 4}])]  # no image of the second is here
    found, means = detect(Stub([1.0, 9.0, 5.0]), loader, torch.device("cpu"), torch.float32)
    assert means == {"loss": 6.0, "a": (3 * 1 + 1 * 5) / 4, "b": 4.0}
    assert [(f["image_id"], f["scores"].item()) for f in found] == [(7, 1), (6, 0), (5, 0), (4, 1)]
