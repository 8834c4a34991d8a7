"""Checks configuration values against the type annotations of what takes them.

A node with a ``_target_`` is checked against that callable's signature, every other node against
the schema of its command. Ranges are ``Annotated[int, Ge(1)]`` (package annotated-types), or are
checked by the constructor itself, whose ValueError is reported with the full key.
"""

import inspect
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, MaxLen, MinLen

from frcnn.errors import ConfigError

# Larger numbers overflow somewhere in a training step.
LARGEST = 2**53
SCALARS = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


@dataclass(frozen=True)
class Rule:
    """Which values a parameter accepts.

    Attributes:
        kinds: of scalars: int, float, str, bool.
        options: strings that are allowed beside the kinds.
        low, above, high: of a number.
        element: rule of a list's elements; None = no list.
        lengths: fewest and most elements.
    """

    kinds: tuple[type, ...] = ()
    options: tuple[str, ...] = ()
    low: float | None = None
    above: float | None = None
    high: float | None = None
    optional: bool = False
    element: "Rule | None" = None
    lengths: tuple[int, float] = (0, math.inf)

    def __str__(self) -> str:
        """What is allowed, in words: ``a number between 0 and 1 or null``."""
        words = [SCALARS[kind] + self._range() for kind in self.kinds]
        if self.options:
            words.insert(0, f"one of {', '.join(self.options)}")
        if self.element is not None:
            words.append(self._list_in_words())
        return " or ".join([*words, *["null"] * self.optional])

    def _list_in_words(self) -> str:
        low, high = self.lengths
        count = f"{low} values" if low == high else "values"
        return f"a list of {count}, each {self.element}"

    def _range(self) -> str:
        if self.low is not None and self.high is not None:
            return f" between {self.low:g} and {self.high:g}"
        if self.low is not None:
            return f" of at least {self.low:g}"
        return f" above {self.above:g}" if self.above is not None else ""

    def allows(self, value: Any) -> bool:
        """Whether the value is of these types and ranges."""
        if value is None:
            return self.optional
        if isinstance(value, list | tuple):
            low, high = self.lengths
            return (
                self.element is not None
                and low <= len(value) <= high
                and all(self.element.allows(entry) for entry in value)
            )
        if isinstance(value, str):
            return value in self.options or str in self.kinds
        if isinstance(value, bool):
            return bool in self.kinds
        return isinstance(value, int | float) and self._allows_number(value)

    def _allows_number(self, value: float) -> bool:
        if not (float in self.kinds or (int in self.kinds and isinstance(value, int))):
            return False
        return not (
            math.isnan(value)
            or (self.low is not None and value < self.low)
            or (self.above is not None and value <= self.above)
            or (self.high is not None and value > self.high)
        )


def rule_of(annotation: Any) -> Rule | None:
    """The rule that a type annotation states; None where it states none that can be checked.

    >>> str(rule_of(Annotated[float, Ge(0), Le(1)] | None))
    'a number between 0 and 1 or null'
    """
    found: dict[str, Any] = {"kinds": (), "options": ()}
    known = [_read(part, (), found) for part in _union(annotation)]
    if not any(known):
        return None
    return Rule(**found)


def _union(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, unions within it included."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(part for member in get_args(annotation) for part in _union(member))
    return (annotation,)


def _read(annotation: Any, bounds: Sequence[Any], found: dict[str, Any]) -> bool:
    """Add what one member of a union states to the fields of a rule; whether it states anything."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return all([_read(part, arguments[1:], found) for part in _union(arguments[0])])
    if annotation is type(None):
        found["optional"] = True
    elif origin is Literal:
        found["options"] += tuple(entry for entry in arguments if isinstance(entry, str))
        found["optional"] = found.get("optional", False) or None in arguments
    elif annotation in SCALARS:
        found["kinds"] += (annotation,) * (annotation not in found["kinds"])
        if annotation in (int, float):
            found |= _bounds(bounds)
    elif inspect.isclass(origin) and issubclass(origin, Sequence):
        _read_list(origin, arguments, bounds, found)
    else:
        return False
    return True


def _bounds(bounds: Sequence[Any]) -> dict[str, float]:
    found = {}
    for bound in bounds:
        for kind, field, name in ((Ge, "ge", "low"), (Gt, "gt", "above"), (Le, "le", "high")):
            if isinstance(bound, kind):
                found[name] = getattr(bound, field)
    return found


def _read_list(
    origin: type, arguments: tuple[Any, ...], bounds: Sequence[Any], found: dict[str, Any]
) -> None:
    found["element"] = rule_of(arguments[0]) or Rule()
    if origin is tuple and Ellipsis not in arguments:
        found["lengths"] = (len(arguments), len(arguments))
        return
    low = [bound.min_length for bound in bounds if isinstance(bound, MinLen)]
    high = [bound.max_length for bound in bounds if isinstance(bound, MaxLen)]
    found["lengths"] = (low[0] if low else 0, high[0] if high else math.inf)


def check_value(path: str, value: Any, annotation: Any, default: Any = None) -> None:
    """Raise ConfigError unless a value suits an annotation, or else the type of its default.

    Args:
        path: the full key, for the message.
        default: what stands in the option's file.
    """
    check_numbers(path, value)
    rule = rule_of(annotation) or _like(default)
    if rule is not None and not rule.allows(value):
        raise ConfigError(f"{path}: expected {rule}, got {value!r}")


def check_numbers(path: str, value: Any) -> None:
    """Raise ConfigError for a number that is too large for any option."""
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float) and abs(number) > LARGEST:
            raise ConfigError(f"{path}: {number} is too large for any option")


def _like(default: Any) -> Rule | None:
    """The rule that a default implies; none for null, lists and interpolations.

    A required value (``???``) without an annotation accepts any string.
    """
    if isinstance(default, str) and default.startswith("${"):
        return None
    kind = type(default)
    return Rule((kind,)) if kind in SCALARS else None


def check_schema(
    node: Mapping[str, Any], schema: type, defaults: Mapping[str, Any], prefix: str = ""
) -> None:
    """Check the keys of a node against the fields of a schema; keys without a field pass."""
    fields = get_type_hints(schema, include_extras=True)
    for key, annotation in fields.items():
        if key not in node:
            continue
        value, default = node[key], defaults.get(key)
        if inspect.isclass(annotation) and annotation not in SCALARS and isinstance(value, dict):
            check_schema(value, annotation, default or {}, f"{prefix}{key}.")
        elif isinstance(value, dict) and (named := _mapping(annotation)):
            check_schema(value, _named(value, get_args(named)[1]), {}, f"{prefix}{key}.")
        else:
            check_value(f"{prefix}{key}", value, annotation, default)


def text_keys(schema: type, prefix: str = "") -> set[str]:
    """The keys of a schema, and of those inside it, that take a string only."""
    found = set()
    for key, annotation in get_type_hints(schema, include_extras=True).items():
        rule = rule_of(annotation)
        if rule is not None and rule.kinds == (str,) and not rule.options:
            found.add(f"{prefix}{key}")
        elif inspect.isclass(annotation) and annotation not in SCALARS:
            found |= text_keys(annotation, f"{prefix}{key}.")
    return found


def _mapping(annotation: Any) -> Any:
    """The member of an annotation that is a ``dict[str, ...]``, or None."""
    return next((part for part in _union(annotation) if get_origin(part) is dict), None)


def _named(node: Mapping[str, Any], annotation: Any) -> type:
    """A schema with this annotation for each key of a node."""
    return type("Named", (), {"__annotations__": dict.fromkeys(node, annotation)})


def check_target(
    path: str, target: Any, node: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Check the values of a node against the signature of what its ``_target_`` names.

    Args:
        path: the node's full key.
        target: the callable.
        defaults: the values in the option's file.
    """
    annotations = parameters(target)
    for key, value in node.items():
        if not key.startswith("_") and not isinstance(value, dict):
            check_value(f"{path}.{key}", value, annotations.get(key, Any), defaults.get(key))


def parameters(target: Any) -> dict[str, Any]:
    """Annotations of a callable's parameters by name, with those of ``**options: Unpack[...]``."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = get_type_hints(function, include_extras=True)
        names = inspect.signature(target).parameters
    except (TypeError, ValueError, NameError):  # a callable without readable annotations
        return {}
    for name, parameter in names.items():
        unpacked = get_args(hints.get(name))
        if parameter.kind is parameter.VAR_KEYWORD and unpacked:
            hints |= get_type_hints(unpacked[0], include_extras=True)
    return hints
