"""One training step, the same code for torchvision's detector and for ours."""

from typing import Any

import torch
from torchvision.models.detection import FasterRCNN, RetinaNet

from frcnn.config.compose import build
from frcnn.data import Batch, prepare
from frcnn.model import Detector
from frcnn.parallel.device import DTYPES, autocast


class Training:
    """A network and its optimizer, as ``frcnn.training.loop.Engine`` drives them.

    The learning rate is 0: the arithmetic is that of training, but the weights stay the same.
    """

    def __init__(
        self, model: FasterRCNN | RetinaNet, config: dict[str, Any], device: torch.device
    ) -> None:
        self.model, self.device = model, device
        self.clip_norm = config["trainer"]["clip_norm"]
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = build(config["optimizer"] | {"lr": 0.0})(trained)

    def step(self, batch: Batch, precision: str) -> dict[str, float]:
        """Forward, losses, backward, clipping and update; returns the losses."""
        images, targets = prepare(batch[0], self.device), batch[1]
        if not isinstance(self.model, Detector):  # torchvision does not move them
            targets = [{k: t[k].to(self.device) for k in ("boxes", "labels")} for t in targets]
        with autocast(self.device, DTYPES[precision]):
            losses = self.model(images, targets)
        values = torch.stack(list(losses.values())).tolist()
        sum(losses.values()).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        if not norm.isfinite():
            raise FloatingPointError(f"gradient norm {norm.item()}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return dict(zip(losses, values, strict=True))
