"""``python -m experiments.benchmark [PART|all|against=DIR]``; PART is one of ``PARTS``.

Writes DIR/<device>.json, and DIR/<device>.md from it. ``--page`` puts the few figures of a CPU for
the README into a page, between a comment that names the JSON and ``<!-- end -->``.
``against=DIR`` compares training and validation of this checkout with those of the checkout in DIR,
and only prints.
"""

import argparse
import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import torch

from experiments.benchmark import (
    against,
    data,
    evaluation,
    losses,
    matching,
    samplers,
    start,
    step,
    validation,
)
from experiments.benchmark.machine import machine, now
from experiments.benchmark.report import headlines, markdown, store
from experiments.benchmark.targets import compared
from experiments.table import put
from frcnn.parallel.device import choose_device

# Each part with its share of the time.
PARTS = {
    "step": (step.measure, 0.15),
    "validation": (validation.measure, 0.05),
    "start": (start.measure, 0.05),
    "samplers": (samplers.measure, 0.43),
    "losses": (losses.measure, 0.02),
    "matching": (matching.measure, 0.08),
    "evaluation": (evaluation.measure, 0.05),
    "data": (data.measure, 0.17),
}


NAMES = ",".join([*PARTS, "all", "against=DIR"])


def part(text: str) -> str | Path:
    """The name of a part, or the folder of ``against=DIR``.

    Raises:
        ArgumentTypeError: it is neither.
    """
    if text.startswith("against="):
        return Path(text.removeprefix("against="))
    if text not in (*PARTS, "all"):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {NAMES}")
    return text


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__)
    parser.add_argument("part", nargs="?", default="all", type=part, metavar=f"{{{NAMES}}}")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--minutes", type=float, default=5, help="budget of `all` and `against`")
    parser.add_argument("--data-root", type=Path, help="BCCD's folder, else data/bccd or shapes")
    parser.add_argument("--out", type=Path, default=Path("experiments/benchmarks"), metavar="DIR")
    parser.add_argument("--page", type=Path, metavar="FILE", help="as README.md; of a CPU only")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    device = choose_device(options.device)
    if isinstance(options.part, Path):
        found = against.measure(options.part, device, 60 * options.minutes)
        print("\n\n".join(markdown(content) for content in found["tables"]))
        return
    file = options.out / f"{label(device)}.json"
    for name in PARTS if options.part == "all" else [options.part]:
        store(file, machine(device), {name: run(name, device, options)})
    if device.type == "cpu":
        results = json.loads(file.read_text())
        tables = [compared(results)]
        print("\n" + markdown(tables[0]))
        took = sum(part["took"] for name, part in results["parts"].items() if name in PARTS)
        store(file, machine(device), {"targets": {**now(), "took": took, "tables": tables}})
        if options.page:
            put(headlines(results), file.as_posix(), options.page)
    elif options.page:
        print(f"{options.page} stays as it is: its table is of a CPU")
    print(f"{file} and {file.with_suffix('.md')}")


def run(name: str, device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """One part's result; its tables are printed."""
    measure, share = PARTS[name]
    began = time.perf_counter()
    more = {"root": options.data_root or data.default_root()} if name == "data" else {}
    result = measure(device, 60 * options.minutes * share, **more)
    took = time.perf_counter() - began
    print(f"\n## {name}: {took:.0f} s\n")
    print("\n\n".join(markdown(content) for content in result["tables"]), flush=True)
    return {**now(), "took": took, **result}


def label(device: torch.device) -> str:
    """cpu, or the name of the GPU as a file's name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()
