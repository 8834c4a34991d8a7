"""The problems of a data set, counted by kind, each with its place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from frcnn.errors import printable


class Mark(NamedTuple):
    """An object that can be drawn: kind and place of its problem, its image's file, its box.

    The file is relative to the data set's folder; the box is xyxy in pixels, as annotated.
    """

    kind: str
    where: str
    file: str
    box: tuple[float, ...]


@dataclass
class _Kind:
    dropped: bool
    count: int = 0
    places: list[str] = field(default_factory=list)


class Problems:
    """The problems found while a data set was read; False if there are none."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}
        self.marks: list[Mark] = []

    def add(self, kind: str, where: str, dropped: bool) -> None:
        """Count one problem.

        Args:
            kind: plural noun phrase ("boxes without area").
            where: the place, e.g. "a.xml object 3" or "annotation 17".
            dropped: whether the object or image is left out of the data set; the same for all
                problems of a kind.
        """
        entry = self._kinds.setdefault(kind, _Kind(dropped))
        entry.count += 1
        entry.places.append(printable(where))

    def mark(self, kind: str, where: str, file: str, box: Sequence[float]) -> None:
        """Keep the box of an object whose problem was added, so that it can be drawn."""
        self.marks.append(Mark(kind, printable(where), file, tuple(box)))

    def merge(self, other: "Problems", files: Mapping[str, str]) -> None:
        """Add the problems of another part of the data; one that both found counts once.

        Args:
            files: what that part's files are called from now on.
        """
        marks = [mark._replace(file=files[mark.file]) for mark in other.marks if mark.file in files]
        self.marks = list(dict.fromkeys([*self.marks, *marks]))
        for kind, found in other._kinds.items():
            own = self._kinds.setdefault(kind, _Kind(found.dropped))
            own.places += [place for place in found.places if place not in own.places]
            own.count = len(own.places)

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems by kind, in the order of their first occurrence."""
        return {kind: entry.count for kind, entry in self._kinds.items()}

    def rows(self) -> list[tuple[str, str, int, list[str]]]:
        """(kind, "dropped" or "kept", count, places) by kind."""
        return [(kind, _action(e), e.count, e.places) for kind, e in self._kinds.items()]

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def summary(self) -> str:
        """One line: "dropped 2 boxes without area (first: a.xml object 13), ..."."""
        return ", ".join(_summary(*item) for item in self._kinds.items()) or "no problems found"

    def table(self) -> str:
        """One line per kind ("dropped" or "kept", count, kind), then one line per place."""
        lines: list[str] = []
        for kind, action, count, places in self.rows():
            lines.append(f"{action:<8}{count:>7}  {kind}")
            lines += [f"{'':<17}{place}" for place in places]
        return "\n".join(lines) or "no problems found"


def _action(entry: _Kind) -> str:
    return "dropped" if entry.dropped else "kept"


def _summary(kind: str, entry: _Kind) -> str:
    return f"{_action(entry)} {entry.count} {kind} (first: {entry.places[0]})"
