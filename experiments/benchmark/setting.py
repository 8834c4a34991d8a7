"""The measured networks, images and options, all from the project's own conf/."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from experiments.benchmark.timing import nothing
from frcnn import build as assemble
from frcnn.config.compose import CONF, checked
from frcnn.data import Batch, collate
from frcnn.model import Detector
from frcnn.model.anchors import one_anchor_size_per_level
from frcnn.model.faster_rcnn import TorchvisionOptions
from frcnn.model.retinanet import RetinaNetOptions
from frcnn.parallel.device import choose_precision


@dataclass(frozen=True)
class Workload:
    """A network and its images; ``anchors`` as ``model.anchor_sizes``."""

    model: str
    width: int
    height: int
    batch: int
    anchors: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.model}, {self.width}x{self.height}, batch {self.batch}"

    def overrides(self) -> list[str]:
        """The command line of such a training run on embedded images."""
        anchors = "null" if self.anchors is None else list(self.anchors)
        return [
            "data=shapes",
            f"model={self.model}",
            "model.weights=null",
            f"data.train_images={self.batch}",
            f"data.width={self.width}",
            f"data.height={self.height}",
            f"data.min_size={self.height}",
            f"data.max_size={self.width}",
            f"data.anchor_sizes={anchors}",
            "data.num_objects=[1,14]",  # seven per image on average, as in COCO
            f"data.object_size=[{self.height // 7},{self.height * 2 // 5}]",
            f"trainer.batch_size={self.batch}",
        ]


ON_CPU = Workload("fasterrcnn_resnet18_fpn", 256, 192, 4, (16, 32, 64, 128, 256))
RETINANET_ON_CPU = Workload("retinanet_resnet18_fpn", 256, 192, 4)
ON_CUDA = (
    Workload("fasterrcnn_resnet50_fpn", 1333, 800, 8),
    Workload("fasterrcnn_resnet50_fpn", 1333, 800, 16),
)
NO_CUDA = "no CUDA GPU here"


def compose(*overrides: str) -> dict[str, Any]:
    """The checked configuration of a training command line."""
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        config = hydra.compose("train", list(overrides), return_hydra_config=True)
        chosen = config.hydra.runtime.choices.items()
        choices = {k: v for k, v in chosen if v and not k.startswith("hydra/")}
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        return checked("train", config, choices)


def options(group: str) -> list[str]:
    """The names of a group's options, ``random`` and ``cross_entropy`` among them."""
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        return sorted(GlobalHydra.instance().config_loader().get_group_options(group))


def site_names() -> list[str]:
    """The sites of the network that a command line without options trains."""
    return list(compose()["sampler"])


def batch_of(config: dict[str, Any]) -> tuple[Batch, int]:
    """The first training batch of a configuration, and the number of classes with background."""
    images = assemble.dataset(config["data"], "train")
    return collate([images[i] for i in range(config["trainer"]["batch_size"])]), images.num_classes


def ours(config: dict[str, Any], num_classes: int, device: torch.device) -> Detector:
    """The project's detector, on the device and in the memory format of a run."""
    torch.manual_seed(config["seed"])
    model = assemble.detector(config, num_classes).to(device)
    if config["trainer"]["channels_last"]:
        model = model.to(memory_format=torch.channels_last)
    return model.train()


def stock(config: dict[str, Any], num_classes: int, device: torch.device) -> FasterRCNN | RetinaNet:
    """torchvision's own detector with the same shape and budgets."""
    kind, _, backbone = config["model"]["name"].removesuffix("_fpn").partition("_")
    make = {"fasterrcnn": _stock_faster_rcnn, "retinanet": _stock_retinanet}[kind]
    shared = {"weights": None, "norm_layer": torch.nn.BatchNorm2d, "trainable_layers": 5}
    return make(config["model"], num_classes, backbone_name=backbone, **shared).to(device).train()


def _stock_faster_rcnn(node: dict[str, Any], num_classes: int, **backbone: Any) -> FasterRCNN:
    options = {key: node[key] for key in TorchvisionOptions.__annotations__ if key in node}
    if node["anchor_sizes"] is not None:
        options["rpn_anchor_generator"] = one_anchor_size_per_level(node["anchor_sizes"])
    return FasterRCNN(resnet_fpn_backbone(**backbone), num_classes, **options)


def _stock_retinanet(node: dict[str, Any], num_classes: int, **backbone: Any) -> RetinaNet:
    """With torchvision's own anchors and head; the workload must not ask for others."""
    options = {key: node[key] for key in RetinaNetOptions.__annotations__ if key in node}
    p6p7 = LastLevelP6P7(node["fpn_channels"], node["fpn_channels"])
    network = resnet_fpn_backbone(**backbone, returned_layers=[2, 3, 4], extra_blocks=p6p7)
    return RetinaNet(network, num_classes, **options)


def computes_bf16(device: torch.device) -> bool:
    """Whether the hardware computes in bf16; emulated, a step takes minutes."""
    return choose_precision("auto", device) == torch.bfloat16


def no_bf16(device: torch.device) -> str:
    """Why a bf16 row was not measured."""
    return f"this {'CPU' if device.type == 'cpu' else 'GPU'} does not compute in bf16"


def waiter(device: torch.device) -> Callable[[], object]:
    """A function that returns when the device has done its work."""
    return torch.cuda.synchronize if device.type == "cuda" else nothing
