"""A run that was killed ends as if it had not been: kill_loop.py in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kill_loop import CASES, kills
from tiny import options

TESTS = Path(__file__).parent


def test_every_sampler_has_a_case() -> None:
    assert set(CASES) == set(options("sampler"))


@pytest.mark.slow
def test_runs_killed_anywhere_end_as_those_left_alone(
    record_property: Callable[[str, object], None],
) -> None:
    done = subprocess.run(
        [sys.executable, str(TESTS / "kill_loop.py")],
        env=os.environ | {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    assert kills(counts) >= 50 and counts["samplers"] == len(CASES)
    points = [name for name in counts if name.startswith("before ")]
    shown = ("runs compared", "SIGTERM", "SIGINT", "samplers")
    record_property(
        "counts",
        f"kill loop: {kills(counts)} kill -9, {len(points)} kinds of file operation, "
        + ", ".join(f"{counts.get(name, 0)} {name}" for name in shown),
    )
