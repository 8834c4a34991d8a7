"""``weights="auto"``, and how long it waits for a network; no test uses a real one."""

import hashlib
import logging
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from tiny import tiny
from torchvision.models import WeightsEnum, detection

from frcnn.errors import UserError
from frcnn.evaluation.load import load_trained
from frcnn.model import backbones, build_detector, downloads
from frcnn.model.architectures import FasterRCNNArchitecture
from frcnn.runfolder import checkpoint
from frcnn.training.run import run

SMALLEST = "fasterrcnn_mobilenet_v3_large_320_fpn"  # of the networks with COCO weights
CONTENT = b"weights" * 1000
NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"
HEAD = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(CONTENT)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub/checkpoints"


@contextmanager
def server(answer: bytes | None) -> Iterator[int]:
    """The port of a server that sends this to everyone, or never answers; it hangs up only then."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        held = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:  # closed: the test has ended
                    return
                held.append(connection)
                if answer is not None:
                    connection.recv(10_000)
                    connection.sendall(answer)
                    if len(answer) >= len(HEAD + CONTENT):
                        connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


def test_a_file_is_downloaded_once(cache_folder: Path) -> None:
    with server(HEAD + CONTENT) as port:
        downloads.fetch(f"http://127.0.0.1:{port}/{NAME}")
    assert (cache_folder / NAME).read_bytes() == CONTENT
    downloads.fetch(f"http://127.0.0.1:{port}/{NAME}")
    (cache_folder / NAME).write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=f"{NAME}: is damaged .*: delete it"):
        downloads.fetch(f"http://127.0.0.1:{port}/{NAME}")


@pytest.mark.parametrize(
    "answer", [None, HEAD, HEAD + CONTENT[:-9], HEAD + CONTENT[::-1], b"no HTTP" * 2000]
)
def test_no_server_is_waited_for(
    answer: bytes | None, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert downloads.ANSWER_SECONDS <= 10
    monkeypatch.setattr(downloads, "ANSWER_SECONDS", 0.2)
    before = time.perf_counter()
    with server(answer) as port, pytest.raises(OSError):
        downloads.fetch(f"http://127.0.0.1:{port}/{NAME}")
    assert time.perf_counter() - before < 2
    assert not list(cache_folder.glob("*"))
    assert socket.getdefaulttimeout() is None


def test_a_name_that_is_looked_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(downloads, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: released.wait(10))
    with pytest.raises(TimeoutError, match="no answer in 0.2 seconds"):
        downloads.fetch(f"http://nowhere.invalid/{NAME}")
    released.set()


def test_a_port_that_refuses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(URLError, match="refused"):
        downloads.fetch(f"http://127.0.0.1:{port}/{NAME}")


class Unreachable:
    """In the place of ``fetch``; counts how often it was called."""

    asked = 0

    def __call__(self, url: str) -> None:
        self.asked += 1
        raise URLError("no route to host")


def auto(caplog: pytest.LogCaptureFixture, name: str, **options: Any) -> tuple[str | None, str]:
    """What "auto" came to, and the line that says so."""
    caplog.clear()
    with caplog.at_level(logging.INFO), torch.device("meta"):
        model = build_detector(4, name, weights="auto", **options)
    (record,) = (r for r in caplog.records if r.getMessage().startswith("model.weights=auto: "))
    return model.initial_weights, record.getMessage()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fasterrcnn_resnet18_fpn", {}),
        ("retinanet_resnet50_fpn", {"head_depth": 2}),  # COCO's has four layers
        ("fasterrcnn_timm", {"backbone": "resnet18"}),
    ],
)
def test_networks_without_coco_weights(name: str, options: dict, caplog) -> None:
    weights, line = auto(caplog, name, **options)
    assert weights is None
    assert name in line and "from scratch" in line and "model.weights_backbone" in line


def test_without_a_network_it_says_how_to_get_them(
    caplog, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "fetch", Unreachable())
    weights, line = auto(caplog, SMALLEST)
    assert weights is None
    url = detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1.url
    for word in ("FROM SCRATCH", url, str(cache_folder), "no route to host", "model.weights=null"):
        assert word in line


@cache
def coco_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return getattr(detection, SMALLEST)(weights=None, weights_backbone=None).state_dict()


@pytest.fixture
def coco(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """COCO weights of the smallest network that need no network; the URLs that are asked for."""
    urls: list[str] = []
    monkeypatch.setattr(backbones, "fetch", urls.append)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: dict(coco_state()))
    return urls


def test_the_weights_are_loaded_frozen_and_named(caplog, coco: list[str]) -> None:
    with caplog.at_level(logging.INFO):
        model = build_detector(4, SMALLEST, weights="auto")
    assert model.initial_weights == "COCO_V1"
    assert any("COCO_V1 of COCO" in record.getMessage() for record in caplog.records)
    assert coco[0].endswith("fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth")
    name = "backbone.body.0.0.weight"
    assert torch.equal(model.state_dict()[name], coco_state()[name])
    assert not model.get_parameter(name).requires_grad


def test_weights_of_the_backbone_are_used_instead(caplog, coco: list[str]) -> None:
    network = backbones.Network(FasterRCNNArchitecture(), SMALLEST, 4, weights_backbone="DEFAULT")
    with caplog.at_level(logging.INFO):
        assert backbones.auto_weights(network) is None
    assert "model.weights_backbone" in caplog.text
    assert not coco


def trained(folder: Path, *overrides: str, weights: str = "auto") -> str | None:
    """``model.weights`` that the last checkpoint of a run names."""
    sizes = ["data.min_size=32", "data.max_size=48", "data.width=48", "data.height=32"]
    line = [*sizes, "data.num_objects=[1,1]", "data.object_size=[10,20]", *overrides]
    run(*tiny(f"model={SMALLEST}", *line, f"model.weights={weights}"), folder)
    return checkpoint.load(folder / "checkpoints/last.pt")["config"]["model"]["weights"]


@pytest.mark.slow
def test_a_run_keeps_what_it_began_with(
    coco: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trained(tmp_path / "coco", "trainer.max_steps=1") == "COCO_V1"
    monkeypatch.setattr(backbones, "fetch", unreachable := Unreachable())
    load_trained(str(tmp_path / "coco/checkpoints/last.pt"), "cpu", "fp32")
    assert trained(tmp_path / "scratch", "trainer.max_steps=1") is None
    assert unreachable.asked == 1
    monkeypatch.setattr(backbones, "fetch", coco.append)
    assert trained(tmp_path / "scratch", "trainer.max_steps=2") is None
    assert trained(tmp_path / "coco", "trainer.max_steps=2") == "COCO_V1"
    with pytest.raises(UserError, match="model.weights: .COCO_V1. -> None"):
        trained(tmp_path / "coco", "trainer.max_steps=2", weights="null")
