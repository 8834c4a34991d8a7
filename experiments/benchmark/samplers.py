"""What each sampler and loss costs: a whole step against random sampling, and the call alone."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from experiments.benchmark import scenes, setting
from experiments.benchmark.profile import profiled
from experiments.benchmark.report import WHY, Row, table
from experiments.benchmark.setting import ON_CPU, ON_CUDA, Workload
from experiments.benchmark.timing import interleaved, ratio, slope, spread
from experiments.benchmark.training import Training
from frcnn import build as assemble
from frcnn.config.compose import KNOWN, build, one_line
from frcnn.data import Batch
from frcnn.parallel.device import keep_freed_memory
from frcnn.sites.site import Site
from samplers import Sampler

BASELINE = "sampler=random"
MINING = "sampler=ohem"  # the head looks at all proposals before it trains on some
# So many variants share a turn of the baseline: what is compared runs within a minute.
TOGETHER = 12
STEPS, CALLS = 0.75, 0.1  # shares of the time; the rest is for growth
OBJECTS = 30
# Candidates an image: anchors of 1333x800, proposals.
NUMBER = {"rpn": 200_000, "rcnn": 2_000}
# Large enough that the time is the work's, not that of calling a hundred operators.
GROWTH = {
    "candidates an image": (8_000, 32_000, 128_000),
    "images": (8, 16, 32),
    "objects an image": (10, 100, 1_000),
}


def measure(device: torch.device, seconds: float) -> dict[str, Any]:
    """Tables of whole steps, of calls alone and of their growth."""
    workload = ON_CPU if device.type == "cpu" else ON_CUDA[-1]
    rows, raw, profiles = _steps(workload, device, seconds * STEPS)
    precision = _precision(device)
    tables = [
        table(
            f"A step against random sampling: {workload}, {precision}",
            rows,
            "Same weights and batch; `sampler/rpn` has random sampling at the RCNN head. A ratio "
            "of steps tells no difference smaller than its spread. Drawing (with the previews that "
            "samplers ask for) and losses are timed within the step as well, at both sites.",
        )
    ]
    tables += [
        table(f"Where the time of a step goes: {name}", where) for name, where in profiles.items()
    ]
    found = {site: site_samplers(site) for site in NUMBER}
    share = seconds * CALLS / len(found)
    tables += [_alone(site, calls, device, share) for site, calls in found.items()]
    tables.append(_growth(found["rcnn"], device, seconds * (1 - STEPS - CALLS)))
    return {"tables": tables, "seconds": raw}


def variants() -> list[str]:
    """The override of every preset of conf/ that is not the baseline."""
    groups = {"sampler": "random", "sampler/rpn": "random", "loss": "cross_entropy"}
    return [
        f"{group}={name}"
        for group, usual in groups.items()
        for name in setting.options(group)
        if name != usual
    ]


def _precision(device: torch.device) -> str:
    return "bf16" if setting.computes_bf16(device) else "fp32"


def _steps(
    workload: Workload, device: torch.device, seconds: float
) -> tuple[list[Row], dict[str, list[float]], dict[str, list[Row]]]:
    """Rows of all variants, their seconds, and where the time of two of them goes."""
    if device.type == "cpu":
        keep_freed_memory()
    config = setting.compose(*workload.overrides())
    batch, classes = setting.batch_of(config)
    training = Training(setting.ours(config, classes, device), config, device)
    clocks = {BASELINE: timed(training.model.sites, device)}
    usual = partial(_step, training, training.model.sites, batch, _precision(device))
    usual()  # all other steps find the same memory and code
    rows: list[Row] = [{"variant": BASELINE}]
    raw: dict[str, list[float]] = {}
    steps: dict[str, Callable[[], object]] = {}
    names = variants()
    for group in _groups(names):
        calls: dict[str, Callable[[], object]] = {BASELINE: usual}
        for name in group:
            try:
                sites = _sites(workload, classes, name)
            except KNOWN as error:
                rows.append({"variant": name, WHY: one_line("train", error)})
                continue
            clocks[name] = timed(sites, device)
            calls[name] = partial(_step, training, sites, batch, _precision(device))
        steps |= calls
        share = seconds * len(group) / len(names)
        found = interleaved(calls, share, wait=setting.waiter(device), warm_up=False)
        usually = found.pop(BASELINE)
        raw[f"{BASELINE} beside {', '.join(found)}"] = usually
        raw |= found
        rows += [_row(name, found[name], usually) for name in found]
    turns = [s for name, values in raw.items() if name.startswith(BASELINE) for s in values]
    rows[0] |= _row(BASELINE, turns, turns)
    for row in rows:
        if WHY not in row:
            row |= _own(clocks[row["variant"]], clocks[BASELINE], turns)
    looked_into = {BASELINE: usual, **({MINING: steps[MINING]} if MINING in steps else {})}
    return rows, raw, {name: profiled(step, device) for name, step in looked_into.items()}


def timed(sites: Sequence[Site], device: torch.device) -> list[list[float]]:
    """Put a clock around draw and losses of each site: the seconds of each, call by call.

    None on a GPU, which to wait for would slow the step down.
    """
    if device.type == "cuda":
        return []
    clocks: list[list[float]] = []
    for site in sites:
        for part in ("draw", "losses"):
            clocks.append([])
            setattr(site, part, clocked(getattr(site, part), clocks[-1]))
    return clocks


def clocked(call: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The same call, which leaves behind how long it took."""

    def run(*args: Any) -> Any:
        start = time.perf_counter()
        result = call(*args)
        seconds.append(time.perf_counter() - start)
        return result

    return run


def _own(calls: list[list[float]], usual: list[list[float]], turns: Sequence[float]) -> Row:
    """What drawing and losses of a step took, and took more than with the baseline."""
    if not calls:
        return {}
    ours, random = (sum(spread(seconds)["median"] for seconds in c) for c in (calls, usual))
    more = 100 * (ours - random) / spread(turns)["median"]
    return {"drawing and losses, ms": 1000 * ours, "more than random, % of its step": more}


def _groups(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(names), TOGETHER):
        yield names[first : first + TOGETHER]


def _sites(workload: Workload, classes: int, override: str) -> tuple[Site, Site]:
    """The two sites of a variant; the network they come with is dropped."""
    config = setting.compose(*workload.overrides(), override)
    assemble.fill_from_data(config["loss"], assemble.dataset(config["data"], "train"))
    return assemble.detector(config, classes).sites


def _step(training: Training, sites: tuple[Site, Site], batch: Batch, precision: str) -> object:
    training.model.rpn.site, training.model.roi_heads.site = sites
    return training.step(batch, precision)


def _row(name: str, found: Sequence[float], usual: Sequence[float]) -> Row:
    return {
        "variant": name,
        "times random": ratio(found, usual),
        "seconds": spread(found),
        "rounds": len(found),
    }


def site_samplers(site: str) -> dict[str, Sampler]:
    """The samplers of conf/sampler/<site>, ``random`` first."""
    names = sorted(setting.options(f"sampler/{site}"), key=lambda name: name != "random")
    nodes = {n: setting.compose(f"sampler/{site}={n}")["sampler"][site] for n in names}
    return {name: build(node) for name, node in nodes.items()}


def _alone(
    site: str, found: dict[str, Sampler], device: torch.device, seconds: float
) -> dict[str, Any]:
    """Calls of every sampler of a site, beyond what the prediction costs."""
    images, number = 8, NUMBER[site]
    made = scenes.candidates(site, images, number, OBJECTS, device)
    calls = {name: partial(call, made) for name, call in found.items()}
    times = interleaved(calls, seconds, wait=setting.waiter(device))
    return table(
        f"Call of a sampler/{site}: {images} images x {number:,} candidates x {OBJECTS} objects",
        [
            {
                "sampler": name,
                "times random": ratio(values, times["random"]),
                "ms": spread([1000 * value for value in values]),
            }
            for name, values in times.items()
        ],
        "The prediction is an index into numbers made before: only the choice is timed.",
    )


def _growth(found: dict[str, Sampler], device: torch.device, seconds: float) -> dict[str, Any]:
    """Log-log slopes of the median times over the sizes of ``GROWTH``, at the RCNN head."""
    rows: dict[str, Row] = {name: {"sampler": name} for name in found}
    usual = {"images": 2, "candidates an image": NUMBER["rcnn"], "objects an image": OBJECTS}
    for what, sizes in GROWTH.items():
        made = [
            scenes.candidates("rcnn", *(usual | {what: size}).values(), device) for size in sizes
        ]
        for name, call in found.items():
            calls = {str(size): partial(call, m) for size, m in zip(sizes, made, strict=True)}
            share = seconds / len(found) / len(GROWTH)
            times = interleaved(calls, share, wait=setting.waiter(device))
            medians = [spread(values)["median"] for values in times.values()]
            rows[name][f"{what}, {sizes[0]:,} to {sizes[-1]:,}"] = slope(sizes, medians)
    around = ", ".join(f"{value:,} {what}" for what, value in usual.items())
    return table(
        "Growth of a sampler's call at RCNN: exponent p of time ~ size^p",
        list(rows.values()),
        f"One grows at a time, the others stay: {around}.",
    )
