"""How a network gets its sites: built by name, registered once, their states kept apart."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder

from frcnn.errors import ConfigError
from frcnn.losses import L1, BoxLoss, ClassLoss, CrossEntropy, FocalSigmoid, SmoothL1
from frcnn.sites.kinds import KINDS
from frcnn.sites.site import Site, Sites, usual_assigner
from samplers import All, Random

PREFIX = "sites."
PARTS = ("assigner", "sampler", "loss", "box_loss", "weigher")


def parts_by_site(
    sites: Mapping[str, str], parts: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Parts by group and site -> parts by site and group, with the kind's usual part by default.

    Args:
        sites: name -> kind.
        parts: group ("assigner", "sampler", "loss", ...) -> site name -> the part.

    Raises:
        ConfigError: a part for a site that the network does not have, or one whose definition
            forbids it at this kind of site.
    """
    for group, by_site in parts.items():
        for name in by_site:
            if name not in sites:
                raise ConfigError(f"{group}: no site {name}; the network has {', '.join(sites)}")
    found = {
        name: usual_parts(kind) | {group: p[name] for group, p in parts.items() if name in p}
        for name, kind in sites.items()
    }
    for name, kind in sites.items():
        own = found[name]
        check_fit(name, kind, *(own[group] for group in PARTS))
        check_terms(name, own["loss"], own["box_loss"])
    return found


def usual_parts(kind: str) -> dict[str, Any]:
    """torchvision's parts of a site of this kind."""
    usual = KINDS[kind]
    two_stage = {
        "assigner": usual_assigner(kind),
        "sampler": Random(usual.budget, usual.positive_fraction),
        "loss": CrossEntropy(),
        "box_loss": SmoothL1(),
        "weigher": None,
        "loss_weight": {},
    }
    one_stage = two_stage | {
        "sampler": All(),
        "loss": FocalSigmoid(per="image", background_column=True),
        "box_loss": L1(per="image"),
    }
    return one_stage if kind == "dense" else two_stage


def make_site(name: str, kind: str, box_coder: BoxCoder, parts: Mapping[str, Any]) -> Site:
    """A site out of its parts by group."""
    factors = {"class": 1.0, "box": 1.0} | dict(parts["loss_weight"])
    return Site(
        name,
        parts["assigner"],
        parts["sampler"],
        parts["loss"],
        parts["box_loss"],
        box_coder,
        kind=kind,
        weigher=parts["weigher"],
        class_factor=factors["class"],
        box_factor=factors["box"],
    )


def check_fit(name: str, kind: str, *parts: object) -> None:
    """Raise ConfigError if the definition of a part forbids it at this kind of site."""
    for part in parts:
        reason = getattr(part, "unfit", {}).get(kind)
        if reason is not None:
            raise ConfigError(f"{type(part).__name__} cannot serve at the {name}: {reason}")


def check_terms(name: str, loss: ClassLoss, box_loss: BoxLoss) -> None:
    """Raise ConfigError if each of the two terms is to be scaled to the other."""
    if (getattr(loss, "per", None), getattr(box_loss, "per", None)) == ("guided", "class_term"):
        raise ConfigError(
            f"loss.{name}.per=guided scales the class term to the box term, and "
            f"box_loss.{name}.per=class_term the box term to the class term: one of them alone"
        )


def prepare_loss(name: str, loss: ClassLoss, columns: int) -> Tensor | None:
    """Prepare a class loss for C+1 ``columns``; the bias that the site's last layer starts with.

    Raises:
        ConfigError: the loss holds numbers for other classes.
    """
    try:
        if prepare := getattr(loss, "prepare", None):
            prepare(columns)
        return loss.initial_bias(columns)
    except ValueError as error:
        raise ConfigError(f"{type(loss).__name__} at the {name}: {error}") from error


def add_sites(network: nn.Module, sites: Mapping[str, Site]) -> None:
    """Register sites by name as ``network.sites``.

    Parameters, devices and modes include them. ``state_dict`` and ``load_state_dict`` do not: the
    names there stay the network's own. ``network.sites.state_dict()`` has the sites' states. Called
    again it replaces the sites.
    """
    for index, site in enumerate(sites.values()):
        site.index = index
    if not hasattr(network, "sites"):
        _keep_out_of_the_state(network)
    network.sites = Sites(dict(sites))


def _keep_out_of_the_state(network: nn.Module) -> None:
    network.register_state_dict_post_hook(_drop_sites)
    network.register_load_state_dict_pre_hook(_keep_sites)


def refer_to_site(part: nn.Module, site: Site) -> None:
    """Let a part of the network use a site, which ``add_sites`` alone registers."""
    part.__dict__["site"] = site


def _drop_sites(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for key in [key for key in state if key.startswith(prefix + PREFIX)]:
        del state[key]


def _keep_sites(module: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    """Let the sites keep what they have, also where ``strict`` asks for every key."""
    for key, value in module.get_submodule("sites").state_dict().items():
        state.setdefault(f"{prefix}{PREFIX}{key}", value)
