"""What is wrong with a data set: ``python -m frcnn.check_data data=voc data.root=DIR``."""

import logging
from pathlib import Path
from typing import Any

from frcnn.config.compose import command

log = logging.getLogger(__name__)


def check_data(config: dict[str, Any], choices: dict[str, str], folder: Path) -> None:
    """Print counts and names of all problems of both splits."""
    from frcnn.build import annotated
    from frcnn.data import check_images

    for split in ("train", "val"):
        found = annotated(config["data"], split)
        if config["images"]:
            check_images(found)
        counts = zip(found.class_names, found.class_frequencies().tolist(), strict=True)
        classes = ", ".join(f"{name} {number}" for name, number in counts)
        log.info(
            "%s: %d images; objects: %s\n%s", split, len(found), classes, found.problems.table()
        )


def main() -> None:
    """Entry point."""
    command("check_data", check_data)


if __name__ == "__main__":
    main()
