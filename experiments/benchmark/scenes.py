"""Made-up boxes, objects and predictions of any number.

Shape letters: I images, N candidates per image, G objects per image, C foreground classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from frcnn.sites.assigners import MaxIoU
from frcnn.sites.kinds import KINDS
from frcnn.sites.site import stack_candidates
from samplers import Candidates, Prediction

WIDTH, HEIGHT = 1333, 800


@dataclass(frozen=True)
class Scene:
    """A kind of candidates.

    Args:
        assigner: with the thresholds of torchvision's Faster R-CNN.
        classes: C.
        near: the share of the candidates that lie about an object.
        number: N of a large image.
    """

    assigner: MaxIoU
    classes: int
    near: float
    number: int


# Anchors lie anywhere, proposals lie near objects. 200,000 are the anchors of 1333x800 pixels.
ANCHORS = Scene(MaxIoU(0.7, 0.3, keep_best=True), classes=1, near=0.01, number=200_000)
PROPOSALS = Scene(MaxIoU(0.5, 0.5), classes=80, near=0.25, number=2_000)


def of_kind(kind: str) -> Scene:
    """The scene of a kind of sites: where the best candidates are kept, they are anchors."""
    return ANCHORS if KINDS[kind].keep_best else PROPOSALS


def boxes(count: int, generator: torch.Generator) -> Tensor:
    """[count, 4] xyxy pixels; sides of 16 to 512, as many small as large ones on a log scale."""
    sides = 16 * 32 ** torch.rand(count, 2, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor([WIDTH, HEIGHT]) - sides)
    return torch.cat([corner, corner + sides], 1)


def near(objects: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[count, 4] boxes about [G, 4] objects, off by up to a quarter of their sides."""
    chosen = objects[torch.randint(len(objects), (count,), generator=generator)]
    sides = (chosen[:, 2:] - chosen[:, :2]).repeat(1, 2)
    return chosen + (torch.rand(count, 4, generator=generator) - 0.5) * sides / 2


def image(
    scene: Scene, number: int, objects: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """[N, 4] candidates and [G, 4] objects of one image."""
    there = boxes(objects, generator)
    close = int(scene.near * number)
    return torch.cat([near(there, close, generator), boxes(number - close, generator)]), there


def candidates(
    scene: Scene, images: int, number: int, objects: int, device: torch.device
) -> Candidates:
    """Matched candidates of a batch; ``predict`` is an index into numbers made before.

    Args:
        number: N.
        objects: G.
    """
    g, classes = torch.Generator().manual_seed(0), scene.classes
    drawn = [image(scene, number, objects, g) for _ in range(images)]
    labels = [torch.randint(1, classes + 1, (objects,), generator=g) for _ in drawn]
    targets = [{"boxes": there.to(device)} for _, there in drawn]
    boxes_of_images = [here.to(device) for here, _ in drawn]
    found = scene.assigner(stack_candidates(boxes_of_images, targets, labels))
    fields = ("boxes", "labels", "ious", "gt", "gt_boxes", "image")
    matched = {name: getattr(found, name) for name in fields}
    total = images * number
    logits = torch.randn(total, classes + 1, generator=g).to(device)
    truth = found.labels.clamp(min=0)
    class_loss = torch.nn.functional.cross_entropy(logits, truth, reduction="none")
    loss = class_loss + torch.rand(total, generator=g).to(device) * (found.labels > 0)

    def predict(rows: Tensor) -> Prediction:
        return Prediction(logits[rows], found.boxes[rows], loss[rows], class_loss[rows])

    generators = [torch.Generator(device).manual_seed(seed) for seed in range(images)]
    return Candidates(**matched, predict=predict, generators=generators)
