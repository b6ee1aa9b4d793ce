import importlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

import lightning_modules
from facelab.faces import geometry
from facelab.runs.check import check_config

LINEAR = {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}
ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.001}
LAYOUT = {"_target_": "hydra.utils.get_object", "path": "facelab.faces.layouts.LAPA106"}
MODULE = {"_target_": "lightning_modules.landmark.LandmarkModule", "_partial_": True}
LAYOUT_CLASS = {"_target_": "facelab.faces.layouts.Layout", "_partial_": True}
SCHEDULER = {"_target_": "lightning_modules.schedule.FractionalMultiStepLR", "_partial_": True}
TRAINER = {"_target_": "lightning.Trainer"}

SOUND = f"""
seed: 1
monitor: {{name: val/loss, mode: min}}
paths: {{run: runs/a}}
model: {{_target_: torch.nn.Linear, in_features: "${{width.of[0]}}", out_features: 2, bias: true}}
width: {{of: [3]}}
optimizer: {{_target_: torch.optim.Adam, _partial_: true, lr: 1e-3, betas: [0.9, 0.99]}}
scheduler: {{_target_: torch.optim.lr_scheduler.MultiStepLR, _partial_: true, milestones: [30, 50]}}
layout: {LAYOUT}
augment:
  - {{_target_: albumentations.GaussianBlur, blur_limit: 0, sigma_limit: [0.1, 5.0], p: 0.3}}
trainer: {{_target_: lightning.Trainer, max_epochs: 3, devices: 1, precision: 32-true, logger: "${{loggers.csv}}"}}
callbacks:
  checkpoint:
    _target_: lightning.pytorch.callbacks.ModelCheckpoint
    dirpath: ${{paths.run}}/checkpoints
    monitor: ${{monitor.name}}
    mode: ${{...monitor.mode}}
  learning_rate: null
loggers:
  csv: {{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: "${{paths.run}}", name: ""}}
  wandb: {{_target_: lightning.pytorch.loggers.WandbLogger, offline: true, group: sweep}}
metric: {{_target_: torchmetrics.MeanMetric, sync_on_compute: false}}
"""
NAMES = ("seed", "model", "optimizer", "scheduler", "layout", "augment", "trainer", "callbacks", "loggers", "metric")


def faults(node: Any, **rest: Any) -> list[str]:
    """Return the faults of a configuration with this node at the key `at`; the door reads every key."""
    config = {"at": node, **rest}
    return check_config(OmegaConf.create(config), list(config))


def changed(*overrides: str) -> list[str]:
    """Return the faults of the sound configuration after these overrides."""
    cfg = OmegaConf.create(SOUND)
    assert isinstance(cfg, DictConfig)
    cfg.merge_with_dotlist(list(overrides))
    return check_config(cfg, NAMES)


def test_check_config_accepts_a_sound_configuration() -> None:
    """Would catch a rule that refuses interpolations, partial nodes, lists or the **kwargs of a library."""
    assert changed() == []


def test_check_config_lists_all_faults_with_their_keys() -> None:
    """Would catch a check that stops at the first fault or names no key."""
    all_faults = changed(
        "seeed=2",
        "model.in_feature=4",
        "optimizer.lr='1e-4'",
        "trainer.max_epochs=2.5",
        "callbacks.checkpoint.save_top_k=???",
        "paths.run=${nowhere}",
        "scheduler._target_=torch.optim.lr_scheduler.MultiStepRL",
    )
    places = [fault.partition(": ")[0] for fault in all_faults]
    assert set(places) >= {
        "seeed",
        "model.in_feature",
        "optimizer.lr",
        "trainer.max_epochs",
        "callbacks.checkpoint.save_top_k",
        "paths.run",
        "scheduler._target_",
    }
    assert len(places) == len(set(places))


# Targets


HOSTILE = [
    "os.system",
    "builtins.eval",
    "subprocess.Popen",
    "functools.partial",
    "pathlib.Path",
    "antigravity.geohash",
    "torch",
    "torch.load",
    "torch.hub.load",
    "torch.jit.load",
    "torch.os.system",
    "torch.serialization.pickle.Unpickler",
    "torch.nn.Module.load_state_dict",
    "torch.nn.Linear.__init__",
    "torch._C.Generator",
    "torch.optim.lr_scheduler._LRScheduler",
    "torch.classes.name.Model",
    "torch.Generator",
    "torch.utils.data.DataLoader",
    "hydra.utils.instantiate",
    "hydra.utils.call",
    "hydra.utils.get_class",
    "facelab.faces.geometry.transform_points",
    "facelab.faces.face.Path",
    "facelab.faces.face.np.load",
    "facelab.faces.face.DatasetError",
    "facelab.runs.check",
    ".os.system",
    "",
    "facelab..x",
]


@pytest.mark.parametrize("target", HOSTILE)
@pytest.mark.parametrize("partial", [False, True])
def test_check_config_refuses_hostile_targets(target: str, partial: bool) -> None:
    """Would catch a received checkpoint that calls a function, or a class that is no part of a configuration."""
    (fault,) = faults({"_target_": target, "_partial_": partial})
    assert fault.startswith("at._target_: ")


@pytest.mark.parametrize("target", [3, None, ["os.system"], {"a": 1}])
def test_check_config_refuses_a_target_that_is_no_text(target: Any) -> None:
    """Would catch a crash of the check itself for a target of another type."""
    assert any(fault.startswith("at._target_: ") for fault in faults({"_target_": target}))


def test_check_config_imports_no_refused_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a check that imports, and thereby runs, the module of a refused target."""
    (tmp_path / "innocent.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Model: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for target in ("innocent.Model", "innocent", "torch.innocent.Model", "facelab.innocent.Model"):
        assert faults([{"x": {"_target_": target}}])
    assert faults({"_target_": "hydra.utils.get_object", "path": "innocent.Model"})
    assert faults({"_target_": "antigravity.geohash"})
    (tmp_path / "bystander").mkdir()
    (tmp_path / "bystander" / "__init__.py").touch()
    (tmp_path / "innocent.py").rename(tmp_path / "bystander" / "innocent.py")
    # a module that an allowed module has imported, as it imports numpy
    monkeypatch.setattr(geometry, "bystander", importlib.import_module("bystander"), raising=False)
    assert faults({"_target_": "facelab.faces.geometry.bystander.innocent.Model"})
    assert not (tmp_path / "ran").exists()
    assert not {"innocent", "antigravity"} & set(sys.modules)


NO_CLASS, CREATED, ESCAPED = "`os.system` is not allowed", "must not create one", "text that contains `${`"


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"inner": {"deep": [{"_target_": "os.system"}]}}, NO_CLASS),
        ({**LINEAR, "bias": {"_target_": "os.system"}}, NO_CLASS),
        ({**ADAM, "_recursive_": False, "betas": [{"_target_": "os.system"}]}, NO_CLASS),
        ({"_target_": "${word}"}, NO_CLASS),
        ("${oc.create:'{_target_: os.system, command: ls}'}", CREATED),
        (["${oc.create:'[{_target_: os.system}]'}"], CREATED),
        ({"_target_": "torchmetrics.MeanMetric", "any": "\\${oc.create:'{_target_: os.system}'}"}, ESCAPED),
    ],
)
def test_check_config_finds_hidden_targets(node: Any, expected: str) -> None:
    """Would catch a target in a list, behind an interpolation, from a resolver, or in text that is resolved again."""
    assert any(expected in fault for fault in faults(node, word="os.system"))


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("facelab.faces.layouts.LAPA106", False),
        ("facelab.faces.layouts.np.load", True),
        ("facelab.faces.layouts.Layout", True),
        ("facelab.faces.face.Path", True),
        ("os.system", True),
        (None, True),
        ([1], True),
    ],
)
def test_check_config_allows_get_object_for_layouts_only(path: Any, refused: bool) -> None:
    """Would catch `get_object` that returns a function which another part calls."""
    assert bool(faults({"_target_": "hydra.utils.get_object", "path": path})) is refused


def test_check_config_checks_the_argument_of_get_object() -> None:
    """Would catch a path that is missing or misspelt."""
    misspelt, missing = faults({"_target_": "hydra.utils.get_object", "pat": LAYOUT["path"]})
    assert misspelt == "at.pat: `get_object` has no argument `pat`; did you mean `path`?"
    assert missing == "at.path: is required by `get_object`"


def test_check_config_refuses_positional_arguments() -> None:
    """Would catch `_args_`, which evades the check of argument names."""
    assert faults({"_target_": "torch.nn.Identity", "_args_": [1]}) == ["at._args_: is not allowed: name each argument"]


@pytest.mark.parametrize("flag", [{"_partial_": "yes"}, {"_partial_": 1}, {"_recursive_": None}, {"_convert_": "al"}])
def test_check_config_checks_the_flags_of_hydra(flag: dict[str, Any]) -> None:
    """Would catch a wrong flag that Hydra finds only when the node is built."""
    (fault,) = faults({"_target_": "torch.nn.Identity", **flag})
    assert fault.startswith(f"at.{next(iter(flag))}: ")


def test_check_config_finds_misspelt_flags() -> None:
    """Would catch `_taget_`, whose node builds nothing, or `_parial_`, whose node is built too early."""
    assert "did you mean `_target_`?" in faults({"_taget_": "torch.nn.Identity"})[0]
    assert "did you mean `_partial_`?" in faults({"_target_": "torch.nn.ReLU", "_parial_": True})[0]


def test_check_config_suggests_the_nearest_name() -> None:
    """Would catch a fault that leaves the user to search for the right name."""
    assert "did you mean `MultiStepLR`?" in faults({"_target_": "torch.optim.lr_scheduler.MultiStepRL"})[0]
    assert "did you mean `losses`?" in faults({"_target_": "facelab.loses.pipnet.PIPLoss"})[0]
    assert "did you mean `lightning`?" in faults({"_target_": "lightening.Trainer"})[0]


# Arguments


@pytest.mark.parametrize("partial", [False, True])
def test_check_config_finds_misspelt_arguments(partial: bool) -> None:
    """Would catch an argument of a partial node that fails only minutes later, when the module completes the node."""
    assert faults({**LINEAR, "biass": False, "_partial_": partial}) == [
        "at.biass: `Linear` has no argument `biass`; did you mean `bias`?"
    ]


def test_check_config_finds_missing_arguments() -> None:
    """Would catch a missing required argument, or a partial node that is refused because others follow."""
    assert faults({"_target_": "torch.nn.Linear", "in_features": 3}) == [
        "at.out_features: is required by `Linear`; type +at.out_features=VALUE"
    ]
    assert faults({"_target_": "torch.nn.Linear", "in_features": 3, "_partial_": True}) == []
    assert faults(ADAM) == []
    assert faults({**ADAM, "_partial_": False}) == ["at.params: is required by `Adam`; type +at.params=VALUE"]


def test_check_config_refuses_arguments_without_a_constructor() -> None:
    """Would catch the signature of `nn.Module`, whose **kwargs accept nothing."""
    (fault,) = faults({"_target_": "torch.nn.Module", "dim": 1})
    assert fault == "at.dim: `Module` has no argument `dim`; it takes none"


@pytest.mark.parametrize(
    ("node", "good", "bad"),
    [
        (LINEAR, {"in_features": 4}, {"in_features": 4.0}),
        (LINEAR, {"in_features": 4}, {"in_features": True}),
        (LINEAR, {"in_features": 4}, {"in_features": None}),
        (LINEAR, {"in_features": 4}, {"in_features": [4]}),
        (LINEAR, {"in_features": 4}, {"in_features": {"a": 4}}),
        (LINEAR, {"in_features": 4}, {"in_features": LINEAR}),
        (LINEAR, {"bias": False}, {"bias": 0}),
        (LINEAR, {"bias": False}, {"bias": "false"}),
        (ADAM, {"lr": 1}, {"lr": "fast"}),
        (ADAM, {"betas": [0.9, 0.99]}, {"betas": [0.9]}),
        (ADAM, {"betas": [0.9, 0.99]}, {"betas": [0.9, "x"]}),
        (ADAM, {"foreach": None}, {"foreach": "no"}),
        (SCHEDULER, {"at": [0.5, 1]}, {"at": "01"}),
        (SCHEDULER, {"at": []}, {"at": [0.5, None]}),
        (TRAINER, {"max_epochs": None}, {"max_epochs": "many"}),
        (TRAINER, {"devices": [0, 1]}, {"devices": 1.5}),
        (TRAINER, {"precision": "bf16-mixed"}, {"precision": "bf17"}),
        (TRAINER, {"logger": False}, {"logger": LINEAR}),
        (TRAINER, {"callbacks": []}, {"callbacks": [LINEAR]}),
        (TRAINER, {"strategy": "ddp"}, {"strategy": 2}),
        ({"_target_": "lightning.pytorch.callbacks.ModelCheckpoint"}, {"dirpath": "a"}, {"dirpath": 3}),
        ({"_target_": "lightning.pytorch.callbacks.ModelCheckpoint"}, {"save_last": "link"}, {"save_last": "both"}),
        ({"_target_": "albumentations.GaussianBlur"}, {"sigma_limit": 3}, {"sigma_limit": [1, 2, 3]}),
        (ADAM, {"lr": 0.1}, {"lr": float("nan")}),
        (ADAM, {"lr": 0.1}, {"lr": float("inf")}),
        (ADAM, {"lr": 0.1}, {"lr": 0}),
        (SCHEDULER, {"at": [0, 1]}, {"at": [0.5, 1.1]}),
        (TRAINER, {"max_epochs": -1}, {"max_epochs": 0}),
        (TRAINER, {"accumulate_grad_batches": 2}, {"accumulate_grad_batches": -1}),
        ({"_target_": "albumentations.GaussianBlur"}, {"sigma_limit": [1, 9]}, {"sigma_limit": [1, 1e9]}),
        (LAYOUT_CLASS, {"flip": [1, 0]}, {"flip": "10"}),
        (LAYOUT_CLASS, {"pose": []}, {"pose": [1.5]}),
        (LAYOUT_CLASS, {"regions": {}}, {"regions": {"a": 1}}),
        (MODULE, {"layout": LAYOUT}, {"layout": 106}),
        (MODULE, {"loss": LINEAR}, {"loss": ADAM}),
        (MODULE, {"optimizer": ADAM}, {"optimizer": {}}),
        (MODULE, {"scheduler": SCHEDULER}, {"scheduler": ADAM}),
        (MODULE, {"layout": LAYOUT}, {"layout": LINEAR}),
    ],
)
def test_check_config_compares_values_with_annotations(
    node: dict[str, Any], good: dict[str, Any], bad: dict[str, Any]
) -> None:
    """Would catch a value of a wrong type that reaches a constructor, or a right one that is refused."""
    assert faults(node | good) == []
    (fault,) = faults(node | bad)
    assert fault.startswith(f"at.{next(iter(bad))}") and "expected" in fault


def test_check_config_explains_a_number_in_quotes() -> None:
    """Would catch a message that does not say that `lr: "1e-4"`, or a number of an environment variable, is text."""
    (fault,) = faults({**ADAM, "lr": "1e-4"})
    assert fault == "at.lr: the text '1e-4' given, float > 0 expected: write the number without quotes"
    assert changed("optimizer.lr=1e-4") == []  # OmegaConf reads a number, other YAML readers read text


CHECKPOINT = {"_target_": "lightning.pytorch.callbacks.ModelCheckpoint"}
WANDB = {"_target_": "callbacks.wandb_logger.TolerantWandbLogger"}


@pytest.mark.parametrize(
    ("value", "word"),
    [(300, "300"), (-1.5, "-1.5"), (True, "true"), (False, "false"), (1_000, "1000"), (float("nan"), "nan")],
)
def test_check_config_explains_how_to_quote_a_value(value: Any, word: str) -> None:
    """Would catch `'300' given` without advice, or with quotes that the shell removes."""
    (fault,) = faults({**CHECKPOINT, "filename": value})
    head, _, advice = fault.partition("; ")
    assert head.startswith("at.filename: ") and "expected" in head
    assert advice == f"""as text it is written in quotes: "{word}" in YAML, in a shell 'at.filename="{word}"'"""
    (typed,) = shlex.split(advice.rpartition("shell ")[2])
    override = OverridesParser.create().parse_override(typed)
    assert faults({**CHECKPOINT, "filename": override.value()}) == []
    assert override.value() == word


def test_check_config_explains_how_to_quote_null() -> None:
    """Would catch null in the place of text without advice."""
    (fault,) = faults({"_target_": "facelab.annotations.folder.Folder", "_partial_": True, "name": None})
    assert fault.endswith("""in a shell 'at.name="null"'""")


def test_check_config_gives_advice_for_the_typed_key() -> None:
    """Would catch advice for the key of a reference, or for a place that no command line can name."""
    (fault,) = faults({**CHECKPOINT, "filename": "${word}"}, word=300)
    assert """'word="300"'""" in fault
    (fault,) = faults([{**CHECKPOINT, "filename": 300}])
    assert fault.endswith('in quotes: "300" in YAML')


@pytest.mark.parametrize("node", [{**ADAM, "lr": None}, {**LINEAR, "bias": 0}, {**TRAINER, "precision": 17}, WANDB])
def test_check_config_advises_quotes_only_for_text(node: dict[str, Any]) -> None:
    """Would catch quotes advised where the number itself is wrong or one of a few words is expected."""
    assert "in quotes" not in "".join(faults(node))


def test_check_config_explains_how_to_quote_a_list() -> None:
    """Would catch tags that look like numbers without advice."""
    (fault,) = faults({**WANDB, "_partial_": True, "tags": ["a", 3]})
    assert fault.endswith("""in quotes: ["a","3"] in YAML, in a shell 'at.tags=["a","3"]'""")
    unknown, misfit = faults({**WANDB, "_partial_": True, "tags": ["${nowhere}", 3]})
    assert unknown.startswith("at.tags[0]: Interpolation key")
    assert misfit == """at.tags[1]: 3 given, str expected; as text it is written in quotes: "3" in YAML"""


# Values


def test_check_config_lists_a_missing_value_once() -> None:
    """Would catch ten faults of references that do not name the key to set."""
    config = {**LINEAR, "in_features": "${width}", "out_features": "${width}"}
    assert faults(config, width="???") == ["width: is not set; type width=..."]
    assert faults([{**LINEAR, "in_features": "???"}]) == ["at[0].in_features: is not set; type at=[...]"]
    assert faults({"_target_": "???"}) == ["at._target_: is not set; type at._target_=..."]
    assert faults({**ADAM, "lr": "???"}) == ["at.lr: is not set; type at.lr=..."]


@pytest.mark.parametrize("text", ["${nowhere}", "${at.lr}", "${nothing:1}", "${oc.env:SURELY_NOT_SET}"])
def test_check_config_refuses_a_broken_interpolation(text: str) -> None:
    """Would catch an interpolation that fails only when the node is built, or never."""
    (fault,) = faults({**ADAM, "lr": text})
    assert fault.startswith("at.lr: ") and "\n" not in fault


def test_check_config_names_the_key_behind_an_interpolation() -> None:
    """Would catch one fault that is listed for each node that refers to it."""
    assert faults({**ADAM, "lr": 1}, model="${at}", loss={"_target_": "os.system"}, head="${loss}")[0].startswith(
        "loss."
    )


# Unused keys


def test_check_config_refuses_a_key_that_nothing_reads() -> None:
    """Would catch `+typo=3`, which Hydra silently drops."""
    assert changed("sead=3") == ["sead: nothing reads this key; did you mean `seed`?"]
    assert changed("monitor.nam=3") == ["monitor.nam: nothing reads this key; did you mean `name`?"]
    assert changed("landmarks=run") == ["landmarks: nothing reads this key; it is called landmarker in this version"]
    (old,) = changed("callbacks.resumption.minutes=1")
    assert old.endswith("nothing reads this key; it is called callbacks.resume.minutes in this version")
    assert changed("callbacks.extra=3") == ["callbacks.extra: nothing reads this key"]
    assert changed("backbone._target_=torch.nn.Identity") == ["backbone: nothing reads this key"]
    assert changed("paths.other=${seed}") == ["paths.other: nothing reads this key"]
    assert changed("empty={}") == ["empty: nothing reads this key"]


@pytest.mark.parametrize(
    ("reader", "key"),
    [
        ("${a.b}", "a.b"),
        ("x/${a.b}-${seed}", "a.b"),
        ("${a}", "a.b"),
        ("${a[b]}", "a.b"),
        ("${.near}", "reader.near"),
        ("${..a.b}", "a.b"),
        ("${oc.select:a.b,3}", "a.b"),
        ("${a.${word}}", "a.b"),
        ("${a.b[0]}", "a.b"),
        ("${oc.decode:${a.b}}", "a.b"),
    ],
)
def test_check_config_accepts_a_key_that_an_interpolation_reads(reader: str, key: str) -> None:
    """Would catch a key in use that is refused."""
    cfg = OmegaConf.create({"reader": {"of": reader}, "word": "b", "seed": 1})
    OmegaConf.update(cfg, key, ["1"] if reader.endswith("]}") else "1")
    assert check_config(cfg, ["reader.of", "word", "seed"]) == []


# Modules and datamodules


METHOD = """
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol
from lightning import LightningDataModule, LightningModule
from facelab.faces.batch import LandmarkBatch

class Pair(NamedTuple):
    a: int

class Landmarks(LightningModule):
    def training_step(self, batch: LandmarkBatch, batch_index: int): ...

class Untyped(LightningModule):
    def training_step(self, batch, batch_index): ...

class MeanShape(Protocol):
    def mean_shape(self): ...

class Curious(LightningModule):
    def fit_statistics(self, datamodule: MeanShape): ...

class Anything(LightningModule):
    def forward(self, image) -> Any: ...

class Batches(LightningModule):
    def forward(self, image) -> LandmarkBatch: ...

class Compares(LightningModule):
    def forward(self, prediction: Pair, target: Pair): ...

class Shapes(LightningDataModule):
    def mean_shape(self): ...

class Faces(LightningDataModule):
    batch_type: ClassVar[type] = LandmarkBatch

class Pairs(LightningDataModule):
    batch_type: ClassVar[type] = Pair

class Unsaid(LightningDataModule):
    pass

class Settings:
    def __init__(self, folder: Path, size: int = None): ...
"""
METHODS = "lightning_modules.sample_method"


@pytest.fixture
def methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "sample_method.py").write_text(METHOD)
    monkeypatch.setattr(lightning_modules, "__path__", [*lightning_modules.__path__, str(tmp_path)])
    yield
    del sys.modules[METHODS], vars(lightning_modules)["sample_method"]


@pytest.mark.parametrize(
    ("model", "datamodule", "agree"),
    [
        ("Landmarks", "Faces", True),
        ("Landmarks", "Pairs", False),
        ("Untyped", "Pairs", True),
        ("Landmarks", "Unsaid", True),
    ],
)
@pytest.mark.usefixtures("methods")
def test_check_config_compares_batch_types(model: str, datamodule: str, agree: bool) -> None:
    """Would catch the datamodule of a detector, whose first batch fails in a landmark method."""
    cfg = {"model": {"_target_": f"{METHODS}.{model}"}, "datamodule": {"_target_": f"{METHODS}.{datamodule}"}}
    expected = "datamodule: `Pairs` gives Pair, the model `Landmarks` takes LandmarkBatch"
    assert check_config(OmegaConf.create(cfg), list(cfg)) == ([] if agree else [expected])


@pytest.mark.parametrize(("datamodule", "agree"), [("Shapes", True), ("Faces", False)])
@pytest.mark.usefixtures("methods")
def test_check_config_requires_the_methods_of_the_datamodule(datamodule: str, agree: bool) -> None:
    """Would catch the datamodule of another method, which fails before the first step."""
    cfg = {"model": {"_target_": f"{METHODS}.Curious"}, "datamodule": {"_target_": f"{METHODS}.{datamodule}"}}
    expected = (
        "datamodule: `Faces` has no method `mean_shape`, which the model `Curious` calls; it belongs to another method"
    )
    assert check_config(OmegaConf.create(cfg), list(cfg)) == ([] if agree else [expected])


@pytest.mark.parametrize(("model", "agree"), [("Anything", True), ("Batches", False)])
@pytest.mark.usefixtures("methods")
def test_check_config_compares_prediction_and_loss_types(model: str, agree: bool) -> None:
    """Would catch the loss of another method, which fails in the first step, or a loss refused without annotations."""
    cfg = {"model": {"_target_": f"{METHODS}.{model}"}, "loss": {"_target_": f"{METHODS}.Compares"}}
    expected = "loss: `Compares` compares Pair, the model `Batches` predicts LandmarkBatch"
    assert check_config(OmegaConf.create(cfg), list(cfg)) == ([] if agree else [expected])


@pytest.mark.usefixtures("methods")
def test_check_config_accepts_text_for_paths_and_null_defaults() -> None:
    """Would catch text that is refused for a path, or null that is refused where it is the default."""
    settings = {"_target_": f"{METHODS}.Settings", "folder": "here"}
    assert faults({**settings, "size": None}) == []
    assert faults({**settings, "folder": None}) == ["at.folder: null given, pathlib.Path expected"]
