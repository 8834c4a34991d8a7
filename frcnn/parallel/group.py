"""Several processes that train one detector: what they say to each other.

A step of R processes with batches of b is the step of one process with a batch of R b: everything
that a loss or a sampler takes over the batch (a normalizer, a density, a rank) is taken over the
batches of all. Only these few numbers, the gradients and BatchNorm's sums travel.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from frcnn.parallel.cluster import RankInfo


class SingleProcess:
    """One process: the batch is its own, and there is nobody to wait for."""

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
        """[K, ...] rows of every process, stacked by rank, and which of them are of this one."""
        return rows, slice(0, len(rows))

    def gather_objects(self, value: Any) -> list[Any]:
        """The value of every process, by rank; to the first one only, others get nothing."""
        return [value]

    def broadcast(self, value: Any) -> Any:
        """What the first process has for a value."""
        return value

    def data_parallel(self, detector: nn.Module) -> nn.Module:
        """The detector as its forward pass is called in training."""
        return detector

    def sync_gradients(self, model: nn.Module, last: bool) -> AbstractContextManager:
        """Around a forward and backward pass; gradients meet in the ``last`` one of a step."""
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
        """[K, ...] rows of every process, stacked by rank, and which of them are of this one."""
        sizes = torch.zeros(self.size, dtype=torch.int64, device=rows.device)
        sizes[self.rank] = len(rows)
        dist.all_reduce(sizes)
        ends = sizes.cumsum(0).tolist()
        mine = slice(ends[self.rank] - len(rows), ends[self.rank])
        table = rows.new_zeros(ends[-1], *rows.shape[1:])
        table[mine] = rows
        dist.all_reduce(table)
        return table, mine

    def gather_objects(self, value: Any) -> list[Any]:
        """The value of every process, by rank; to the first one only, others get nothing."""
        values: list[Any] | None = [None] * self.size if self.first else None
        dist.gather_object(value, values)
        return values or []

    def broadcast(self, value: Any) -> Any:
        """What the first process has for a value."""
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def data_parallel(self, detector: nn.Module) -> nn.Module:
        """The detector as its forward pass is called in training: gradients are averaged."""
        share_batch_norm(detector, next(detector.parameters()).device)
        # So BatchNorm's numbers agree by themselves.
        return DistributedDataParallel(detector, broadcast_buffers=False)

    def sync_gradients(self, model: nn.Module, last: bool) -> AbstractContextManager:
        """Around a forward and backward pass; gradients meet in the ``last`` one of a step."""
        assert isinstance(model, DistributedDataParallel)
        return nullcontext() if last else model.no_sync()


@contextmanager
def join_group(here: RankInfo, store: dist.Store, device: torch.device) -> Iterator[ProcessGroup]:
    """A member of a group of processes, which find each other through the store."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size)
    yield ProcessGroup()
    # Not after an error: the others would hear of the end before they hear of its reason.
    dist.destroy_process_group()


class SharedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the images of all processes, where torch's own (CUDA only) cannot run."""

    def forward(self, values: Tensor) -> Tensor:
        """[B, C, H, W] of this process, normalized with the mean and variance over all."""
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
    """Let every BatchNorm that is trained see the images of all processes; names stay."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedBatchNorm
