"""How often a training step makes the host wait for a GPU."""

import warnings

import pytest
import torch
from small import batch, detector

IMAGES = 3
# torchvision's own filter of the proposals, an image at a time: two thresholds, NMS.
PER_IMAGE = 6
# Of both sites: the draw, the positives, levels of the pyramid, boxes an image; the losses' values.
OTHERS = 30


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_step_waits_for_few_things_beyond_the_proposals() -> None:
    model = detector().cuda()
    images, targets = batch(*[4] * IMAGES)
    images = [image.cuda() for image in images]
    for index, target in enumerate(targets):
        target["seed"] = index
    sum(model(images, targets).values()).backward()  # what is made once is made
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            sum(model(images, targets).values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert 0 < len(waits) <= PER_IMAGE * IMAGES + OTHERS, [str(w.message) for w in waits]
