"""Starting weights: read from files, matched to a network, and loaded."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from frcnn.errors import UserError
from frcnn.runfolder.checkpoint import is_state_dict, read

log = logging.getLogger(__name__)

COUNTER = "num_batches_tracked"  # of a BatchNorm that is trained; a frozen one has none
# Keys under which training programs save a state dict.
ENTRIES = ("model", "state_dict", "model_state_dict")
# What wrappers put before every name: data parallel, Lightning and its like, a backbone's owner.
PREFIXES = ("module.", "model.", "backbone.")
COMPILED = "_orig_mod."  # torch.compile's, anywhere in a name


def file_weights(path: str | Path) -> Mapping[str, Tensor]:
    """The state dict in a file, with the names that its network has without wrappers.

    The file holds a state dict, or a dict that has one under a key of ``ENTRIES``. A prefix of
    ``PREFIXES`` that all names have is removed.

    Args:
        path: a file of ``torch.save``, or a ``.safetensors`` file (needs the package safetensors).

    Raises:
        UserError: the file is missing, unreadable, or holds no state dict.
    """
    path = Path(path)
    content = _safetensors(path) if path.suffix == ".safetensors" else read(path, "weights file")
    state = content
    for _ in ENTRIES:  # they may be nested
        inner = [state[key] for key in ENTRIES if isinstance(state, dict) and key in state]
        state = next((entry for entry in inner if isinstance(entry, dict)), state)
    if not is_state_dict(state):
        raise UserError(
            f"{path}: holds no state dict, neither as a whole nor under {', '.join(ENTRIES)}"
        )
    return unwrapped(cast(dict[str, Tensor], state))


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without what wrappers put into its names.

    >>> unwrapped({"module._orig_mod.fc.weight": torch.zeros(1)})
    {'fc.weight': tensor([0.])}
    """
    state = {name.replace(COMPILED, ""): value for name, value in state.items()}
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return unwrapped({name.removeprefix(prefix): v for name, v in state.items()})
    return state


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file

        return load_file(path)
    except ImportError as error:
        raise UserError(f"{path}: {error.name} is missing: pip install -e '.[timm]'") from error
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights file") from None
    except Exception as error:  # a broken file can raise almost any error
        raise UserError(f"{path}: not a readable weights file ({error})") from error


def load_into(
    model: nn.Module, state: Mapping[str, Tensor], predictor: str | tuple[str, ...], source: str
) -> None:
    """Load a detector's state dict; a predictor for other classes starts afresh.

    A state dict saved with frozen BatchNorm freezes the model's.

    Args:
        predictor: prefix, or prefixes, of the parameters that depend on the classes.
        source: names the state dict in messages.

    Raises:
        UserError: any other difference in names or shapes.
    """
    if not any(key.endswith(COUNTER) for key in state):
        freeze_batch_norm(model)
    own = model.state_dict()
    state = dict(state)
    parts = [key for key in own if key.startswith(predictor) and key in state]
    if any(own[key].shape != state[key].shape for key in parts):
        log.warning("%s: made for other classes, the predictor starts afresh", source)
        state |= {key: value for key, value in own.items() if key.startswith(predictor)}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise UserError(f"{source}: does not fit this model ({first})") from error


def classifier_weights(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], head: tuple[str, ...], source: str
) -> dict[str, Tensor]:
    """The weights of an image classifier under the names of a network of the same architecture.

    Tensors are matched by name if the names are equal. Otherwise they are matched in order of
    appearance, if each has the shape and the last part of the name ("weight", "running_var", ...)
    that the network expects there. The classifying layer may be missing or for other classes.
    Of a classifier saved as "backbone" and a head, only the backbone is used.

    Args:
        state: the weights to use.
        own: the network's state dict.
        head: the names of the network's classifying layers, which keep their own weights.
        source: names the weights in messages.

    Returns:
        A tensor for every entry of ``own`` but the counters of BatchNorm.

    Raises:
        UserError: the weights do not fit.
    """
    inner = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    given = {k: v for k, v in (inner or state).items() if not k.endswith(COUNTER)}
    wanted = {key: value for key, value in own.items() if not key.endswith(COUNTER)}
    kept = {key: wanted.pop(key) for key in list(wanted) if key.rpartition(".")[0] in head}
    if len(given) - len(wanted) in (0, len(kept)):
        if all(key in given and given[key].shape == wanted[key].shape for key in wanted):
            return {key: given[key] for key in wanted} | kept
        if not any(_misfits(given, wanted)):
            log.warning(
                "%s: has other names, but its %d tensors fit in order, shape by shape",
                source,
                len(wanted),
            )
            return dict(zip(wanted, given.values(), strict=False)) | kept
    first = next(_misfits(given, wanted), f"{len(given)} tensors instead of {len(wanted)}")
    raise UserError(f"{source}: does not fit the backbone ({first})")


def _misfits(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Iterator[str]:
    """The tensors that differ in shape or kind from those at the same place, one text for each."""
    for (name, value), (other, found) in zip(wanted.items(), given.items(), strict=False):
        same_kind = name.rpartition(".")[2] == other.rpartition(".")[2]
        if not same_kind or value.shape != found.shape:
            yield f"{other} {list(found.shape)} in the place of {name} {list(value.shape)}"


def freeze_batch_norm(module: nn.Module) -> None:
    """Replace every BatchNorm2d inside by a frozen one with the same numbers.

    A module with a method ``freeze_batch_norm`` does it itself: the norm layers of some networks
    also apply the activation.
    """
    for name, child in module.named_children():
        if own := getattr(child, "freeze_batch_norm", None):
            own()
        elif type(child) is nn.BatchNorm2d:
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_batch_norm(child)
