"""Tests of opening a checkpoint: it needs only the parts of its model, and may be hostile, damaged or old."""

import copy
import resource
import shutil
import socket
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from conftest import ROOT, metrics_of, open_door
from omegaconf import OmegaConf
from PIL import Image
from recorded_runs import PATHS, crops

import facelab
from callbacks.resume import STATES, AtomicCheckpointIO
from facelab import renames
from facelab.errors import CheckpointError, ConfigError, FacelabError
from facelab.renames import Step, renamed_config, renamed_override, renamed_path, renamed_weights
from facelab.runs.checkpoint import load_run, offline, parse_supplements, read_checkpoint
from facelab.runs.references import copy_part
from lightning_modules import pfld

RECORDED = ROOT / "tests" / "recorded"
PIPNET, PFLD = (RECORDED / name / "checkpoints" / "last.ckpt" for name in ("finished", "unfinished"))
REMOVED_LOSS = "facelab.losses.pfld.LossOfTomorrow"


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """Load the recorded checkpoint of PFLD."""
    loaded: dict[str, Any] = torch.load(PFLD, weights_only=True)
    return loaded


@pytest.fixture
def written(content: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves that checkpoint with changes.

    The changes map dotted keys of its configuration to values; None removes a key. `entries` replace other entries.
    """

    def write(changes: dict[str, Any], **entries: Any) -> Path:
        changed = content | {"hyper_parameters": copy.deepcopy(content["hyper_parameters"])} | entries
        for key, value in changes.items():
            *parents, last = key.split(".")
            node = changed["hyper_parameters"]
            for parent in parents:
                node = node.setdefault(parent, {})
            if value is None:
                del node[last]
            else:
                node[last] = value
        torch.save(changed, tmp_path / "changed.ckpt")
        return tmp_path / "changed.ckpt"

    return write


def points_of(file: Path) -> torch.Tensor:
    with torch.inference_mode():
        points: torch.Tensor = load_run(file, PATHS).module.predict(crops()).points
    return points


@pytest.fixture(scope="module")
def recorded_points() -> torch.Tensor:
    """Predict the points of the recorded PFLD."""
    return points_of(PFLD)


NOT_BUILT = (
    {"logger.csv._target_": "callbacks.old_metrics.OldFile"},
    {"callbacks.gone": {"_target_": "callbacks.gone.Gone", "argument": 1}},
    {"trainer.argument_that_lightning_dropped": 3},
    {"trainer._target_": "lightning.OldTrainer"},
    {"scheduler._target_": "lightning_modules.schedule.Gone", "scheduler.more": 1},
    {"optimizer._target_": "torch.optim.Gone"},
    {"datamodule._target_": "datamodules.gone.Gone"},
    {"augment.gone_limit": 7, "data._target_": "facelab.annotations.gone.Gone"},
    {"retired_option": True, "monitor.gone": 1},
    {"task": "${a_resolver_that_is_gone:}", "logger.csv.path": "${paths.no_such_key}"},
    {"trainer.max_epochs": None},
    {"seed": None},
)
"""Changes of the configuration in parts that are not built when a checkpoint is opened."""


@pytest.mark.parametrize(
    "changes",
    [
        {key: value for changes in NOT_BUILT for key, value in changes.items()},
        *(pytest.param(changes, marks=pytest.mark.slow) for changes in NOT_BUILT),  # to find the one at fault
    ],
    ids=lambda changes: " ".join(changes) if len(changes) < 3 else "all",
)
def test_load_run_ignores_parts_that_it_does_not_build(
    changes: dict[str, Any], written: Callable[..., Path], recorded_points: torch.Tensor
) -> None:
    """Would catch a checkpoint that no longer opens because a logger was renamed or Lightning dropped an argument."""
    assert torch.equal(points_of(written(changes)), recorded_points)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head.sizes": [8, 8]}, r"head\.sizes: "),
        ({"crop.siez": 64}, r"crop\.siez: .*`size`"),
        ({"backbone._target_": "facelab.networks.pfld.Gone"}, r"backbone\._target_: .*no `Gone`"),
        ({"data.layout.path": "facelab.faces.layouts.GONE"}, r"data\.layout\.path: "),
        ({"data.layout._target_": "os.system"}, r"data\.layout\._target_: "),
        ({"pose._target_": "subprocess.Popen"}, r"pose\._target_: "),
    ],
    ids=str,
)
def test_load_run_checks_the_parts_that_it_builds(
    changes: dict[str, Any], message: str, written: Callable[..., Path]
) -> None:
    """Would catch a part that is built unchecked, or a fault without its key."""
    with pytest.raises(FacelabError, match=message):
        load_run(written(changes), PATHS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datamodule._target_": "os.system"}, r"datamodule\._target_: `os\.system` is not allowed"),
        ({"data._target_": "subprocess.Popen"}, r"data\._target_: `subprocess\.Popen` is not allowed"),
        ({"datamodule": None}, "has no datamodule"),
    ],
    ids=str,
)
def test_evaluate_checks_the_datamodule_of_the_checkpoint(
    changes: dict[str, Any], message: str, written: Callable[..., Path], tmp_path: Path
) -> None:
    """Would catch a received checkpoint whose datamodule runs a command, because load_run does not check it."""
    with pytest.raises(SystemExit, match=message):
        open_door("evaluate", f"ckpt={written(changes)}", "hydra.run.dir=again", folder=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": None}, "has no crop"),
        ({"crop": "pipnet"}, "has no crop"),
        ({"model": "pfld"}, "has no model"),
        ({"model": "${nowhere}"}, "cannot be read"),
        ({"memory_format": "${nowhere}"}, "cannot be read"),
        ({"loss.points": "${evil}", "evil": {"_target_": "os.system", "command": "true"}}, r"evil\._target_: "),
    ],
    ids=str,
)
def test_load_run_refuses_a_broken_configuration(
    changes: dict[str, Any], message: str, written: Callable[..., Path]
) -> None:
    """Would catch a traceback for a damaged or foreign file."""
    with pytest.raises(FacelabError, match=message):
        load_run(written(changes), PATHS)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss._target_": REMOVED_LOSS},
        {"loss.gone_argument": 1},
        {"loss.floor": -1.0},
        {"loss.points._target_": "a.b.C"},
    ],
    ids=str,
)
def test_load_run_omits_a_loss_that_cannot_be_built(
    changes: dict[str, Any],
    written: Callable[..., Path],
    recorded_points: torch.Tensor,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Would catch a network that does not open without its loss: that of PFLD has buffers among the weights."""
    assert any(key.startswith("loss.") for key in torch.load(PFLD, weights_only=True)["state_dict"])
    file = written(changes)
    assert torch.equal(points_of(file), recorded_points)
    assert "its loss cannot be built and is left out" in caplog.text
    assert "left out with their weights: loss, pose" in caplog.text
    run = load_run(file, PATHS)
    assert run.module.loss is None and run.cfg.model.loss is None
    assert run.module.predict(crops()).pose is None, "without the loss it is unknown whether the angles were trained"


def test_load_run_keeps_a_pose_with_its_own_weight_without_the_loss(written: Callable[..., Path]) -> None:
    """Would catch angles trained by `model.angle_weight` that are omitted together with an unrelated loss."""
    with torch.inference_mode():
        with_loss = load_run(written({"model.angle_weight": 1.0}), PATHS).module.predict(crops())
        without_loss = load_run(
            written({"model.angle_weight": 1.0, "loss._target_": REMOVED_LOSS}), PATHS
        ).module.predict(crops())
    assert with_loss.pose is not None and without_loss.pose is not None
    assert torch.equal(with_loss.pose, without_loss.pose)


def test_evaluate_measures_a_run_without_its_loss(written: Callable[..., Path], tmp_path: Path) -> None:
    """Would catch an old run that opens but cannot be evaluated, or whose evaluation stores unresolved keys."""
    changes = {"loss._target_": REMOVED_LOSS, "logger.csv.path": "${paths.no_such_key}", "trainer.gone": 1}
    changes |= {"callbacks.other": {"path": "${logger.csv.path}"}}
    open_door("evaluate", f"ckpt={written(changes)}", "hydra.run.dir=again", folder=tmp_path)
    cfg = OmegaConf.load(tmp_path / "again" / "config.yaml")
    assert cfg.model.loss is None and "logger" not in cfg
    assert (tmp_path / "again" / "metrics.json").is_file()


def test_load_run_refuses_missing_and_unexpected_weights(content: dict[str, Any], written: Callable[..., Path]) -> None:
    """Would catch a network with random weights; an omitted loss must not excuse other missing weights."""
    weights = dict(content["state_dict"])
    first = next(key for key in weights if key.startswith("backbone."))
    incomplete = {key: value for key, value in weights.items() if key != first}
    for changes in ({}, {"loss._target_": REMOVED_LOSS}):
        with pytest.raises(CheckpointError, match=f"(?s)do not fit its configuration.*{first}"):
            load_run(written(changes, state_dict=incomplete), PATHS)
    for name, changes in (("stranger", {}), ("backbone.more", {}), ("backbone.more", {"loss._target_": REMOVED_LOSS})):
        with pytest.raises(CheckpointError, match=f"(?s)do not fit its configuration.*{name}"):
            load_run(written(changes, state_dict=weights | {name: torch.zeros(1)}), PATHS)


def test_train_refuses_a_null_loss_or_optimizer(tmp_path: Path) -> None:
    """Would catch `model.loss=null`, which load_run allows, and a traceback in the first training step."""
    small = ["model=pfld", "backbone.width=0.05", "crop.size=64", "data=synthetic68", "logger=none", "callbacks=none"]
    small += ["data.train=8", "data.val=2", "data.test=2", "data.size=96"]
    shutil.copytree(RECORDED / "unfinished", tmp_path / "unfinished")
    kept = (tmp_path / "unfinished" / "overrides.yaml").read_bytes()
    with pytest.raises(SystemExit, match=r"model\.loss=null: nothing would be trained"):
        open_door("train", "resume=unfinished", "~loss", "model.loss=null", folder=tmp_path)
    assert (tmp_path / "unfinished" / "overrides.yaml").read_bytes() == kept, "a refused override is stored"
    for part in ("loss", "optimizer"):
        with pytest.raises(SystemExit, match=rf"model\.{part}=null: nothing would be trained"):
            open_door("train", *small, f"~{part}", f"model.{part}=null", f"hydra.run.dir={part}", folder=tmp_path)


@pytest.mark.parametrize("argument", ["optimizer", "scheduler", "loss"])
def test_load_run_passes_null_to_required_training_arguments(
    argument: str, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a checkpoint of a custom method that does not open because its annotation forbids null."""
    monkeypatch.setitem(pfld.PFLD.__init__.__annotations__, argument, Callable[..., Any])
    changes = {"loss._target_": "facelab.losses.Gone"} if argument == "loss" else {}
    assert torch.equal(points_of(written(changes)), points_of(PFLD))


# Formats


def test_checkpoint_io_writes_the_format_and_refuses_a_later_one(tmp_path: Path, written: Callable[..., Path]) -> None:
    """Would catch a newer checkpoint that this version misreads, or a format that is not written."""
    files, path = AtomicCheckpointIO(), tmp_path / "a.ckpt"
    content = {"state_dict": {}, "format": renames.FORMAT, **{key: [1] for key in STATES}}
    files.save_checkpoint(content, path)
    assert files.load_checkpoint(path, weights_only=True) == content
    saved: dict[str, Any] = {}
    load_run(PFLD, PATHS).module.on_save_checkpoint(saved)
    assert saved == {"format": renames.FORMAT}
    assert "format" not in torch.load(PFLD, weights_only=True), (
        "the recorded checkpoint is older than the format number"
    )
    late = written({}, format=renames.FORMAT + 1)
    with pytest.raises(CheckpointError, match=rf"changed\.ckpt: .* format {renames.FORMAT + 1}; this version reads"):
        load_run(late, PATHS)
    with pytest.raises(CheckpointError, match="this version reads the formats 1 to"):
        files.load_checkpoint(late, weights_only=True)


STEPS = (
    Step(
        modules={"facelab.networks.pfld.PFLDTrunk": "facelab.networks.trunk.Trunk", "facelab.networks": "facelab.nets"},
        arguments={("facelab.networks.trunk.Trunk", "width"): "factor", ("facelab.networks.trunk.Trunk", "skip"): None},
        weights={"backbone.": "trunk."},
    ),
    Step(
        modules={"facelab.networks.trunk": "facelab.trunks"},
        weights={"trunk.": "body."},
        keys={"test_with": "test_ckpt", "callbacks.a": "callbacks.b", "callbacks.b.minutes": "callbacks.b.every"},
    ),
)


def test_renames_change_modules_arguments_and_weights() -> None:
    """Would catch a short module name that hides a longer one, a skipped step, a lost value, or a changed other key."""
    assert renamed_path("facelab.networks.pfld.PFLDTrunk", STEPS) == "facelab.trunks.Trunk"
    assert renamed_path("facelab.networks.pfld.PFLDTrunks", STEPS) == "facelab.nets.pfld.PFLDTrunks"
    assert renamed_path("facelab.networks_of_mine.X", STEPS) == "facelab.networks_of_mine.X"
    old = {
        "backbone": {"_target_": "facelab.networks.pfld.PFLDTrunk", "width": 0.5, "skip": False, "outputs": 16},
        "others": [{"_target_": "facelab.networks.a.B", "width": 1, "path": "facelab.networks.c.D", "name": "x"}],
        "reference": "${backbone}",
        "test_with": "best",
        "callbacks": {"a": {"minutes": 1}},
    }
    kept = copy.deepcopy(old)
    assert renamed_config(old, STEPS) == {
        "backbone": {"_target_": "facelab.trunks.Trunk", "outputs": 16, "factor": 0.5},
        "others": [{"_target_": "facelab.nets.a.B", "width": 1, "path": "facelab.nets.c.D", "name": "x"}],
        "reference": "${backbone}",
        "test_ckpt": "best",
        "callbacks": {"b": {"every": 1}},
    }
    assert old == kept
    weights = {"backbone.a": 1, "head.backbone.b": 2}
    assert renamed_weights(weights, STEPS) == {"body.a": 1, "head.backbone.b": 2}
    assert list(renamed_weights(weights, STEPS)) == ["body.a", "head.backbone.b"], (
        "the optimizer state depends on the order"
    )


@pytest.mark.parametrize(
    "augment", [{"pixels": [{"_target_": "albumentations.MotionBlur"}]}, {"gone_limit": 3}], ids=str
)
def test_evaluate_ignores_faults_of_the_augmentation(
    augment: dict[str, Any], written: Callable[..., Path], tmp_path: Path
) -> None:
    """Would catch an old run that cannot be evaluated because its training augmentation is refused today."""
    changes = {f"augment.{key}": value for key, value in augment.items()}
    open_door("evaluate", f"ckpt={written(changes)}", "hydra.run.dir=again", folder=tmp_path)
    assert (tmp_path / "again" / "metrics.json").is_file()
    kept = OmegaConf.to_container(OmegaConf.load(tmp_path / "again" / "config.yaml").augment)
    assert kept.items() >= augment.items(), "the augmentation of the training is lost"


@pytest.mark.parametrize(
    ("word", "renamed"),
    [
        ("data.layout.path=facelab.landmarks.layouts.IBUG68", "data.layout.path=facelab.faces.layouts.IBUG68"),
        ("crop._target_='facelab.landmarks.crop.Crop'", "crop._target_='facelab.faces.crop.Crop'"),
        ("data.root=facelab.landmarks.layouts", "data.root=facelab.landmarks.layouts"),
        ("+data.layout.path=facelab.landmarks", "+data.layout.path=facelab.faces"),
        ("data.layout={path:facelab.landmarks.layouts.A, x: 1}", "data.layout={path:facelab.faces.layouts.A, x: 1}"),
        ("+crop={_target_: facelab.landmarks.crop.Crop}", "+crop={_target_: facelab.faces.crop.Crop}"),
        ("data.name=path_facelab.landmarks", "data.name=path_facelab.landmarks"),
        ("seed=1", "seed=1"),
        ("~logger", "~logger"),
        ("test_with=best", "test_ckpt=best"),
        ("+callbacks.resumption.minutes=1", "+callbacks.resume.minutes=1"),
        ("~callbacks.resumption", "~callbacks.resume"),
        ("data.test_with=1", "data.test_with=1"),
        ("callbacks.resumptions=1", "callbacks.resumptions=1"),
    ],
)
def test_renamed_override_changes_old_names_only(word: str, renamed: str) -> None:
    """Would catch an unfinished run with the old path of a layout, or a folder name that is changed like a module."""
    assert renamed_override(word) == renamed


def test_checkpoint_io_renames_averaged_weights_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a resumed run with old names in one of its two sets of weights."""
    monkeypatch.setattr(renames, "STEPS", (STEPS[0],))
    content = {"state_dict": {"backbone.a": 1}, "current_model_state": {"backbone.a": 2}, "epoch": 3}
    content |= {"loops": {"a": 1}, "callbacks": {"a": 1}, "optimizer_states": [1]}
    torch.save(content, tmp_path / "a.ckpt")
    loaded = AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert (loaded["state_dict"], loaded["current_model_state"]) == ({"trunk.a": 1}, {"trunk.a": 2})


def test_renames_cover_every_class_of_a_recorded_configuration() -> None:
    """Would catch a class that was moved without an entry in the table of renames."""

    def targets(node: Any) -> Iterable[str]:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, (dict, list)):
                yield from targets(value)
            elif key in renames.PATH_KEYS and isinstance(value, str) and "." in value and "/" not in value:
                yield value

    for file in (PIPNET, PFLD):
        for name in targets(read_checkpoint(file).config):
            module, _, attribute = name.rpartition(".")
            assert hasattr(__import__(module, fromlist=[attribute]), attribute), name


# Parts of a configuration


def test_part_of_includes_the_references_of_a_part() -> None:
    """Would catch a node without the values it refers to, or with the whole configuration."""
    cfg = OmegaConf.create(
        {
            "model": {"_target_": "x", "layout": "${data.layout}", "head": "${head}", "epochs": "${trainer.epochs}"},
            "head": {"size": "${crop.size}", "parts": [{"width": "${..width}"}, "${widths[1]}"], "width": 3},
            "crop": {"size": 64, "box": "points"},
            "data": {"layout": {"path": "a.B"}, "root": "${paths.data}"},
            "widths": [1, 2],
            "trainer": {"epochs": 5, "logger": "${logger}"},
            "logger": {"path": "${gone:}"},
            "paths": {"data": "somewhere"},
        }
    )
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    part = copy_part(raw, ("model", "data.layout", "absent"))
    assert OmegaConf.to_container(part, resolve=False) == {
        "model": {"_target_": "x", "layout": "${data.layout}", "head": "${head}", "epochs": "${trainer.epochs}"},
        "head": {"size": "${crop.size}", "parts": [{"width": "${..width}"}, "${widths[1]}"], "width": 3},
        "crop": {"size": 64},
        "data": {"layout": {"path": "a.B"}},
        "widths": [1, 2],
        "trainer": {"epochs": 5},
    }
    assert OmegaConf.to_container(copy_part(raw, ("data",)), resolve=True)["data"]["root"] == "somewhere"  # type: ignore[index,call-overload]


# Received checkpoints


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Refuse all look-ups of servers; return the list of those requested."""
    requests: list[Any] = []

    def getaddrinfo(*args: Any, **kwargs: Any) -> Any:
        requests.append(args)
        raise OSError("no network in a test")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return requests


SECRETS = (
    *("${oc.env:SECRET}", "x-${oc.env:SECRET}", "${ oc.env : SECRET}", "${${a}:SECRET}"),
    "${oc.decode:${oc.env:SECRET}}",
)
"""Texts that read an environment variable, if ``a`` is ``oc.env``."""


def test_load_run_reads_no_environment_variables(
    written: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a received checkpoint that writes a password of this machine into config.yaml or metrics.json."""
    monkeypatch.setenv("SECRET", "swordfish")
    monkeypatch.setenv("FACELAB_CACHE", str(tmp_path / "cache"))
    notes = {f"note{number}": text for number, text in enumerate(SECRETS)}
    file = written({"a": "oc.env", "logger.tensorboard.name": SECRETS[0], **notes})
    open_door("evaluate", f"ckpt={file}", "logger=csv", "hydra.run.dir=measured", folder=tmp_path)
    for path in (tmp_path / "measured").rglob("*"):
        assert path.is_dir() or b"swordfish" not in path.read_bytes()
    for text in SECRETS:
        with pytest.raises(CheckpointError, match="has no model"):
            load_run(written({"a": "oc.env", "model.flip_test": text}), PATHS)


@pytest.mark.parametrize(
    "changes",
    [
        {
            "backbone": {
                "_target_": "facelab.networks.backbone.TimmBackbone",
                "name": "test_efficientnet",
                "pretrained": "${test}",
                "weights": None,
            },
            "test": True,
        },
        {"loss": {"_target_": "torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity"}},
    ],
    ids=["pretrained", "loss"],
)
def test_load_run_contacts_no_server(changes: dict[str, Any], tmp_path: Path, servers: list[Any]) -> None:
    """Would catch a download of weights that the checkpoint contains, or by a loss with pretrained weights."""
    content = torch.load(PIPNET, weights_only=True)
    content["hyper_parameters"] |= changes
    torch.save(content, tmp_path / "changed.ckpt")
    load_run(tmp_path / "changed.ckpt", PATHS)
    assert servers == []


def test_offline_refuses_connections(servers: list[Any]) -> None:
    """Would catch a part whose constructor contacts a server through any library."""
    with pytest.raises(CheckpointError, match="connects to a server"), offline():
        urllib.request.urlopen("http://example.invalid/weights.pth")
    with pytest.raises(CheckpointError, match="connects to a server"), offline(), socket.socket() as connection:
        connection.connect(("127.0.0.1", 9))
    with socket.socket() as connection, pytest.raises(OSError, match="refused"):
        connection.connect(("127.0.0.1", 9))


def test_load_run_refuses_weights_larger_than_the_file(content: dict[str, Any], written: Callable[..., Path]) -> None:
    """Would catch a small file whose weights fill the memory."""
    name = next(name for name, value in content["state_dict"].items() if value.ndim == 4)
    weights = content["state_dict"] | {name: torch.zeros(1).expand(2**14, 2**14, 3, 3)}
    with pytest.raises(CheckpointError, match="is smaller than its weights; it is damaged"):
        load_run(written({}, state_dict=weights), PATHS)


def test_load_run_allocates_no_memory_for_a_huge_network(written: Callable[..., Path]) -> None:
    """Would catch a configuration whose network takes gigabytes before its weights are found not to fit."""
    file = written({"backbone.width": 300.0})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FacelabError, match=r"do not fit|backbone\.width"):
        load_run(file, PATHS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


@pytest.mark.parametrize("kind", ["wide", "deep"])
def test_load_run_refuses_a_configuration_that_expands(kind: str, written: Callable[..., Path]) -> None:
    """Would catch lists with shared items in the file that fill the memory as a configuration."""
    node: Any = ["x"] * 10
    for _ in range(9 if kind == "wide" else 200):
        node = [node] * (10 if kind == "wide" else 1)
    with pytest.raises(CheckpointError, match="values or"):
        load_run(written({"note": node}), PATHS)


def test_offline_refuses_connections_of_other_threads(servers: list[Any]) -> None:
    """Would catch a part that contacts a server in another thread."""
    with offline(), ThreadPoolExecutor() as pool, pytest.raises(CheckpointError, match="connects to a server"):
        pool.submit(urllib.request.urlopen, "http://example.invalid/").result()


def test_read_checkpoint_refuses_compressed_members(written: Callable[..., Path], tmp_path: Path) -> None:
    """Would catch a file of some megabytes that expands to gigabytes before it is checked."""
    with ZipFile(written({})) as plain, ZipFile(tmp_path / "packed.ckpt", "w", ZIP_DEFLATED) as packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    with pytest.raises(CheckpointError, match="compressed"):
        read_checkpoint(tmp_path / "packed.ckpt")


def test_read_checkpoint_refuses_a_damaged_file(tmp_path: Path) -> None:
    """Would catch changed bytes of a disk or a copy: torch reads them, and wrong weights are measured."""
    content = bytearray(PFLD.read_bytes())
    with ZipFile(PFLD) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        content[content.index(archive.read(largest))] ^= 0xFF
    (tmp_path / "damaged.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged\.ckpt was damaged"):
        read_checkpoint(tmp_path / "damaged.ckpt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_read_checkpoint_refuses_duplicate_members(tmp_path: Path) -> None:
    """Would catch a file from which two programs read different weights."""
    twice = shutil.copy(PFLD, tmp_path / "twice.ckpt")
    with ZipFile(twice, "a") as archive:
        archive.writestr(archive.infolist()[0].filename, b"")
    with pytest.raises(CheckpointError, match=r"twice\.ckpt was damaged or changed"):
        read_checkpoint(Path(twice))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight.long(), "has another type"),
        (lambda weight: weight > 0, "has another type"),
        (lambda weight: weight.to(torch.complex64), "has another type"),
        (lambda weight: weight.to_sparse(), "not plain, named tensors"),
        (
            lambda weight: torch._empty_affine_quantized(weight.shape, scale=1, dtype=torch.qint8),
            "not plain, named tensors",
        ),
    ],
)
def test_load_run_refuses_weights_of_another_type(
    change: Callable[[torch.Tensor], Any], message: str, content: dict[str, Any], written: Callable[..., Path]
) -> None:
    """Would catch weights that torch silently rounds, or a traceback of torch."""
    name = next(name for name, value in content["state_dict"].items() if value.ndim == 4)
    weights = content["state_dict"] | {name: change(content["state_dict"][name])}
    with pytest.raises(CheckpointError, match=message):
        load_run(written({}, state_dict=weights), PATHS)


def test_load_run_refuses_a_weight_without_a_text_name(content: dict[str, Any], written: Callable[..., Path]) -> None:
    """Would catch a traceback where the names of weights are searched."""
    with pytest.raises(CheckpointError, match="not plain, named"):
        load_run(written({}, state_dict=content["state_dict"] | {5: torch.zeros(1)}), PATHS)


@pytest.mark.parametrize("text", ["${run_name:'~'}", "${folder_id:.}", "${hydra:runtime.cwd}"])
def test_load_run_resolves_no_local_names(text: str, written: Callable[..., Path]) -> None:
    """Would catch a received checkpoint that stores the login name or a path of this machine."""
    assert "note" not in load_run(written({"note": text}), PATHS).cfg


# Supplements: values that a run lacks because a class has gained an argument


@pytest.fixture
def older(trained: Path, tmp_path: Path) -> Path:
    """Write a checkpoint whose configuration lacks two arguments; return its file."""
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    del content["hyper_parameters"]["model"]["flip_test"], content["hyper_parameters"]["crop"]["shift"]
    torch.save(content, tmp_path / "older.ckpt")
    return tmp_path / "older.ckpt"


SUPPLEMENTS = ("+model.flip_test=false", "+crop.shift=[0,0]")


@pytest.mark.parametrize(
    "door", ["evaluate", *(pytest.param(name, marks=pytest.mark.slow) for name in ("predict", "benchmark"))]
)
def test_doors_take_supplements_of_an_older_run(door: str, older: Path, trained: Path, tmp_path: Path) -> None:
    """Would catch a run that never opens again, or a message that does not show what to type."""
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    words = {
        "evaluate": [f"ckpt={older}"],
        "predict": [f"landmarker={older}", "images=photo.png", "device=cpu"],
        "benchmark": [f"ckpt={older}", "seconds=0", "repeats=1", "batch=1", "device=cpu"],
    }[door]
    with pytest.raises(SystemExit) as stop:
        open_door(door, *words, "hydra.run.dir=refused", folder=tmp_path)
    assert "model.flip_test: is required by `PIPNet`; type +model.flip_test=VALUE" in str(stop.value.code)
    assert "crop.shift: is required by `Crop`; type +crop.shift=VALUE" in str(stop.value.code)
    open_door(door, *words, *SUPPLEMENTS, "hydra.run.dir=run", folder=tmp_path)
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    supplements = config.evaluate.supplements if door == "evaluate" else config.supplements
    assert supplements == ["model.flip_test=false", "crop.shift=[0,0]"]
    if door == "evaluate":
        assert (config.model.flip_test, config.crop.shift) == (False, [0, 0])
        assert metrics_of(tmp_path / "run")["nme_box"] == metrics_of(trained)["nme_box"]


def test_load_takes_supplements_of_an_older_run(older: Path) -> None:
    """Would catch an older run that only the scripts open."""
    landmarker = facelab.load(
        older, device="cpu", supplements={"model.flip_test": True, "crop.shift": np.array([0.1, 0])}
    )
    assert landmarker.module.flip_test and landmarker.crop.shift == [0.1, 0]
    with pytest.raises(ConfigError, match="supplements"):
        facelab.load(older, device="cpu", supplements=["model.flip_test"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("crop.size", 128, r"\+crop\.size: the run has this value"),
        ("backbone.name", "x", r"\+backbone\.name: the run has this value"),
        ("model.backbone.name", "x", r"\+model\.backbone\.name: the run has this value"),
        ("model.nothing", 1, r"model\.nothing: `PIPNet` has no argument `nothing`"),
        ("crop.scale.x", 1, r"\+crop\.scale\.x: the run opens no such node"),
        ("mdoel.flip_test", True, r"\+mdoel\.flip_test: the run opens no such node; its nodes are .*model"),
        ("optimizer.foreach", True, r"\+optimizer\.foreach: the run opens no such node"),
        ("seed", 1, r"\+seed: the run opens no such node"),
        ("", 1, r"\+: the run opens no such node"),
        ("model.flip_test", object(), "cannot be read"),
        ("model.flip_test", "os.system", r"model\.flip_test: .* bool expected"),
    ],
)
def test_load_run_refuses_supplements_without_effect(key: str, value: object, message: str, older: Path) -> None:
    """Would catch a supplement that changes a trained run, or that is dropped without a word."""
    with pytest.raises(FacelabError, match=message):
        load_run(older, PATHS, {"crop.shift": [0, 0], "model.flip_test": True, key: value})


def test_load_run_supplements_a_part_by_either_name(trained: Path, tmp_path: Path) -> None:
    """Would catch a part behind a reference that cannot be supplemented, or whose reference is overwritten."""
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    pretrained = content["hyper_parameters"]["backbone"].pop("norm_epsilon")
    torch.save(content, tmp_path / "older.ckpt")
    for key in ("backbone.norm_epsilon", "model.backbone.norm_epsilon"):
        run = load_run(tmp_path / "older.ckpt", PATHS, {key: pretrained})
        assert run.cfg.model.backbone.name == "test_resnet"


@pytest.mark.parametrize("word", ["model.y=1,2", "model.y", "model.y=(", "model.y=range(1,3)"])
def test_parse_supplements_refuses_other_words(word: str) -> None:
    """Would catch a list of runs, or no value, in the configuration of a run."""
    with pytest.raises(ConfigError, match="supplements: "):
        parse_supplements([word])
