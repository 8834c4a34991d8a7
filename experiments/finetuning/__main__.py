"""``python -m experiments.finetuning DIR [--page FILE]``: a table of a sweep's evaluated runs.

AP is what ``frcnn.evaluate`` wrote; beside it stands what plain pycocotools finds in the files
``results.json`` and ``ground_truth.json``. Exit code 1 if they differ.
"""

import argparse
import contextlib
import io
import json
from pathlib import Path

from experiments import table

SAME = 1e-9  # the files hold all digits
# Of pycocotools' twelve numbers.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
CSV = "experiments/finetuning/results.csv"  # the table's place in the page


def scored(folder: Path) -> dict[str, float]:
    """pycocotools' numbers for the files that ``frcnn.evaluate`` wrote; -1 where it has none."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(folder / "ground_truth.json")
        evaluator = COCOeval(truth, truth.loadRes(str(folder / "results.json")), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(NAMES, evaluator.stats.tolist(), strict=True))


def difference(folder: Path) -> float:
    """The largest difference between pycocotools' numbers and those of ``metrics.json``."""
    own = json.loads((folder / "metrics.json").read_text())
    plain = scored(folder)
    return max(abs(plain[name] - (-1 if own[name] is None else own[name])) for name in NAMES)


def row(folder: Path) -> dict[str, str]:
    """A row of the table, of an evaluation's folder."""
    truth = json.loads((folder / "ground_truth.json").read_text())
    plain = scored(folder)
    return {
        "set": folder.parents[1].name,
        "images": str(len(truth["images"])),
        "classes": str(len(truth["categories"])),
        **{name: f"{plain[name]:.4f}" for name in ("AP", "AP50", "AP75")},
        "largest difference to pycocotools": f"{difference(folder):.1g}",
    }


def main() -> None:
    """Print the table, and write it beside and into a page."""
    parser = argparse.ArgumentParser("experiments.finetuning", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    folders = sorted(file.parent for file in options.folder.glob("*/evaluation/*/results.json"))
    if not folders:
        raise SystemExit(f"{options.folder}: no run is evaluated; call frcnn.evaluate")
    rows = [row(folder) for folder in folders]
    print(table.markdown(rows))
    if options.page:
        table.write(options.page.with_name("results.csv"), rows)
        table.put(table.markdown(rows), CSV, options.page)
    differing = [str(folder) for folder in folders if difference(folder) > SAME]
    if differing:
        raise SystemExit(f"pycocotools finds other numbers in {', '.join(differing)}")


if __name__ == "__main__":
    main()
