"""Imports run one way, and only the commands and the configuration know Hydra."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = ("train", "evaluate", "predict", "check_data")
# From the top down: a part imports those below it, never those above it.
ORDER = (
    *COMMANDS, "training", "survey", "evaluation", "build", "model", "sites", "losses", "data",
    "config", "tracking", "runfolder", "parallel", "time_limit", "errors",
)  # fmt: skip
KNOW_HYDRA = {*COMMANDS, "config"}


def part(file: Path) -> str:
    """``frcnn/model/rpn.py`` -> ``model``, ``frcnn/train.py`` -> ``train``."""
    return file.relative_to(ROOT / "frcnn").with_suffix("").parts[0]


def imported(file: Path) -> set[str]:
    """The modules that a file imports, with their dotted names."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(f for f in (ROOT / "frcnn").rglob("*.py") if f != ROOT / "frcnn/__init__.py")


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_run_down_the_list(file: Path) -> None:
    own = ORDER.index(part(file))
    for name in imported(file):
        top, _, rest = name.partition(".")
        used = rest.partition(".")[0]
        assert top not in ("experiments", "tests"), f"{file} imports {name}"
        if top == "frcnn" and used in ORDER:
            assert ORDER.index(used) >= own, f"{part(file)} imports {name}, which is above it"


def test_only_the_commands_and_the_configuration_know_hydra() -> None:
    for file in FILES:  # sweeps.py is a callback of Hydra's
        known = {name.partition(".")[0] for name in imported(file)} & {"hydra", "omegaconf"}
        assert not known or part(file) in KNOW_HYDRA or file.name == "sweeps.py", file


def test_samplers_know_no_detector() -> None:
    for file in (ROOT / "samplers").rglob("*.py"):
        known = {name.partition(".")[0] for name in imported(file)}
        assert not known & {"hydra", "omegaconf", "frcnn", "experiments", "tests"}, file


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, without what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield child
            yield from at_run_time(child)


def test_no_module_imports_itself_through_others() -> None:
    files = [f for top in ("frcnn", "samplers", "experiments") for f in (ROOT / top).rglob("*.py")]
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }
    graph: dict[str, set[str]] = {}
    for module, file in modules.items():
        names: set[str] = set()
        for node in at_run_time(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {str(node.module), *(f"{node.module}.{a.name}" for a in node.names)}
        graph[module] = (names & modules.keys()) - {module}
    assert graph["frcnn.sites.site"] >= {"frcnn.losses", "frcnn.losses.samples", "samplers"}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
