"""Table of names that earlier versions wrote into checkpoints and run folders, with the names of today.

Every checkpoint, ``config.yaml`` and ``overrides.yaml`` is read through this table, which keeps the runs of all earlier
versions usable. A new :class:`Step`, and a recorded run in the tests, is needed when a class that ``conf/`` names is
renamed, its module is moved, one of its arguments is renamed or removed, or a part with weights is renamed.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from facelab.errors import CheckpointError


class Step(NamedTuple):
    """Changes from one format of checkpoints to the next."""

    modules: Mapping[str, str] = {}
    """New path by old path of a module, package or class, in ``_target_`` and ``path``; the longest match applies."""
    arguments: Mapping[tuple[str, str], str | None] = {}
    """New name of an argument by the new path of its class and its old name; None if it was removed."""
    added: Mapping[tuple[str, str], Any] = {}
    """Value of an added argument that preserves the earlier behaviour, by the new path of its class (empty for the
    root) and the name of the argument."""
    weights: Mapping[str, str] = {}
    """New prefix by old prefix of names in the state dict, such as ``trunk.`` for ``backbone.``."""
    keys: Mapping[str, str] = {}
    """New key by old dotted key of the whole configuration; both are in the same node."""
    states: Mapping[str, str] = {}
    """New name by old name of a callback in the checkpoint's ``callbacks``."""


STEPS: Sequence[Step] = (
    Step(modules={"facelab.landmarks": "facelab.faces"}),
    Step(
        arguments={("facelab.annotations.synthetic.Synthetic", "root"): "cache"},
        added={
            ("", "test"): True,
            ("", "on_nan"): "stop",
            ("facelab.annotations.folder.Folder", "orientation"): "stored",
            ("facelab.annotations.folder.Folder", "units"): "pixels",
            ("facelab.annotations.folder.Folder", "missing"): [],
            ("facelab.annotations.folder.Folder", "splits"): None,
            ("datamodules.pipnet.PIPNetDataModule", "max_unreadable"): 0.01,
            ("datamodules.pfld.PFLDDataModule", "max_unreadable"): 0.01,
        },
    ),
    Step(
        modules={
            "callbacks.dashboard.Wandb": "callbacks.wandb_logger.TolerantWandbLogger",
            "callbacks.metrics_file.MetricsFile": "callbacks.csv_logger.AppendingCSVLogger",
            "callbacks.resumption.Resumption": "callbacks.resume.ResumableCheckpoint",
            "callbacks.resumption.WholeFiles": "callbacks.resume.AtomicCheckpointIO",
            "facelab.losses.pfld.EffectiveNumber": "facelab.losses.pfld.EffectiveNumberWeight",
            "facelab.losses.pfld.HardFaces": "facelab.losses.pfld.HardExampleWeight",
            "facelab.losses.pfld.InverseFrequency": "facelab.losses.pfld.InverseFrequencyWeight",
            "facelab.losses.regression.PointLoss": "facelab.losses.regression.LandmarkLoss",
            "facelab.losses.regression.Wing": "facelab.losses.regression.WingLoss",
            "facelab.networks.backbone.Timm": "facelab.networks.backbone.TimmBackbone",
            "lightning_modules.schedule.Drops": "lightning_modules.schedule.FractionalMultiStepLR",
        },
        arguments={
            ("callbacks.pictures.FaceGrid", "cell"): "tile",
            ("callbacks.pictures.WorstFaces", "cell"): "tile",
            ("datamodules.augmentation.Augmentation", "mirror_probability"): "flip_probability",
            ("datamodules.pfld.SquaresAroundFace", "mirror_probability"): "flip_probability",
        },
        keys={
            "test_with": "test_ckpt",
            "landmarks": "landmarker",
            "callbacks.resumption": "callbacks.resume",
            "callbacks.face_grid.cell": "callbacks.face_grid.tile",
            "callbacks.worst_faces.cell": "callbacks.worst_faces.tile",
            "augment.mirror_probability": "augment.flip_probability",
        },
        states={"Resumption": "ResumableCheckpoint"},
    ),
    Step(
        added={
            ("", "rates"): {
                "_target_": "lightning_modules.rates.Rates",
                "factors": None,
                "freeze": [],
                "warmup_epochs": 0.0,
            },
            ("facelab.networks.backbone.TimmBackbone", "norm_epsilon"): None,
        }
    ),
    Step(added={("lightning_modules.retinaface.RetinaFace", "val_scale"): "original"}),
)
"""Changes from format 1 to 2, from 2 to 3, and so on."""
FORMAT = 1 + len(STEPS)
"""Format of checkpoints that are written today; a file without a format number has format 1."""
WEIGHT_KEYS = ("state_dict", "current_model_state")
"""Entries of a checkpoint that contain weights; the second exists beside averages (Lightning's ``WeightAveraging``)."""
PATH_KEYS = ("_target_", "path")
"""Keys of a configuration whose values are import paths of classes and layouts."""


def renamed_path(path: str, steps: Sequence[Step] = STEPS) -> str:
    """Return today's name of a class, a layout or a module; unknown names are returned unchanged."""
    for step in steps:
        fitting = [old for old in step.modules if path == old or path.startswith(f"{old}.")]
        if fitting:
            longest = max(fitting, key=len)
            path = step.modules[longest] + path[len(longest) :]
    return path


def renamed_config(config: Mapping[str, Any], steps: Sequence[Step] = STEPS) -> dict[str, Any]:
    """Return a copy of a configuration in plain containers with today's names; interpolations are not changed."""
    renamed: Any = config
    for step in steps:
        at_root = {key: value for (owner, key), value in step.added.items() if not owner}
        renamed = at_root | _moved(_renamed(renamed, step), step.keys)
    return dict(renamed)


def _moved(config: dict[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Rename keys of a configuration, in place."""
    for old, new in keys.items():
        *path, last = old.split(".")
        node: Any = config
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node:
            node[new.rpartition(".")[2]] = node.pop(last)
    return config


def renamed_key(key: str, steps: Sequence[Step] = STEPS) -> str:
    """Return today's name of a dotted key of the configuration; unknown keys are returned unchanged."""
    for step in steps:
        for old, new in step.keys.items():
            if f"{key}.".startswith(f"{old}."):
                key = new + key.removeprefix(old)
    return key


def _renamed(node: Any, step: Step) -> Any:
    """Return a copy of a node with the modules and arguments of a step renamed, and its arguments added."""
    if isinstance(node, (list, tuple)):
        return [_renamed(item, step) for item in node]
    if not isinstance(node, Mapping):
        return node
    named = {
        key: renamed_path(value, (step,)) if key in PATH_KEYS and isinstance(value, str) else _renamed(value, step)
        for key, value in node.items()
    }
    for (owner, key), value in step.added.items():
        if owner and named.get("_target_") == owner:
            named.setdefault(key, value)
    for (owner, old), new in step.arguments.items():
        if named.get("_target_") == owner and old in named:
            value = named.pop(old)
            if new is not None:
                named[new] = value
    return named


def renamed_checkpoint(content: dict[str, Any]) -> dict[str, Any]:
    """Convert the content of a checkpoint of any format to today's format.

    Raises:
        CheckpointError: this version does not read the format of the checkpoint.
    """
    written = content.get("format", 1)
    if not isinstance(written, int) or not 1 <= written <= FORMAT:
        raise CheckpointError(f"the checkpoint has format {written}; this version reads the formats 1 to {FORMAT}")
    steps = STEPS[written - 1 :]
    if isinstance(config := content.get("hyper_parameters"), Mapping):
        content = content | {"hyper_parameters": renamed_config(config, steps)}
    for key in WEIGHT_KEYS:
        if isinstance(weights := content.get(key), Mapping):
            content = content | {key: renamed_weights(weights, steps)}
    if isinstance(states := content.get("callbacks"), Mapping):
        for step in steps:
            states = {step.states.get(name, name): state for name, state in states.items()}
        content = content | {"callbacks": states}
    return content


def renamed_override(word: str, steps: Sequence[Step] = STEPS) -> str:
    """Return an override, such as ``data.layout.path=facelab.landmarks.layouts.IBUG68``, with today's key and paths.

    Of renamed arguments, only those in :attr:`Step.keys` are translated, because a key does not name its class.
    """
    key, equals, value = word.partition("=")
    bare = key.lstrip("+~")
    word = key.removesuffix(bare) + renamed_key(bare, steps) + equals + value
    return re.sub(
        rf"((?:^|[.{{,\s])[+~]*(?:{'|'.join(PATH_KEYS)})\s*[=:]\s*['\"]?)([\w.]+)",
        lambda match: match[1] + renamed_path(match[2], steps),
        word,
    )


def renamed_weights(weights: Mapping[str, Any], steps: Sequence[Step] = STEPS) -> dict[str, Any]:
    """Return a state dict with today's names, and unchanged values and order."""
    renamed = dict(weights)
    for step in steps:
        for old, new in step.weights.items():
            renamed = {
                new + key.removeprefix(old) if key.startswith(old) else key: value for key, value in renamed.items()
            }
    return renamed
