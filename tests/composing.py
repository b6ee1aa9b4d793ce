"""Configurations of conf/ for tests: its options, compositions for a door, and methods that train in seconds."""

import functools
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict

from facelab.runs import resolvers  # noqa: F401  registers them
from facelab.runs.check import TRAIN_KEYS, check_config

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
SMALL = ROOT / "tests" / "small"
SAMPLE = {
    ("backbone", "timm"): ["backbone.name=test_resnet", "backbone.pretrained=false"],
    ("head", "simple_baseline"): ["backbone=resnet10", "backbone.pretrained=false"],
    ("data", "folder"): ["data.root=faces", "data.layout.path=facelab.faces.layouts.IBUG68"],
}
"""Overrides that an option requires: keys without a value, and parts that fit it."""
SMALL_FACES = ("data=synthetic68", "data.train=16", "data.val=6", "data.test=8", "data.size=96")
SMALL_SCENES = (
    *("data=synthetic_scenes", "data.train=12", "data.val=4", "data.test=5", "data.width=128", "data.height=96"),
    *("data.faces=3", "data.smallest=20", "data.largest=60", "datamodule.batch_size=4", "datamodule.num_workers=0"),
)
SMALL_BATCHES = ("crop.size=64", "datamodule.batch_size=4", "datamodule.num_workers=0")


def options(group: str) -> list[str]:
    """Return the options of a config group, from its files."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@functools.cache
def default_parts(model: str) -> dict[str, str]:
    """Return the option of each config group that a model file chooses, also by the models that it begins with."""
    lines = (CONF / "model" / f"{model}.yaml").read_text().splitlines()
    parts = [line.partition("/")[2].split(":") for line in lines if line.startswith("  - /")]
    first = [line.removeprefix("  - ") for line in lines if line.startswith("  - ") and "/" not in line]
    inherited = [default_parts(other) for other in first if other != "_self_"]
    return {key: value for part in inherited for key, value in part.items()} | {
        group: option.strip() for group, option in parts
    }


def groups_of(model: str) -> set[str]:
    """Return the config groups of a model file."""
    return set(default_parts(model))


MODELS = [model for model in options("model") if "detection" not in groups_of(model)]
"""Landmark methods."""
DETECTORS = [model for model in options("model") if "detection" in groups_of(model)]
"""Methods that find faces in photos."""
TRAINED = [*MODELS, *(model for model in DETECTORS if "loss" in groups_of(model))]
"""Methods that can be trained."""
DETECTION_SETS = [name for name in options("data") if "layouts.FIVE5" in (CONF / "data" / f"{name}.yaml").read_text()]
"""Datasets of boxes."""


def is_named_after(model: str, group: str, option: str) -> bool:
    """Return whether an option is the default of a model, or has the name of the model in its own."""
    return default_parts(model).get(group) == option or model in option.split("_")


def parts_of_landmarks(group: str) -> list[str]:
    """Return the options of a group without the parts that only detectors have."""
    return [name for name in options(group) if not any(is_named_after(model, group, name) for model in DETECTORS)]


# Small methods


class Method(NamedTuple):
    """Test configuration of a method, ``tests/small/<model>.yaml``."""

    small: list[str]  # overrides that make it small; the last of a key counts
    steps: int = 120  # steps in which it overfits one batch
    overfit: tuple[str, ...] = ()  # overrides for these steps
    untrained: tuple[str, ...] = ()  # beginnings of the names of parameters that a step does not train
    refused: Mapping[str, list[Any]] = MappingProxyType({})  # keys to values that check_config refuses
    refused_when_built: Mapping[str, list[Any]] = MappingProxyType({})  # keys to values that constructors refuse


@functools.cache
def method(model: str) -> Method:
    """Read the test configuration of a method."""
    path = SMALL / f"{model}.yaml"
    if not path.is_file():
        pytest.fail(
            f"the method {model} has no small configuration for the tests: add {path.relative_to(ROOT)} with the "
            f"overrides that make it train in seconds; pipnet.yaml beside it is an example",
            pytrace=False,
        )
    return Method(**yaml.safe_load(path.read_text()))


def small(model: str) -> list[str]:
    """Return overrides that train a method on few small faces or scenes with small parts."""
    data = SMALL_SCENES if model in DETECTORS else (*SMALL_FACES, *SMALL_BATCHES)
    return [f"model={model}", *data, *method(model).small]


def small_with(model: str, group: str, option: str) -> list[str]:
    """Return the overrides of `small` with another option of a group."""
    required = SAMPLE.get((group, option), [])
    replaced = {group, *(override.partition("=")[0] for override in required)} & groups_of(model)
    overrides = [override for override in small(model) if override.partition("=")[0].partition(".")[0] not in replaced]
    return [*overrides, f"{group}={option}", *required]


# Composition


@contextmanager
def stamped() -> Iterator[None]:
    """Set the stamp of a run, which paths need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACELAB_STAMP", "now")
        yield


@functools.cache
def _composed(words: tuple[str, ...], name: str, cwd: Path) -> bytes:
    """Compose once; return the configuration and Hydra's own, pickled to be copied faster than by deepcopy."""
    whole = _compose(words, name, CONF)
    HydraConfig.instance().set_config(whole)
    with open_dict(whole):
        del whole["hydra"]
    return pickle.dumps((whole, HydraConfig.instance().cfg))


def _compose(words: Sequence[str], name: str, folder: Path) -> DictConfig:
    with stamped(), initialize_config_dir(str(folder), version_base="1.3"):
        return compose(name, ["hydra.runtime.output_dir=run", *words], return_hydra_config=True)


def compose_config(words: Sequence[str], name: str = "train", folder: Path = CONF) -> DictConfig:
    """Compose the configuration that Hydra passes to a door."""
    cfg: DictConfig
    if folder == CONF:
        cfg, HydraConfig.instance().cfg = pickle.loads(_composed(tuple(words), name, Path.cwd()))
        return cfg
    cfg = _compose(words, name, folder)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def faults(words: Sequence[str], folder: Path = CONF) -> list[str]:
    """Compose a training and return its faults."""
    with stamped():
        return check_config(compose_config(words, folder=folder), TRAIN_KEYS)


@functools.cache
def taker(group: str, option: str, among: tuple[str, ...] = (*MODELS, *DETECTORS)) -> str:
    """Return one of the models whose configuration with an option of one of its parts has no fault.

    Models that name the option come first.
    """
    models = [model for model in among if group in groups_of(model)]
    models.sort(key=lambda model: (default_parts(model)[group] != option, not is_named_after(model, group, option)))
    refusals = {}
    for model in models:
        try:
            refusals[model] = faults([f"model={model}", f"{group}={option}", *SAMPLE.get((group, option), [])])
        except HydraException as error:
            refusals[model] = [str(error)]
        if not refusals[model]:
            return model
    reasons = "".join(f"\n{model}: {'; '.join(each)}" for model, each in refusals.items())
    pytest.fail(f"no model takes {group}={option}{reasons or ': none has this group'}", pytrace=False)
