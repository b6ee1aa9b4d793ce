"""Values that cannot be meant, in every place of a configuration: refused by their key before anything is trained."""

import copy
import math
import re
import resource
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from composing import CONF, MODELS, compose_config, groups_of, method, options, small, small_with, taker
from omegaconf import DictConfig, OmegaConf

import benchmark
import predict
import train
from evaluate import EVALUATE_KEYS, build_data
from facelab.errors import FacelabError
from facelab.profiling.compile import prepare
from facelab.runs.build import build, build_trainer, check
from facelab.runs.check import TRAIN_KEYS, check_config, copy_part
from facelab.runs.checkpoint import load_run

Place = tuple[str | int, ...]
NUMBERS = (math.nan, math.inf, -1, 0, 1e9, 10**9)
SECONDS = 5.0
"""In which a value is refused or accepted, on a machine with other work."""
MEMORY = 2**33
"""Bytes beyond those at hand that may be asked for; libraries reserve some of them and use few."""


# Leaves


def leaves(node: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every value of a configuration that is no mapping and no filled list, as it is written."""
    if isinstance(node, dict | list) and node:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(child, (*place, key))
    else:
        yield place, node


def values(was: Any) -> tuple[Any, ...]:
    return (*NUMBERS, "", None, 2.5 if isinstance(was, str | bool) or was is None else "text")


def changed(raw: Any, place: Place, value: Any) -> DictConfig:
    """A copy with another value."""
    raw = copy.deepcopy(raw)
    node = raw
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return OmegaConf.create(raw)


def has(raw: Any, place: Place) -> bool:
    """Whether a configuration has a value, or null, at this place."""
    for key in place:
        if (isinstance(raw, dict) and key in raw) or (
            isinstance(raw, list) and isinstance(key, int) and key < len(raw)
        ):
            raw = raw[key]
        else:
            return False
    return True


def shown(place: Place) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).lstrip(".")


def is_named(told: str, raw: Any, place: Place) -> bool:
    """Whether a message names a key: in full, by what it refers to, or by a part and what a library calls it there."""
    node, parts = raw, []
    for step, key in enumerate(place, 1):
        node = node[key]
        parts += [shown(place[:step])] if isinstance(node, dict) and "_target_" in node else []
    reference = node[2:-1] if isinstance(node, str) and node.startswith("${") else shown(place)
    last = next(str(key) for key in reversed(place) if isinstance(key, str))
    tried = "cannot change an image alone"  # found by trying a transform, which does not tell its arguments
    within = any(f"{part}:" in told or f"{part}." in told for part in parts) and (last in told or tried in told)
    return shown(place) in told or reference in told or within


def findings(
    cfg: DictConfig, carry: Callable[[DictConfig, Place], object], among: Callable[[Place], bool] = lambda _: True
) -> list[str]:
    """Give every wrong value of every leaf to a door's checks and parts, and list what is no answer to it."""
    raw, found = OmegaConf.to_container(cfg, resolve=False), []
    for place, was in leaves(raw):
        for value in values(was) if among(place) else ():
            begun, case = time.monotonic(), f"{shown(place)}={value!r}"
            try:
                carry(changed(raw, place, value), place)
            except FacelabError as refusal:
                if not is_named(str(refusal), raw, place):
                    found.append(f"{case}: its key is not in: {refusal}")
            except BaseException as error:
                found.append(f"{case}: {type(error).__name__}: {error}")
            if time.monotonic() - begun > SECONDS:
                found.append(f"{case}: took {time.monotonic() - begun:.0f} s")
    return found


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What asks for gigabytes fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """A place for what a logger writes when it is built."""
    monkeypatch.setenv("FACELAB_STAMP", "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)


# train.py


@cache
def composed(model: str) -> DictConfig:
    return compose_config([*small(model), "callbacks=ema"])


@cache
def places_of(model: str, node: str) -> set[Place]:
    """The leaves of a node and of what it refers to."""
    return {place for place, _ in leaves(OmegaConf.to_container(copy_part(composed(model), [node]), resolve=False))}


def is_in(place: Place, places: set[Place]) -> bool:
    """Whether one of the places is this, or lies in the same part."""
    return any(other[: len(place)] == place or other[:1] == place[:1] for other in places)


def carried(cfg: DictConfig, place: Place, model: str) -> None:
    """Take a configuration through all that train.py does before it reads data, but for parts that are as ever."""
    check(cfg, TRAIN_KEYS)
    train.check_values(cfg)
    if is_in(place, places_of(model, "datamodule")):
        build(cfg, "datamodule")
    if is_in(place, places_of(model, "model")) or place[0] in ("memory_format", "compile"):
        module = build(cfg, "model")
        prepare(module, cfg.memory_format, cfg.compile)
        module.configure_optimizers()
    if any(is_in(place, places_of(model, node)) for node in ("trainer", "callbacks", "logger")):
        build_trainer(cfg)


def _options() -> Iterator[tuple[str, str]]:
    """Every option of a part of a method, but for further networks of timm."""
    for group in sorted({group for model in MODELS for group in groups_of(model)}):
        for option in options(group):
            if "[timm," not in (CONF / group / f"{option}.yaml").read_text():
                yield group, option


TRIED: set[tuple[Any, ...]] = set()
"""Arguments of classes, and keys of no class, whose wrong values an option before has been given."""


def is_new(raw: Any, place: Place) -> bool:
    """Whether no option before had this argument of this class: options of one class differ in their values alone."""
    node, owner = raw, (None, place)
    for step, key in enumerate(place):
        node = node[key]
        if isinstance(node, dict) and "_target_" in node:
            owner = node["_target_"], place[step + 1 :]
    known = owner in TRIED
    TRIED.add(owner)
    return not known


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option"), list(_options()))
@pytest.mark.usefixtures("little_memory")
def test_wrong_values_of_every_option_are_refused_by_their_key(group: str, option: str) -> None:
    """The same for parts that are not those of a method's own recipe, and for what a checkpoint may hold of them."""
    cfg = compose_config(small_with(taker(group, option), group, option))
    if "backbone" in cfg and "pretrained" in cfg.backbone:
        cfg.backbone.pretrained = False
    cfg.datamodule.num_workers = 0

    def carry(cfg: DictConfig, place: Place) -> None:
        check(cfg, TRAIN_KEYS)
        if group in ("data", "datamodule", "augment", "crop"):
            build(cfg, "datamodule")
        if group not in ("data", "datamodule", "augment"):
            build(cfg, "model").configure_optimizers()

    raw = OmegaConf.to_container(cfg, resolve=False)
    assert findings(cfg, carry, lambda place: place[0] == group and is_new(raw, place)) == []


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.usefixtures("little_memory")
def test_wrong_values_of_train_are_refused_by_their_key(model: str) -> None:
    """A value that nobody means, which ends in a traceback, fills the memory, or is refused without a word on where.

    Those of the parts of a method are in the test of every option.
    """
    own = groups_of(model)
    assert (
        findings(composed(model), lambda cfg, place: carried(cfg, place, model), lambda place: place[0] not in own)
        == []
    )


REFUSED = {
    "seed": (-1, 2**40, 1.5, True),
    "test": (1, None),
    "test_ckpt": ("first",),
    "memory_format": ("nchw",),
    "compile": (1,),
    "monitor.name": ("",),
    "monitor.mode": ("least",),
    "optimizer.lr": (math.nan, math.inf, -1, 0),
    "optimizer.weight_decay": (math.nan, -0.1),
    "datamodule.batch_size": (0, -1, 1.5),
    "datamodule.num_workers": (-1, 10**9),
    "datamodule.max_unreadable": (-0.1, 1.1, math.nan),
    "trainer.log_every_n_steps": (0, -1),
    "trainer.accumulate_grad_batches": (0, -1),
    "trainer.check_val_every_n_epoch": (0, -1),
    "trainer.max_epochs": (0, -2, math.nan),
    "trainer.max_steps": (0, -2),
    "trainer.limit_train_batches": (0, -1, math.nan),
    "trainer.val_check_interval": (0, -1),
    "trainer.devices": (0, 10**9, "two"),
    "trainer.gradient_clip_val": (0, -1.0, math.inf),
    "trainer.precision": (5,),
    "crop.size": (0, -1, 10**9),
    "crop.scale": (math.nan, math.inf, 0, -1, [1.1, 0], 1e9),
    "crop.shift": ([math.nan, 0], [0], [1e9, 0]),
    "scheduler.at": ([math.nan], [-0.5], [2]),
    "scheduler.factor": (0, -1, math.inf),
    "augment.flip_probability": (-0.1, 1.1, math.nan),
    "augment.shift_limit": (math.nan, math.inf, -1),
    "augment.rotation_limit": (math.nan, math.inf, -1, 1000),
    "data.train": (-1, 10**9),
    "data.seed": (-1,),
    "data.name": ("",),
    "data.pitch": (math.nan, -1, 180),
    "callbacks.resume.minutes": (math.nan, -1),
    "callbacks.face_grid.columns": (0, -1, 10**9),
    "callbacks.checkpoint.save_top_k": (-2,),
    "callbacks.ema.decay": (-1, 2, math.nan),
    "callbacks.ema.update_every_n_steps": (0,),
    "paths.data": ("", 3),
}
"""What is to be refused, whatever the method; ``refused`` in tests/small/ has the same of each method's own parts."""
BUILT = (
    *("memory_format", "compile", "trainer.devices", "trainer.precision", "callbacks.checkpoint.save_top_k"),
    *("datamodule.max_unreadable", "crop.scale", "crop.shift", "data.train", "data.seed", "data.pitch"),
    *("augment.flip_probability",),
)
"""Keys of which some values are refused by what is built alone."""
LATE = [
    *((model, key, REFUSED[key]) for model in MODELS for key in BUILT),  # where the method has the key
    *((model, key, values) for model in MODELS for key, values in method(model).refused_when_built.items()),
]
"""The same with those of each method: model, key, values."""


@pytest.mark.parametrize("model", MODELS)
def test_what_cannot_be_meant_is_refused_at_once(model: str) -> None:
    """A value that is taken without a word, and ruins a run or ends it hours later; all are told together."""
    raw = OmegaConf.to_container(composed(model), resolve=False)
    anyone = {key: values for key, values in REFUSED.items() if key not in BUILT and has(raw, place_at(key))}
    wrong = anyone | method(model).refused
    for number in range(max(map(len, wrong.values()))):
        together, keys = raw, [key for key, values in wrong.items() if number < len(values)]
        for key in keys:
            together = OmegaConf.to_container(changed(together, place_at(key), wrong[key][number]), resolve=False)
        told = [fault.place for fault in check_config(OmegaConf.create(together), TRAIN_KEYS)]
        assert [key for key in keys if not any(place.startswith(key) for place in told)] == []


@pytest.mark.slow
@pytest.mark.parametrize(("model", "key", "values"), LATE, ids=lambda value: value if isinstance(value, str) else "")
def test_what_cannot_be_meant_is_refused_when_built(model: str, key: str, values: list[Any]) -> None:
    """The same by the constructors of this project and of libraries."""
    raw, place = OmegaConf.to_container(composed(model), resolve=False), place_at(key)
    for value in values if has(raw, place) or key not in BUILT else ():
        with pytest.raises(FacelabError) as refusal:
            carried(changed(raw, place, value), place, model)
        assert is_named(str(refusal.value), raw, place), value


def place_at(key: str) -> Place:
    parts = key.replace("[", ".").replace("]", "").split(".")
    return tuple(int(part) if part.isdecimal() else part for part in parts)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        *((key, value, f"{key}: ") for key in ("callbacks", "logger", "callbacks.ema") for value in (3, "text", [3])),
        ("datamodule.data", -1, "datamodule.data: -1 given"),
        ("datamodule.data", [], "datamodule.data: [] given"),
        ("augment.pixels", [3], "augment.pixels[0]: 3 given"),
        ("augment.pixels", [{"_target_": "albumentations.Nothing"}], "augment.pixels[0]._target_: "),
        ("augment.pixels", [{"_target_": "albumentations.ToGray", "q": 1}], "augment.pixels[0].q: "),
        ("augment.pixels", [{"_target_": "albumentations.ToGray", "method": "x"}], "augment.pixels[0].method: "),
        ("trainer.plugins", [3], "trainer.plugins[0]: 3 given"),
    ],
)
def test_a_wrong_value_for_a_node_is_refused(key: str, value: Any, told: str) -> None:
    """A traceback where a mapping or a part is expected; an item of a list that is told by the whole list."""
    raw = OmegaConf.to_container(composed("pipnet"), resolve=False)
    with pytest.raises(FacelabError, match=rf"\n  {re.escape(told)}"):
        check(changed(raw, place_at(key), value), TRAIN_KEYS)


def test_what_can_be_meant_is_taken() -> None:
    """A bound that refuses what someone may want."""
    meant = {
        "seed": 2**32 - 1,
        "trainer.max_epochs": 100_000,
        "trainer.num_sanity_val_steps": -1,
        "trainer.log_every_n_steps": None,
        "trainer.accumulate_grad_batches": 64,
        "datamodule.batch_size": 4096,
        "datamodule.num_workers": 64,
        "optimizer.lr": 1,
        "optimizer.weight_decay": 0,
        "crop.shift": [-0.1, 0.2],
        "crop.scale": [1.2, 1],
        "augment.rotation_limit": 180,
        "augment.flip_probability": 1,
        "loss.neighbour_weight": 0,
        "callbacks.resume.minutes": 0,
        "head.trunk": 256,
    }
    cfg = copy.deepcopy(composed("pipnet"))
    for key, value in meant.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    train.build_parts(cfg)


# The other doors


@pytest.mark.slow
@pytest.mark.usefixtures("little_memory")
def test_wrong_values_of_evaluate_are_refused_by_their_key(trained: Path) -> None:
    """The same in evaluate.py, up to the test; what is no run is told by its path."""
    cfg = compose_config([f"ckpt={trained}", "data=synthetic68", "data.test=8", "logger=csv"], "evaluate")

    def carry(cfg: DictConfig, place: Place) -> None:
        check(cfg, EVALUATE_KEYS)
        if place[0] in ("trainer", "callbacks", "logger"):
            build_trainer(cfg)
        else:
            build_data(load_run(Path(str(cfg.ckpt)), cfg.paths), cfg)

    assert findings(cfg, carry, lambda place: place[0] != "ckpt") == []


@pytest.mark.slow
def test_wrong_values_of_predict_are_refused_by_their_key(trained: Path) -> None:
    """The same in predict.py, up to the first photo."""
    cfg = compose_config(["images=photos", f"landmarker={trained}"], "predict")

    def carry(cfg: DictConfig, place: Place) -> None:
        check(cfg, predict.PREDICT_KEYS)
        predict.check_values(cfg)
        if place[0] == "crop":
            predict.build_crop(load_run(trained, cfg.paths), cfg)

    assert findings(cfg, carry) == []


@pytest.mark.slow
def test_wrong_values_of_benchmark_are_refused_by_their_key() -> None:
    """The same for the options of benchmark.py alone; all others are those of train.py."""
    cfg = compose_config(small(MODELS[0]), "benchmark")

    def carry(cfg: DictConfig, place: Place) -> None:
        check(cfg, {**TRAIN_KEYS, **benchmark.OPTIONS})
        benchmark.check_values(cfg)

    own = benchmark.OPTIONS.keys() - {"compile", "memory_format", "ckpt"}
    assert findings(cfg, carry, lambda place: place[0] in own) == []
