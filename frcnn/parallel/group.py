"""What the processes exchange that train one detector together.

A step of R processes with batches of b equals a step of one process with a batch of R b. Every
statistic that a loss or a sampler takes over the batch (a normalizer, a density, a rank) is taken
over the batches of all processes. Only these few numbers, the gradients and the sums of BatchNorm
are sent.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from frcnn.parallel.cluster import RankInfo


class Exchange(Protocol):
    """How the sites of one batch hear of the other parts of the optimizer step."""

    def total(self, value: Tensor) -> Tensor:
        """Sum over all who share the batch, with gradient."""

    def step_total(self, count: Tensor) -> Tensor:
        """Sum over the whole step of a number that a pass without gradient knows, for normalizers.

        It is a count, or a sum of an assigner's weights; never a loss.
        """

    def gather(self, rows: Tensor) -> tuple[Tensor, slice]:
        """[K, ...] rows of all who share the batch, and which of them are of this part."""


class SingleProcess:
    """A run in one process: every exchange returns its own value."""

    rank = 0
    size = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """Sum over the processes, with gradient."""
        return value

    def step_total(self, count: Tensor) -> Tensor:
        """Sum of a count over the processes and over the batches of an optimizer step."""
        return self.total(count)

    def gather(self, rows: Tensor) -> tuple[Tensor, slice]:
        """[K, ...] rows of every process, stacked by rank, and the slice of this process's rows."""
        return rows, slice(0, len(rows))

    def gather_objects(self, value: Any) -> list[Any]:
        """The value of every process, by rank; an empty list on all processes but the first."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """The value of the first process."""
        return value

    def data_parallel(self, detector: nn.Module) -> nn.Module:
        """The module whose forward pass is called in training."""
        return detector

    def sync_gradients(self, model: nn.Module, last: bool) -> AbstractContextManager:
        """The context of a forward and backward pass; the ``last`` of a step averages gradients."""
        return nullcontext()


class ProcessGroup(SingleProcess):
    """One of several processes of ``torch.distributed``."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def total(self, value: Tensor) -> Tensor:
        """Sum over the processes, with gradient."""
        if value.requires_grad:
            return all_reduce(value)
        value = value.clone()
        dist.all_reduce(value)
        return value

    def gather(self, rows: Tensor) -> tuple[Tensor, slice]:
        """[K, ...] rows of every process, stacked by rank, and the slice of this process's rows."""
        sizes = torch.zeros(self.size, dtype=torch.int64, device=rows.device)
        sizes[self.rank] = len(rows)
        dist.all_reduce(sizes)
        ends = sizes.cumsum(0).tolist()
        own = slice(ends[self.rank] - len(rows), ends[self.rank])
        gathered = rows.new_zeros(ends[-1], *rows.shape[1:])
        gathered[own] = rows
        dist.all_reduce(gathered)
        return gathered, own

    def gather_objects(self, value: Any) -> list[Any]:
        """The value of every process, by rank; an empty list on all processes but the first."""
        values: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(value, values)
        return values or []

    def broadcast(self, value: Any) -> Any:
        """The value of the first process."""
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def data_parallel(self, detector: nn.Module) -> nn.Module:
        """The module whose forward pass is called in training; it averages the gradients."""
        share_batch_norm(detector, next(detector.parameters()).device)
        # Shared BatchNorm keeps the buffers equal, so nothing has to be sent for them.
        return DistributedDataParallel(detector, broadcast_buffers=False)

    def sync_gradients(self, model: nn.Module, last: bool) -> AbstractContextManager:
        """The context of a forward and backward pass; the ``last`` of a step averages gradients."""
        assert isinstance(model, DistributedDataParallel)
        return nullcontext() if last else model.no_sync()


@contextmanager
def join_group(here: RankInfo, store: dist.Store, device: torch.device) -> Iterator[ProcessGroup]:
    """Join the group of processes, which find each other through the store."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size)
    yield ProcessGroup()
    # Not after an error: the others would lose the connection before the error is reported.
    dist.destroy_process_group()


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the images of all processes on CPUs; torch's SyncBatchNorm needs CUDA."""

    def forward(self, values: Tensor) -> Tensor:
        """Normalize [B, C, H, W] of this process with the mean and variance over all processes."""
        if not self.training:
            return super().forward(values)
        kind, values, axes = values.dtype, values.float(), (0, 2, 3)
        size = values.new_tensor(values.numel() // values.shape[1])
        dist.all_reduce(size)
        mean = all_reduce(values.sum(axes)) / size
        centered = values - mean[:, None, None]
        variance = all_reduce(centered.square().sum(axes)) / size
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        with torch.no_grad():
            unbiased = variance * size / (size - 1)
            for running, now in ((self.running_mean, mean), (self.running_var, unbiased)):
                running.lerp_(now.to(running), self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(kind)


def share_batch_norm(model: nn.Module, device: torch.device) -> None:
    """Make every trainable BatchNorm use the images of all processes; parameter names stay."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm
