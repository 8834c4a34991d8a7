"""Random inputs by the hundred thousand: ``python -m tests.fuzz [--cases N] [--first N] [TARGET]``.

A case is one annotation document, or one batch of candidates for one sampler. Every case is a
function of its target and its number alone, so that what fails can be run again: its line says how.
"""

import argparse
import copy
import json
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from frcnn.config.compose import CONF, build
from frcnn.data import check, coco, coco_json, drop_unusable_images, image_files, voc
from frcnn.errors import UserError
from samplers import Candidates, Prediction, Sampler
from tests.bad_input.outcomes import assert_whole

Rng = np.random.Generator
Case = Callable[[Rng], bool]  # runs one case; whether the input was taken, not refused

LONGEST = 30.0  # seconds that a case may take; usual is a thousandth
MEMORY = Path("/dev/shm")
FILES = ["a.png", "sub/b.png"]
# What stands in the place of something else, or beside it.
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 40, 2**31, 10**30, 10**400, 0.5, 7.0, -1e-300, 1e308,
    float("inf"), float("-inf"), float("nan"), "", "1", "cat", "a.png", "../a.png", "/etc/passwd",
    "\0", "\ud800", "\n", "x" * 300, [], {}, [1], [1, 2, 3, 4], [1e308] * 4, [0, 0, 1e300, 1e300],
    [-5, -5, 10, 10], [39.9999, 0, 5, 5], [None] * 4, ["1"] * 4, {"id": 1}, [[1, 2], [3, 4]],
]  # fmt: skip


seen: dict[str, int] = {}  # cases that ended well, by what was fuzzed


def count(what: str, cases: int = 1) -> None:
    """Add to the cases of this kind, and of all."""
    for name in (f"fuzz cases, {what}", "fuzz cases, all"):
        seen[name] = seen.get(name, 0) + cases


class Hang(BaseException):
    """A case took too long; no error, so that the code that is fuzzed does not catch it."""


@contextmanager
def in_time() -> Iterator[None]:
    """Raise ``Hang`` where the block stands after ``LONGEST`` seconds."""

    def hang(*_: object) -> None:
        raise Hang(f"still at it after {LONGEST:g} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def pick(rng: Rng, values: list[Any]) -> Any:
    return values[rng.integers(len(values))]


def coco_document(rng: Rng) -> dict[str, Any]:
    """A valid document of two images, two categories and a few boxes inside."""
    corner, side = rng.uniform(0, 20, (4, 2)), rng.uniform(1, 10, (4, 2))
    boxes = np.concatenate([corner, side], axis=1).round(2).tolist()
    return {
        "images": [
            {"id": k, "file_name": file, "width": 40, "height": 30}
            for k, file in enumerate(FILES, start=1)
        ],
        "annotations": [
            {"id": k, "image_id": 1 + k % 2, "category_id": 1 + k // 3, "bbox": box, "area": 9,
             "iscrowd": k // 4, "segmentation": [box]}
            for k, box in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }  # fmt: skip


def place(rng: Rng, node: Any) -> tuple[Any, Any]:
    """(container, key) of a value inside: a walk down that stops anywhere, mostly at the end."""
    while True:
        key = pick(rng, list(node)) if isinstance(node, dict) else int(rng.integers(len(node)))
        deeper = node[key]
        if not isinstance(deeper, dict | list) or not deeper or rng.random() < 0.1:
            return node, key
        node = deeper


def odd(rng: Rng) -> Any:
    """One of them, the case's own: it may be changed in its turn."""
    return copy.deepcopy(pick(rng, ODD))


def mutate(rng: Rng, document: dict[str, Any]) -> None:
    """Replace, delete, add or double one value, wherever it stands."""
    if not document:
        return
    node, key = place(rng, document)
    kind = rng.integers(5)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, list):
        node.insert(key, pick(rng, [node[key], odd(rng)]))
    elif kind == 2 and isinstance(node, dict):
        node[pick(rng, ["id", "bbox", "image_id", "width", "x", ""])] = odd(rng)
    else:
        node[key] = odd(rng)


def corrupt(rng: Rng, text: bytes) -> bytes:
    """Cut the text, or change a few of its bytes."""
    if not text or rng.random() < 0.3:
        return text[: rng.integers(len(text) + 1)]
    broken = np.frombuffer(text, dtype=np.uint8).copy()
    broken[rng.integers(len(text), size=rng.integers(1, 4))] = rng.integers(256)
    return broken.tobytes()


@contextmanager
def images(*files: str) -> Iterator[Path]:
    # In memory where there is such a place: creating a file takes longer than all the rest.
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
        for file in files:
            path = Path(name, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30)).save(path)
        # The images never change: each is read once.
        read_once = {
            key: lru_cache(getattr(image_files, key)) for key in ("header_sizes", "broken")
        }
        with patch.multiple(check, **read_once):
            yield Path(name)


def taken(read: Callable[[str], Any], split: str, names: str) -> bool:
    """Whether a split was read whole; else it was refused in one line that names the file."""
    try:
        data = read(split)
        drop_unusable_images(data, split)
    except UserError as error:
        assert str(error).isprintable() and names in str(error), error
        return False
    assert_whole(data)
    return True


@contextmanager
def coco_case() -> Iterator[Case]:
    with images(*FILES) as folder:
        file = folder / "document"

        def case(rng: Rng) -> bool:
            document = coco_document(rng)
            for _ in range(rng.integers(4)):
                mutate(rng, document)
            text = json.dumps(document).encode()
            file.write_bytes(corrupt(rng, text) if rng.random() < 0.1 else text)
            coco_json._categories_cache.clear()  # one entry a file that was read
            split = "val" if rng.random() < 0.2 else "train"
            return taken(lambda s: coco(s, folder, file, folder, file), split, str(folder))

        yield case


NUMBERS = ["1", "5", "20", "40", "41", "0", "-3", "1e3", "1e999", "nan", "-inf", "", "x", "1,5",
           "0x1", " 7 ", "9" * 400, "1_0", "\u0667"]  # fmt: skip
NAMES = ["cat", "dog", "", " ", "a&amp;b", "&#233;", "&x;", "<b/>", "\u732b", "cat\ncat", "\x1b"]
HEADS = ['<?xml version="1.0"?>', '<?xml version="1.0" encoding="latin-1"?>', "<!DOCTYPE a>",
         '<!DOCTYPE a [<!ENTITY x "y">]>', "<!-- -->", "\ufeff", " "]  # fmt: skip


def voc_text(rng: Rng) -> str:
    """An annotation in which each field may be odd or missing."""

    def tag(name: str, odd: list[str], usual: str) -> str:
        chance = rng.random()
        value = pick(rng, odd) if chance < 0.06 else usual
        return "" if chance > 0.97 else f"<{name}>{value}</{name}>"

    objects = ""
    for _ in range(rng.integers(4)):
        corner = rng.integers(1, 15, 2)
        sides = zip(("xmin", "ymin", "xmax", "ymax"), [*corner, *(corner + 9)], strict=True)
        box = "".join(tag(side, NUMBERS, str(value)) for side, value in sides)
        name = tag("name", NAMES, "cat") + tag("difficult", NUMBERS, "0")
        objects += tag("object", NAMES, name + tag("bndbox", NUMBERS, box))
    size = tag("width", NUMBERS, "40") + tag("height", NUMBERS, "30")
    head = pick(rng, HEADS) if rng.random() < 0.1 else ""
    file = tag("filename", ["../b.png", "/etc/passwd", "a.png"], "a.png")
    return head + tag("annotation", NAMES, file + tag("size", NUMBERS, size) + objects)


@contextmanager
def voc_case() -> Iterator[Case]:
    with images("JPEGImages/a.png") as root:
        for folder in ("Annotations", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)
        lists, file = root / "ImageSets/Main/train.txt", root / "Annotations/a.xml"
        lists.write_text("a\n")

        def case(rng: Rng) -> bool:
            text = voc_text(rng).encode()
            file.write_bytes(corrupt(rng, text) if rng.random() < 0.1 else text)
            classes = ["cat", "dog"] if rng.random() < 0.5 else None
            split = "val" if rng.random() < 0.2 else "train"
            return taken(lambda s: voc(s, root, "train", "train", classes), split, str(root))

        yield case


LARGE, TINY = 3e38, 1e-38  # about the ends of float32
KINDS = 6  # of boxes, of IoUs, of losses and of logits


def numbers(rng: Rng, count: int, *shape: int) -> np.ndarray:
    """float32 [count, ...] of one of six kinds: usual, ties, zeros, huge, tiny, all of these."""
    size = (count, *shape)
    usual = rng.random(size)
    kinds = [usual, np.round(usual * 3), np.zeros(size), usual * LARGE, usual * TINY]
    kind = rng.integers(KINDS)
    chosen = kinds[kind] if kind < 5 else np.choose(rng.integers(5, size=size), kinds)
    return chosen.astype(np.float32)


def box_rows(rng: Rng, count: int) -> np.ndarray:
    """float32 [count, 4] xyxy: usual, equal, without area, tiny, a million pixels away or wide."""
    corner = rng.uniform(-20, 100, (count, 2))
    side = rng.uniform(0, 60, (count, 2))
    kind = rng.integers(KINDS)
    if kind == 1:
        corner[:], side[:] = corner[:1], side[:1]
    elif kind == 2:
        side[rng.random(count) < 0.7] = 0
    elif kind == 3:
        side *= 1e-6
    elif kind == 4:
        corner += 1e6
    elif kind == 5:
        side *= rng.choice([1, 1e6], (count, 2))
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)


def candidates(rng: Rng, classes: int) -> tuple[Candidates, bool]:
    """A batch that keeps to the contract of ``Candidates``, and whether its losses are finite."""
    sizes = rng.integers(0, pick(rng, [2, 12, 60]), rng.integers(1, 4))
    objects = rng.integers(0, 4, len(sizes))
    image = np.repeat(np.arange(len(sizes)), sizes)
    count, first = len(image), np.concatenate([[0], objects.cumsum()])
    label_of = rng.integers(1, classes + 1, objects.sum())
    has = objects[image] > 0
    gt = np.where(has, first[image] + rng.integers(0, objects[image].clip(1)), -1)
    labels = np.zeros(count, dtype=np.int64)
    labels[rng.random(count) < rng.choice([0, 0.2, 1])] = -1
    positive = has & (rng.random(count) < rng.choice([0, 0.1, 0.5, 1]))
    labels[positive] = label_of[gt[positive]]
    logits = (numbers(rng, count, classes + 1) - 0.5).clip(-1e30, 1e30) * rng.choice([1, 9])
    class_loss, box_loss = numbers(rng, count) / 2, numbers(rng, count) / 2
    finite = rng.random() < 0.95
    if not finite and count:
        class_loss[rng.integers(count)] = pick(rng, [np.nan, np.inf])
    ious = np.minimum(numbers(rng, count), 1) * has
    decoded, loss = torch.from_numpy(box_rows(rng, count)), class_loss + box_loss * positive
    tables = [torch.from_numpy(part) for part in (logits, loss, class_loss)]

    def predict(rows: torch.Tensor) -> Prediction:
        logits, loss, class_loss = (table[rows] for table in tables)
        return Prediction(logits, decoded[rows], loss, class_loss)

    seeds = rng.integers(2**31, size=len(sizes)).tolist()
    batch = Candidates(
        boxes=torch.from_numpy(box_rows(rng, count)),
        labels=torch.from_numpy(labels),
        ious=torch.from_numpy(ious.astype(np.float32)),
        gt=torch.from_numpy(gt),
        gt_boxes=torch.from_numpy(box_rows(rng, int(objects.sum()))),
        image=torch.from_numpy(image),
        predict=predict,
        generators=[torch.Generator().manual_seed(seed) for seed in seeds],
    )
    return batch, finite or not count


def assert_weights(weights: torch.Tensor, batch: Candidates, budget: int | None) -> None:
    """What every sampler promises, whatever it is given."""
    assert weights.shape == batch.labels.shape and weights.dtype == torch.float32
    assert weights.isfinite().all() and (weights >= 0).all()
    assert not weights[batch.labels < 0].any()
    if budget is not None:
        assert (batch.pad_by_image(weights > 0).sum(1) <= budget).all()


@contextmanager
def sampler_case(site: str, name: str) -> Iterator[Case]:
    node, classes = sampler_node(site, name), {"rpn": 1, "rcnn": 3}[site]
    budgets = [1, 4, 16] if "batch_size_per_image" in node else [None]
    built: dict[int | None, Sampler] = {
        budget: build(node | ({} if budget is None else {"batch_size_per_image": budget}))
        for budget in budgets
    }

    def case(rng: Rng) -> bool:
        batch, finite = candidates(rng, classes)
        budget = pick(rng, budgets)
        try:
            weights = built[budget](batch)
        except FloatingPointError:
            assert not finite
            return False
        assert_weights(weights, batch, budget)
        return True

    yield case


def sampler_node(site: str, name: str) -> dict[str, Any]:
    """The configuration of one option."""
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        config = hydra.compose("train", [f"sampler/{site}={name}"])
    return OmegaConf.to_container(config.sampler[site], resolve=True)


SAMPLERS = [
    f"{site}/{file.stem}"
    for site in ("rpn", "rcnn")
    for file in sorted(Path(CONF, "method/sampler").glob("*.yaml"))
]
TARGETS: dict[str, Callable[[], Any]] = {
    "coco": coco_case,
    "voc": voc_case,
    **{name: lambda name=name: sampler_case(*name.split("/")) for name in SAMPLERS},
}


def fuzz(target: str, cases: int, first: int = 0) -> int:
    """Run some cases of a target; returns how many were taken, not refused.

    Raises:
        AssertionError: a case ended in anything but a whole result or a clear refusal.
    """
    good = 0
    with warnings.catch_warnings(), TARGETS[target]() as case:
        warnings.simplefilter("error")
        for number in range(first, first + cases):
            try:
                with in_time():
                    good += case(np.random.default_rng((*target.encode(), number)))
            except (Exception, Hang) as error:
                again = f"python -m tests.fuzz {target} --first {number} --cases 1"
                raise AssertionError(f"{again}: {type(error).__name__}: {error}") from error
    site, _, sampler = target.partition("/")
    count(f"{site} samplers" if sampler else site, cases)
    return good


def main() -> None:
    """Fuzz one target or all of them and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", nargs="*", choices=[*TARGETS, []], help="all, if none is named")
    parser.add_argument("--cases", type=int, default=1000, help="of each target")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    options = parser.parse_args()
    torch.set_num_threads(1)
    total, began = 0, time.perf_counter()
    for target in options.target or TARGETS:
        start = time.perf_counter()
        good = fuzz(target, options.cases, options.first)
        took = time.perf_counter() - start
        total += options.cases
        print(f"{target:26} {options.cases:9,} cases, {good:9,} taken, "
              f"{options.cases / took:7,.0f} a second", flush=True)  # fmt: skip
    print(f"{total:,} cases without a finding in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
