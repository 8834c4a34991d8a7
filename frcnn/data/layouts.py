"""Where the usual layouts below ``data.root`` keep their annotations and images."""

import logging
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from frcnn.data.coco_json import CocoFile
from frcnn.data.image_files import files_exist, list_folder
from frcnn.errors import NoSplitError, UserError

log = logging.getLogger(__name__)

# COCO. The names of a split, with or without a year: train2017.
SPLITS = {"train": "train(ing)?", "val": "val(id|idation)?", "test": "test(ing)?"}
YEAR = r"(_?\d{4})?"
# The annotations of a split, the first pattern that is there; {} is the split's name.
PER_SPLIT = (
    "annotations/instances_{}.json",  # COCO, CVAT
    "annotations/{}.json",
    "{}.json",
    "{}/annotations.json",
)
# The annotations of data without a split.
WHOLE = (
    "annotations/instances_default.json",  # CVAT
    "result.json",  # Label Studio
    "annotations/instances.json",
    "annotations.json",
)
# The folders that an image's file_name may be relative to; {} is the split's name.
IMAGES = ("{}", "images/{}", "{}/images", "images", ".")
# VOC's folders, and their names in sets that people make themselves.
VOC_IMAGES = ("JPEGImages", "images")
VOC_ANNOTATIONS = ("Annotations", "annotations")
ROBOFLOW = "_annotations.coco.json"


def coco_annotations(root: Path, split: str) -> tuple[Path, str]:
    """The annotation file of a split, and the name that the split has there.

    Data without a split are "train", by the name of "default".

    Raises:
        NoSplitError: there are others, but none of this split.
        UserError: there are none, or several.
    """
    for pattern in PER_SPLIT:
        if found := _named(root, pattern, split):
            return found
    whole = [root / name for name in WHOLE if (root / name).is_file()]
    if split == "train" and whole:
        return whole[0], "default"
    if split != "train":
        coco_annotations(root, "train")  # a wrong root is the likelier mistake
        raise NoSplitError(root, split)
    if any(root.glob(ROBOFLOW)) or any(root.glob(f"*/{ROBOFLOW}")):
        raise UserError(f"{root}: is an export of Roboflow; read it with data=roboflow")
    looked = ", ".join([*(pattern.format("train") for pattern in PER_SPLIT), *WHOLE])
    raise UserError(
        f"{root}: no COCO annotations found; looked for {looked}; or give data.train_annotations, "
        "data.train_images, data.val_annotations and data.val_images"
    )


def _named(root: Path, pattern: str, split: str) -> tuple[Path, str] | None:
    """The file below root that fits the pattern with a name of the split, and that name."""
    before, _, after = pattern.partition("{}")
    folder, _, start = before.rpartition("/")
    end, _, rest = after.partition("/")
    fits = re.compile(f"{re.escape(start)}({SPLITS[split]}{YEAR}){re.escape(end)}")
    matches = [fits.fullmatch(name) for name in sorted(list_folder(root / folder))]
    found = [(root / folder / match[0] / rest, match[1]) for match in matches if match]
    found = [(path, name) for path, name in found if path.is_file()]
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(root)) for path, _ in found)
        raise UserError(
            f"{root}: {names} may all be the {split} split; choose with data.{split}_annotations "
            f"and data.{split}_images"
        )
    return found[0] if found else None


def coco_images(root: Path, name: str, file: CocoFile) -> tuple[Path, list[str]]:
    """The folder below root that has the most images of a file, and their names relative to it.

    Label Studio writes the paths of its own server (``../../label-studio/data/upload/1/a.jpg``),
    and Windows' separators. So the file's last name in ``images`` is the last thing tried.

    Args:
        name: the split's, as the annotation file's name has it.
    """
    slashed = [text.replace("\\", "/") for text in file.files]
    last = [PurePosixPath(text).name for text in slashed]
    tried = [(folder.format(name), names) for names in (file.files, slashed) for folder in IMAGES]
    if len(set(last)) == len(last):
        tried += [(folder, last) for folder in (f"images/{name}", "images")]
    counts = [int(files_exist(root / folder, names).sum()) for folder, names in tried]
    folder, names = tried[int(np.argmax(counts))]  # ties go to the first
    if not max(counts):
        looked = ", ".join(folder.format(name) for folder in IMAGES)
        raise UserError(
            f"{root}: none of the {len(file.files)} images was found (first: {file.files[0]}); "
            f"looked in the folders {looked}"
        )
    return root / folder, names


class VocFolder(NamedTuple):
    """Where a VOC data set has its files.

    Attributes:
        root: the folder with ImageSets, if there is one.
        images, annotations: folders below it, or ``root`` itself.
    """

    root: Path
    images: Path
    annotations: Path

    @property
    def is_split(self) -> bool:
        """Whether lists name the images of each split; without them all images are "train"."""
        return (self.root / "ImageSets").exists() or not self.xml_files()

    def list_file(self, split: str) -> Path:
        """The list of a split's images."""
        return self.root / "ImageSets/Main" / f"{split}.txt"

    def source(self, split: str) -> Path:
        """What names the images of a split, for messages."""
        return self.list_file(split) if self.is_split else self.annotations

    def xml_files(self) -> list[str]:
        """The names of the annotation files, sorted."""
        return sorted(name for name in list_folder(self.annotations) if name.endswith(".xml"))


def voc_folder(root: Path) -> VocFolder:
    """The folders of a VOC data set: those of root, or of the one such folder below it.

    That folder may be ``VOC2007`` or ``VOCdevkit/VOC2007``, or have another name. Images and
    annotations may also lie side by side.

    Raises:
        UserError: there are several.
    """
    root = _voc_root(root)
    images, annotations = (
        next((root / name for name in names if (root / name).is_dir()), root)
        for names in (VOC_IMAGES, VOC_ANNOTATIONS)
    )
    if annotations == root and not any(name.endswith(".xml") for name in list_folder(root)):
        return VocFolder(root, root / VOC_IMAGES[0], root / VOC_ANNOTATIONS[0])  # for messages
    return VocFolder(root, images, annotations)


def _voc_root(root: Path) -> Path:
    if any((root / name).is_dir() for name in VOC_ANNOTATIONS):
        return root
    below = [*root.glob("*"), *root.glob("VOCdevkit/*")]
    found = sorted(f for f in below if (f / "Annotations").is_dir() and (f / "JPEGImages").is_dir())
    if len(found) > 1:
        named = ", ".join(str(folder.relative_to(root)) for folder in found)
        raise UserError(f"{root}: holds several VOC folders ({named}); name one: data.root=FOLDER")
    if not found:
        return root
    log.info("%s: reading %s", root, found[0].relative_to(root))
    return found[0]
