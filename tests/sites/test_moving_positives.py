"""detectron2's normalizer of RetinaNet."""

import pytest
import torch
from small import samples
from tiny import composed

from frcnn.sites.weighers import MovingPositives


def test_two_steps_by_hand() -> None:
    weigher = MovingPositives()
    given = samples(torch.zeros(3, 3), [1, 2, 0], training=True)
    weighed = weigher(given, torch.ones(3), torch.ones(2))
    first = 0.9 * 100 + 0.1 * 2
    assert weighed.class_values.tolist() == [1] * 3 and weighed.box_values.tolist() == [1] * 2
    assert weighed.normalizer.item() == pytest.approx(first)
    none = samples(torch.zeros(1, 3), [0], training=True)  # counts as one positive
    second = 0.9 * first + 0.1 * 1
    assert weigher(none, torch.ones(1), torch.ones(0)).normalizer.item() == pytest.approx(second)
    assert weigher.state_dict()["average"].item() == pytest.approx(second)


def test_it_moves_in_training_only() -> None:
    weigher = MovingPositives(0.5, 3)
    weigher(samples(torch.zeros(1, 3), [1], training=False), torch.ones(1), torch.ones(1))
    assert weigher.average.item() == 3


@pytest.mark.parametrize(("momentum", "start"), [(1, 100), (-0.1, 100), (0.9, 0)])
def test_arguments_out_of_range(momentum: float, start: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        MovingPositives(momentum, start)


def test_the_preset_has_it_in_one_stage_alone() -> None:
    config, _ = composed("model=retinanet_resnet18_fpn", "weigher=moving_positives")
    assert config["weigher"]["dense"]["momentum"] == 0.9
    config, _ = composed("weigher=moving_positives")
    assert not config["weigher"]["rpn"]
