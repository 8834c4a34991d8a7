"""The assigner's weights on the box losses."""

from dataclasses import replace

import pytest
import torch
from small import samples

from frcnn.sites.weighers import AssignerWeights


def test_by_hand() -> None:
    given = samples(torch.zeros(4, 3), [1, 0, 2, 1])
    given = replace(given, assigner_weights=torch.tensor([0.9, 1.0, 0.2, 0.4]))
    weighed = AssignerWeights()(given, torch.ones(4), torch.tensor([1.0, 2.0, 3.0]))
    total = 0.9 + 0.2 + 0.4
    assert weighed.class_values.tolist() == [1] * 4
    assert weighed.box_values.tolist() == pytest.approx([0.9, 0.4, 1.2])
    assert weighed.normalizer.item() == pytest.approx(total)


def test_without_weights_both_are_over_the_positives() -> None:
    given = samples(torch.zeros(3, 3), [1, 0, 2])
    weighed = AssignerWeights()(given, torch.ones(3), torch.ones(2))
    assert weighed.box_values.tolist() == [1] * 2 and weighed.normalizer == 2
