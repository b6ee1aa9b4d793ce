"""Caches of Hydra and OmegaConf: the process of the tests composes hundreds of configurations of one conf/."""

import copy
import functools
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import omegaconf._utils
import omegaconf.base
import pytest
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, Overrides
from hydra._internal.hydra import Hydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, grammar_parser

CONF = Path(__file__).parents[1] / "conf"


@contextmanager
def warm_hydra() -> Iterator[None]:
    """Do once for the whole process what Hydra repeats for every configuration.

    Each file and each interpolation is parsed once, and the same options are chosen and merged once. Every composition
    receives a copy. Doors in separate processes use Hydra unchanged.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", _load_once(ConfigRepository.load_config))
        patch.setattr(config_loader_impl, "create_defaults_list", _choose_once(config_loader_impl.create_defaults_list))
        for name in ("_load_single_config", "_compose_config_from_defaults_list"):  # one file, and the merged files
            patch.setattr(ConfigLoaderImpl, name, _once(getattr(ConfigLoaderImpl, name)))
        patch.setattr(CachingConfigRepository, "__init__", _share_sources)
        create_map = defaults_list._create_interpolation_map
        patch.setattr(defaults_list, "_create_interpolation_map", _map_if_read(create_map))
        parse = functools.lru_cache(maxsize=10_000)(grammar_parser.parse)  # its trees are only read
        patch.setattr(omegaconf.base, "parse", parse)
        patch.setattr(omegaconf._utils, "parse", parse)
        patch.setattr(DictConfig, "__deepcopy__", _pickle_to_copy(DictConfig.__deepcopy__))
        # A door composes an additional time for `hydra.mode`, which no test in this process sets.
        patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
        yield


def _load_once(load: Callable[..., Any]) -> Callable[..., Any]:
    """Cache parsed files; a changed file is parsed again."""
    parsed: dict[Any, bytes] = {}

    def load_config(self: ConfigRepository, config_path: str) -> Any:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.scheme() not in ("file", "pkg"):
            return load(self, config_path)
        key = [source.scheme(), source.provider, source.path, config_path]
        if source.scheme() == "file":
            status = Path(source.path, source._normalize_file_name(config_path)).stat()
            key += [status.st_mtime_ns, status.st_size]
        if tuple(key) not in parsed:
            parsed[tuple(key)] = pickle.dumps(load(self, config_path))  # read four times as fast as deepcopy copies
        return pickle.loads(parsed[tuple(key)])

    return load_config


def _share_sources(self: CachingConfigRepository, delegate: ConfigRepository) -> None:
    """Copy the list of sources, which a composition may replace, but not the sources: one contains all schemas."""
    self.delegate, self.cache = copy.copy(delegate), {}


def _sources(repo: IConfigRepository) -> tuple[tuple[str, str, str], ...] | None:
    """Return the places of a configuration's files; None if a test may write into one of them."""
    sources = tuple((source.scheme(), source.provider, source.path) for source in repo.get_sources())
    return None if any(scheme == "file" and Path(path) != CONF for scheme, _, path in sources) else sources


def _choose_once(create: Callable[..., DefaultsList]) -> Callable[..., DefaultsList]:
    """Cache the list of files for each set of options; overrides of values have no influence on it."""
    chosen: dict[Any, DefaultsList] = {}

    def create_defaults_list(
        repo: IConfigRepository, config_name: str, overrides_list: list[Override], **flags: bool
    ) -> DefaultsList:
        values = Overrides(repo, overrides_list).config_overrides
        options = tuple(word.input_line for word in overrides_list if not any(word is value for value in values))
        key = (_sources(repo), config_name, options, *flags.items())
        if key[0] is None:
            return create(repo, config_name, overrides_list, **flags)
        if key not in chosen:
            chosen[key] = create(repo, config_name, overrides_list, **flags)
        return DefaultsList(**{**vars(chosen[key]), "config_overrides": values})

    return create_defaults_list


def _once(method: Callable[..., Any]) -> Callable[..., Any]:
    """Cache what a method makes of an argument and the files of a repository."""
    made: dict[Any, bytes] = {}

    def cached(self: ConfigLoaderImpl, *given: Any, **named: Any) -> Any:
        argument, repo = *given, *named.values()
        key = (_sources(repo), repr(argument))
        if key[0] is None:
            return method(self, argument, repo)
        if key not in made:
            made[key] = pickle.dumps(method(self, argument, repo))
        return pickle.loads(made[key])

    return cached


def _pickle_to_copy(copy_parts: Callable[..., DictConfig]) -> Callable[..., DictConfig]:
    """Copy a configuration in half the time of deepcopy or less; as there, the parent is kept and not copied."""

    def copied(self: DictConfig, memo: dict[int, Any]) -> DictConfig:
        parent = self.__dict__["_parent"]
        self.__dict__["_parent"] = None
        try:
            made: DictConfig = pickle.loads(pickle.dumps(self))
        except pickle.PicklingError:  # a schema of a plugin that was imported twice
            made = copy_parts(self, memo)
        finally:
            self.__dict__["_parent"] = parent
        made.__dict__["_parent"] = parent
        return made

    return copied


def _map_if_read(create: Callable[..., Any]) -> Callable[..., Any]:
    """Create the map for interpolations of a file's list only if the list contains one."""

    def create_map(overrides: Overrides, defaults: list[Any], self_added: bool) -> Any:
        return create(overrides, defaults, self_added) if any(item.is_interpolation() for item in defaults) else None

    return create_map
