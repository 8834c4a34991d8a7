"""NMS among the candidates of equal image and label, as far as it is needed."""

from itertools import count as attempts

import torch
from torch import Tensor
from torchvision.ops import nms

from samplers.candidates import Candidates
from samplers.host import Numbers, reads_are_free
from samplers.quota import count, pick_per_image
from samplers.suppression import LEFT_OUT, cluster_heads

WINDOW_ON_GPU = 2_500  # all proposals of an image, and its objects


def first_survivors(
    candidates: Candidates, priority: Tensor, mask: Tensor, threshold: float, number: int
) -> Tensor:
    """[N] bool: what NMS keeps, right for the first ``number`` survivors of each image.

    Greedy NMS never looks at a lower priority, so these depend only on the candidates of highest
    priority. NMS therefore runs on a window of them, which grows until enough survive:
    near-duplicates are few, and the cost of NMS grows with the square of the window.

    Args:
        priority: [N] float; ties go to the lowest index.
        mask: [N] bool, the candidates that take part.
        threshold: IoU above which the candidate of lower priority is removed.
    """
    sizes = candidates.pad_by_image(mask).sum(1)
    for attempt in attempts():
        window = _first_window(mask.device, number) << attempt
        pool = pick_per_image(candidates, priority, mask, window)
        if reads_are_free(mask.device):
            survives, exact = _on_cpu(candidates, priority, pool, threshold), torch.tensor(True)
        else:
            survives, exact = _on_gpu(candidates, priority, pool, threshold, window, attempt)
        survivors = candidates.pad_by_image(survives).sum(1)
        enough = (survivors >= number) | (sizes <= window)
        if Numbers(exact & enough.all()).read()[0]:
            break
    return survives


def _first_window(device: torch.device, number: int) -> int:
    """On a GPU a larger window costs less than a second one, for which its host would wait."""
    return 5 * number // 4 if reads_are_free(device) else max(2 * number, WINDOW_ON_GPU)


def _on_cpu(candidates: Candidates, priority: Tensor, pool: Tensor, threshold: float) -> Tensor:
    """[N] bool: what survives of the [N] bool pool."""
    survives = torch.zeros_like(pool)
    rows = torch.where(pool)[0]
    if not len(rows):
        return survives
    boxes = candidates.boxes[rows].double()
    # Move the boxes of each label away from all others. In float32 many labels would leave too
    # few digits for the boxes.
    boxes += (candidates.labels[rows] * (1 + boxes.max() - boxes.min()))[:, None]
    sizes = count(candidates.image[rows], candidates.num_images).tolist()
    by_image = (values.split(sizes) for values in (rows, boxes, priority[rows].double()))
    for image_rows, image_boxes, image_priority in zip(*by_image, strict=True):
        survives[image_rows[nms(image_boxes, image_priority, threshold)]] = True
    return survives


def _on_gpu(
    candidates: Candidates,
    priority: Tensor,
    pool: Tensor,
    threshold: float,
    most: int,
    attempt: int,
) -> tuple[Tensor, Tensor]:
    """The same for all images at once.

    Args:
        most: upper bound of the pool of an image.
        attempt: see ``cluster_heads``.

    Returns:
        [N] bool; and 0-d bool, whether that is right already.
    """
    low = -torch.inf
    table = candidates.pad_by_image(priority.float().masked_fill(~pool, low), low)
    column = table.argsort(dim=1, descending=True, stable=True)[:, :most]
    label = candidates.pad_by_image(candidates.labels.where(pool, LEFT_OUT), LEFT_OUT)
    boxes = candidates.pad_by_image(candidates.boxes.double())
    boxes = boxes.gather(1, column[..., None].expand(-1, -1, 4))
    head, exact = cluster_heads(boxes, label.gather(1, column), threshold, attempt)
    kept = head == torch.arange(head.shape[1], device=head.device)
    survives = torch.zeros_like(label, dtype=torch.bool).scatter(1, column, kept)
    return candidates.unpad(survives), exact
