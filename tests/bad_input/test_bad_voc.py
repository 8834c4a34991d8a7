"""VOC folders that are not as they should be: a data set without the bad parts, or one line."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from outcomes import refused, usable
from PIL import Image

from frcnn.data import DetectionDataset, voc
from frcnn.errors import ConfigError

BOX = {"xmin": "6", "ymin": "6", "xmax": "25", "ymax": "25"}
GOOD = [[0, 0, 10, 10], [5, 5, 25, 25]]  # a.xml's, b.xml's


def tag(name: str, text: str) -> str:
    return f"<{name}>{text}</{name}>"


def annotation(
    box: dict[str, str] | None = None,
    name: str = tag("name", "cat"),
    size: str = "<size><width>40</width><height>30</height></size>",
    more: str = "",
) -> str:
    """One object in an image of 40x30."""
    sides = "".join(tag(*side) for side in (BOX if box is None else box).items())
    return f"<annotation>{size}<object>{name}<bndbox>{sides}</bndbox>{more}</object></annotation>"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images a and b, each with a cat."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / part).mkdir(parents=True)
    for id in "ab":
        Image.new("RGB", (40, 30)).save(tmp_path / f"JPEGImages/{id}.jpg")
        (tmp_path / f"Annotations/{id}.xml").write_text(annotation())
    first = {"xmin": "1", "ymin": "1", "xmax": "10", "ymax": "10"}
    (tmp_path / "Annotations/a.xml").write_text(annotation(first))
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nb\n")
    return tmp_path


def reader(root: Path) -> Callable[[str], DetectionDataset]:
    return lambda split: voc(split, root, "train", "train")


def write(root: Path, content: str | bytes) -> None:
    """What stands in b.xml."""
    raw = content.encode() if isinstance(content, str) else content
    (root / "Annotations/b.xml").write_bytes(raw)


def without(side: str) -> dict[str, str]:
    return {key: value for key, value in BOX.items() if key != side}


NO_BOX = "boxes that are not four finite numbers"
DROPPED = {
    **{f"missing-{side}": (annotation(without(side)), NO_BOX) for side in BOX},
    **{
        f"xmax-{name}": (annotation(BOX | {"xmax": value}), kind)
        for name, value, kind in [
            ("empty", "", NO_BOX), ("text", "wide", NO_BOX), ("nan", "nan", NO_BOX),
            ("infinite", "inf", NO_BOX), ("hex", "0x20", NO_BOX), ("comma", "20,5", NO_BOX),
            ("overflow", "1e999", NO_BOX), ("two", "20 21", NO_BOX),
            ("negative", "-5", "boxes without area"), ("same", "6", "boxes without area"),
            ("before", "3", "boxes without area"),
        ]
    },
    "outside": (annotation({"xmin": "99", "ymin": "1", "xmax": "120", "ymax": "9"}),
                "boxes outside the image"),
    "huge-corner": (annotation(dict.fromkeys(BOX, "1e300") | {"xmax": "2e300", "ymax": "2e300"}),
                    "boxes without area"),
    "no-bndbox": ("<annotation><object><name>cat</name></object></annotation>", NO_BOX),
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "kind"), [pytest.param(*pair, id=name) for name, pair in DROPPED.items()]
)
def test_an_object_that_cannot_be_used_is_dropped_and_named(
    root: Path, content: str, kind: str
) -> None:
    write(root, content)
    data = usable(reader(root))
    assert data.image_ids == ["a", "b"] and data.boxes.tolist() == GOOD[:1]
    assert data.problems.summary() == f"dropped 1 {kind} (first: b.xml object 1)"


NO_SIZE = {
    "missing": "", "empty": "<size/>", "zero": "0", "negative": "-40", "text": "wide",
    "nan": "nan", "infinite": "inf", "beyond": "1e300", "fraction": "0.5", "null": "None",
}  # fmt: skip


@pytest.mark.parametrize("size", NO_SIZE.values(), ids=NO_SIZE)
def test_a_size_that_says_nothing_is_the_image_s_own(root: Path, size: str) -> None:
    whole = (
        size if size in ("", "<size/>") else tag("size", tag("width", size) + tag("height", "30"))
    )
    write(root, annotation(size=whole))
    data = usable(reader(root))
    assert data.widths.tolist() == [40, 40] and data.boxes.tolist() == GOOD and not data.problems


def test_another_size_than_the_image_s_drops_it_by_name(root: Path) -> None:
    write(root, annotation(size="<size><width>30</width><height>41</height></size>"))
    data = usable(reader(root))
    assert data.image_ids == ["a"]
    assert data.problems.summary() == (
        "dropped 1 images of another size than annotated "
        "(first: b.jpg (image b): 40x30, its annotation says 30x41)"
    )


@pytest.mark.parametrize(
    ("name", "more"),
    [
        (tag("name", " cat\n\t"), ""),
        (tag("name", "cat"), tag("difficult", "0")),
        (tag("name", "cat"), tag("difficult", "")),
        (tag("name", "cat"), "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"),
        (tag("name", "<![CDATA[cat]]>"), ""),
        ("<name>c<!-- no name -->at</name>", ""),
    ],
    ids=["spaces", "difficult-0", "difficult-empty", "parts", "cdata", "comment"],
)
def test_what_xml_may_hold_beside_changes_nothing(root: Path, name: str, more: str) -> None:
    write(root, annotation(name=name, more=more))
    assert usable(reader(root)).boxes.tolist() == GOOD


@pytest.mark.parametrize("name", ["", "<name/>", tag("name", " ")], ids=["none", "empty", "blank"])
def test_an_object_without_a_name_is_dropped(root: Path, name: str) -> None:
    write(root, annotation(name=name))
    data = usable(reader(root))
    assert data.class_names == ["cat"] and data.boxes.tolist() == GOOD[:1]
    assert data.problems.counts == {"objects of an unknown class": 1}


LAUGHS = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
DOCTYPE = "declares a document type"
BAD_FILE = {
    "empty": ("", "is not XML"),
    "blank": (" \n", "is not XML"),
    "truncated": (annotation()[:-20], "is not XML"),
    "json": ("{}", "is not XML"),
    "zeros": (b"\0" * 99, "is not XML"),
    "two-roots": (annotation() * 2, "is not XML"),
    "latin-1": (annotation(name=tag("name", "\xe9")).encode("latin-1"), "is not XML"),
    "unknown-entity": (annotation(name=tag("name", "&cat;")), "is not XML"),
    "unknown-encoding": ('<?xml version="1.0" encoding="klingon"?>' + annotation(), "is not XML"),
    "python-codec": ('<?xml version="1.0" encoding="base64"?>' + annotation(), "is not XML"),
    "wide-encoding": ('<?xml version="1.0" encoding="utf-7"?>' + annotation(), "is not XML"),
    "control": (annotation(name=tag("name", "a\x1b[31m")), "is not XML"),
    "attribute-twice": ('<annotation a="1" a="2"/>', "is not XML"),
    "deep": ("<a>" * 100_000, "is not XML"),
    "html": ("<html/>", r"is not a VOC annotation \(its root is <html>\)"),
    "namespace": ('<annotation xmlns="http://a.b"/>', "is not a VOC annotation"),
    "upper-case": ("<ANNOTATION/>", "is not a VOC annotation"),
    "doctype": ("<!DOCTYPE annotation>" + annotation(), DOCTYPE),
    "billion-laughs": (
        f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]>' + annotation(name=tag("name", "&l9;")), DOCTYPE
    ),
    "quadratic-blowup": (
        f'<!DOCTYPE a [<!ENTITY l "{"a" * 10**5}">]>' + tag("annotation", "&l;" * 10**4), DOCTYPE
    ),
    "external-entity": (
        '<!DOCTYPE a [<!ENTITY l SYSTEM "file:///etc/passwd">]>'
        + annotation(name=tag("name", "&l;")), DOCTYPE
    ),
    "external-dtd": ('<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">' + annotation(), DOCTYPE),
    "parameter-entity": (
        '<!DOCTYPE a [<!ENTITY % l SYSTEM "file:///etc/passwd"> %l;]>' + annotation(), DOCTYPE
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"), [pytest.param(*pair, id=name) for name, pair in BAD_FILE.items()]
)
def test_an_annotation_file_that_cannot_be_used_is_refused_by_name(
    root: Path, content: str | bytes, says: str
) -> None:
    write(root, content)
    line = refused(usable, reader(root))
    assert "b.xml: " in line and re.search(says, line), line


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_every_encoding_that_xml_declares_is_read(root: Path, encoding: str) -> None:
    declared = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>'
    write(root, (declared + annotation(name=tag("name", "h\xe9ron"))).encode(encoding))
    assert usable(reader(root)).class_names == ["cat", "h\xe9ron"]


@pytest.mark.parametrize(
    ("declared", "counts"),
    [
        ('<?xml version="1.0" encoding="GBK"?>', {}),
        ("<?xml version='1.0' encoding='gb2312'?>", {}),
        ("", {"annotations that are not UTF-8, read as gb2312": 1}),
        (
            '<?xml version="1.0" encoding="UTF-8"?>',
            {"annotations that are not UTF-8, read as gb2312": 1},
        ),
    ],
)
def test_chinese_text_is_read(root: Path, declared: str, counts: dict[str, int]) -> None:
    write(root, (declared + annotation(name=tag("name", "\u732b\u72d7"))).encode("gbk"))
    data = usable(reader(root))
    assert data.class_names == ["cat", "\u732b\u72d7"] and data.problems.counts == counts


@pytest.mark.parametrize("name", ["h\xe9ron", "\xe9", "na\xefve"])
def test_western_text_is_not_taken_for_chinese(root: Path, name: str) -> None:
    write(root, annotation(name=tag("name", name)).encode("latin-1"))
    assert "b.xml: is not XML" in refused(usable, reader(root))


def test_a_class_name_is_one_line(root: Path) -> None:
    """Found by fuzzing: in latin-1 a byte above 127 may be a control character."""
    declared = b'<?xml version="1.0" encoding="latin-1"?>'
    write(root, declared + annotation(name="<name>a\x9b31m b</name>").encode("latin-1"))
    assert usable(reader(root)).class_names == ["a\\x9b31m b", "cat"]


def test_deep_elements_are_no_problem(root: Path) -> None:
    write(root, annotation(more="<a>" * 50_000 + "</a>" * 50_000))
    assert usable(reader(root)).boxes.tolist() == GOOD


BAD_LIST = {
    "missing": (None, "train.txt: cannot be read"),
    "empty": (b"", "train.txt: lists no image"),
    "blank": (b"\n \n", "train.txt: lists no image"),
    "latin-1": (b"\xe9\n", "train.txt: is not a list of image ids"),
    "jpeg": (b"\xff\xd8\xff\xe0", "train.txt: is not a list of image ids"),
    "repeated": (b"a\nb\na\n", "train.txt: lists image 'a' more than once"),
    "unknown": (b"a\nc\n", "c.xml: cannot be read"),
    "nul": (b"a\n\0\n", "is not XML"),
    "long": (b"x" * 5000, "cannot be read"),
    "parent": (b"../secret\n", "image id '../secret' is not the name of a file"),
    "absolute": (b"/etc/passwd\n", "image id '/etc/passwd' is not the name of a file"),
    "below": (b"sub/a\n", "image id 'sub/a' is not the name of a file"),
    "dot": (b".\n", "image id '.' is not the name of a file"),
}


@pytest.mark.parametrize(
    ("content", "says"), [pytest.param(*pair, id=name) for name, pair in BAD_LIST.items()]
)
def test_a_list_of_images_that_cannot_be_used_is_refused(
    root: Path, content: bytes | None, says: str
) -> None:
    (root / "secret.xml").write_text(annotation())
    file = root / "ImageSets/Main/train.txt"
    file.unlink() if content is None else file.write_bytes(content)
    assert says in refused(usable, reader(root))


@pytest.mark.parametrize(
    "content", [b"\xef\xbb\xbfa\nb\n", b"a\r\nb\r\n", b"a 1\nb -1\n", b"a\n\nb", b"a   0\n b\t1 \n"]
)
def test_lists_of_other_editors_are_read(root: Path, content: bytes) -> None:
    (root / "ImageSets/Main/train.txt").write_bytes(content)
    assert usable(reader(root)).image_ids == ["a", "b"]


@pytest.mark.parametrize(
    "filename",
    ["../secret.jpg", "/etc/passwd", "x/../../secret.jpg", "", "b.jpg\n", "." * 5000],
    ids=["parent", "absolute", "hidden-parent", "empty", "line-end", "long"],
)
def test_only_images_of_jpegimages_are_taken(
    root: Path, filename: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    true_open = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(Path(path)) or true_open(path))
    os.rename(root / "JPEGImages/b.jpg", root / "secret.jpg")
    write(root, annotation().replace("<size>", tag("filename", filename) + "<size>"))
    data = usable(reader(root))
    assert data.problems.counts == {"images missing in JPEGImages": 1}
    assert {path.name for path in opened} == {"a.jpg"}


def test_classes_that_stand_twice_are_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="data.classes: 'cat' is listed more than once"):
        voc("train", root, "train", "train", classes=["cat", "dog", "cat"])


def test_a_folder_that_cannot_be_listed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", denied)
    assert "JPEGImages: cannot be listed (Permission denied)" in refused(usable, reader(root))


def test_no_such_folder(tmp_path: Path) -> None:
    assert "train.txt: cannot be read" in refused(usable, reader(tmp_path / "none"))
