"""``trainer.compile``: the compiled parts compute what the eager ones do."""

import copy
import shutil
from collections.abc import Sequence

import pytest
import torch
from small import batch, gradients, quick
from test_cascade import cascade
from tiny import presets, small_network, tiny
from torch import Tensor

from frcnn.build import dataset, fill_from_data
from frcnn.build import detector as build
from frcnn.model import Detector, build_retinanet
from frcnn.model.box_head import FastTwoMLPHead
from samplers import OHEM

# Dynamo looks at the gradient of what it is given, and torch warns.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
# Two numbers of rows, and a batch without an object: sizes that a compiled graph must not keep.
OBJECTS = [(3, 2), (1, 4), (0, 0)]


def retinanet() -> Detector:
    small = {"fpn_channels": 16, "backbone_width": 0.25, "head_depth": 2}
    return build_retinanet(4, "retinanet_resnet18_fpn", min_size=64, max_size=128, **small)


def mining() -> Detector:
    return quick(sampler={"rcnn": OHEM(8)})


def steps(model: Detector, objects: Sequence[tuple[int, ...]]) -> list[dict[str, Tensor]]:
    """Terms of the losses and gradients, of one step after another."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = []
    for seed, counts in enumerate(objects):
        images, targets = batch(*counts, seed=seed)
        terms = model(images, [t | {"seed": seed + 7 * i} for i, t in enumerate(targets)])
        optimizer.zero_grad()
        sum(terms.values()).backward()
        found.append({name: term.detach() for name, term in terms.items()})
        found.append({name: value.clone() for name, value in gradients(model).items()})
        optimizer.step()
    return found


def check_compiled(model: Detector, objects: Sequence[tuple[int, ...]], **options: str) -> None:
    """Compare a model with its compiled copy."""
    torch._dynamo.reset()
    compiled = copy.deepcopy(model.train())
    compiled.compile_parts(**options)
    assert list(compiled.state_dict()) == list(model.state_dict())
    for ours, eager in zip(steps(compiled, objects), steps(model, objects), strict=True):
        assert ours.keys() == eager.keys()
        for name, value in eager.items():
            # A bias before BatchNorm has no gradient but rounding.
            rounding = 1e-5 + 1e-3 * float(value.abs().max())
            torch.testing.assert_close(ours[name], value, rtol=0, atol=rounding, msg=name)


def test_losses_and_gradients_are_the_eager_ones() -> None:
    model = quick()
    model.roi_heads.box_head = FastTwoMLPHead(16 * 49, 32)
    check_compiled(model, OBJECTS[:1], backend="aot_eager")
    counters = torch._dynamo.utils.counters
    # Backbone, RPN head, decoding, box head, predictor, losses of two sites: each is one graph.
    assert counters["stats"]["unique_graphs"] == 7 and not counters["graph_break"]


def test_a_copy_of_a_compiled_network_has_weights_of_its_own() -> None:
    torch._dynamo.reset()
    model = quick()
    model.compile_parts(backend="aot_eager")
    copied = copy.deepcopy(model)
    for weight in copied.rpn.head.parameters():
        torch.nn.init.zeros_(weight)
    features = [torch.ones(1, 16, 4, 4)]
    assert not copied.rpn._dense(features)[0].any() and model.rpn._dense(features)[0].any()


@pytest.mark.slow
@pytest.mark.parametrize("network", [mining, cascade, retinanet])
def test_every_network(network) -> None:
    check_compiled(network(), OBJECTS, backend="aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("network", [quick, retinanet])
def test_the_back_end_that_writes_code(network) -> None:
    check_compiled(network(), OBJECTS[:2], backend="inductor")


@pytest.mark.slow
@pytest.mark.parametrize("preset", presets("loss", "box_loss", "weigher"))
def test_every_loss(preset: str) -> None:
    config, _ = tiny(preset)
    fill_from_data(config["loss"], dataset(config["data"], "train"), config["model"]["sites"])
    torch.manual_seed(0)
    with small_network():
        model = build(config, 4)
    check_compiled(model, OBJECTS[:2], backend="aot_eager")
