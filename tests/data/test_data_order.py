"""Which images an epoch has: repeat factors and class-aware sampling."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frcnn.data import AspectGroupedBatches, DetectionDataset, Problems, image_order, shapes
from frcnn.data.order import ClassAware, RepeatFactor, images_of_classes, repeat_factors
from frcnn.data.records import Classes, Images, Objects


def dataset(labels: list[list[int]], ignored: set[tuple[int, int]] = frozenset()):
    """Images with objects of these labels; (image, place) of the ignored ones."""
    flat = [label for image in labels for label in image]
    where = [(i, k) for i, image in enumerate(labels) for k in range(len(image))]
    count = len(labels)
    objects = Objects(
        np.cumsum([0, *map(len, labels)]),
        np.tile(np.float32([0, 0, 9, 9]), (len(flat), 1)),
        np.array(flat, dtype=np.int64),
        np.array([place in ignored for place in where], dtype=bool),
        np.ones(len(flat), dtype=np.float32),
    )
    sides = np.full(count, 10, dtype=np.int32)
    images = Images(list(range(count)), np.array([str(i) for i in range(count)]), sides, sides)
    names = [str(k) for k in range(1, max(flat, default=1) + 1)]
    return DetectionDataset(lambda i: None, images, objects, Classes(names, names), Problems())


def test_repeat_factors_by_hand() -> None:
    # Class 1 in 8 of 10 images, class 2 in 2, class 3 in 1; t = 0.4: 1, sqrt 2 and 2.
    labels = [[1], [1, 1], [1, 2], [1], [1], [1], [1], [1], [2], [3]]
    root = 2**0.5
    assert repeat_factors(dataset([*labels[:9], [3, 1]]), 0.4)[9] == pytest.approx(2)
    assert repeat_factors(dataset(labels), 0.4).tolist() == pytest.approx(
        [1, 1, root, 1, 1, 1, 1, 1, root, 2]
    )
    # An ignored object is no object; an image without any has 1.
    assert repeat_factors(dataset([[1], [2]], {(1, 0)}), 1.0).tolist() == pytest.approx([root, 1])


@pytest.mark.parametrize(("share", "factor"), [(1e-4, 3.162), (5e-4, 1.414), (1e-3, 1), (0.5, 1)])
def test_of_lvis_by_hand(share: float, factor: float) -> None:
    count = round(share * 10_000)
    labels = [[2]] * count + [[1]] * (10_000 - count)
    assert repeat_factors(dataset(labels), 0.001)[0] == pytest.approx(factor, abs=1e-3)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.floats(1, 5), min_size=1, max_size=20), st.integers(0, 99), st.integers(1, 6))
def test_epochs_are_pieces_of_one_stream_of_rounds(factors, seed, epochs) -> None:
    order, group = RepeatFactor(np.array(factors)), np.arange(len(factors))
    pieces = [order(group, seed, epoch) for epoch in range(epochs)]
    assert all(len(piece) == len(group) for piece in pieces)
    stream = np.concatenate(pieces)
    # A second opinion: the rounds one after the other, an image n times with n near its factor.
    first = 0
    for number in range(100):
        rng = np.random.default_rng((seed, number, 1))
        draws = zip(factors, rng.random(len(factors)), strict=True)
        times = [int(factor) + int(draw < factor - int(factor)) for factor, draw in draws]
        counts = Counter(stream[first : first + sum(times)].tolist())
        first += sum(times)
        if first > len(stream):
            break
        assert [counts[image] for image in range(len(factors))] == times
    rest = counts if first > len(stream) else Counter()
    assert all(rest[image] <= times[image] for image in rest)


def test_images_come_as_often_as_their_factors_say() -> None:
    factors = np.array([1.0, 1.0, 1.5, 3.25])
    order, seen = RepeatFactor(factors), Counter()
    for epoch in range(200):
        seen.update(order(np.arange(4), 0, epoch).tolist())
    shares = np.array([seen[image] for image in range(4)]) / (4 * 200)
    assert shares == pytest.approx(factors / factors.sum(), abs=0.02)


def test_factors_of_one_are_the_usual_epochs() -> None:
    order = RepeatFactor(np.ones(7))
    for epoch in range(5):
        assert sorted(order(np.arange(7), 0, epoch)) == list(range(7))


def test_classes_take_turns() -> None:
    # Class 1 in all images, 2 in image 4, 3 in 5 and 6; image 7 is empty.
    data = dataset([[1, 1], [1], [1], [1], [1, 2], [1, 3], [3, 1], [], [1]])
    pairs = images_of_classes(data)
    assert len(pairs) == 8 + 1 + 2
    order, group = ClassAware(pairs), np.arange(9)
    seen: Counter[int] = Counter()
    for epoch in range(2000):
        taken = order(group, 3, epoch).tolist()
        assert len(taken) == 9 and 7 not in taken
        # Of three turns each, image 4 has all those of class 2.
        assert taken.count(4) >= 3 and taken.count(5) + taken.count(6) >= 3
        seen.update(taken)
    # Class 1 has 8 images, class 3 two: per epoch 3 (1 + 1/8), 3 (1/2 + 1/8), 3/8.
    expected = [3 / 8] * 4 + [27 / 8, 15 / 8, 15 / 8, 0, 3 / 8]
    assert [seen[image] / 2000 for image in range(9)] == pytest.approx(expected, abs=0.03)


def test_images_of_a_shape_without_any_object_come_once() -> None:
    order = ClassAware(images_of_classes(dataset([[1], [], [], []])))
    assert sorted(order(np.array([1, 2, 3]), 0, 0)) == [1, 2, 3]
    assert order(np.array([0, 1]), 0, 0).tolist() == [0, 0]


RATIOS = np.array([2.0, 1, 1.5, 1.2, 3, 0.5, 0.7, 0.3])
LABELS = [[1], [1], [1], [1], [1, 2], [1], [1], [2]]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("name", ["repeat_factor", "class_aware"])
def test_steps_shapes_processes_and_positions_stay_as_they_are(name: str, size: int) -> None:
    order = image_order(name, dataset(LABELS), 1.0)
    plain = AspectGroupedBatches(RATIOS, 3, seed=1)
    whole = AspectGroupedBatches(RATIOS, 3, 1, order=order)
    shares = [AspectGroupedBatches(RATIOS, 3, 1, rank, size, order) for rank in range(size)]
    for epoch in range(20):
        batches = whole.batches(epoch)
        assert len(batches) == len(whole) == len(plain.batches(epoch))
        assert sorted(map(len, batches)) == sorted(map(len, plain.batches(epoch)))
        for batch in batches:
            assert len({RATIOS[key[1]] >= 1 for key in batch}) == 1
        keys = [key for batch in batches for key in batch]
        assert len(set(keys)) == len(keys) == 8
        for share in shares:
            share.set_position(epoch, 1)
        together = [sorted(sum(parts, [])) for parts in zip(*shares, strict=True)]
        assert together == [sorted(batch) for batch in batches[1:]]
    assert whole.batches(3) == whole.batches(3) != whole.batches(4)


def test_a_repeated_image_has_draws_of_its_own() -> None:
    batches = AspectGroupedBatches(RATIOS, 3, 1, order=RepeatFactor(np.full(8, 3.0)))
    keys = [key for batch in batches.batches(2) for key in batch]
    data = shapes("train", train_images=8)
    seeds = [data[key][1]["seed"] for key in keys]
    assert len(set(seeds)) == 8 and any(len(key) == 3 for key in keys)
    assert all(seeds[keys.index(k)] == data[k[:2]][1]["seed"] for k in keys if len(k) == 2)
