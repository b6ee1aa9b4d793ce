"""Tests that senseless values anywhere in a configuration are refused with their key before the training."""

import copy
import math
import re
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from composing import (
    CONF,
    MODELS,
    TRAINED,
    compose_config,
    groups_of,
    method,
    options,
    parts_of_landmarks,
    small,
    small_with,
    taker,
)
from omegaconf import DictConfig, OmegaConf

import benchmark
import predict
import train
from evaluate import EVALUATE_KEYS, build_data
from facelab.errors import FacelabError
from facelab.profiling.compile import set_format_and_compile
from facelab.runs.build import build, build_trainer, check
from facelab.runs.check import TRAIN_KEYS, check_config
from facelab.runs.checkpoint import build_crop, load_run
from facelab.runs.references import copy_part

Place = tuple[str | int, ...]
NUMBERS = (math.nan, math.inf, -1, 0, 1e9, 10**9)
SECONDS = 5.0
"""Longest time to refuse or accept a value, on a machine that also does other work."""
MEMORY = 2**33
"""Bytes that may be reserved beyond those in use; libraries reserve more memory than they use."""


# Leaves


def leaves(node: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield the place and the value of every leaf, empty containers included, without resolving."""
    if isinstance(node, dict | list) and node:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(child, (*place, key))
    else:
        yield place, node


def wrong_values(value: Any) -> tuple[Any, ...]:
    """Return values that are wrong in most places, one of another type included."""
    return (*NUMBERS, "", None, 2.5 if isinstance(value, str | bool) or value is None else "text")


def changed(raw: Any, values: Mapping[Place, Any]) -> DictConfig:
    """Return a copy with other values at these places."""
    raw = copy.deepcopy(raw)
    for place, value in values.items():
        node = raw
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = copy.deepcopy(value)  # a later place may be in it
    return OmegaConf.create(raw)


def has(raw: Any, place: Place) -> bool:
    """Return whether a configuration has a value, null included, at this place."""
    for key in place:
        if (isinstance(raw, dict) and key in raw) or (
            isinstance(raw, list) and isinstance(key, int) and key < len(raw)
        ):
            raw = raw[key]
        else:
            return False
    return True


def key_of(place: Place) -> str:
    """Return the dotted key of a place."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).lstrip(".")


def is_named(message: str, raw: Any, place: Place) -> bool:
    """Return whether a message names a key: in full, by its reference, or by its part and argument."""
    node, parts = raw, []
    for step, key in enumerate(place, 1):
        node = node[key]
        parts += [key_of(place[:step])] if isinstance(node, dict) and "_target_" in node else []
    reference = node[2:-1] if isinstance(node, str) and node.startswith("${") else key_of(place)
    last = next(str(key) for key in reversed(place) if isinstance(key, str))
    transform_fault = "cannot change an image alone"  # from a transform that was tried; its message has no argument
    names_the_part = any(f"{part}:" in message or f"{part}." in message for part in parts) and (
        last in message or transform_fault in message
    )
    names_the_list = isinstance(place[-1], int) and f"{key_of(place[:-1])}:" in message
    return key_of(place) in message or reference in message or names_the_part or names_the_list


def findings(
    cfg: DictConfig, carry: Callable[[DictConfig, Place], object], chosen: Callable[[Place], bool] = lambda _: True
) -> list[str]:
    """Give every wrong value of every leaf to the checks and parts of a door; list the unsatisfactory answers."""
    raw, problems = OmegaConf.to_container(cfg, resolve=False), []
    for place, was in leaves(raw):
        for value in wrong_values(was) if chosen(place) else ():
            start, case = time.monotonic(), f"{key_of(place)}={value!r}"
            try:
                carry(changed(raw, {place: value}), place)
            except FacelabError as refusal:
                if not is_named(str(refusal), raw, place):
                    problems.append(f"{case}: its key is not in: {refusal}")
            except BaseException as error:
                problems.append(f"{case}: {type(error).__name__}: {error}")
            if time.monotonic() - start > SECONDS:
                problems.append(f"{case}: took {time.monotonic() - start:.0f} s")
    return problems


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Limit the memory, so that a request for gigabytes fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Change into an empty folder, in which loggers may write when they are built."""
    monkeypatch.setenv("FACELAB_STAMP", "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)


# train.py


@cache
def composed(model: str) -> DictConfig:
    return compose_config([*small(model), "callbacks=ema"])


@cache
def places_of(model: str, node: str) -> set[Place]:
    """Return the leaves of a node and of its references."""
    raw: Any = OmegaConf.to_container(composed(model), resolve=False)
    return {place for place, _ in leaves(OmegaConf.to_container(copy_part(raw, [node]), resolve=False))}


def is_in(place: Place, places: set[Place]) -> bool:
    """Return whether a place, or another one of its part, is among these."""
    return any(other[: len(place)] == place or other[:1] == place[:1] for other in places)


def run_checks(cfg: DictConfig, place: Place, model: str) -> None:
    """Run the steps of train.py before it reads data, except for parts that the place does not change."""
    check(cfg, TRAIN_KEYS)
    train.check_values(cfg)
    if is_in(place, places_of(model, "datamodule")):
        build(cfg, "datamodule")
    if is_in(place, places_of(model, "model")) or place[0] in ("memory_format", "compile"):
        module = build(cfg, "model")
        set_format_and_compile(module, cfg.memory_format, cfg.compile)
        module.configure_optimizers()
    if any(is_in(place, places_of(model, node)) for node in ("trainer", "callbacks", "logger")):
        build_trainer(cfg)


def _options() -> Iterator[tuple[str, str]]:
    """Yield every option of a part of a method, except further networks of timm."""
    for group in sorted({group for model in MODELS for group in groups_of(model)}):
        for option in options(group) if group == "data" else parts_of_landmarks(group):
            if "[timm," not in (CONF / group / f"{option}.yaml").read_text():
                yield group, option


SEEN: set[tuple[Any, ...]] = set()
"""Arguments of classes, and keys outside classes, that an earlier option has tested."""


def is_new(raw: Any, place: Place) -> bool:
    """Return whether no earlier option had this argument of this class; such options differ only in values."""
    node, owner = raw, (None, place)
    for step, key in enumerate(place):
        node = node[key]
        if isinstance(node, dict) and "_target_" in node:
            owner = node["_target_"], place[step + 1 :]
    seen = owner in SEEN
    SEEN.add(owner)
    return not seen


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option"), list(_options()))
@pytest.mark.usefixtures("little_memory")
def test_train_names_the_key_of_wrong_values_in_every_option(group: str, option: str) -> None:
    """Would catch the same for parts of other recipes, and for their values in a checkpoint."""
    cfg = compose_config(small_with(taker(group, option, tuple(MODELS)), group, option))
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
def test_train_names_the_key_of_wrong_values(model: str) -> None:
    """Would catch a wrong value that ends in a traceback, fills the memory, or is refused without its key.

    The test of every option covers the parts of a method. The trainer and the callbacks are those of every method.
    """
    cfg, groups = composed(model), groups_of(model)
    raw = OmegaConf.to_container(cfg, resolve=False)

    def chosen(place: Place) -> bool:
        return place[0] not in groups and is_new(raw, place)

    assert findings(cfg, lambda cfg, place: run_checks(cfg, place, model), chosen) == []


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
"""Refused values of any method by key; ``refused`` in tests/small/ lists those of the parts of a method."""
BUILT = (
    *("memory_format", "compile", "trainer.devices", "trainer.precision", "callbacks.checkpoint.save_top_k"),
    *("datamodule.max_unreadable", "crop.scale", "crop.shift", "data.train", "data.seed", "data.pitch"),
    *("augment.flip_probability",),
)
"""Keys with values that only a constructor refuses."""
BUILT_CASES = [
    *((model, key, REFUSED[key]) for model in TRAINED for key in BUILT),  # skipped if the method has no such key
    *((model, key, values) for model in TRAINED for key, values in method(model).refused_when_built.items()),
]
"""Values that only constructors refuse: model, key, values."""


@pytest.mark.parametrize("model", TRAINED)
def test_check_config_refuses_all_senseless_values_together(model: str) -> None:
    """Would catch a value that is silently accepted and ruins a run, or faults that are listed one at a time."""
    raw = OmegaConf.to_container(composed(model), resolve=False)
    of_every_method = {key: values for key, values in REFUSED.items() if key not in BUILT and has(raw, place_at(key))}
    wrong = of_every_method | method(model).refused
    for number in range(max(map(len, wrong.values()))):
        keys = [key for key, values in wrong.items() if number < len(values)]
        together = changed(raw, {place_at(key): wrong[key][number] for key in keys})
        places = [fault.place for fault in check_config(together, TRAIN_KEYS)]
        assert [key for key in keys if not any(place.startswith(key) for place in places)] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "key", "values"), BUILT_CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_build_refuses_senseless_values(model: str, key: str, values: list[Any]) -> None:
    """Would catch the same in constructors of this project and of libraries."""
    raw, place = OmegaConf.to_container(composed(model), resolve=False), place_at(key)
    for value in values if has(raw, place) or key not in BUILT else ():
        with pytest.raises(FacelabError) as refusal:
            run_checks(changed(raw, {place: value}), place, model)
        assert is_named(str(refusal.value), raw, place), value


def place_at(key: str) -> Place:
    """Return the place of a dotted key."""
    parts = key.replace("[", ".").replace("]", "").split(".")
    return tuple(int(part) if part.isdecimal() else part for part in parts)


@pytest.mark.parametrize(
    ("key", "value", "message"),
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
def test_check_refuses_a_wrong_value_for_a_node(key: str, value: Any, message: str) -> None:
    """Would catch a traceback where a mapping or a part is expected, or an item's fault under the key of its list."""
    raw = OmegaConf.to_container(composed("pipnet"), resolve=False)
    with pytest.raises(FacelabError, match=rf"\n  {re.escape(message)}"):
        check(changed(raw, {place_at(key): value}), TRAIN_KEYS)


def test_build_parts_accepts_sensible_values() -> None:
    """Would catch a bound that refuses a value that a user may want."""
    sensible = {
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
    for key, value in sensible.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    train.build_parts(cfg)


# The other doors


@pytest.mark.slow
@pytest.mark.usefixtures("little_memory")
def test_evaluate_names_the_key_of_wrong_values(trained: Path) -> None:
    """Would catch the same in evaluate.py before its test; a wrong checkpoint is named by its path."""
    cfg = compose_config([f"ckpt={trained}", "data=synthetic68", "data.test=8", "logger=csv"], "evaluate")

    def carry(cfg: DictConfig, place: Place) -> None:
        check(cfg, EVALUATE_KEYS)
        if place[0] in ("trainer", "callbacks", "logger"):
            build_trainer(cfg)
        else:
            build_data(load_run(Path(str(cfg.ckpt)), cfg.paths), cfg)

    assert findings(cfg, carry, lambda place: place[0] != "ckpt") == []


@pytest.mark.slow
def test_predict_names_the_key_of_wrong_values(trained: Path) -> None:
    """Would catch the same in predict.py before its first photo."""
    cfg = compose_config(["images=photos", f"landmarker={trained}"], "predict")

    def carry(cfg: DictConfig, place: Place) -> None:
        check(cfg, predict.PREDICT_KEYS)
        predict.check_values(cfg)
        if place[0] == "crop":
            for box in ("given", "image"):
                build_crop(load_run(trained, cfg.paths), box, cfg.crop)

    assert findings(cfg, carry) == []


@pytest.mark.slow
def test_benchmark_names_the_key_of_wrong_values() -> None:
    """Would catch the same for the options of benchmark.py alone; train.py has all others."""
    cfg = compose_config(small(MODELS[0]), "benchmark")

    def carry(cfg: DictConfig, place: Place) -> None:
        check(cfg, {**TRAIN_KEYS, **benchmark.OPTIONS})
        benchmark.check_values(cfg)

    new_options = benchmark.OPTIONS.keys() - {"compile", "memory_format", "ckpt"}
    assert findings(cfg, carry, lambda place: place[0] in new_options) == []
