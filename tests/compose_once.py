"""Hydra reads and composes the repository's options once a process, not once a test.

The values of a command line are applied each time, by Hydra itself. A folder of a test's own is
read each time, since the test may change its files.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.defaults_list import Overrides

from frcnn.config.methods import CONF

ROOT = str(Path(CONF).parent)


class Copies:
    """A repository that gives copies, since Hydra merges into what it is given."""

    def __init__(self, repo: Any) -> None:
        self.repo = repo

    def __getattr__(self, name: str) -> Any:
        return getattr(self.repo, name)

    def load_config(self, config_path: str) -> Any:
        found = self.repo.load_config(config_path)
        return found and replace(found, config=copy.deepcopy(found.config))


@contextmanager
def compose_once() -> Iterator[None]:
    """Inside, half a second of work is done once for each choice of options."""
    make_list = config_loader_impl.create_defaults_list
    make_config = ConfigLoaderImpl._compose_config_from_defaults_list
    make_repo = CachingConfigRepository.__init__
    make_sources = CachingConfigRepository.initialize_sources
    files: dict[Any, Any] = defaultdict(dict)
    lists: dict[Any, Any] = {}
    configs: dict[Any, Any] = {}

    def folders(repo: Any) -> tuple[str, ...] | None:
        """Where options come from; None if they can change."""
        found = tuple(source.path for source in repo.get_sources())
        ours = all(path in ("", "hydra.conf") or path.startswith(ROOT) for path in found)
        return found if ours else None

    def share_cache(repo: Any) -> None:
        place = folders(repo)
        repo.cache = {} if place is None else files[place]

    def create_repo(repo: Any, delegate: Any) -> None:
        make_repo(repo, delegate)
        share_cache(repo)

    def add_folders(repo: Any, config_search_path: Any) -> None:
        make_sources(repo, config_search_path)
        share_cache(repo)

    def create_list(repo: Any, config_name: str, overrides_list: Sequence[Any], **o: Any) -> Any:
        place = folders(repo)
        if place is None:
            repo.cache = {}
            return make_list(repo, config_name, list(overrides_list), **o)
        values = Overrides(repo, list(overrides_list)).config_overrides
        choices = [given.input_line for given in overrides_list if given not in values]
        key = (place, config_name, *choices, *o.items())
        if key not in lists:
            lists[key] = make_list(repo, config_name, list(overrides_list), **o)
        return replace(lists[key], config_overrides=values)

    def compose(loader: Any, defaults: list[Any], repo: Any) -> Any:
        place = folders(repo)
        if place is None:
            return make_config(loader, defaults, repo)
        key = (place, str(defaults))
        if key not in configs:
            configs[key] = make_config(loader, defaults, Copies(repo))
        return copy.deepcopy(configs[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachingConfigRepository, "__init__", create_repo)
        patch.setattr(CachingConfigRepository, "initialize_sources", add_folders)
        patch.setattr(config_loader_impl, "create_defaults_list", create_list)
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", compose)
        yield
