"""How time and memory of matching grow with the numbers of objects and anchors."""

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from experiments.benchmark import memory, scenes, setting
from experiments.benchmark.report import WHY, Row, table
from experiments.benchmark.timing import interleaved, slope, spread
from frcnn.sites.assigners import Assigned
from frcnn.sites.site import stack_candidates

# (objects, anchors) of one image.
Size = tuple[int, int]
GROWTH: dict[str, list[Size]] = {
    "objects": [(10, 62_500), (100, 62_500), (1_000, 62_500)],
    "anchors": [(100, 15_625), (100, 62_500), (100, 250_000)],
}
LARGEST: Size = (1_000, 250_000)
LEAST = 1e6  # bytes; less cannot be measured


def measure(device: torch.device, seconds: float) -> dict[str, Any]:
    """Tables of the largest image and of the growth."""
    rises = _rises(device)
    share = seconds / len(GROWTH)
    rows = [_growth(what, sizes, rises, device, share) for what, sizes in GROWTH.items()]
    largest: Row = {"image": f"{LARGEST[0]:,} objects, {LARGEST[1]:,} anchors"}
    if rises:
        rise, took = rises[LARGEST]
        largest |= {"peak memory above the baseline, MB": round(rise / memory.MB), "seconds": took}
    else:
        largest[WHY] = memory.NO_PROC
    title = "Growth of matching anchors: exponent p of time, memory ~ size^p"
    return {"tables": [table("Matching the largest image", [largest]), table(title, rows)]}


def _growth(
    what: str,
    sizes: list[Size],
    rises: dict[Size, tuple[int, float]],
    device: torch.device,
    seconds: float,
) -> Row:
    calls = {str(size): matching(size, device) for size in sizes}
    found = interleaved(calls, seconds, wait=setting.waiter(device))
    times = [spread(values)["median"] for values in found.values()]
    varied = ("objects", "anchors").index(what)
    numbers = [size[varied] for size in sizes]
    row: Row = {
        "growing": f"{what}, {numbers[0]:,} to {numbers[-1]:,}",
        "time": slope(numbers, times),
        "memory": WHY,
        "ms at the largest": 1000 * times[-1],
    }
    if rises:
        peaks = [rises[size][0] for size in sizes]
        row["memory"] = slope(numbers, [max(peak, LEAST) for peak in peaks])
        row["MB at the largest"] = round(peaks[-1] / memory.MB)
    return row


def matching(size: Size, device: torch.device) -> partial:
    """The matching of one image's anchors as an RPN has them, ready to be called."""
    objects, anchors = size
    here, there = scenes.image(scenes.ANCHORS, anchors, objects, torch.Generator().manual_seed(0))
    labels = torch.ones(objects, dtype=torch.int64, device=device)
    target = {"boxes": there.to(device)}
    return partial(_assign, here.to(device), target, labels)


def _assign(boxes: Tensor, target: dict[str, Tensor], labels: Tensor) -> Assigned:
    return scenes.ANCHORS.assigner(stack_candidates([boxes], [target], [labels]))


def _rises(device: torch.device) -> dict[Size, tuple[int, float]]:
    """By size the peak memory above the baseline in bytes, and the seconds of that call."""
    sizes = {size for sizes in GROWTH.values() for size in sizes} | {LARGEST}
    if device.type == "cuda":
        return {size: peak(size, str(device)) for size in sizes}
    if not memory.can_measure():
        return {}
    return {size: memory.in_child(peak, size, "cpu") for size in sizes}


def peak(size: Size, device_name: str) -> tuple[int, float]:
    """Bytes and seconds of one matching."""
    device = torch.device(device_name)
    matching((2, 100), device)()  # loads the code, whose memory must not count
    call, wait = matching(size, device), setting.waiter(device)
    rise = memory.cuda_rise if device.type == "cuda" else memory.rise
    began = time.perf_counter()
    found = rise(call)
    wait()
    return found, time.perf_counter() - began
