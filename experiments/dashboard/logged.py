"""The sites and the loss terms that runs logged."""

import re
from pathlib import Path

from experiments.report.runs import NO_TERMS

SITE = re.compile(r'"sampling/([^/"]+)/')
TRAIN = re.compile(r'"train/([^/"]+)"')


def sites_and_terms(folder: Path) -> tuple[list[str], list[str]]:
    """Names in the order in which they first appear, of all runs below a folder; [] of none.

    A regular expression also reads a file whose last line a running process is still writing.
    """
    sites: dict[str, None] = {}
    terms: dict[str, None] = {}
    for file in sorted(folder.rglob("metrics.jsonl")):
        text = file.read_text()
        sites |= dict.fromkeys(SITE.findall(text))
        terms |= dict.fromkeys(name for name in TRAIN.findall(text) if name not in NO_TERMS)
    return list(sites), list(terms)
