"""A checkpoint in plain torchvision, and as an ONNX file: nothing of this project is imported.

Run it from the project's root, for a Faster R-CNN over a ResNet:
``python -m examples.to_torchvision runs/NAME/checkpoints/best.pt [detector.onnx]``.
The ONNX file needs the extra ``onnx``.
"""

import sys
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d


def load(path: str) -> FasterRCNN:
    """torchvision's Faster R-CNN with the weights of a checkpoint, in eval mode."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    backbone, options = parts(saved["config"]["model"], saved["model"])
    model = FasterRCNN(backbone, len(saved["class_names"]) + 1, **options)
    model.load_state_dict(saved["model"])
    if saved["config"]["model"]["weights"] in ("COCO_V1", "DEFAULT"):
        overwrite_eps(model, 0.0)  # torchvision does so for these weights
    return model.eval()


def parts(node: dict[str, Any], state: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The backbone, and the arguments of torchvision's class that the run was configured with."""
    frozen = not any(name.endswith("num_batches_tracked") for name in state)
    norm = FrozenBatchNorm2d if frozen else nn.BatchNorm2d
    name = node["name"].split("_")[1]  # fasterrcnn_resnet18_fpn
    backbone = resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=norm)
    options = {key: node[key] for key in node if key.startswith(("rpn_", "box_"))}
    options |= {key: node[key] for key in ("min_size", "max_size")}
    if node["anchor_sizes"]:
        sizes = tuple((size,) for size in node["anchor_sizes"])
        options["rpn_anchor_generator"] = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    return backbone, options


def export(model: FasterRCNN, file: str) -> None:
    """Write ONNX for one image [3, H, W] of any size, float in 0..1.

    The outputs are those of torchvision: boxes [D, 4] xyxy in pixels, labels [D], scores [D].
    """
    image = torch.rand(3, 192, 256)
    torch.onnx.export(
        model,
        ([image],),
        file,
        dynamo=False,  # torch.export cannot follow torchvision's detectors yet
        opset_version=17,
        input_names=["image"],
        output_names=["boxes", "labels", "scores"],
        dynamic_axes={"image": {1: "height", 2: "width"}},
    )


if __name__ == "__main__":
    detector = load(sys.argv[1])
    print(f"{sum(p.numel() for p in detector.parameters()) / 1e6:.1f}M weights, in torchvision")
    if len(sys.argv) > 2:
        export(detector, sys.argv[2])
        print(f"written to {sys.argv[2]}")
