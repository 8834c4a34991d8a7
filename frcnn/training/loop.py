"""The training loop. Order, augmentation and draws depend on (seed, step, index) alone."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from frcnn.data import AspectGroupedBatches, Batch, empty_batch, prepare
from frcnn.errors import DIVERGED, UserError
from frcnn.model import Detector
from frcnn.parallel.device import autocast
from frcnn.parallel.group import Exchange, SingleProcess
from frcnn.runfolder.checkpoint import save
from frcnn.runfolder.signals import defer_signals
from frcnn.tracking.predictions import prediction_report
from frcnn.tracking.sampling import sampling_report
from frcnn.tracking.tracker import AnyTracker
from frcnn.training.accumulation import AccumulateStats, exchanges
from samplers import Candidates, Prediction

log = logging.getLogger(__name__)

Schedule = Callable[[int, int], float]
Observer = Callable[[str, Candidates, Tensor], Any]
NO_OPTIMIZERS: Mapping[str, torch.optim.Optimizer] = MappingProxyType({})
SITE_STREAM = 1 << 31  # larger than any rank, so that sites and processes never share a seed


def preview_all(site: str, candidates: Candidates, weights: Tensor) -> tuple[Tensor, Prediction]:
    """[K] rows of a site's candidates that are not ignored, and what is predicted for them."""
    rows = torch.where(candidates.labels >= 0)[0]
    return rows, candidates.predict(rows)


@dataclass
class Options:
    """What the configuration says of the loop.

    Args:
        describe: the text for an image's number (``target["image_id"]``) in messages.
    """

    seed: int
    accumulate: int
    clip_norm: float | None
    log_every: int
    sampling_every: int
    device: torch.device
    dtype: torch.dtype
    accumulate_stats: AccumulateStats = "batch"
    processes: SingleProcess = field(default_factory=SingleProcess)
    describe: Callable[[int], str] = str


class Engine:
    """Optimizer steps on a detector, counted from ``step``.

    Args:
        total_steps: of the whole run, which the schedule spans.
        folder: the run's, for a batch that made a loss non-finite.
    """

    def __init__(
        self,
        detector: Detector,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        total_steps: int,
        tracker: AnyTracker,
        folder: Path,
        options: Options,
        own_optimizers: Mapping[str, torch.optim.Optimizer] = NO_OPTIMIZERS,
    ) -> None:
        self.detector = detector
        self.processes = options.processes
        self.model = self.processes.data_parallel(detector)
        self.optimizer = optimizer
        self.own_optimizers = dict(own_optimizers)
        self.optimizers = [optimizer, *self.own_optimizers.values()]
        self.base_rates = [[g["lr"] for g in each.param_groups] for each in self.optimizers]
        self.schedule = schedule
        self.total_steps = total_steps
        self.tracker = tracker
        self.folder = folder
        self.options = options
        # fp16's range is small: its gradients vanish without scaling.
        self.scaler = torch.amp.GradScaler(enabled=options.dtype == torch.float16)
        self.step = 0
        self.window = Window([])

    def state_dict(self) -> dict[str, Any]:
        """What the next steps and the next record depend on, beside the weights."""
        return {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "own_optimizers": {name: o.state_dict() for name, o in self.own_optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "window": self.window.terms,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``."""
        self.step = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        for name, optimizer in self.own_optimizers.items():
            optimizer.load_state_dict(state["own_optimizers"][name])
        self.scaler.load_state_dict(state["scaler"])
        self.window = Window(state["window"])

    def epoch(
        self,
        loader: DataLoader,
        batches: AspectGroupedBatches,
        number: int,
        after_step: Callable[[], None],
    ) -> None:
        """Train to the end of an epoch, from wherever in it ``step`` stands.

        SIGTERM and Ctrl-C wait until a step ends; between steps weights, records and ``step``
        agree, and ``after_step`` may save them.
        """
        per_epoch = math.ceil(len(batches) / self.options.accumulate)
        done = self.step - number * per_epoch
        batches.set_position(number, done * self.options.accumulate)
        self.detector.train()
        steps = min(per_epoch, self.total_steps - number * per_epoch)
        self.window = Window(self.window.terms)  # a new clock: a validation is no training time
        # None = no bar where the output is no terminal.
        hidden = None if self.processes.first else True
        with (
            logging_redirect_tqdm(),
            tqdm(total=steps, initial=done, desc=f"epoch {number + 1}", disable=hidden) as bar,
        ):
            for group in grouped(iter(loader), self.options.accumulate):
                if self.step >= self.total_steps:
                    break
                with defer_signals():
                    self.window.loaded()
                    losses = self.train_step(group)
                    images = self.processes.size * sum(len(images) for images, _ in group)
                    self.window.add(losses, images)
                    if self.step % self.options.log_every == 0 or self.step == self.total_steps:
                        self._report(number)
                bar.update()
                after_step()

    def train_step(self, group: list[Batch]) -> dict[str, float]:
        """One optimizer step on ``accumulate`` batches.

        Returns:
            The loss terms, their sum "loss", and "grad_norm", that of all gradients before
            clipping.

        Raises:
            UserError: a loss is not finite; the batch is saved in the run's folder.
        """
        self._set_rates()
        forwards = [partial(self._forward, self.detector, group, n) for n in range(len(group))]
        stats = self.options.accumulate_stats
        terms: list[dict[str, float]] = []
        through = exchanges(forwards, self.detector, self.processes, stats)
        for number, exchange in enumerate(through):
            with self.processes.sync_gradients(self.model, number == len(group) - 1):
                # A step has one record. Previews exchange numbers, so all batches make them.
                observe = preview_all if number else self._observe
                losses = self._forward(self.model, group, number, exchange, observe)
                terms.append(self._backward(losses, group[number]))
        norm = self._update(group[-1])
        self.step += 1
        return {name: sum(t[name] for t in terms) for name in terms[0]} | {"grad_norm": norm}

    def _set_rates(self) -> None:
        """The schedule scales the learning rates of all optimizers."""
        factor = self.schedule(self.step, self.total_steps)
        for optimizer, rates in zip(self.optimizers, self.base_rates, strict=True):
            for base, parameters in zip(rates, optimizer.param_groups, strict=True):
                parameters["lr"] = base * factor

    def _forward(
        self,
        model: nn.Module,
        group: list[Batch],
        number: int,
        exchange: Exchange,
        observe: Observer = preview_all,
    ) -> dict[str, Tensor]:
        """The loss terms of batch ``number`` of the step; the same draws each time it is called.

        Args:
            exchange: what the sites exchange numbers through.
            observe: called at each site, in the steps that are observed.
        """
        options, batch = self.options, group[number]
        # Dropout and multi-scale draw from the global generator.
        stream = [self.processes.rank] + ([number] if len(group) > 1 else [])
        torch.manual_seed(step_seed(options.seed, self.step, *stream))
        self._prepare_sites(number, exchange, observe)
        images, targets = batch if batch[0] else empty_batch()
        try:
            with autocast(options.device, options.dtype):
                return model(prepare(images, options.device), targets)
        except FloatingPointError as error:  # a sampler met a loss that is not finite
            raise self._not_finite(batch, str(error)) from error
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"a batch of {len(images)} image is too small for BatchNorm: its last feature map "
                "is one pixel. Raise trainer.batch_size, or data.min_size and data.max_size"
            ) from error

    def _prepare_sites(self, number: int, exchange: Exchange, observe: Observer) -> None:
        """Tell each site who shares the batch, who observes it, and the seed of its draws.

        All processes observe: an observer's preview takes statistics over all of them.
        """
        observed = self.step % self.options.sampling_every == 0
        # With "step" all batches have the same seed, as all processes do.
        number = 0 if self.options.accumulate_stats == "step" else number
        for site in self.detector.sites.values():
            site.observer = observe if observed else None
            site.exchange = exchange
            site.seed = step_seed(self.options.seed, self.step, SITE_STREAM, site.index, number + 1)

    def _backward(self, losses: dict[str, Tensor], batch: Batch) -> dict[str, float]:
        terms = torch.stack(list(losses.values()))
        values = dict(zip(losses, terms.tolist(), strict=True))
        bad = [f"{name}={value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise self._not_finite(batch, ", ".join(bad))
        # DDP averages gradients; times the number of processes they are those of the sum.
        self.scaler.scale(terms.sum() * self.processes.size).backward()
        if self.processes.size > 1:
            values = dict(zip(losses, self.processes.total(terms.detach()).tolist(), strict=True))
        return {"loss": sum(values.values()), **values}

    def _update(self, batch: Batch) -> float:
        """Step the optimizers; the norm of all gradients before clipping."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        gradients = [p.grad for p in self.detector.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # A GPU's host waits here and for the terms, and nowhere else; in fp16 the scaler waits once
        # more for each optimizer.
        value = norm.item()
        # fp16's scaler skips such a step by itself; else the weights would all be NaN now.
        if not self.scaler.is_enabled() and not math.isfinite(value):
            raise self._not_finite(batch, f"gradient norm {value}")
        if self.options.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(
                self.detector.parameters(), self.options.clip_norm, norm
            )
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        return value

    def _not_finite(self, batch: Batch, what: str) -> UserError:
        path = self.folder / "bad_batch.pt"
        try:
            save(path, {"images": batch[0], "targets": batch[1], "step": self.step})
            kept = f"the batch is saved in {path}"
        except UserError as error:
            kept = str(error)
        images = [self.options.describe(target["image_id"]) for target in batch[1]]
        rate = self.optimizer.param_groups[0]["lr"]
        return UserError(
            f"{DIVERGED} {self.step}: {what}; learning rate {rate:.2g}, images "
            f"{', '.join(images) or 'none'}; {kept}. Try a lower optimizer.lr or a longer warm-up"
        )

    def _observe(self, site: str, candidates: Candidates, weights: Tensor) -> None:
        rows, prediction = preview_all(site, candidates, weights)
        loss = torch.zeros_like(weights)
        loss[rows] = prediction.loss
        scalars, histograms = sampling_report(
            candidates, weights, loss, num_images=candidates.num_images
        )
        scalars |= prediction_report(candidates, weights, rows, prediction)
        step = self.step + 1  # done when this one is, as in every record
        self.tracker.log({"step": step, **{f"sampling/{site}/{k}": v for k, v in scalars.items()}})
        named = {f"sampling/{site}/{key}": value for key, value in histograms.items()}
        self.tracker.log_histograms(named, step=step)

    def _report(self, epoch: int) -> None:
        names, record = self.window.terms[0], self.window.record()
        rate = self.optimizer.param_groups[0]["lr"]
        self.tracker.log({"step": self.step, "epoch": epoch + 1, "train/lr": rate, **record})
        terms = " ".join(
            f"{name.removeprefix('loss_')} {record[f'train/{name}']:.3f}" for name in names
        )
        log.info(
            "epoch %d step %d/%d  %s  lr %.4f  %.1f images/s",
            epoch + 1,
            self.step,
            self.total_steps,
            terms,
            rate,
            record["train/images_per_second"],
        )
        self.window = Window([])


class Window:
    """Means since the last log line; the clock counts from now.

    Args:
        terms: of the steps since the last log line that were done before, in the epoch before or
            before the run was stopped.
    """

    def __init__(self, terms: list[dict[str, float]]) -> None:
        self.terms = list(terms)
        self.steps = 0
        self.images = 0
        self.waited = 0.0
        self.start = self.mark = time.perf_counter()

    def loaded(self) -> None:
        """The next batches are here."""
        self.waited += time.perf_counter() - self.mark

    def add(self, losses: dict[str, float], images: int) -> None:
        """A step is done."""
        self.terms.append(losses)
        self.steps += 1
        self.images += images
        self.mark = time.perf_counter()

    def record(self) -> dict[str, float]:
        """Mean losses, images per second, seconds per step, share of time waiting for data."""
        seconds = self.mark - self.start
        means = {f"train/{n}": float(np.mean([t[n] for t in self.terms])) for n in self.terms[0]}
        return means | {
            "train/images_per_second": self.images / seconds,
            "train/seconds_per_step": seconds / self.steps,
            "train/data_wait": self.waited / seconds,
        }


def grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of ``size`` batches; the last may be shorter."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def step_seed(seed: int, step: int, *stream: int) -> int:
    """A seed for a step's draws of one stream, such as a process's rank."""
    return int(np.random.SeedSequence((seed, step, *stream)).generate_state(1)[0])
