"""Detectors over timm networks and over a module of the user's."""

import builtins
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from small import ANCHORS, OPTIONS, Pyramid, batch, detector
from timm.layers import BatchNormAct2d
from timm.models import _builder
from tiny import same, tiny, weights
from torch import Tensor, nn

from frcnn.errors import ConfigError, UserError
from frcnn.evaluation.load import load_trained
from frcnn.model import Detector, build_detector
from frcnn.model.backbones import FAMILIES, freeze_stages
from frcnn.model.weights import load_into
from frcnn.training.run import run

EFFICIENTNET, RESNET = "test_efficientnet", "test_resnet"  # of timm's own tests


def over_timm(backbone: str = EFFICIENTNET, num_classes: int = 4, **options: Any) -> Detector:
    """A slim detector over a timm network, the same weights at every call."""
    options = {"fpn_channels": 16, "representation_size": 32} | options
    return detector(num_classes, "fasterrcnn_timm", backbone=backbone, **options)


def classifier(backbone: str = EFFICIENTNET, **options: Any) -> OrderedDict[str, Tensor]:
    """The state dict of a timm classifier unlike a fresh one, also in its statistics."""
    torch.manual_seed(5)
    state = timm.create_model(backbone, **options).state_dict()
    return OrderedDict(
        (name, value + 0.1 * torch.rand(value.shape) if value.is_floating_point() else value)
        for name, value in state.items()
    )


def saved(content: Any, folder: Path, name: str = "classifier.pth") -> str:
    torch.save(content, folder / name)
    return str(folder / name)


def trained(model: Detector) -> set[str]:
    """The parts of the backbone's body that train."""
    body = model.backbone.body.named_parameters()
    depth = 2 if hasattr(model.backbone.body, "blocks") else 1
    return {".".join(name.split(".")[:depth]) for name, p in body if p.requires_grad}


def outputs(model: Detector) -> list[Tensor]:
    """The feature maps of a training pass without gradient."""
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return list(model.backbone.train()(images).values())


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# timm networks


@pytest.mark.parametrize(
    "name", [EFFICIENTNET, RESNET, "test_convnext", "swin_tiny_patch4_window7_224"]
)
def test_five_levels_of_strides_4_to_64(name: str) -> None:
    model = over_timm(name)
    maps = model.backbone(torch.zeros(2, 3, 128, 64))
    assert {key: tuple(m.shape) for key, m in maps.items()} == {
        "0": (2, 16, 32, 16), "1": (2, 16, 16, 8), "2": (2, 16, 8, 4), "3": (2, 16, 4, 2),
        "pool": (2, 16, 2, 1),
    }  # fmt: skip
    losses = model(*batch(2, 1))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None for p in model.parameters())


def test_images_are_normalized_as_the_network_was_trained() -> None:
    transform = over_timm(RESNET).transform
    assert transform.image_mean == transform.image_std == [0.5] * 3
    assert over_timm(EFFICIENTNET).transform.image_mean == detector().transform.image_mean
    own = over_timm(RESNET, image_mean=[0.1, 0.2, 0.3]).transform
    assert own.image_mean == [0.1, 0.2, 0.3] and own.image_std == [0.5] * 3


STEM = {"conv_stem.weight", "bn1.weight", "bn1.bias", "blocks.0"}


@pytest.mark.parametrize(
    ("trainable", "parts"),
    [
        (0, set()),
        (1, {"blocks.4"}),
        (3, {"blocks.4", "blocks.3", "blocks.2"}),
        (None, {"blocks.4", "blocks.3", "blocks.2"}),
        (4, {"blocks.4", "blocks.3", "blocks.2", "blocks.1"}),
        (5, {"blocks.4", "blocks.3", "blocks.2", "blocks.1"} | STEM),
    ],
)
def test_stages_count_from_the_last(trainable: int | None, parts: set, tmp_path: Path) -> None:
    model = over_timm(
        weights_backbone=saved(classifier(), tmp_path),
        trainable_backbone_layers=trainable,
        freeze_batch_norm=False,
    )
    assert trained(model) == parts
    assert all(p.requires_grad for p in model.backbone.fpn.parameters())


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        (RESNET, [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}]),
        # ConvNeXt has no map of stride 2: all before the first stage is the stem.
        ("test_convnext", [{"stem_0", "stem_1"}, *({f"stages_{i}"} for i in range(4))]),
        # The map leaves in the middle of a module, or after the layers of the next name.
        ("mobilenetv3_small_050", [{"conv_stem.weight", "bn1.weight", "bn1.bias"}, {"blocks.0"},
            {"blocks.1"}, {"blocks.2", "blocks.3"}, {"blocks.4", "blocks.5"}]),
    ],
)  # fmt: skip
def test_a_stage_ends_where_its_map_leaves(name: str, stages: list[set[str]]) -> None:
    model = over_timm(name)
    for trainable in range(6):
        freeze_stages(model, FAMILIES["fasterrcnn_timm"], trainable)
        assert trained(model) == set().union(*stages[5 - trainable :])


def test_a_network_without_stages_trains_whole_or_not_at_all() -> None:
    model = over_timm("hrnet_w18_small")
    for trainable, flag in ((0, False), (5, True)):
        freeze_stages(model, FAMILIES["fasterrcnn_timm"], trainable)
        assert {p.requires_grad for p in model.backbone.body.parameters()} == {flag}
    with pytest.raises(ConfigError, match=r"hrnet_w18_small has no stages, choose 0 or 5"):
        freeze_stages(model, FAMILIES["fasterrcnn_timm"], 3)


@pytest.mark.parametrize("trainable", [-1, 6])
def test_there_are_five_stages(trainable: int) -> None:
    models = {"fasterrcnn_timm": over_timm(), "fasterrcnn_resnet18_fpn": detector()}
    for family, model in models.items():
        with pytest.raises(ConfigError, match=f"trainable_backbone_layers: .*0 to 5.* {trainable}"):
            freeze_stages(model, FAMILIES[family], trainable)


# BatchNorm


@pytest.mark.parametrize(
    ("file", "freeze", "frozen"),
    [(False, None, False), (False, True, True), (True, None, True), (True, False, False)],
)
def test_batch_norm_is_frozen_with_weights_or_when_asked(
    file: bool, freeze: bool | None, frozen: bool, tmp_path: Path
) -> None:
    weights = saved(classifier(), tmp_path) if file else None
    model = over_timm(weights_backbone=weights, freeze_batch_norm=freeze)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.backbone.modules()) != frozen
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(*batch(2, 1))
    same = all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert same == frozen


@pytest.mark.parametrize("name", [EFFICIENTNET, RESNET])
def test_a_frozen_network_keeps_its_activations(name: str, tmp_path: Path) -> None:
    file = saved(classifier(name), tmp_path)
    frozen = over_timm(name, weights_backbone=file).double()
    plain = over_timm(name, weights_backbone=file, freeze_batch_norm=False).double()
    assert any(isinstance(m, BatchNormAct2d) for m in plain.modules()) == (name == EFFICIENTNET)
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
        expected = plain.eval().backbone(images)
        for key, value in frozen.backbone(images).items():  # in training mode
            torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("name", [EFFICIENTNET, "test_convnext"])
def test_a_state_dict_loads_into_a_fresh_detector(freeze: bool, name: str, tmp_path: Path) -> None:
    file = saved(classifier(name), tmp_path)
    model = over_timm(name, weights_backbone=file, freeze_batch_norm=freeze)
    state = model.state_dict()
    fresh = over_timm(name)
    load_into(fresh, state, fresh.predictor, "state")
    again = over_timm(name, weights=saved({"model": state}, tmp_path, "last.pt"))
    expected = outputs(model)
    for other in (fresh, again):
        assert other.state_dict().keys() == state.keys()
        assert_equal(outputs(other), expected)


def test_the_option_overrides_what_a_detectors_file_says(tmp_path: Path) -> None:
    frozen = over_timm(freeze_batch_norm=True).state_dict()
    plain = over_timm().state_dict()
    for state, freeze in ((frozen, False), (plain, True)):
        model = over_timm(weights=saved(state, tmp_path), freeze_batch_norm=freeze)
        assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) != freeze
        for name, value in model.state_dict().items():
            assert name not in state or torch.equal(value, state[name])


def test_a_detectors_file_and_the_stages_that_train(tmp_path: Path) -> None:
    file = saved(over_timm().state_dict(), tmp_path)
    assert trained(over_timm(weights=file, trainable_backbone_layers=1)) == {"blocks.4"}
    assert trained(over_timm(weights=file)) >= {"blocks.0", "bn1.weight"}


# Files of image classifiers


def assert_loaded(model: Detector, state: dict[str, Tensor]) -> None:
    for name, value in model.backbone.body.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_classifiers_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = classifier()
    assert_loaded(over_timm(weights_backbone=saved(state, tmp_path)), state)
    assert not caplog.records


def test_a_safetensors_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = classifier()
    save_file(state, tmp_path / "model.safetensors")
    assert_loaded(over_timm(weights_backbone=str(tmp_path / "model.safetensors")), state)
    (tmp_path / "broken.safetensors").write_text("hello")
    for name, words in (("broken", "not a readable weights file"), ("no", "no such weights file")):
        with pytest.raises(UserError, match=words) as error:
            over_timm(weights_backbone=str(tmp_path / f"{name}.safetensors"))
        assert "\n" not in str(error.value)


def renamed(state: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """The same tensors by other names that end in the same word."""
    return OrderedDict(
        (f"_{i}.{key.rpartition('.')[2]}", state[key]) for i, key in enumerate(state)
    )


@pytest.mark.parametrize("rename", [renamed, OrderedDict])
@pytest.mark.parametrize("options", [{}, {"num_classes": 7}, {"num_classes": 0}])
@pytest.mark.parametrize("counters", [True, False])
def test_a_file_fits_by_its_names_or_else_in_order(
    rename: Any, options: dict, counters: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = classifier(**options)
    if not counters:
        state = OrderedDict((k, v) for k, v in state.items() if "num_batches" not in k)
    file = saved(rename(state), tmp_path)
    with caplog.at_level(logging.WARNING):
        model = over_timm(weights_backbone=file)
    assert_loaded(model, state)
    messages = [record.getMessage() for record in caplog.records]
    if rename is renamed:
        (message,) = messages
        assert file in message and "other names" in message and "in order" in message
    else:
        assert not messages


def test_joined_names_of_stages_load_too(tmp_path: Path) -> None:
    """timm names a stage "stages.0" in a classifier and "stages_0" where it gives maps."""
    state = classifier("test_convnext")
    body = over_timm(
        "test_convnext", weights_backbone=saved(renamed(state), tmp_path)
    ).backbone.body
    assert torch.equal(
        body.stages_1.blocks[0].conv_dw.weight, state["stages.1.blocks.0.conv_dw.weight"]
    )


def without_one(state: OrderedDict[str, Tensor]) -> None:
    del state["blocks.2.0.bn1.bias"]


def swapped(state: OrderedDict[str, Tensor]) -> None:
    state.move_to_end("bn1.weight")


def reshaped(state: OrderedDict[str, Tensor]) -> None:
    state["conv_stem.weight"] = torch.zeros(16, 1, 3, 3)


def one_more(state: OrderedDict[str, Tensor]) -> None:
    state["blocks.9.weight"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "rename"),
    [
        (without_one, renamed),
        (swapped, renamed),
        (reshaped, renamed),
        (one_more, renamed),
        (without_one, OrderedDict),
        (reshaped, OrderedDict),
        (one_more, OrderedDict),
    ],
)
def test_a_file_that_does_not_fit(change: Any, rename: Any, tmp_path: Path) -> None:
    state = classifier()
    change(state)
    file = saved(rename(state), tmp_path)
    with pytest.raises(UserError, match="does not fit the backbone") as error:
        over_timm(weights_backbone=file)
    assert file in str(error.value) and "\n" not in str(error.value)


def test_names_decide_where_they_are_equal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = classifier()
    swapped(state)
    assert_loaded(over_timm(weights_backbone=saved(state, tmp_path)), state)
    assert not caplog.records


def test_a_deeper_network_of_the_same_names_does_not_fit(tmp_path: Path) -> None:
    file = saved(timm.create_model("resnet34").state_dict(), tmp_path)
    with pytest.raises(UserError, match="does not fit the backbone"):
        over_timm("resnet18", weights_backbone=file)


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(_builder, "load_state_dict_from_hf", unreachable)
    monkeypatch.setattr(_builder, "load_state_dict_from_url", unreachable)
    with pytest.raises(UserError) as error:
        over_timm(f"{RESNET}.r160_in1k", weights_backbone="pretrained")
    message = str(error.value)
    for word in (RESNET, "cannot be downloaded", "no route to host", "weights_backbone=FILE"):
        assert word in message
    assert "\n" not in message


def test_downloaded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    state = classifier()
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda *_, **__: dict(state))
    assert_loaded(over_timm(weights_backbone="pretrained"), state)


# What is refused


def test_timm_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_timm(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == "timm":
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    with pytest.raises(UserError, match=r"^timm is missing: pip install -e '\.\[timm\]'$"):
        over_timm()
    detector()  # which needs none


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backbone": None}, ("model.backbone", "None")),
        ({"backbone": "test_resnets"}, ("model.backbone", "did you mean test_resnet")),
        ({"backbone": f"{RESNET}.mine"}, ("model.backbone", "r160_in1k", "not mine")),
        ({"backbone": "hf-hub:someone/network"}, ("model.backbone", "no network")),
        ({"backbone": "local-dir:/tmp"}, ("model.backbone", "no network")),
        ({"backbone": "vit_tiny_patch16_224"}, ("model.backbone", "vit_tiny", "one size")),
        ({"backbone": "convmixer_768_32"}, ("model.backbone", "stride 7", "4, 8, 16, 32")),
        ({"weights_backbone": "IMAGENET"}, ("model.weights_backbone", "pretrained", "file")),
        ({"weights": "COCO_V1"}, ("model.weights", "no detector weights")),
        ({"backbone_width": 0.5}, ("model.backbone_width",)),
        ({"anchor_sizes": [8] * 4}, ("model.anchor_sizes", "expected 5 sizes", "got 4")),
    ],
)
def test_choices_that_a_timm_network_does_not_have(options: dict, words: tuple) -> None:
    options = {"backbone": EFFICIENTNET} | options
    with pytest.raises(ConfigError) as error:
        build_detector(4, "fasterrcnn_timm", **options)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet18_fpn", "fasterrcnn_resnet50_fpn"])
@pytest.mark.parametrize("option", [{"backbone": "resnet18"}, {"freeze_batch_norm": True}])
def test_other_families_refuse_what_is_for_timm(name: str, option: dict) -> None:
    with pytest.raises(ConfigError, match=rf"model.{next(iter(option))}: only with name=\w+timm"):
        build_detector(4, name, **option)


def test_freezing_batch_norm_is_for_timm_with_a_detectors_file_too(tmp_path: Path) -> None:
    file = saved(detector().state_dict(), tmp_path)
    with pytest.raises(ConfigError, match=r"model\.freeze_batch_norm: only with name=\w+timm"):
        detector(weights=file, freeze_batch_norm=True)


# A module of the user's


class Coarse(nn.Module):
    """Three levels with names of their own."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.BatchNorm2d(8))
        self.down = nn.Conv2d(8, 8, 2, 2)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        fine = self.stem(images)
        middle = self.down(fine)
        return OrderedDict(fine=fine, middle=middle, pool=self.down(middle))


class Single(nn.Conv2d):
    """One map, as torchvision's detectors take it."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__(3, 8, 16, 16)


@pytest.mark.parametrize(
    ("backbone", "sizes", "pooled"),
    [
        (Coarse(), [16, 32, 64], ["fine", "middle"]),
        (Single(), [32], ["0"]),
        (Pyramid(), ANCHORS, ["0", "1", "2", "3"]),
    ],
    ids=["names of its own", "one tensor", "pyramid"],
)
def test_a_module_as_backbone(backbone: nn.Module, sizes: list, pooled: list[str]) -> None:
    options = OPTIONS | {"anchor_sizes": sizes, "representation_size": 32}
    model = build_detector(4, backbone=backbone, **options).train()
    assert model.backbone is backbone
    assert model.roi_heads.box_roi_pool.featmap_names == pooled
    losses = model(*batch(2, 1))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None for p in backbone.parameters())
    assert len(model.eval()(batch(2)[0])) == 1


def test_a_module_keeps_its_mode_and_statistics() -> None:
    for training in (True, False):
        backbone = Coarse().train(training)
        build_detector(4, backbone=backbone, anchor_sizes=[16, 32, 64])
        assert backbone.training == backbone.stem.training == training
        assert backbone.stem[1].num_batches_tracked == 0


def test_a_detector_over_a_module_loads_its_file(tmp_path: Path) -> None:
    options = OPTIONS | {"anchor_sizes": ANCHORS, "representation_size": 32}
    state = build_detector(4, backbone=Pyramid(), **options).state_dict()
    model = build_detector(4, backbone=Pyramid(), weights=saved(state, tmp_path), **options)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "model.anchor_sizes: the backbone has 3 levels"),
        ({"anchor_sizes": [8] * 5}, "model.anchor_sizes: expected 3 sizes"),
        ({"weights": "COCO_V1"}, "model.weights: "),
        ({"weights_backbone": "DEFAULT"}, "model.weights_backbone: "),
        ({"trainable_backbone_layers": 2}, "model.trainable_backbone_layers: "),
        ({"freeze_batch_norm": True}, "model.freeze_batch_norm: "),
        ({"fpn_channels": 64}, "model.fpn_channels: "),
        ({"backbone_width": 2}, "model.backbone_width: "),
    ],
)
def test_what_a_module_decides_itself_is_refused(options: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_detector(4, backbone=Coarse(), **options)


# Whole runs


def test_a_run_resumes_to_the_same_bits_and_evaluates(tmp_path: Path) -> None:
    """Frozen BatchNorm, frozen stages, a file for the first step only."""
    file = saved(renamed(classifier()), tmp_path)
    options = [
        "model=fasterrcnn_timm", f"model.backbone={EFFICIENTNET}", f"model.weights_backbone={file}",
        "model.fpn_channels=16", "model.representation_size=32", "schedule=multistep",
        "schedule.milestones=[]",
    ]  # fmt: skip
    straight, parted = tmp_path / "straight", tmp_path / "parted"
    run(*tiny(*options), straight)
    run(*tiny(*options, "trainer.epochs=1"), parted)
    run(*tiny(*options), parted)
    assert same(weights(straight), weights(parted))
    Path(file).unlink()
    path = str(straight / "checkpoints/last.pt")
    found = load_trained(path, "cpu", "fp32").detector
    state = weights(straight)
    assert same(found.state_dict(), state)
    assert not any("num_batches_tracked" in name for name in state)
    stem = "backbone.body.bn1.running_mean"
    assert torch.equal(state[stem], classifier()["bn1.running_mean"])
