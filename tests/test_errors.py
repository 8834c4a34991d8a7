"""One-line errors stay one line on their way through a loader's worker process."""

from pathlib import Path

import pytest

from frcnn.data import make_loader, voc
from frcnn.errors import UserError

ANNOTATION = """<annotation><size><width>8</width><height>8</height></size><object><name>a</name>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"""


def test_a_workers_error_is_its_own_line(tmp_path: Path) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "JPEGImages/x.jpg").write_text("no image")
    (tmp_path / "Annotations/x.xml").write_text(ANNOTATION)
    (tmp_path / "ImageSets/Main/train.txt").write_text("x\n")
    dataset = voc("train", tmp_path)
    with pytest.raises(UserError) as caught:
        next(iter(make_loader(dataset, [[0]], workers=1)))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "JPEGImages/x.jpg"))
    (note,) = caught.value.__notes__
    assert "Traceback" in note  # for the run's traceback.txt
