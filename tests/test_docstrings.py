"""Every method shows an example, which runs as a test (`--doctest-modules`)."""

from types import ModuleType

import pytest

import samplers
from frcnn import losses
from frcnn.sites import assigners, weighers

CONTRACTS = ("samples", "contract", "candidates")  # files of what methods are given and return


def methods(package: ModuleType) -> list[type]:
    """The public classes without those of the contract."""
    public = [getattr(package, name) for name in package.__all__]
    classes = [entry for entry in public if isinstance(entry, type)]
    return [c for c in classes if c.__module__.rpartition(".")[2] not in CONTRACTS]


@pytest.mark.parametrize(
    "package", [losses, assigners, weighers, samplers], ids=lambda p: p.__name__
)
def test_every_method_has_an_example(package: ModuleType) -> None:
    assert methods(package)
    assert not [c.__name__ for c in methods(package) if ">>>" not in (c.__doc__ or "")]
