"""Text on pictures: fonts that have the characters, names that fit."""

import logging
from functools import lru_cache

from PIL import ImageFont

log = logging.getLogger(__name__)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Fonts of many scripts that systems have; Pillow finds them by their file names.
FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf", "FreeSans.ttf", "unifont.ttf",  # Linux
    "Arial Unicode.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "AppleSDGothicNeo.ttc",  # macOS
    "arial.ttf", "msyh.ttc", "msgothic.ttc", "malgun.ttf", "Nirmala.ttf", "leelawui.ttf",  # Windows
)  # fmt: skip
NO_CHARACTER = "\U0010ffff"  # every font draws its sign for a missing character
LISTED = 20  # of the names that cannot be drawn, in the log


def font_for(text: str, size: int) -> Font:
    """The first font that has all characters of a text, or else Pillow's own."""
    return _found_font(frozenset(text), size) or ImageFont.load_default(size=size)


@lru_cache(maxsize=1000)
def _found_font(characters: frozenset[str], size: int) -> Font | None:
    for name in (None, *FONTS):
        font = _load(name, size)
        if font is not None and all(_has(font, character) for character in characters):
            return font
    return None


@lru_cache
def _load(name: str | None, size: int) -> Font | None:
    """A font by its file name, or Pillow's own."""
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size=size)
    except OSError:
        return None


def _has(font: Font, character: str) -> bool:
    if character.isspace():
        return True
    try:
        shape, missing = font.getmask(character), font.getmask(NO_CHARACTER)
    except UnicodeEncodeError:  # Pillow's font of plain pixels, where FreeType is not installed
        return character.isascii()
    return (shape.size, bytes(shape)) != (missing.size, bytes(missing))


@lru_cache(maxsize=8)
def drawable_names(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """The text to draw for each class: its name, or its number where no font has the name.

    One line of the log says what the numbers stand for, when a list of names is first seen.
    """
    numbers = {
        name: str(label)
        for label, name in enumerate(class_names, start=1)
        if _found_font(frozenset(name), size=12) is None
    }
    if numbers:
        legend = [f"{number} = {name}" for name, number in numbers.items()]
        more = f", and {len(legend) - LISTED} more" if len(legend) > LISTED else ""
        log.warning(
            "no font here has the characters of %d class names; pictures show numbers: %s%s",
            len(numbers),
            ", ".join(legend[:LISTED]),
            more,
        )
    return tuple(numbers.get(name, name) for name in class_names)


def fitted(name: str, rest: str, size: int, width: float) -> tuple[str, Font]:
    """A line of text and its font: the name, cut where name and rest are wider than ``width``."""
    name = " ".join(name.split())
    font = font_for(name + rest, size)
    text = name + rest
    while name and font.getlength(text) > width:
        name = name[: min(len(name) - 1, int(len(name) * width / font.getlength(text)))]
        text = f"{name}...{rest}"
    return text, font
