import itertools
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import get_worker_info

from frcnn.data import AspectGroupedBatches, collate, make_loader, shapes, transforms

RATIOS = np.array([1.5, 0.7, 1.0, 2.0, 0.5, 0.99, 1.2])  # wide: 0 2 3 6, tall: 1 4 5


@given(
    st.lists(st.floats(0.1, 10), min_size=1, max_size=40),
    st.integers(1, 7),
    st.integers(0, 5),
    st.integers(0, 9),
)
def test_each_image_once_shapes_apart_and_always_as_many_batches(ratios, size, seed, epoch):
    sampler = AspectGroupedBatches(np.array(ratios), size, seed)
    batches = sampler.batches(epoch)
    assert len(batches) == len(sampler)
    assert all(1 <= len(batch) <= size for batch in batches)
    keys = [key for batch in batches for key in batch]
    assert sorted(keys) == [(epoch, index) for index in range(len(ratios))]
    for batch in batches:
        assert len({ratios[index] >= 1 for _, index in batch}) == 1


def test_number_of_batches_by_hand():
    # 4 wide images in threes: 2 batches; 3 tall ones: 1.
    assert len(AspectGroupedBatches(RATIOS, 3, 0)) == 3


def test_order_is_a_function_of_seed_and_epoch():
    ratios = np.linspace(0.5, 2, 60)
    sampler = AspectGroupedBatches(ratios, 4, 0)
    list(sampler)
    again = AspectGroupedBatches(ratios, 4, 0)
    assert sampler.batches(3) == again.batches(3)

    def order(batches):
        return [index for batch in batches for _, index in batch]

    assert order(sampler.batches(0)) != order(sampler.batches(1))
    assert order(sampler.batches(0)) != order(AspectGroupedBatches(ratios, 4, 1).batches(0))
    # Wide and tall batches alternate: not all of one kind first.
    kinds = [ratios[batch[0][1]] >= 1 for batch in sampler.batches(0)]
    assert len(list(itertools.groupby(kinds))) > 2


def test_position_sets_what_comes_next_and_stays():
    sampler = AspectGroupedBatches(RATIOS, 2, 0)
    assert list(sampler) == sampler.batches(0)
    sampler.set_position(5, 1)
    assert list(sampler) == sampler.batches(5)[1:]
    assert list(sampler) == sampler.batches(5)[1:]
    assert len(sampler) == len(sampler.batches(5))


def test_collate_keeps_images_apart():
    images, targets = collate([(torch.zeros(3, 4, 5), {"a": 1}), (torch.zeros(3, 6, 7), {"a": 2})])
    assert [tuple(image.shape) for image in images] == [(3, 4, 5), (3, 6, 7)]
    assert targets == [{"a": 1}, {"a": 2}]
    assert isinstance(images, list) and isinstance(targets, list)


def epochs(workers: int, positions: list[tuple[int, int]]) -> list[tuple[int, int, Tensor]]:
    """(image id, seed, image) in the order in which a fresh loader gives them."""
    data = shapes("train", train_images=10)
    data.transform = transforms.flip_color()
    batches = AspectGroupedBatches(data.aspect_ratios(), 4, seed=2)
    loader = make_loader(data, batches, workers)
    seen = []
    for epoch, skip in positions:
        batches.set_position(epoch, skip)
        for images, targets in loader:
            pairs = zip(images, targets, strict=True)
            seen += [(target["image_id"], target["seed"], image) for image, target in pairs]
    return seen


def same(first: list, second: list) -> bool:
    pairs = zip(first, second, strict=True)
    return all(a[:2] == b[:2] and torch.equal(a[2], b[2]) for a, b in pairs)


@pytest.fixture(scope="module")
def whole() -> list[tuple[int, int, Tensor]]:
    return epochs(0, [(0, 0), (1, 0)])


def test_workers_change_nothing(whole):
    assert len(whole) == 20
    assert same(epochs(2, [(0, 0), (1, 0)]), whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_what_was_left(whole, workers):
    resumed = epochs(workers, [(1, 1)])
    assert 0 < len(resumed) < 10
    assert same(resumed, whole[-len(resumed) :])


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_generator_alone(workers):
    before = torch.random.get_rng_state()
    epochs(workers, [(0, 0)])
    assert torch.equal(torch.random.get_rng_state(), before)


class Inside(torch.utils.data.Dataset):
    """What a worker's process looks like from inside."""

    def __getitem__(self, index: int) -> tuple[int, bool]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return torch.get_num_threads(), get_worker_info() is not None


def test_workers_are_single_threaded_and_leave_signals_to_the_main_process():
    threads, worker = next(iter(make_loader(Inside(), [[0]], workers=1)))
    assert threads == [1] and worker == [True]


def test_a_plain_list_of_indices_serves_as_batches():
    loader = make_loader(shapes("val", val_images=5), [[0, 1], [2, 3], [4]], workers=0)
    ids = [[target["image_id"] for target in targets] for _, targets in loader]
    assert ids == [[0, 1], [2, 3], [4]]


def test_workers_start_inside_a_job_of_hydra_launcher_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """joblib's workers leave another way of starting processes than Python's own."""
    pytest.importorskip("joblib.externals.loky.backend.context", reason="extra joblib")
    default = multiprocessing.context._default_context
    monkeypatch.setattr(default, "_actual_context", multiprocessing.get_context("loky"))
    loader = make_loader(shapes("val", val_images=2), [[0, 1]], workers=1)
    assert [len(images) for images, _ in loader] == [2]
