"""What is wrong with a data set: counted by kind, the first few named."""

from dataclasses import dataclass, field

from frcnn.errors import printable


@dataclass
class _Found:
    dropped: bool
    count: int = 0
    places: list[str] = field(default_factory=list)


class Problems:
    """Problems found while a data set was read; false when there are none."""

    def __init__(self) -> None:
        self._found: dict[str, _Found] = {}

    def add(self, kind: str, where: str, dropped: bool) -> None:
        """Count one problem.

        Args:
            kind: plural noun phrase ("boxes without area"); one kind has one fate.
            where: names the place, e.g. "a.xml object 3" or "annotation 17".
            dropped: whether the object or image was left out of the data set.
        """
        found = self._found.setdefault(kind, _Found(dropped))
        found.count += 1
        found.places.append(printable(where))

    def merge(self, other: "Problems") -> None:
        """Add the problems of another part of the data; one that both found counts once."""
        for kind, found in other._found.items():
            own = self._found.setdefault(kind, _Found(found.dropped))
            own.places += [place for place in found.places if place not in own.places]
            own.count = len(own.places)

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems by kind, in the order in which the kinds were met."""
        return {kind: found.count for kind, found in self._found.items()}

    def __bool__(self) -> bool:
        return bool(self._found)

    def summary(self) -> str:
        """One line: "dropped 2 boxes without area (first: a.xml object 13), ..."."""
        return ", ".join(_line(*item) for item in self._found.items()) or "no problems found"

    def table(self) -> str:
        """Several lines: the fate and count of each kind, then where."""
        lines: list[str] = []
        for kind, found in self._found.items():
            lines.append(f"{_fate(found):<8}{found.count:>7}  {kind}")
            lines += [f"{'':<17}{place}" for place in found.places]
        return "\n".join(lines) or "no problems found"


def _fate(found: _Found) -> str:
    return "dropped" if found.dropped else "kept"


def _line(kind: str, found: _Found) -> str:
    return f"{_fate(found)} {found.count} {kind} (first: {found.places[0]})"
