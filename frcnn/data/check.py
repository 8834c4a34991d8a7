"""What reading the annotations alone cannot find."""

from frcnn.data.dataset import DetectionDataset
from frcnn.data.problems import Problems
from frcnn.errors import UserError


def check_images(dataset: DetectionDataset, problems: Problems) -> None:
    """Decode every image and count, in `problems`, those that cannot be read or differ in size."""
    stated = zip(dataset.widths.tolist(), dataset.heights.tolist(), strict=True)
    for index, (width, height) in enumerate(stated):
        file = str(dataset.files[index])
        try:
            found = dataset.load(index).shape
        except UserError as error:
            problems.add("unreadable images", str(error), dropped=False)
            continue
        if found != (3, height, width):
            where = f"{file}: {found[2]}x{found[1]}, its annotation says {width}x{height}"
            problems.add("images of another size than annotated", where, dropped=False)
