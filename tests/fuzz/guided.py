"""Coverage-guided fuzzing of a reader: ``python -m tests.fuzz.guided READER -runs=200000``.

READER is voc, coco, yolo, roboflow or lvis. atheris (``pip install atheris``) changes the bytes of
one annotation file and keeps the inputs that reach new code. The first byte of an input chooses the
file and the options, the rest is the content of the file. Options that begin with ``-`` are
libFuzzer's.
"""

import gc
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

from frcnn.data import coco, coco_json, lvis, roboflow, voc, yolo
from tests import fuzz

SEEDS = Path(__file__).parent / "seeds"
WORDS = {
    "voc": "annotation object name bndbox xmin ymin xmax ymax difficult size width height filename "
    "attributes attribute value rotation cat dog nan encoding= gbk latin-1 utf-16",
    "coco": "images annotations categories id file_name width height image_id category_id bbox "
    "area iscrowd segmentation attributes rotation supercategory name a.png true null NaN 1e999",
    "yolo": "path train val test names nc kpt_shape images labels .txt classes data ../ / nan inf "
    "1e999 [ ] { } - & * ! :",
}
WORDS["roboflow"] = WORDS["coco"]
WORDS["lvis"] = f"{WORDS['coco']} coco_url neg_category_ids not_exhaustive_category_ids frequency"
Target = Callable[[int, bytes], bool]  # (choice, content) -> whether the data was taken


def voc_target(root: Path) -> Target:
    """Changes the annotation, or the list of images."""
    make_folders(root, "Annotations", "ImageSets/Main")

    def target(choice: int, content: bytes) -> bool:
        files = {"ImageSets/Main/train.txt": b"a\n", "Annotations/a.xml": b"<annotation/>"}
        write(root, files, choice % 8 != 0, content)
        classes = ["cat", "dog"] if choice & 8 else None
        return taken(lambda s: voc(s, root, "train", "train", classes), choice, root)

    return target


def coco_target(root: Path) -> Target:
    """Changes the training file or the validation file."""
    seed = (SEEDS / "coco/whole").read_bytes()[1:]

    def target(choice: int, content: bytes) -> bool:
        write(root, {"val.json": seed, "train.json": seed}, choice % 4 != 0, content)
        coco_json._categories_cache.clear()
        train, val = root / "train.json", root / "val.json"
        return taken(lambda s: coco(s, root, train, root, val), choice, root)

    return target


def roboflow_target(root: Path) -> Target:
    """Changes the training file or the validation file."""
    seed = (SEEDS / "roboflow/whole").read_bytes()[1:]
    names = ["valid/_annotations.coco.json", "train/_annotations.coco.json"]

    def target(choice: int, content: bytes) -> bool:
        write(root, dict.fromkeys(names, seed), choice % 4 != 0, content)
        classes = ["cat"] if choice & 8 else None
        return taken(lambda s: roboflow(s, root, classes=classes), choice, root)

    return target


def lvis_target(root: Path) -> Target:
    """Changes the training file or the validation file."""
    seed = (SEEDS / "lvis/whole").read_bytes()[1:]
    names = ["lvis_v1_val.json", "lvis_v1_train.json"]

    def target(choice: int, content: bytes) -> bool:
        write(root, dict.fromkeys(names, seed), choice % 4 != 0, content)
        coco_json._categories_cache.clear()
        return taken(lambda s: lvis(s, root), choice, root)

    return target


def yolo_target(root: Path) -> Target:
    """Changes the description, a list of images or a label file; the description has two forms."""
    make_folders(root, "labels")
    files = {
        "data.yaml": b"path: ./set\ntrain: [images, list.txt]\nnames: {0: cat, 1: dog}\n",
        "obj.data": b"train = data/list.txt\nnames = data/obj.names\n",
        "list.txt": b"data/images/a.png\n./images/a.png\n",
        "obj.names": b"cat\ndog\n",
        "labels/a.txt": b"1 0.5 0.5 0.25 0.5\n0 0.1 0.1 0.5 0.2 0.3 0.6\n",
    }

    def target(choice: int, content: bytes) -> bool:
        chosen = list(files)[choice % 5]
        for name, usual in files.items():
            (root / name).write_bytes(content if name == chosen else usual)
        if chosen.startswith("obj"):
            (root / "data.yaml").unlink()
        return taken(lambda s: yolo(s, root), choice, root)

    return target


TARGETS: dict[str, tuple[list[str], Callable[[Path], Target]]] = {
    "voc": (["JPEGImages/a.png"], voc_target),
    "coco": (fuzz.FILES, coco_target),
    "yolo": (["images/a.png"], yolo_target),
    "roboflow": (["train/a.png", "valid/a.png"], roboflow_target),
    "lvis": (fuzz.FILES, lvis_target),
}


def make_folders(root: Path, *names: str) -> None:
    for name in names:
        (root / name).mkdir(parents=True)


def write(root: Path, files: dict[str, bytes], last: bool, content: bytes) -> None:
    """Write two files, one of them with the changed content."""
    changed = list(files)[last]
    for name, usual in files.items():
        (root / name).write_bytes(content if name == changed else usual)


def taken(read: Callable[[str], Any], choice: int, root: Path) -> bool:
    """`tests.fuzz.taken`; 32 and more in the choice reads the validation split."""
    return fuzz.taken(read, "val" if choice & 32 else "train", str(root))


def instrument(*packages: str) -> None:
    """Let atheris see which lines of these packages are reached."""
    import atheris

    for function in [found for found in gc.get_objects() if isinstance(found, FunctionType)]:
        if str(function.__module__).startswith(packages):
            atheris.instrument_func(function)


def main() -> None:
    """Fuzz one reader until libFuzzer's ``-runs`` or a finding."""
    import atheris

    name, *options = sys.argv[1:]
    files, make = TARGETS[name]
    with fuzz.images(*files) as root, tempfile.TemporaryDirectory() as found:
        words = Path(found, "words")
        words.write_text("".join(f'"{word}"\n' for word in WORDS[name].split()))
        target = make(root)
        instrument("frcnn.data", "yaml")
        warnings.simplefilter("error")

        def one(data: bytes) -> None:
            if data:
                target(data[0], data[1:])

        # What reaches new code goes to the first folder.
        folders = [f"{found}/inputs", str(SEEDS / name)]
        os.mkdir(folders[0])
        usual = ["-timeout=20", "-max_len=4096", f"-dict={words}", "-artifact_prefix=/tmp/"]
        atheris.Setup([sys.argv[0], *usual, *options, *folders], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
