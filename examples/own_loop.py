"""A training loop in plain PyTorch: Faster R-CNN with OHEM at the head, on drawn shapes.

Run it from the project's root: ``python -m examples.own_loop [STEPS]``.
"""

import sys

import torch
from torch.utils.data import DataLoader

import frcnn
from frcnn.data import collate, shapes
from samplers import OHEM


def train(steps: int) -> dict[str, float]:
    """Train from scratch, print the terms of each step, and return those of the last one."""
    torch.manual_seed(0)
    dataset = shapes("train", train_images=2 * steps)
    loader = DataLoader(dataset, batch_size=2, shuffle=True, collate_fn=collate)
    detector = frcnn.build_detector(
        dataset.num_classes,  # C + 1: the background counts
        "fasterrcnn_resnet18_fpn",
        min_size=96,
        max_size=128,
        anchor_sizes=[12, 24, 48, 96, 192],  # pixels, one per pyramid level
        sampler={"rcnn": OHEM(batch_size_per_image=32)},  # the RPN keeps torchvision's
    ).train()
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.005, momentum=0.9)
    for step, (images, targets) in enumerate(loader, start=1):
        images = [image / 255 for image in images]  # [3, H, W] float in 0..1
        # Boxes [G, 4] xyxy in pixels and labels [G] in 1..C are all that a target needs.
        targets = [{key: target[key] for key in ("boxes", "labels")} for target in targets]
        terms = detector(images, targets)
        optimizer.zero_grad()
        sum(terms.values()).backward()
        optimizer.step()
        shown = {name: round(term.item(), 3) for name, term in terms.items()}
        print(f"step {step}: {shown}")
    return shown


if __name__ == "__main__":
    train(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
