"""A checkpoint opens by what its model needs, whatever became of the rest."""

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

import pytest
import torch
from conftest import ROOT, open_door
from omegaconf import OmegaConf
from recorded_runs import PATHS, crops

from callbacks.resume import STATES, AtomicCheckpointIO
from facelab import renames
from facelab.errors import CheckpointError, FacelabError
from facelab.renames import Step, renamed_config, renamed_override, renamed_path, renamed_weights
from facelab.runs.check import copy_part
from facelab.runs.checkpoint import load_run, offline, read_checkpoint
from lightning_modules import pfld

RECORDED = ROOT / "tests" / "recorded"
PIPNET, PFLD = (RECORDED / name / "checkpoints" / "last.ckpt" for name in ("finished", "unfinished"))
GONE = "facelab.losses.pfld.LossOfTomorrow"


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    """What the recorded checkpoint of PFLD holds."""
    loaded: dict[str, Any] = torch.load(PFLD, weights_only=True)
    return loaded


@pytest.fixture
def written(content: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Writes that checkpoint with changes: dotted keys of its configuration to values; None takes a key away."""

    def write(changes: dict[str, Any], **entries: Any) -> Path:
        changed = copy.deepcopy(content) | entries
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


@pytest.mark.parametrize(
    "changes",
    [
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
    ],
    ids=lambda changes: " ".join(changes),
)
def test_what_is_not_opened_closes_nothing(changes: dict[str, Any], written: Callable[..., Path]) -> None:
    """A checkpoint that is closed for ever since a logger was renamed or Lightning dropped an argument."""
    assert torch.equal(points_of(written(changes)), points_of(PFLD))


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
def test_what_is_opened_is_checked(changes: dict[str, Any], message: str, written: Callable[..., Path]) -> None:
    """A part that is built without a look at it, or a fault that names no place."""
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
def test_evaluation_checks_what_it_builds(
    changes: dict[str, Any], message: str, written: Callable[..., Path], tmp_path: Path
) -> None:
    """A foreign checkpoint whose datamodule runs a command, since opening does not look at it."""
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
def test_broken_configuration_is_refused(changes: dict[str, Any], message: str, written: Callable[..., Path]) -> None:
    """A traceback for a damaged or foreign file."""
    with pytest.raises(FacelabError, match=message):
        load_run(written(changes), PATHS)


@pytest.mark.parametrize(
    "changes",
    [{"loss._target_": GONE}, {"loss.gone_argument": 1}, {"loss.floor": -1.0}, {"loss.points._target_": "a.b.C"}],
    ids=str,
)
def test_a_loss_that_cannot_be_built_is_left_out(
    changes: dict[str, Any], written: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A trained network that is lost with its loss: that of PFLD has buffers among the weights."""
    assert any(key.startswith("loss.") for key in torch.load(PFLD, weights_only=True)["state_dict"])
    file = written(changes)
    assert torch.equal(points_of(file), points_of(PFLD))
    assert "its loss cannot be built and is left out" in caplog.text
    assert "left out with their weights: loss, pose" in caplog.text
    run = load_run(file, PATHS)
    assert run.module.loss is None and run.cfg.model.loss is None
    assert run.module.predict(crops()).pose is None, "whether the loss taught the angles is not known"


def test_a_pose_that_has_a_weight_of_its_own_outlives_the_loss(written: Callable[..., Path]) -> None:
    """Angles learned by `model.angle_weight` that are left out with a loss that had nothing to do with them."""
    with torch.inference_mode():
        whole = load_run(written({"model.angle_weight": 1.0}), PATHS).module.predict(crops())
        part = load_run(written({"model.angle_weight": 1.0, "loss._target_": GONE}), PATHS).module.predict(crops())
    assert whole.pose is not None and part.pose is not None
    assert torch.equal(whole.pose, part.pose)


def test_a_run_without_its_loss_is_measured(written: Callable[..., Path], tmp_path: Path) -> None:
    """An old run that opens and cannot be evaluated, or whose evaluation keeps what does not resolve."""
    changes = {"loss._target_": GONE, "logger.csv.path": "${paths.no_such_key}", "trainer.gone": 1}
    changes |= {"callbacks.other": {"path": "${logger.csv.path}"}}
    open_door("evaluate", f"ckpt={written(changes)}", "hydra.run.dir=again", folder=tmp_path)
    cfg = OmegaConf.load(tmp_path / "again" / "config.yaml")
    assert cfg.model.loss is None and "logger" not in cfg
    assert (tmp_path / "again" / "metrics.json").is_file()


def test_weights_that_do_not_fit_are_refused(content: dict[str, Any], written: Callable[..., Path]) -> None:
    """A network half of random weights; leaving out a loss must not leave out anything else that is lacking."""
    weights = dict(content["state_dict"])
    first = next(key for key in weights if key.startswith("backbone."))
    lacking = {key: value for key, value in weights.items() if key != first}
    for changes in ({}, {"loss._target_": GONE}):
        with pytest.raises(CheckpointError, match=f"(?s)do not fit its configuration.*{first}"):
            load_run(written(changes, state_dict=lacking), PATHS)
    for name, changes in (("stranger", {}), ("backbone.more", {}), ("backbone.more", {"loss._target_": GONE})):
        with pytest.raises(CheckpointError, match=f"(?s)do not fit its configuration.*{name}"):
            load_run(written(changes, state_dict=weights | {name: torch.zeros(1)}), PATHS)


def test_training_needs_a_loss_and_an_optimizer(tmp_path: Path) -> None:
    """`model.loss=null`, which opening a checkpoint allows, and a traceback in the first step of a training."""
    small = ["model=pfld", "backbone.width=0.05", "crop.size=64", "data=synthetic68", "logger=none", "callbacks=none"]
    small += ["data.train=8", "data.val=2", "data.test=2", "data.size=96"]
    shutil.copytree(RECORDED / "unfinished", tmp_path / "unfinished")
    kept = (tmp_path / "unfinished" / "overrides.yaml").read_bytes()
    with pytest.raises(SystemExit, match=r"model\.loss=null: nothing would be trained"):
        open_door("train", "resume=unfinished", "~loss", "model.loss=null", folder=tmp_path)
    assert (tmp_path / "unfinished" / "overrides.yaml").read_bytes() == kept, "the run can never be resumed again"
    for part in ("loss", "optimizer"):
        with pytest.raises(SystemExit, match=rf"model\.{part}=null: nothing would be trained"):
            open_door("train", *small, f"~{part}", f"model.{part}=null", f"hydra.run.dir={part}", folder=tmp_path)


@pytest.mark.parametrize("argument", ["optimizer", "scheduler", "loss"])
def test_a_method_that_insists_on_its_training_is_opened_without(
    argument: str, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of an own method that cannot be opened, since its class does not allow for a null optimizer."""
    monkeypatch.setitem(pfld.PFLD.__init__.__annotations__, argument, Callable[..., Any])
    gone = {"loss._target_": "facelab.losses.Gone"} if argument == "loss" else {}
    assert torch.equal(points_of(written(gone)), points_of(PFLD))


# Formats


def test_format_is_written_and_a_later_one_refused(tmp_path: Path, written: Callable[..., Path]) -> None:
    """A checkpoint of tomorrow that today's code opens as something else, or a format that nobody writes."""
    files, path = AtomicCheckpointIO(), tmp_path / "a.ckpt"
    content = {"state_dict": {}, "format": renames.FORMAT, **{key: [1] for key in STATES}}
    files.save_checkpoint(content, path)
    assert files.load_checkpoint(path, weights_only=True) == content
    saved: dict[str, Any] = {}
    load_run(PFLD, PATHS).module.on_save_checkpoint(saved)
    assert saved == {"format": renames.FORMAT}
    assert "format" not in torch.load(PFLD, weights_only=True), "recorded before there were formats"
    late = written({}, format=renames.FORMAT + 1)
    with pytest.raises(CheckpointError, match=rf"changed\.ckpt: .* format {renames.FORMAT + 1}, .* a later version"):
        load_run(late, PATHS)
    with pytest.raises(CheckpointError, match="a later version"):
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


def test_renames_of_modules_arguments_and_weights() -> None:
    """A shorter module that hides a longer one, a step left out, a value lost with its old name, a strange key."""
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
    assert list(renamed_weights(weights, STEPS)) == ["body.a", "head.backbone.b"], "an optimizer goes by the order"


@pytest.mark.parametrize(
    "augment", [{"pixels": [{"_target_": "albumentations.MotionBlur"}]}, {"gone_limit": 3}], ids=str
)
def test_a_run_is_measured_whatever_was_done_to_its_training_crops(
    augment: dict[str, Any], written: Callable[..., Path], tmp_path: Path
) -> None:
    """An old run that cannot be evaluated since a change of its training crops is refused, which no test makes."""
    changes = {f"augment.{key}": value for key, value in augment.items()}
    open_door("evaluate", f"ckpt={written(changes)}", "hydra.run.dir=again", folder=tmp_path)
    assert (tmp_path / "again" / "metrics.json").is_file()
    kept = OmegaConf.to_container(OmegaConf.load(tmp_path / "again" / "config.yaml").augment)
    assert kept.items() >= augment.items(), "what it was trained with is forgotten"


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
def test_renames_of_overrides(word: str, renamed: str) -> None:
    """An unfinished run whose overrides name a layout by its old place, or a folder that reads like a module."""
    assert renamed_override(word) == renamed


def test_renames_reach_averaged_weights_and_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with averaged weights that resumes with the names of yesterday in one of its two sets."""
    monkeypatch.setattr(renames, "STEPS", (STEPS[0],))
    content = {"state_dict": {"backbone.a": 1}, "current_model_state": {"backbone.a": 2}, "epoch": 3}
    content |= {"loops": {"a": 1}, "callbacks": {"a": 1}, "optimizer_states": [1]}
    torch.save(content, tmp_path / "a.ckpt")
    found = AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert (found["state_dict"], found["current_model_state"]) == ({"trunk.a": 1}, {"trunk.a": 2})


def test_every_class_of_a_recorded_configuration_exists() -> None:
    """A class that was moved without a line in the table of renames."""

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


def test_a_part_brings_what_it_refers_to() -> None:
    """A node that is cut off from what it needs, or that drags the whole configuration along."""
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
    part = copy_part(cfg, ("model", "data.layout", "absent"))
    assert OmegaConf.to_container(part, resolve=False) == {
        "model": {"_target_": "x", "layout": "${data.layout}", "head": "${head}", "epochs": "${trainer.epochs}"},
        "head": {"size": "${crop.size}", "parts": [{"width": "${..width}"}, "${widths[1]}"], "width": 3},
        "crop": {"size": 64},
        "data": {"layout": {"path": "a.B"}},
        "widths": [1, 2],
        "trainer": {"epochs": 5},
    }
    assert OmegaConf.to_container(copy_part(cfg, ("data",)), resolve=True)["data"]["root"] == "somewhere"  # type: ignore[index,call-overload]


# From elsewhere


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The servers that were asked for, none of which answers."""
    asked: list[Any] = []

    def getaddrinfo(*given: Any, **named: Any) -> Any:
        asked.append(given)
        raise OSError("no network in a test")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:SECRET}",
        "x-${oc.env:SECRET}",
        "${ oc.env : SECRET}",
        "${${a}:SECRET}",
        "${oc.decode:${oc.env:SECRET}}",
    ],
)
def test_opening_reads_no_environment(
    text: str, written: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint from elsewhere that writes a password of this machine into config.yaml and metrics.json."""
    monkeypatch.setenv("SECRET", "swordfish")
    monkeypatch.setenv("FACELAB_CACHE", str(tmp_path / "cache"))
    file = written({"a": "oc.env", "logger.tensorboard.name": text, "note": text})
    open_door("evaluate", f"ckpt={file}", "logger=csv", "hydra.run.dir=measured", folder=tmp_path)
    for path in (tmp_path / "measured").rglob("*"):
        assert path.is_dir() or b"swordfish" not in path.read_bytes()
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
def test_opening_asks_no_server(changes: dict[str, Any], tmp_path: Path, servers: list[Any]) -> None:
    """A download for weights that the checkpoint holds itself, or by a loss that brings its own."""
    content = torch.load(PIPNET, weights_only=True)
    content["hyper_parameters"] |= changes
    torch.save(content, tmp_path / "changed.ckpt")
    load_run(tmp_path / "changed.ckpt", PATHS)
    assert servers == []


def test_opening_refuses_a_connection(servers: list[Any]) -> None:
    """A part that asks a server in its constructor, by whichever library."""
    with pytest.raises(CheckpointError, match="contacts a server"), offline():
        urllib.request.urlopen("http://example.invalid/weights.pth")
    with pytest.raises(CheckpointError, match="contacts a server"), offline(), socket.socket() as each:
        each.connect(("127.0.0.1", 9))
    with socket.socket() as each, pytest.raises(OSError, match="refused"):
        each.connect(("127.0.0.1", 9))


def test_weights_that_the_file_does_not_hold_are_refused(content: dict[str, Any], written: Callable[..., Path]) -> None:
    """A small file whose network takes all memory."""
    name = next(name for name, value in content["state_dict"].items() if value.ndim == 4)
    weights = content["state_dict"] | {name: torch.zeros(1).expand(2**14, 2**14, 3, 3)}
    with pytest.raises(CheckpointError, match="smaller than the weights that it lists"):
        load_run(written({}, state_dict=weights), PATHS)


def test_a_larger_network_than_its_weights_costs_no_memory(written: Callable[..., Path]) -> None:
    """The same by the configuration: gigabytes before the weights are found not to fit."""
    file = written({"backbone.width": 300.0})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FacelabError, match=r"do not fit|backbone\.width"):
        load_run(file, PATHS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


@pytest.mark.parametrize("kind", ["wide", "deep"])
def test_a_configuration_that_grows_when_it_is_copied_is_refused(kind: str, written: Callable[..., Path]) -> None:
    """Lists that share their items in the file, and fill the memory as a configuration."""
    node: Any = ["x"] * 10
    for _ in range(9 if kind == "wide" else 200):
        node = [node] * (10 if kind == "wide" else 1)
    with pytest.raises(CheckpointError, match="values or"):
        load_run(written({"note": node}), PATHS)


def test_opening_refuses_a_connection_of_any_thread(servers: list[Any]) -> None:
    """A part that asks a server in a thread of its own."""
    with offline(), ThreadPoolExecutor() as pool, pytest.raises(CheckpointError, match="contacts a server"):
        pool.submit(urllib.request.urlopen, "http://example.invalid/").result()


def test_a_compressed_checkpoint_is_refused(written: Callable[..., Path], tmp_path: Path) -> None:
    """A file of some megabytes that is unpacked to gigabytes before it is looked at."""
    with ZipFile(written({})) as plain, ZipFile(tmp_path / "packed.ckpt", "w", ZIP_DEFLATED) as packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    with pytest.raises(CheckpointError, match="compressed"):
        read_checkpoint(tmp_path / "packed.ckpt")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    """A disk or a copy that changed some bytes: torch reads on, and other weights are measured as those of the run."""
    content = bytearray(PFLD.read_bytes())
    with ZipFile(PFLD) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
        content[content.index(archive.read(largest))] ^= 0xFF
    (tmp_path / "damaged.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged\.ckpt was damaged"):
        read_checkpoint(tmp_path / "damaged.ckpt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_checkpoint_with_two_members_of_one_name_is_refused(tmp_path: Path) -> None:
    """A file of which two programs read different weights."""
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
def test_weights_of_another_kind_are_refused(
    change: Callable[[torch.Tensor], Any], message: str, content: dict[str, Any], written: Callable[..., Path]
) -> None:
    """Numbers that torch rounds or halves without a word, and a traceback of torch's own."""
    name = next(name for name, value in content["state_dict"].items() if value.ndim == 4)
    weights = content["state_dict"] | {name: change(content["state_dict"][name])}
    with pytest.raises(CheckpointError, match=message):
        load_run(written({}, state_dict=weights), PATHS)


def test_a_weight_whose_name_is_a_number_is_refused(content: dict[str, Any], written: Callable[..., Path]) -> None:
    """A traceback where names are looked into."""
    with pytest.raises(CheckpointError, match="not plain, named"):
        load_run(written({}, state_dict=content["state_dict"] | {5: torch.zeros(1)}), PATHS)


@pytest.mark.parametrize("text", ["${run_name:'~'}", "${folder_id:.}", "${hydra:runtime.cwd}"])
def test_opening_reads_no_names_of_the_machine(text: str, written: Callable[..., Path]) -> None:
    """A checkpoint from elsewhere that writes a login name down."""
    assert "note" not in load_run(written({"note": text}), PATHS).cfg
