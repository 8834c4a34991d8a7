"""Runs so small that a whole one takes a second: a stand-in backbone and a handful of images."""

import copy
import json
import logging
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import ListConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import faster_rcnn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from frcnn.config.compose import checked
from frcnn.config.methods import CONF, GROUPS, own_choices
from frcnn.model import backbones as zoo
from frcnn.runfolder import checkpoint

# 12 training images of 64x48: 6 steps of 2 an epoch.
SMALL = [
    "data.train_images=12",
    "data.val_images=4",
    "data.width=64",
    "data.height=48",
    "data.min_size=48",
    "data.max_size=64",
    "data.num_objects=[1,2]",
    "data.object_size=[14,30]",
    "model.rpn_post_nms_top_n_train=50",
    "model.rpn_post_nms_top_n_test=20",
    "site.rpn.budget=32",
    "site.rcnn.budget=16",
    "schedule.warmup_steps=0",
    "trainer.batch_size=2",
    "trainer.epochs=2",
    "trainer.precision=fp32",
    "trainer.device=cpu",
    "trainer.workers=0",
    "trainer.log_every=1",
    "trainer.sampling_every=3",
    "evaluation.backend=pycocotools",
    "wandb.mode=disabled",
]

# The same for RetinaNet.
SMALL_DENSE = [
    *(line for line in SMALL if not line.startswith(("model.rpn", "site."))),
    "model=retinanet_resnet18_fpn",
    "site.dense.budget=32",
]
# And for three heads.
SMALL_CASCADE = [
    *(line for line in SMALL if not line.startswith("site.rcnn")),
    "model=cascade_rcnn_resnet18_fpn_slim",
]
NETWORKS = {"faster_rcnn": SMALL, "retinanet": SMALL_DENSE}
# Parameters of a fixture: the second one is for `make test-all`.
BOTH = ["faster_rcnn", pytest.param("retinanet", marks=pytest.mark.slow)]


class Stages(nn.Module):
    """Four convolutions in the place of a ResNet's four layers."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        sizes = [(3, 8, 4), (8, 8, 2), (8, 8, 2), (8, 8, 2)]
        for number, (before, after, stride) in enumerate(sizes, start=1):
            layer = nn.Sequential(
                nn.Conv2d(before, after, 3, stride, 1), norm(after), nn.ReLU(inplace=True)
            )
            self.add_module(f"layer{number}", layer)

    def forward(self, image: Tensor) -> Tensor:
        for layer in self.children():
            image = layer(image)
        return image


def small_backbone(
    norm_layer: Callable[[int], nn.Module],
    returned_layers: Sequence[int] = (1, 2, 3, 4),
    extra_blocks: ExtraFPNBlock | None = None,
    **_: Any,
) -> BackboneWithFPN:
    """In the place of ``resnet_fpn_backbone``: 16 channels."""
    layers = {f"layer{number}": str(at) for at, number in enumerate(returned_layers)}
    if extra_blocks is not None:
        for layer in list(extra_blocks.children()):  # RetinaNet's, made for 256 channels
            layer.in_channels = layer.out_channels = 16
            layer.weight.data = layer.weight.data[:16, :16].clone()
            layer.bias.data = layer.bias.data[:16].clone()
    return BackboneWithFPN(Stages(norm_layer), layers, [8] * len(layers), 16, extra_blocks)


class SmallHead(nn.Module):
    """In the place of the box head's two layers of 1024."""

    def __init__(self, in_channels: int, representation_size: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Flatten(), nn.Linear(in_channels, 32), nn.ReLU())
        self.up = nn.Linear(32, representation_size)

    def forward(self, features: Tensor) -> Tensor:
        return self.up(self.fc(features)).relu()


@contextmanager
def small_network() -> Iterator[None]:
    """``model=fasterrcnn_resnet18_fpn`` and ``retinanet_resnet18_fpn`` are stand-ins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "resnet_fpn_backbone", small_backbone)
        patch.setattr(faster_rcnn, "TwoMLPHead", SmallHead)
        yield


def composed(*overrides: str, name: str = "train") -> tuple[dict[str, Any], dict[str, str]]:
    """Checked configuration and choices of a command line."""
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        config = hydra.compose(name, list(overrides), return_hydra_config=True)
        choices = {k: v for k, v in config.hydra.runtime.choices.items() if v and "hydra" not in k}
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        plain = checked(name, config, choices)
        sites = list(plain["model"]["sites"]) if "model" in plain else []
        return plain, own_choices(choices, sites)


def options(group: str) -> list[str]:
    """Options of a group: files of conf/ and its subfolders, or presets, or methods."""
    folder = f"method/{group.split('/')[0]}" if "/" in group else f"preset/{group}"
    folder = folder if (Path(CONF) / folder).exists() else group
    files = (Path(CONF) / folder).rglob("*.yaml")
    return sorted(f.relative_to(Path(CONF) / folder).with_suffix("").as_posix() for f in files)


def presets(*groups: str) -> list[str]:
    """``sampler=ohem``, ...: every preset of these groups."""
    return [f"{group}={option}" for group in groups for option in options(group)]


def tiny(*overrides: str) -> tuple[dict[str, Any], dict[str, str]]:
    """``composed`` of a tiny training run; composes once for every choice of options."""
    keys = {override: override.partition("=")[0] for override in overrides}
    groups = tuple(
        override
        for override, key in keys.items()
        if key.partition("/")[0] in GROUPS or (Path(CONF) / key).is_dir()
    )
    config, choices = copy.deepcopy(_tiny(groups))
    for override in (o for o in overrides if o not in groups):
        *path, last = keys[override].split(".")
        node = config
        for part in path:
            node = node[part]
        assert last in node, override
        node[last] = OmegaConf.from_dotlist([f"x={override.partition('=')[2]}"]).x
        if isinstance(node[last], ListConfig):
            node[last] = list(node[last])
    return config, choices


@lru_cache
def _tiny(groups: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    dense = any(group.startswith("model=retinanet") for group in groups)
    return composed(*(SMALL_DENSE if dense else SMALL), *groups)


def voc(folder: Path, classes: list[str]) -> None:
    """A data set of one image with an object of each class."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    Image.new("RGB", (64, 48)).save(folder / "JPEGImages/a.jpg")
    box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
    objects = "".join(f"<object><name>{name}</name>{box}</object>" for name in classes)
    size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
    text = f"<annotation><filename>a.jpg</filename>{size}{objects}</annotation>"
    (folder / "Annotations/a.xml").write_text(text)
    for split in ("train", "val"):
        (folder / f"ImageSets/Main/{split}.txt").write_text("a\n")


def nested_copy(groups: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested dicts, whose other values are shared."""
    return {k: nested_copy(v) if isinstance(v, dict) else v for k, v in groups.items()}


@contextmanager
def command_line(*arguments: str) -> Iterator[None]:
    """Arguments of an entry point called in this process.

    The process keeps its log handlers and its sites: a ``--config-dir`` may add options of some.
    """
    root, stored = logging.getLogger(), ConfigStore.instance().repo
    handlers, level = root.handlers[:], root.level
    own = ("site_defaults.yaml", *GROUPS)
    before = nested_copy({key: stored[key] for key in own if key in stored})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["frcnn", *arguments])
        try:
            yield
        finally:
            for handler in set(root.handlers) - set(handlers):
                handler.close()
            root.handlers, root.level = handlers, level
            for key in own:
                stored.pop(key, None)
            stored.update(before)


def call(main: Callable[[], None], *arguments: str) -> int:
    """Exit code of an entry point."""
    with command_line(*arguments):
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


class Interrupted:
    """A file with whose second write comes SIGTERM: of the first, torch's writer makes no error."""

    def __init__(self, file: Any) -> None:
        self.file, self.writes = file, 0

    def write(self, data: Any) -> int:
        self.writes += 1
        if self.writes == 2:
            signal.raise_signal(signal.SIGTERM)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def sigterm_at_save(count: int, patch: pytest.MonkeyPatch) -> list[int]:
    """SIGTERM while torch writes checkpoint number ``count``; the numbers of those it finishes."""
    real, calls, finished = torch.save, iter(range(1, 1000)), []

    def save(content: Any, file: Any) -> None:
        number = next(calls)
        real(content, Interrupted(file) if number == count else file)
        finished.append(number)

    patch.setattr(torch, "save", save)
    return finished


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A disk that takes no more than ``size`` bytes a file, for root as well."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def lines(folder: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def leet(*args: object) -> str:
    """What ``wandb leet inspect --json`` prints."""
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json"]
    command += [str(arg) for arg in args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def records(path: Path) -> list[dict[str, Any]]:
    """What a .wandb file holds."""
    return [json.loads(line) for line in leet(path).splitlines()]


def history(path: Path) -> list[dict[str, Any]]:
    """The rows of a .wandb file."""
    return [r["history"]["item"] for r in records(path) if r["type"] == "history"]


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same without what a clock measured."""
    clock = ("train/images_per_second", "train/seconds_per_step", "train/data_wait")
    return [{k: v for k, v in record.items() if k not in clock} for record in records]


def without_measured(summary: dict[str, Any]) -> dict[str, Any]:
    """The same without what a clock or the system's memory measured."""
    return {
        k: v
        for k, v in summary.items()
        if k not in ("seconds", "seconds_per_step", "peak_memory_mb")
    }


def weights(folder: Path, name: str = "last.pt") -> dict[str, Tensor]:
    return checkpoint.load(folder / "checkpoints" / name)["model"]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def the_same(first: Path, second: Path) -> bool:
    """Whether two runs left the same, to the last bit."""
    summaries = [json.loads((run / "summary.json").read_text()) for run in (first, second)]
    return (
        same(weights(first), weights(second))
        and same(weights(first, "best.pt"), weights(second, "best.pt"))
        and without_times(lines(first)) == without_times(lines(second))
        and without_measured(summaries[0]) == without_measured(summaries[1])
        and (first / "detections.npz").read_bytes() == (second / "detections.npz").read_bytes()
    )
