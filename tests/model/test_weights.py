"""Where a detector's starting weights come from, and what is said when they do not come."""

import logging
import urllib.request
from argparse import Namespace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from small import batch, detector
from torch import nn
from torchvision.models import WeightsEnum, resnet18, resnet50
from torchvision.ops import FrozenBatchNorm2d

from frcnn.errors import ConfigError, UserError
from frcnn.model import backbones, build_detector
from frcnn.model.weights import file_weights

RESNET = {"name": "fasterrcnn_resnet18_fpn"}
PREDICTOR = "roi_heads.box_predictor."


def changed(num_classes: int = 4) -> dict[str, torch.Tensor]:
    """A state dict unlike that of a fresh detector."""
    state = detector(num_classes).state_dict()
    return {key: value + 1 for key, value in state.items()}


def assert_loaded(model: nn.Module, state: dict[str, torch.Tensor], but: str = "nothing") -> None:
    """All but the keys that begin with ``but`` come from the state dict."""
    for key, value in model.state_dict().items():
        if not key.startswith(but):
            assert torch.equal(value, state[key]), key


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("entry", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.", "model.backbone."],
)
def test_wrappers_of_a_state_dict(prefix: str, entry: str | None, tmp_path: Path) -> None:
    state = {"backbone.body.weight": torch.ones(2), "head.bias": torch.zeros(1)}
    saved = prefixed(prefix, state)
    torch.save({"epoch": 3, entry: saved} if entry else saved, tmp_path / "some.pth")
    found = file_weights(tmp_path / "some.pth")
    assert found.keys() == state.keys()
    assert torch.equal(found["backbone.body.weight"], torch.ones(2))


def test_nested_entries_and_compiled_parts(tmp_path: Path) -> None:
    state = {"backbone._orig_mod.body.weight": torch.ones(2), "head.bias": torch.zeros(1)}
    torch.save({"model": {"state_dict": state, "epoch": 3}}, tmp_path / "some.pth")
    assert list(file_weights(tmp_path / "some.pth")) == ["backbone.body.weight", "head.bias"]


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state, "step": 3}])
def test_a_file_of_torchvisions_kind_or_a_checkpoint(tmp_path: Path, wrap) -> None:
    state = changed()
    torch.save(wrap(state), tmp_path / "some.pth")
    assert_loaded(detector(weights=str(tmp_path / "some.pth")), state)


def test_a_file_for_other_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = changed(7)
    torch.save(state, tmp_path / "some.pt")
    with caplog.at_level(logging.WARNING):
        model = detector(4, weights=str(tmp_path / "some.pt"))
    assert_loaded(model, state, but=PREDICTOR)
    assert model.roi_heads.box_predictor.cls_score.out_features == 4
    assert model.roi_heads.box_predictor.cls_score.bias.abs().max() < 1
    (record,) = caplog.records
    assert "some.pt" in record.getMessage()
    assert "predictor starts afresh" in record.getMessage()


def test_a_file_with_frozen_batch_norm_freezes_it(tmp_path: Path) -> None:
    state = {k: v for k, v in changed().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "frozen.pt")
    model = detector(weights=str(tmp_path / "frozen.pt"))
    kinds = {type(m) for m in model.modules() if "BatchNorm" in type(m).__name__}
    assert kinds == {FrozenBatchNorm2d}
    assert_loaded(model, state)


def one_line(error: UserError, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert len(text) < 600
    for word in words:
        assert word in text


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "some.pt"
    with pytest.raises(UserError) as missing, torch.device("meta"):
        detector(weights=str(path))
    one_line(missing.value, str(path), "no such weights file")

    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError) as truncated:
        file_weights(path)
    one_line(truncated.value, str(path), "not a readable weights file")

    path.write_text("hello")
    with pytest.raises(UserError) as foreign:
        file_weights(path)
    one_line(foreign.value, str(path), "not a readable weights file")

    for content in ([1, 2], {"epoch": 3}, {}, {"model": {"a": "b"}}):
        torch.save(content, path)
        with pytest.raises(UserError) as other:
            file_weights(path)
        one_line(other.value, str(path), "holds no state dict")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"model": nn.DataParallel(nn.Linear(2, 2))}, "DataParallel"),
        ({"model": {"weight": torch.zeros(2)}, "args": Namespace(lr=1)}, "argparse.Namespace"),
        ({"model": {"weight": torch.zeros(2)}, "best": np.float64(3)}, "numpy"),
    ],
)
def test_a_pickled_module_is_refused_in_one_clear_line(
    content: object, name: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "some.pt")
    with pytest.raises(UserError) as error:
        file_weights(tmp_path / "some.pt")
    one_line(error.value, "some.pt", name, "whose code is not run", "state_dict() alone")
    assert "weights_only" not in str(error.value) and "x1b" not in str(error.value)


def test_a_file_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pt"
    torch.save(resnet18().state_dict(), path)
    with pytest.raises(UserError) as error:
        detector(weights=str(path))
    one_line(error.value, str(path), "does not fit this model")


@pytest.mark.parametrize(
    ("options", "file"),
    [
        ({"weights": "COCO_V1"}, "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"),
        ({"weights_backbone": "IMAGENET1K_V1"}, "resnet50-0676ba61.pth"),
        (
            {"weights_backbone": "DEFAULT", "name": "fasterrcnn_resnet18_fpn"},
            "resnet18-f37072fd.pth",
        ),
    ],
)
def test_no_network(
    options: dict, file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with torch.device("meta"), pytest.raises(UserError) as error:
        build_detector(4, **options)
    one_line(error.value, file, str(tmp_path / "checkpoints"), "no route to host")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "fasterrcnn_resnet19_fpn"}, ("model.name", "fasterrcnn_resnet18_fpn")),
        ({"weights": "COCO_V3"}, ("model.weights", "COCO_V1")),
        ({"weights_backbone": "IMAGENET"}, ("model.weights_backbone", "IMAGENET1K_V1")),
        ({"weights": "DEFAULT", "name": "fasterrcnn_resnet18_fpn"}, ("model.weights", "resnet18")),
        ({"roi_align": "quick"}, ("model.roi_align", "torchvision")),
        ({"anchor_sizes": [8, 16]}, ("model.anchor_sizes", "expected 5 sizes", "got 2")),
        (
            {"anchor_sizes": [8] * 5, "name": "fasterrcnn_mobilenet_v3_large_fpn"},
            ("model.anchor_sizes", "mobilenet", "null"),
        ),
    ],
)
def test_choices_that_there_are_not_are_told_in_one_line(options: dict, words: tuple) -> None:
    with torch.device("meta"), pytest.raises(ConfigError) as error:
        build_detector(4, **options)
    one_line(error.value, *words)


@pytest.fixture
def imagenet(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """ImageNet weights of a ResNet-18 that need no network."""
    torch.manual_seed(3)
    state = {key: value + 1 for key, value in resnet18().state_dict().items()}
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: dict(state))
    monkeypatch.setattr(backbones, "fetch", lambda _: None)
    return state


@pytest.mark.parametrize(
    ("layers", "trained"),
    [
        (None, {"layer2", "layer3", "layer4"}),
        (0, set()),
        (1, {"layer4"}),
        (5, {"conv1", "layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_imagenet_weights_and_what_trains(imagenet, layers: int | None, trained: set) -> None:
    model = detector(weights_backbone="DEFAULT", trainable_backbone_layers=layers)
    body = model.backbone.body
    assert torch.equal(body.layer4[0].conv1.weight, imagenet["layer4.0.conv1.weight"])
    assert {n.split(".")[0] for n, p in body.named_parameters() if p.requires_grad} == trained
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize(
    ("layers", "trained", "prefix"),
    [(None, {"layer2", "layer3", "layer4"}, ""), (1, {"layer4"}, "backbone.")],
)
def test_a_classifiers_file_is_as_the_named_weights(
    imagenet, layers: int | None, trained: set, prefix: str, tmp_path: Path
) -> None:
    file = tmp_path / "resnet18.pth"
    torch.save({"state_dict": prefixed(prefix, imagenet)}, file)
    options = {"trainable_backbone_layers": layers}
    model = detector(weights_backbone=str(file), **options)
    named = detector(weights_backbone="DEFAULT", **options)
    own = model.backbone.body.state_dict()
    assert own.keys() == named.backbone.body.state_dict().keys()
    for key, value in named.backbone.body.state_dict().items():
        assert torch.equal(own[key], value), key
    body = model.backbone.body
    assert {n.split(".")[0] for n, p in body.named_parameters() if p.requires_grad} == trained


def test_a_backbone_without_its_head(imagenet, tmp_path: Path) -> None:
    """As frameworks save a classifier: its own head beside the backbone."""
    state = {key: value for key, value in imagenet.items() if not key.startswith("fc.")}
    torch.save(prefixed("backbone.", state) | {"head.weight": torch.zeros(2)}, tmp_path / "a.pth")
    model = detector(weights_backbone=str(tmp_path / "a.pth"))
    assert torch.equal(model.backbone.body.conv1.weight, imagenet["conv1.weight"])


def test_version_2_trains_batch_norm_with_a_file_too(tmp_path: Path) -> None:
    torch.save(resnet50().state_dict(), tmp_path / "a.pth")
    name = "fasterrcnn_resnet50_fpn_v2"
    body = build_detector(4, name, weights_backbone=str(tmp_path / "a.pth")).backbone.body
    assert isinstance(body.bn1, nn.BatchNorm2d)
    assert {n.split(".")[0] for n, p in body.named_parameters() if p.requires_grad} == {
        "layer2", "layer3", "layer4",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "fasterrcnn_resnet34_fpn"}, ("does not fit the backbone",)),
        ({"backbone_width": 0.5}, ("does not fit the backbone",)),
        (
            {"name": "fasterrcnn_mobilenet_v3_large_fpn"},
            ("model.weights_backbone", "for ResNets and timm networks"),
        ),
    ],
)
def test_a_classifiers_file_that_does_not_fit(options: dict, words: tuple, tmp_path: Path) -> None:
    torch.save(resnet18().state_dict(), tmp_path / "a.pth")
    with pytest.raises(UserError) as error:
        build_detector(4, weights_backbone=str(tmp_path / "a.pth"), **(RESNET | options))
    one_line(error.value, *words)


def test_from_scratch_everything_trains() -> None:
    model = detector()
    assert all(p.requires_grad for p in model.parameters())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_a_slim_detector_has_the_channels_it_was_asked_for_and_torchvisions_names() -> None:
    slim = detector(fpn_channels=8, representation_size=12)
    shapes = {key: tuple(value.shape) for key, value in slim.state_dict().items()}
    assert shapes["backbone.fpn.inner_blocks.3.0.weight"] == (8, 512, 1, 1)
    assert shapes["rpn.head.conv.0.0.weight"] == (8, 8, 3, 3)
    assert shapes["roi_heads.box_head.fc6.weight"] == (12, 8 * 49)
    assert shapes["roi_heads.box_predictor.bbox_pred.weight"] == (16, 12)
    assert shapes.keys() == detector().state_dict().keys()
    images, targets = batch(2, 1)
    assert all(torch.isfinite(loss) for loss in slim(images, targets).values())


def test_torchvisions_own_networks_keep_their_width() -> None:
    with pytest.raises(ConfigError, match=r"fasterrcnn_resnet50_fpn .*256 and 1"):
        detector(name="fasterrcnn_resnet50_fpn", fpn_channels=64)


@pytest.mark.parametrize("name", ["fasterrcnn_resnet18_fpn", "fasterrcnn_resnet101_fpn"])
def test_half_the_width_is_a_quarter_of_the_weights_of_a_convolution(name: str) -> None:
    whole = detector(name=name, fpn_channels=8)
    half = detector(name=name, fpn_channels=8, backbone_width=0.5)
    own, usual = half.backbone.body.state_dict(), whole.backbone.body.state_dict()
    assert own.keys() == usual.keys()
    for key, value in own.items():
        by = 1 if value.ndim == 0 else 4 if value.ndim == 4 and value.shape[1] > 3 else 2
        assert value.numel() * by == usual[key].numel(), key
    assert half.backbone.body.layer2[0].conv1.stride == whole.backbone.body.layer2[0].conv1.stride
    assert all(p.requires_grad for p in half.parameters())
    images, targets = batch(2, 1)
    losses = half(images, targets)
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_a_scaled_layer_starts_as_torchvisions() -> None:
    """He's normal distribution, fan out: a standard deviation of sqrt(2 / (9 * 256))."""
    weight = detector(backbone_width=0.5).backbone.body.layer4[0].conv1.weight  # 128 to 256
    assert weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)


def test_named_weights_are_for_the_whole_width() -> None:
    with pytest.raises(ConfigError, match=r"model.backbone_width: weights DEFAULT are for 1"):
        detector(weights_backbone="DEFAULT", backbone_width=0.5)
