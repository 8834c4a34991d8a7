"""One definition per method and one preset per published combination -> Hydra options per site.

``conf/method/<group>/<name>.yaml`` defines a method once. It becomes the option
``<group>/<site>/<name>`` of every site. In it, ``SITE`` stands for the site's name, ``kinds:``
holds values that differ by kind of site, and ``sites:`` those of single sites.

``conf/preset/<group>/<name>.yaml`` names a method for each kind of site. It becomes the option
``<group>/<name>``; ``set:`` holds values of other groups for each kind.

The sites are those of the model files: ``sites:`` maps site names to kinds. Folders of the user's
(``--config-dir``, ``hydra.searchpath``) may hold ``method/``, ``preset/`` and ``model/`` too.
"""

import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from frcnn.errors import ConfigError

CONF = str(Path(__file__).resolve().parents[2] / "conf")
GROUPS = ("assigner", "sampler", "loss", "box_loss", "weigher")
# Nodes of the configuration that have a part for each site.
BY_SITE = ("site", *GROUPS, "loss_weight")


class Options(dict[str, Any]):
    """Hydra's stored options.

    Never copied. Hydra deep-copies its store at each group lookup, which made ``--help`` take 20 s;
    nothing writes to it.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "Options":
        return self


def store_methods(folders: Sequence[str | Path] = ()) -> None:
    """Store the methods and presets of ``conf/`` and of further folders as Hydra's options."""
    roots = [Path(CONF), *map(Path, folders)]
    sites = all_sites(roots)
    store = ConfigStore.instance()
    if not isinstance(store.repo, Options):
        store.repo = Options(store.repo)
    store.store("site_defaults", site_defaults(sites), package="_global_")
    for root in roots:
        for group, file in _files(root, "method"):
            node = read(file)
            for site, kind in sites.items():
                store.store(file.stem, definition(node, site, kind), f"{group}/{site}")
        for group, file in _files(root, "preset"):
            store.store(file.stem, preset(file, group, sites), group, package="_global_")


def all_sites(roots: Sequence[Path]) -> dict[str, str]:
    """Site name -> kind, of all model files.

    Raises:
        ConfigError: two models give a site of one name different kinds.
    """
    sites: dict[str, str] = {}
    for root in roots:
        for file in sorted((root / "model").glob("*.yaml")):
            model: Any = OmegaConf.load(file)
            model = model.get("model", model)  # a file of Hydra's package _global_
            for site, kind in (model.get("sites") or {}).items():
                if sites.setdefault(site, kind) != kind:
                    raise ConfigError(f"{file}: site {site} is of kind {sites[site]} elsewhere")
    # A site that no model has yet is still there for presets.
    return sites | {str(kind): str(kind) for kind in kinds() if kind not in sites}


def kinds() -> DictConfig:
    """What is usual at each kind of site: budget and largest share of positives."""
    return cast(DictConfig, OmegaConf.load(Path(CONF, "kinds.yaml")))


def site_defaults(sites: Mapping[str, str]) -> dict[str, Any]:
    """The nodes ``site`` and ``loss_weight``."""
    usual = kinds()
    return {
        "site": {site: dict(usual[kind]) for site, kind in sites.items()},
        "loss_weight": {site: {"class": 1, "box": 1} for site in sites},
    }


def read(file: Path) -> dict[str, Any]:
    """What a YAML file holds; interpolations stay as they are."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(file)))


def definition(node: Mapping[str, Any], site: str, kind: str) -> dict[str, Any]:
    """A method's definition at one site, out of what its file holds."""
    common = {key: value for key, value in node.items() if key not in ("kinds", "sites")}
    own = node.get("kinds", {}).get(kind, {}) | node.get("sites", {}).get(site, {})
    return cast(dict[str, Any], _at_site(common | own, site))


def _at_site(node: Any, site: str) -> Any:
    """The same with a site's name in the place of the word SITE."""
    if isinstance(node, dict):
        return {_at_site(key, site): _at_site(value, site) for key, value in node.items()}
    if isinstance(node, list):
        return [_at_site(value, site) for value in node]
    return re.sub(r"\bSITE\b", site, node) if isinstance(node, str) else node


def preset(file: Path, group: str, sites: Mapping[str, str]) -> dict[str, Any]:
    """A preset for all sites."""
    node = read(file)
    values = node.pop("set", {})
    missing = sorted(set(sites.values()) - node.keys())
    if missing:
        raise ConfigError(f"{file}: no method for sites of kind {', '.join(missing)}")
    chosen = [{f"{site}@{group}.{site}": node[kind]} for site, kind in sites.items()]
    nodes: dict[str, Any] = {}
    for site, kind in sites.items():
        for other, value in values.get(kind, {}).items():
            nodes.setdefault(other, {})[site] = dict(value)
    return {"defaults": [*chosen, "_self_"], **nodes}


def clashes(choices: Mapping[str, str], sites: Sequence[str]) -> list[str]:
    """A line for each key of a site that two chosen presets set to different values.

    Args:
        choices: the chosen option of each group.
    """
    stored = ConfigStore.instance().repo
    seen: dict[str, tuple[str, Any]] = {}
    lines = []
    for group in GROUPS:
        option = choices.get(group)
        entry = stored.get(group, {}).get(f"{option}.yaml")
        nodes: Any = OmegaConf.to_container(entry.node) if entry else {}
        for key, value in _values_set(nodes, sites):
            other, before = seen.setdefault(key, (f"{group}={option}", value))
            if value != before:
                lines.append(
                    f"{other} sets {key} to {before} and {group}={option} sets it to {value}"
                )
    return lines


def _values_set(nodes: Mapping[str, Any], sites: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """``loss.rcnn.per`` and its value, of all that a preset's ``set:`` holds for these sites."""
    for group in (group for group in nodes if group != "defaults"):
        for site in sites:
            for key, value in nodes[group].get(site, {}).items():
                yield f"{group}.{site}.{key}", value


def keep_sites(config: DictConfig, overrides: Sequence[str]) -> None:
    """Remove the nodes of sites that the chosen network does not have.

    Raises:
        ConfigError: the command line names such a site.
    """
    own = list(config.model.sites)
    # A command may have none; one that is no group of keys is refused later.
    groups = [group for group in BY_SITE if isinstance(config.get(group), DictConfig)]
    others = {site for group in groups for site in config[group] if site not in own}
    for text in overrides:
        parts = text.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".").split(".")
        if len(parts) > 1 and parts[0] in BY_SITE and parts[1] in others:
            name = config.model.get("name", config.model._target_)
            raise ConfigError(f"{text}: {name} has the sites {', '.join(own)}")
    OmegaConf.set_struct(config, False)
    for group in groups:
        for site in others & config[group].keys():
            del config[group][site]


def own_choices(choices: Mapping[str, str], sites: Sequence[str]) -> dict[str, str]:
    """The chosen options by group, without those of sites that the network does not have."""
    return {
        key: value
        for key, value in choices.items()
        if key.partition("/")[0] not in BY_SITE or "/" not in key or key.split("/")[1] in sites
    }


def folders_of(arguments: Sequence[str]) -> list[Path]:
    """The folders that a command line adds to Hydra's search path, read by Hydra's own parsers."""
    known, _ = get_args_parser().parse_known_args(list(arguments))
    found = [known.config_dir] if known.config_dir else []
    try:
        overrides = OverridesParser.create().parse_overrides(known.overrides)
    except HydraException:
        return [Path(folder) for folder in found]  # Hydra itself says what is wrong
    for override in overrides:
        value = override.value()
        if override.key_or_group == "hydra.searchpath" and isinstance(value, list):
            found += [_folder(str(entry)) for entry in value]
    return [Path(folder) for folder in found if folder]


def _folder(entry: str) -> str:
    """``file://DIR`` or ``pkg://a.b`` -> a folder; empty where there is none."""
    if entry.startswith("pkg://"):
        package, _, _ = entry.removeprefix("pkg://").partition("/")
        try:
            spec = importlib.util.find_spec(package.replace("/", "."))
        except ModuleNotFoundError:
            return ""
        return next(iter(spec.submodule_search_locations or ()), "") if spec else ""
    return entry.removeprefix("file://")


def _files(root: Path, what: str) -> Iterator[tuple[str, Path]]:
    """(group, file) of all definitions or presets below a folder."""
    for group in GROUPS:
        for file in sorted((root / what / group).glob("*.yaml")):
            yield group, file
