"""A page on a data set: ``python -m experiments.data data=... [model=...] [out=DIR]``."""

import logging
from pathlib import Path
from typing import Any

from frcnn.config.compose import command
from frcnn.errors import UserError

log = logging.getLogger(__name__)


def data_page(config: dict[str, Any], choices: dict[str, str], folder: Path) -> None:
    """Write ``data.html`` about the training split under the model's anchors."""
    try:
        from experiments.data.page import page
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install -e '.[report]'") from error
    from frcnn.build import dataset
    from frcnn.data.objects import objects_of
    from frcnn.runfolder.files import write_text
    from frcnn.survey.settings import settings

    data = dataset(config["data"], "train")
    objects = objects_of(data)
    found, notes = settings(config["model"], data, objects)
    path = Path(config["out"]) / "data.html"
    title = f"Data set {choices['data']} under {choices['model']}"
    write_text(path, page(title, data, objects, found, notes))
    log.info("%d images, %d objects; %s", len(data), len(objects.boxes), path)


def main() -> None:
    """Entry point."""
    command("data_page", data_page)


if __name__ == "__main__":
    main()
