"""Fuzzing: readers and samplers on random input end in a whole result or a clear refusal.

``make test`` draws a few cases of each; ``make test-all`` sets FUZZ_EXAMPLES for hypothesis, which
looks for the odd value, and runs the million cases of ``tests.fuzz``, which looks for the odd
combination.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn.config.compose import build
from frcnn.data import coco, coco_json, voc, yolo
from samplers import Candidates, Prediction
from tests import fuzz

FEW = settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "20")), deadline=None)
# A million in all: documents are quicker than batches, and there are two readers.
MANY = {"coco": 400_000, "voc": 500_000}
MANY_SAMPLER = 6_000


@pytest.fixture(autouse=True)
def counted(
    monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """What a test counts is summed up at the end of the session."""
    seen: dict[str, int] = {}
    monkeypatch.setattr(fuzz, "seen", seen)
    record_property("counted", seen)


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_a_few_seeded_cases(target: str) -> None:
    assert fuzz.fuzz(target, 30) > 5


@pytest.mark.slow
@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_a_million_seeded_cases(target: str) -> None:
    cases = MANY.get(target, MANY_SAMPLER)
    assert fuzz.fuzz(target, cases) > cases / 5


def test_it_is_a_million() -> None:
    assert sum(MANY.get(target, MANY_SAMPLER) for target in fuzz.TARGETS) >= 1_000_000


def test_a_finding_names_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr("samplers.all.All.__call__", broken)
    with pytest.raises(AssertionError, match="tests.fuzz rpn/all --first 3 --cases 1: ZeroDiv"):
        fuzz.fuzz("rpn/all", 2, first=3)


def test_a_case_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def hanging(*_: Any) -> None:
        while True:
            with contextlib.suppress(Exception):
                time.sleep(1)

    monkeypatch.setattr(fuzz, "LONGEST", 0.05)
    monkeypatch.setattr("samplers.all.All.__call__", hanging)
    with pytest.raises(AssertionError, match=r"rpn/all --first 0 --cases 1: Hang: still at it"):
        fuzz.fuzz("rpn/all", 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value inside."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from places(node[key])


@pytest.fixture(scope="module")
def coco_folder() -> Iterator[Path]:
    with fuzz.images(*fuzz.FILES) as folder:
        yield folder


@FEW
@given(
    st.lists(st.tuples(st.integers(0, 999), JSON), max_size=4), st.sampled_from(["train", "val"])
)
def test_coco_with_any_value_anywhere(
    coco_folder: Path, edits: list[tuple[int, Any]], split: str
) -> None:
    document = fuzz.coco_document(np.random.default_rng(0))
    for number, value in edits:
        found = list(places(document))
        node, key = found[number % len(found)]
        node[key] = value
    assert_read_coco(coco_folder, fuzz.json.dumps(document).encode(), split)


@FEW
@given(st.binary(max_size=40), st.integers(0, 900), st.integers(0, 40))
def test_coco_with_any_bytes_anywhere(
    coco_folder: Path, inserted: bytes, start: int, left_out: int
) -> None:
    text = fuzz.json.dumps(fuzz.coco_document(np.random.default_rng(0))).encode()
    assert_read_coco(coco_folder, text[:start] + inserted + text[start + left_out :], "train")


def assert_read_coco(folder: Path, content: bytes, split: str) -> None:
    file = folder / "document"
    file.write_bytes(content)
    coco_json._categories_cache.clear()
    with fuzz.in_time():
        fuzz.taken(lambda s: coco(s, folder, file, folder, file), split, str(folder))
    fuzz.count("coco by hypothesis")


@pytest.fixture(scope="module")
def voc_folder() -> Iterator[Path]:
    with fuzz.images("JPEGImages/a.png") as root:
        for folder in ("Annotations", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)
        (root / "ImageSets/Main/train.txt").write_text("a\n")
        yield root


FIELD = st.none() | st.text(max_size=6) | (st.integers() | st.floats()).map(str)
TAGS = ["name", "difficult", "xmin", "ymin", "xmax", "ymax", "width", "height", "filename"]


@FEW
@given(st.dictionaries(st.sampled_from(TAGS), FIELD), st.booleans())
def test_voc_with_any_text_in_any_field(
    voc_folder: Path, odd: dict[str, str | None], known: bool
) -> None:
    usual = dict(zip(TAGS, ["cat", "0", "1", "1", "9", "9", "40", "30", "a.png"], strict=True))
    fields = {k: v for k, v in (usual | odd).items() if v is not None}

    def tags(*names: str) -> str:
        return "".join(f"<{n}>{escape(fields[n])}</{n}>" for n in names if n in fields)

    thing = f"{tags(*TAGS[:2])}<bndbox>{tags(*TAGS[2:6])}</bndbox>"
    text = f"{tags('filename')}<size>{tags(*TAGS[6:8])}</size><object>{thing}</object>"
    whole = f"<annotation>{text}</annotation>".encode(errors="surrogatepass")
    assert_read_voc(voc_folder, whole, ["cat"] if known else None)


@FEW
@given(st.binary(max_size=40), st.integers(0, 400), st.integers(0, 40))
def test_voc_with_any_bytes_anywhere(
    voc_folder: Path, inserted: bytes, start: int, left_out: int
) -> None:
    text = fuzz.voc_text(np.random.default_rng(1)).encode()
    assert_read_voc(voc_folder, text[:start] + inserted + text[start + left_out :], None)


def assert_read_voc(root: Path, content: bytes, classes: list[str] | None) -> None:
    (root / "Annotations/a.xml").write_bytes(content)
    with fuzz.in_time():
        fuzz.taken(lambda s: voc(s, root, "train", "train", classes), "train", str(root))
    fuzz.count("voc by hypothesis")


YOLO = {
    "data.yaml": b"path: ./set\ntrain: [images, list.txt]\nnames: {0: cat, 1: dog}\n",
    "list.txt": b"data/images/a.png\n./images/a.png\n",
    "labels/a.txt": b"1 0.5 0.5 0.25 0.5\n0 0.1 0.1 0.5 0.2 0.3 0.6\n",
}
TOKENS = [*fuzz.NUMBERS, *"-:[]{}#*&!", "\n", "null", "../", "/", "images", "kpt_shape: [1, 2]\n"]


@pytest.fixture(scope="module")
def yolo_folder() -> Iterator[Path]:
    with fuzz.images("images/a.png") as root:
        (root / "labels").mkdir()
        yield root


@FEW
@given(
    st.sampled_from(list(YOLO)),
    st.binary(max_size=20) | st.lists(st.sampled_from(TOKENS)).map(lambda t: " ".join(t).encode()),
    st.integers(0, 60),
    st.integers(0, 40),
)
def test_yolo_with_any_bytes_anywhere(
    yolo_folder: Path, file: str, inserted: bytes, start: int, left_out: int
) -> None:
    for name, text in YOLO.items():
        (yolo_folder / name).write_bytes(text)
    text = YOLO[file]
    (yolo_folder / file).write_bytes(text[:start] + inserted + text[start + left_out :])
    with fuzz.in_time():
        fuzz.taken(lambda s: yolo(s, yolo_folder), "train", str(yolo_folder))
    fuzz.count("yolo by hypothesis")


LOSS = st.floats(0, 2.0**126, width=32)  # the sum of two is still finite
SIDE = st.floats(-1e7, 1e7, width=32)


@st.composite
def batches(draw: st.DrawFn) -> Candidates:
    """Up to three images of up to eight candidates; any losses, logits, IoUs and boxes."""
    sizes = draw(st.lists(st.integers(0, 8), min_size=1, max_size=3))
    count, objects = sum(sizes), len(sizes)  # one object an image, of class 1

    def column(values: st.SearchStrategy[Any], *shape: int) -> torch.Tensor:
        length = count * int(np.prod(shape))
        drawn = draw(st.lists(values, min_size=length, max_size=length))
        return torch.tensor(drawn).reshape(count, *shape)

    def boxes(number: int) -> torch.Tensor:
        drawn = draw(st.lists(SIDE, min_size=4 * number, max_size=4 * number))
        pairs = torch.tensor(drawn).float().reshape(number, 2, 2).sort(dim=1).values
        return pairs.reshape(number, 4)

    image = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    parts = [column(LOSS).float(), column(LOSS).float()]
    logits, decoded = column(st.floats(-(2.0**99), 2.0**99, width=32), 2).float(), boxes(count)

    def predict(rows: torch.Tensor) -> Prediction:
        return Prediction(logits[rows], decoded[rows], (parts[0] + parts[1])[rows], parts[0][rows])

    return Candidates(
        boxes(count), column(st.sampled_from([-1, 0, 1])).long(),
        column(st.floats(0, 1, width=32)).float(), image, boxes(objects), image, predict,
        [torch.Generator().manual_seed(0) for _ in sizes],
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in fuzz.SAMPLERS if name.startswith("rcnn")])
def test_a_sampler_weighs_any_batch(name: str) -> None:
    node = fuzz.sampler_node(*name.split("/"))
    budget = 4 if "batch_size_per_image" in node else None
    sampler = build(node | ({"batch_size_per_image": budget} if budget else {}))

    @FEW
    @given(batches())
    def weighs(batch: Candidates) -> None:
        with fuzz.in_time():
            fuzz.assert_weights(sampler(batch), batch, budget)
        fuzz.count("samplers by hypothesis")

    weighs()
