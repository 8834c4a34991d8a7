"""What methods cost: a whole step against random sampling, and a sampler's call alone."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import Module

from experiments.benchmark import scenes, setting
from experiments.benchmark.limit import recorded
from experiments.benchmark.profile import profiled
from experiments.benchmark.report import WHY, Row, table
from experiments.benchmark.scenes import Scene
from experiments.benchmark.setting import ON_CPU, ON_CUDA, Workload
from experiments.benchmark.timing import interleaved, ratio, slope, spread
from experiments.benchmark.training import Training
from frcnn import build as assemble
from frcnn.config.compose import KNOWN, build, one_line
from frcnn.data import Batch
from frcnn.model import Detector
from frcnn.parallel.device import keep_freed_memory
from frcnn.sites.site import Site
from frcnn.training.run import methods_optimizers
from samplers import Sampler

BASELINE = "sampler=random"
MINING = "sampler=ohem"  # it previews every proposal
LIMITED = (BASELINE, MINING, "sampler=pisa")  # compared with their own products
TRAINED = 20  # steps; proposals of random weights hardly overlap, so that NMS takes longer
TOGETHER = 12  # variants that share one baseline: all of them run within a minute
STEPS, CALLS, LIMITS = 0.65, 0.1, 0.1  # shares of the time; the rest is for growth
OBJECTS = 30  # per image
# Methods of a site that are timed within a step, as its assigner is.
TIMED = ("draw", "losses")
# The presets of these groups are compared; those of the baseline are left out.
COMPARED = {
    "loss": "cross_entropy",
    "box_loss": "smooth_l1",
    "assigner": "max_iou",
    "weigher": "none",
}
# Large enough that the work takes the time, and not the calls of a hundred operators.
GROWTH = {
    "images": (8, 16, 32),
    "candidates per image": (8_000, 32_000, 128_000),
    "objects per image": (10, 100, 1_000),
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
            "Same weights and batch. `sampler/SITE` has random sampling at every other site. A "
            "difference smaller than the spread of the ratio is not shown. The time of labels, of "
            "drawing (both with the previews that methods ask for) and of the losses is taken "
            "within the step as well, over all sites.",
        )
    ]
    tables += [
        table(f"Where the time of a step goes: {name}", where) for name, where in profiles.items()
    ]
    sites = scenes_of(workload)
    found = {site: site_samplers(site) for site in sites}
    share = seconds * CALLS / len(sites)
    tables += [_alone(site, sites[site], calls, device, share) for site, calls in found.items()]
    last = list(sites)[-1]
    tables.append(_limits(workload, device, seconds * LIMITS))
    left = seconds * (1 - STEPS - CALLS - LIMITS)
    tables.append(_growth(last, sites[last], found[last], device, left))
    return {"tables": tables, "seconds": raw}


def variants() -> list[str]:
    """The overrides of all variants but the baseline.

    They are the presets of samplers and of the groups of ``COMPARED``, and every sampler at one
    site alone where no preset is that.
    """
    presets = [f"sampler={name}" for name in setting.options("sampler")]
    known = [setting.compose(preset)["sampler"] for preset in presets]
    single = [
        f"sampler/{site}={name}"
        for site in setting.site_names()
        for name in setting.options(f"sampler/{site}")
    ]
    new = [text for text in single if setting.compose(text)["sampler"] not in known]
    others = [
        f"{group}={name}"
        for group, usual in COMPARED.items()
        for name in setting.options(group)
        if name != usual
    ]
    return [*(preset for preset in presets if preset != BASELINE), *new, *others]


def scenes_of(workload: Workload) -> dict[str, Scene]:
    """The kind of candidates of each site of a workload's network."""
    config = setting.compose(*workload.overrides())
    sites = assemble.detector(config, num_classes=2).sites
    return {name: scenes.of_kind(site.kind) for name, site in sites.items()}


def _precision(device: torch.device) -> str:
    return "bf16" if setting.computes_bf16(device) else "fp32"


class Variants:
    """Training steps of one network, whose sites are exchanged.

    Attributes:
        clocks: by variant the seconds of ``TIMED`` and of the labels at every site, call by call.
    """

    def __init__(self, workload: Workload, device: torch.device) -> None:
        config = setting.compose(*workload.overrides())
        self.workload, self.device = workload, device
        self.batch, self.classes = setting.batch_of(config)
        self.training = Training(setting.ours(config, self.classes, device), config, device)
        self.clocks: dict[str, list[list[float]]] = {}

    def step(self, override: str) -> Callable[[], object]:
        """The training step of a variant.

        Raises:
            one of ``KNOWN``: this network cannot have it.
        """
        detector = _detector(self.workload, self.classes, override).to(self.device)
        self.clocks[override] = timed(detector.sites.values(), self.device)
        optimizers = list(methods_optimizers(detector).values())
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = 0.0
        return partial(
            _step,
            self.training,
            contents(detector),
            optimizers,
            self.batch,
            _precision(self.device),
        )

    def train(self, steps: int) -> None:
        """Change the weights by some steps on the batch."""
        for value in (0.01, 0.0):
            for group in self.training.optimizer.param_groups:
                group["lr"] = value
            for _ in range(steps if value else 0):
                self.training.step(self.batch, _precision(self.device))


def _steps(
    workload: Workload, device: torch.device, seconds: float
) -> tuple[list[Row], dict[str, list[float]], dict[str, list[Row]]]:
    """Rows of all variants, their seconds, and where the time of two of them goes."""
    if device.type == "cpu":
        keep_freed_memory()
    made, names = Variants(workload, device), [BASELINE, *variants()]
    steps, refused = _built(made, names)
    steps[BASELINE]()  # all other steps find the same memory and code
    rows: list[Row] = [{"variant": BASELINE}]
    raw: dict[str, list[float]] = {}
    turns: list[float] = []  # of the baseline
    for group in _groups([name for name in steps if name != BASELINE]):
        calls = {name: steps[name] for name in (BASELINE, *group)}
        share = seconds * len(group) / len(names)
        found = interleaved(calls, share, wait=setting.waiter(device), warm_up=False)
        usual = found.pop(BASELINE)
        rows += [_row(name, values, usual) for name, values in found.items()]
        raw |= {f"{BASELINE} beside {', '.join(found)}": usual, **found}
        turns += usual
    rows[0] |= _row(BASELINE, turns, turns)
    for row in rows:
        row |= _own(made.clocks[row["variant"]], made.clocks[BASELINE], turns)
    rows += [{"variant": name, WHY: why} for name, why in refused.items()]
    looked_into = [name for name in (BASELINE, MINING) if name in steps]
    return rows, raw, {name: profiled(steps[name], device) for name in looked_into}


def _limits(workload: Workload, device: torch.device, seconds: float) -> dict[str, Any]:
    """Steps of trained weights against their own products."""
    made = Variants(workload, device)
    steps = {name: made.step(name) for name in LIMITED}
    made.train(TRAINED)
    calls: dict[str, Callable[[], object]] = dict(steps)
    calls |= {f"limit of {name}": recorded(step) for name, step in steps.items()}
    found = interleaved(calls, seconds, wait=setting.waiter(device))
    rows: list[Row] = [
        {
            "step": f"{name}, after {TRAINED} steps",
            "step / limit": ratio(found[name], found[f"limit of {name}"]),
            "times random": ratio(found[name], found[BASELINE]),
            "seconds": spread(found[name]),
        }
        for name in LIMITED
    ]
    title = f"Distance from the limit by sampler: {workload}, {_precision(device)}"
    return table(title, rows, "The limit is the convolutions and products of the same step.")


def _built(
    made: Variants, names: Sequence[str]
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """The steps of the variants that this network can have, and why it cannot have the others."""
    steps, refused = {}, {}
    for name in names:
        try:
            steps[name] = made.step(name)
        except KNOWN as error:
            refused[name] = one_line("train", error)
    return steps, refused


def timed(sites: Iterable[Site], device: torch.device) -> list[list[float]]:
    """Put clocks around the assigner and ``TIMED`` of each site: the seconds of each, by call.

    None on a GPU: to wait for it would slow the step down.
    """
    if device.type == "cuda":
        return []
    clocks: list[list[float]] = []
    for site in sites:
        parts: list[tuple[Any, str]] = [(site, part) for part in TIMED]
        # A site takes no function in the place of a module.
        module = isinstance(site.assigner, Module)
        parts.append((site.assigner, "forward") if module else (site, "assigner"))
        for owner, part in parts:
            clocks.append([])
            setattr(owner, part, clocked(getattr(owner, part), clocks[-1]))
    return clocks


def clocked(call: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The same call, which also appends its seconds."""

    def run(*args: Any, **named: Any) -> Any:
        start = time.perf_counter()
        result = call(*args, **named)
        seconds.append(time.perf_counter() - start)
        return result

    return run


def _own(calls: list[list[float]], usual: list[list[float]], turns: Sequence[float]) -> Row:
    """The time of what a site does in a step, and how much more it is than the baseline's."""
    if not calls:
        return {}
    ours, random = (sum(spread(seconds)["median"] for seconds in c) for c in (calls, usual))
    more = 100 * (ours - random) / spread(turns)["median"]
    return {"labels, drawing and losses, ms": 1000 * ours, "more than random, % of its step": more}


def _groups(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """At least one, which is empty if there are no names."""
    for first in range(0, max(1, len(names)), TOGETHER):
        yield names[first : first + TOGETHER]


def _detector(workload: Workload, classes: int, override: str) -> Detector:
    """The detector of a variant."""
    config = setting.compose(*workload.overrides(), override)
    images = assemble.dataset(config["data"], "train")
    assemble.fill_from_data(config["loss"], images, config["model"]["sites"])
    return assemble.detector(config, classes)


def contents(detector: Detector) -> dict[str, dict[str, Any]]:
    """The attributes of each site of a detector, by the site's name."""
    return {name: vars(site) for name, site in detector.sites.items()}


def _step(
    training: Training,
    sites: Mapping[str, dict[str, Any]],
    optimizers: Sequence[torch.optim.Optimizer],
    batch: Batch,
    precision: str,
) -> Any:
    """A step of the network with the sites of a variant, given as ``contents``.

    Args:
        optimizers: those of the variant's own weights.
    """
    for name, site in training.model.sites.items():
        site.__dict__ = sites[name]
    losses = training.step(batch, precision)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return losses


def _row(name: str, found: Sequence[float], usual: Sequence[float]) -> Row:
    return {
        "variant": name,
        "times random": ratio(found, usual),
        "seconds": spread(found),
        "rounds": len(found),
    }


def site_samplers(site: str) -> dict[str, Sampler]:
    """Every sampler that a site can have, ``random`` first."""
    names = sorted(setting.options(f"sampler/{site}"), key=lambda name: name != "random")
    nodes = {n: setting.compose(f"sampler/{site}={n}")["sampler"][site] for n in names}
    return {name: build(node) for name, node in nodes.items()}


def _alone(
    site: str, scene: Scene, found: dict[str, Sampler], device: torch.device, seconds: float
) -> dict[str, Any]:
    """Calls of every sampler of a site, without the cost of the prediction."""
    images, number = 8, scene.number
    made = scenes.candidates(scene, images, number, OBJECTS, device)
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


def _growth(
    site: str, scene: Scene, found: dict[str, Sampler], device: torch.device, seconds: float
) -> dict[str, Any]:
    """Log-log slopes of the median times over the sizes of ``GROWTH``, at one site."""
    rows: dict[str, Row] = {name: {"sampler": name} for name in found}
    usual = dict(zip(GROWTH, (2, scene.number, OBJECTS), strict=True))
    for what, sizes in GROWTH.items():
        made = [scenes.candidates(scene, *around(usual, what, n), device) for n in sizes]
        for name, call in found.items():
            calls = {str(size): partial(call, m) for size, m in zip(sizes, made, strict=True)}
            share = seconds / len(found) / len(GROWTH)
            times = interleaved(calls, share, wait=setting.waiter(device))
            medians = [spread(values)["median"] for values in times.values()]
            rows[name][f"{what}, {sizes[0]:,} to {sizes[-1]:,}"] = slope(sizes, medians)
    others = ", ".join(f"{value:,} {what}" for what, value in usual.items())
    return table(
        f"Growth of a sampler's call at {site}: exponent p of time ~ size^p",
        list(rows.values()),
        f"One number grows at a time, the others stay: {others}.",
    )


def around(usual: Mapping[str, int], what: str, size: int) -> tuple[int, int, int]:
    """Images, candidates and objects per image: the usual ones, but one of them."""
    images, number, objects = {**usual, what: size}.values()
    return images, number, objects
