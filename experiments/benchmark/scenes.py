"""Made-up boxes, objects and predictions of any number.

Shape letters: I images, N candidates an image, G objects an image, C foreground classes.
"""

import torch
from torch import Tensor

from frcnn.sites.assigners.max_iou import Matcher, match_batch
from samplers import Candidates, Prediction

WIDTH, HEIGHT = 1333, 800
# Thresholds of torchvision's Faster R-CNN.
MATCHERS = {"rpn": Matcher(0.7, 0.3, keep_best=True), "rcnn": Matcher(0.5, 0.5)}
CLASSES = {"rpn": 1, "rcnn": 80}
# Share of the candidates that lie about an object: anchors lie anywhere, proposals look for them.
NEAR = {"rpn": 0.01, "rcnn": 0.25}


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
    site: str, number: int, objects: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """[N, 4] candidates of a site and [G, 4] objects of one image."""
    there = boxes(objects, generator)
    close = int(NEAR[site] * number)
    return torch.cat([near(there, close, generator), boxes(number - close, generator)]), there


def candidates(
    site: str, images: int, number: int, objects: int, device: torch.device
) -> Candidates:
    """Matched candidates of a batch, whose ``predict`` is an index into numbers made before."""
    g, classes = torch.Generator().manual_seed(0), CLASSES[site]
    drawn = [image(site, number, objects, g) for _ in range(images)]
    labels = [torch.randint(1, classes + 1, (objects,), generator=g) for _ in drawn]
    targets = [{"boxes": there.to(device)} for _, there in drawn]
    matched = match_batch(
        MATCHERS[site],
        [here.to(device) for here, _ in drawn],
        targets,
        [label.to(device) for label in labels],
    )
    total = images * number
    logits = torch.randn(total, classes + 1, generator=g).to(device)
    truth = matched.labels.clamp(min=0)
    class_loss = torch.nn.functional.cross_entropy(logits, truth, reduction="none")
    loss = class_loss + torch.rand(total, generator=g).to(device) * (matched.labels > 0)

    def predict(rows: Tensor) -> Prediction:
        return Prediction(logits[rows], matched.boxes[rows], loss[rows], class_loss[rows])

    generators = [torch.Generator(device).manual_seed(seed) for seed in range(images)]
    return Candidates(**vars(matched), predict=predict, generators=generators)
