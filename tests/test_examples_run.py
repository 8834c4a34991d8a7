"""The examples that the pages show run as they stand."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TERMS = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")
FENCE = re.compile(r"```python\n(.*?)```", re.S)


def test_a_loop_of_ones_own_trains() -> None:
    line = [sys.executable, "-m", "examples.own_loop", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert [text.partition(":")[0] for text in printed] == ["step 1", "step 2"]
    for text in printed:
        assert all(name in text for name in TERMS)
        values = [float(value) for value in re.findall(r": (-?[\d.]+|nan|inf)\b", text)]
        assert len(values) == len(TERMS)
        assert all(math.isfinite(value) and value > 0 for value in values)


def test_the_readme_shows_lines_of_the_example() -> None:
    (shown,) = FENCE.findall((ROOT / "README.md").read_text())
    lines = (ROOT / "examples/own_loop.py").read_text().splitlines()
    example = {line.strip() for line in lines}
    for line in shown.splitlines():
        assert line.strip() in example, line
