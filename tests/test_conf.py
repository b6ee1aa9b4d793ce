"""Everything that can be chosen, found by listing conf/: it composes, it is sound, and mistakes in it are told."""

import ast
import inspect
import re
import shutil
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT, groups_of, options
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, open_dict

from evaluate import EVALUATE_KEYS
from facelab.runs.check import TRAIN_KEYS, check_config
from facelab.runs.importing import check_import
from facelab.runs.targets import PROJECT

CONF = ROOT / "conf"
MODELS = options("model")
SAMPLE = {
    ("backbone", "timm"): ["backbone.name=test_resnet"],
    ("data", "folder"): ["data.root=faces", "data.layout.path=facelab.faces.layouts.IBUG68"],
}
"""Values for what an option asks of the one who chooses it."""
ALWAYS = ("trainer", "logger", "callbacks")
"""Groups of every run, whatever the method."""
NO_PARTS = ("experiment", "hydra", "model", "official", "paths", *ALWAYS)
"""Groups whose options are no part of one method."""
PARTS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
SOURCES = sorted(path for folder in (*sorted(PROJECT), ".") for path in (ROOT / folder).glob("*.py")) + sorted(
    (ROOT / "facelab").glob("*/*.py")
)


def compose_config(words: Sequence[str], name: str = "train", folder: Path = CONF) -> DictConfig:
    """What Hydra hands to a door."""
    with pytest.MonkeyPatch.context() as patch, initialize_config_dir(str(folder), version_base="1.3"):
        patch.setenv("FACELAB_STAMP", "now")
        cfg = compose(name, ["hydra.runtime.output_dir=run", *words], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def faults(words: Sequence[str], folder: Path = CONF) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACELAB_STAMP", "now")
        return check_config(compose_config(words, folder=folder), TRAIN_KEYS)


def owner(group: str, option: str) -> str | None:
    """A model that has the group: the one of the option's name if there is one."""
    having = [model for model in MODELS if group in groups_of(model)]
    return option if option in having else next(iter(having), None)


def _choices() -> Iterator[list[str]]:
    """One line to type for every file in conf/."""
    for group in PARTS:
        for option in options(group):
            words = [f"{group}={option}", *SAMPLE.get((group, option), [])]
            if group in ("model", "experiment", *ALWAYS):
                yield words
            elif group not in ("hydra", "official", "paths"):
                yield [f"model={owner(group, option)}", *words]


@pytest.mark.parametrize("words", list(_choices()), ids=" ".join)
def test_every_option_is_sound(words: list[str]) -> None:
    """A file in conf/ that nobody ran: a key its class does not have, a value of the wrong kind."""
    assert "model=None" not in words, "no model has this group"
    assert faults(words) == []


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("data", options("data"))
def test_every_model_on_every_dataset(model: str, data: str) -> None:
    """A method that fits its default dataset alone, or a dataset that lacks what methods ask for."""
    assert faults([f"model={model}", f"data={data}", *SAMPLE.get(("data", data), [])]) == []


@pytest.mark.parametrize(
    "words", [[], *([f"data={option}", *SAMPLE.get(("data", option), [])] for option in options("data"))], ids=" ".join
)
def test_evaluate_is_sound(words: list[str]) -> None:
    """A key of conf/evaluate.yaml that the door does not read, or one that it reads and the file lacks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACELAB_STAMP", "now")
        cfg = compose_config(["ckpt=run", *words], "evaluate")
        assert check_config(cfg, EVALUATE_KEYS) == []
        assert cfg.paths.name == f"run-{words[0].partition('=')[2] if words else 'own'}-test"


@pytest.mark.parametrize("model", options("official"))
def test_import_weights_is_sound(model: str) -> None:
    """A value of conf/official/ that the parts of its method do not take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACELAB_STAMP", "now")
        check_import(compose_config([f"model={model}", "weights=file.pth"], "import_weights"))


def test_names_of_runs() -> None:
    """Runs of one sweep that cannot be told apart, or a name that needs a group the method lacks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACELAB_STAMP", "now")
        cfg = compose_config(["model=pipnet", "backbone=mbv2", "data=lapa106", "data.name=mine", "seed=3"])
        assert cfg.paths.name == "pipnet-mbv2-mine-s3"
        words = ["model=pipnet", "backbone=timm", "data=lapa106", "seed=3"]
        assert compose_config([*words, "backbone.name=hf-hub:a/b"]).paths.name == "pipnet-hf-hub:a-b-lapa106-s3"
        assert compose_config(words).paths.name == "pipnet-timm-lapa106-s3"  # so that the check can tell what lacks


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("logs/train/runs/2026-11-20_07-17-00_pipnet-mbv2-lapa106-s1", "pipnet-mbv2-lapa106-s1"),
        ("logs/train/runs/2026-11-20_07-17-00_pipnet-mbv2-lapa106-s1/checkpoints/best.ckpt", "pipnet-mbv2-lapa106-s1"),
        ("logs/train/multiruns/2026-11-20_07-17-00/3/", "2026-11-20_07-17-00-3"),
        ('"~/mine"', "mine"),
        ("copied.ckpt", "copied"),
        ("???", "none"),
    ],
)
def test_names_of_evaluations(checkpoint: str, name: str) -> None:
    """Evaluations of two runs that cannot be told apart; a checkpoint that is not given told as a traceback."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACELAB_STAMP", "now")
        cfg = compose_config([f"ckpt={checkpoint}", "split=val"], "evaluate")
        assert cfg.paths.name == f"{name}-own-val"


# What belongs to a method


@pytest.fixture
def other_conf(tmp_path: Path) -> Path:
    """conf/ with a model without a head, to write mistakes into."""
    folder = Path(shutil.copytree(CONF, tmp_path / "conf"))
    bare = "".join(line for line in (folder / "model" / "pipnet.yaml").open() if "head" not in line)
    (folder / "model" / "bare.yaml").write_text(bare)
    return folder


@pytest.mark.parametrize("model", MODELS)
def test_parts_of_other_models_are_refused(model: str) -> None:
    """`head=...` for a method without a head would be taken without a word, and change nothing."""
    foreign = {group for group in PARTS if group not in NO_PARTS}
    for group in foreign - groups_of(model):
        with pytest.raises(ConfigCompositionException, match=group):
            compose_config([f"model={model}", f"{group}={options(group)[0]}"])


def test_a_part_that_the_model_lacks_is_refused(other_conf: Path) -> None:
    """The same for a model that lacks one for certain."""
    compose_config(["model=bare"], folder=other_conf)
    with pytest.raises(ConfigCompositionException, match="Could not override 'head'"):
        compose_config(["model=bare", "head=pipnet"], folder=other_conf)


def test_the_command_line_beats_the_experiment_and_this_the_model(other_conf: Path) -> None:
    """Recipes whose values are lost, or that cannot be changed any more."""
    (other_conf / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults: [{override /backbone: mbv2}]\ntrainer: {max_epochs: 7}\ncrop: {scale: 1.3}\n"
    )
    cfg = compose_config(["experiment=mine", "crop.scale=1.4", "trainer=gpu"], folder=other_conf)
    assert (cfg.backbone.name, cfg.trainer.max_epochs, cfg.crop.scale) == ("mobilenetv2_100", 7, 1.4)


# Mistakes


def test_a_planted_typo_is_told_by_its_path(other_conf: Path) -> None:
    """A wrong key in a file would be dropped or end in a traceback after minutes."""
    for file, right, wrong in (
        ("augment/pipnet.yaml", "sigma_limit", "sigma_limt"),
        ("coder/pipnet.yaml", "num_neighbours", "num_neighbors"),
    ):
        path = other_conf / file
        path.write_text(path.read_text().replace(right, wrong))
    told = faults([], folder=other_conf)
    assert any(line.startswith("augment.pixels[1].sigma_limt: ") and "`sigma_limit`?" in line for line in told), told
    assert any(line.startswith("coder.num_neighbors: ") and "`num_neighbours`?" in line for line in told), told


@pytest.mark.parametrize(
    ("word", "place", "hint"),
    [
        ("+typo=1", "typo", "nothing reads this key"),
        ("+crop.siez=64", "crop.siez", "`size`"),
        ("+trainer.max_epoch=1", "trainer.max_epoch", "`max_epochs`"),
        ("+callbacks.face_grid.colums=3", "callbacks.face_grid.colums", "`columns`"),
        ("+monitor.nmae=x", "monitor.nmae", "`name`"),
        ("optimizer.lr=fast", "optimizer.lr", "'fast'"),
        ("model.flip_test=3", "model.flip_test", "bool"),
        (
            "data.layout.path=facelab.faces.layouts.LAPA16",
            "data.layout.path",
            "`facelab.faces.layouts.LAPA106`",
        ),
    ],
)
def test_a_typo_on_the_command_line_is_told(word: str, place: str, hint: str) -> None:
    """`+typo=1` taken without a word; a wrong value that shows only when it is used."""
    (told,) = faults([word])
    assert told.startswith(f"{place}: ")
    assert hint in told


@pytest.mark.parametrize("word", ["crop.siez=64", "typo=1", "backbone=mbv4", "model=pipnte"])
def test_hydra_refuses_what_it_knows_is_wrong(word: str) -> None:
    """A key or an option that does not exist at all."""
    with pytest.raises(Exception, match=re.escape(word.partition("=")[2 if "model" in word or "back" in word else 0])):
        compose_config([word])


# What stands where


def test_the_environment_is_read_in_one_place() -> None:
    """A checkpoint that opens on the machine it was made on, and nowhere else."""
    places = {
        path.relative_to(CONF).parts[0]
        for path in CONF.rglob("*.yaml")
        if re.search(r"\$\{(oc\.env|hydra)\b", path.read_text())
    }
    assert places <= {"paths", "hydra"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_knows_no_number_of_points_and_no_device(path: Path) -> None:
    """A second place that knows a layout; a part that puts itself on a device behind Lightning's back."""
    tree = ast.parse(path.read_text())
    if path.name != "layouts.py":
        numbers = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in COUNTS]
        assert numbers == []
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    assert [node.lineno for node in calls if node.func.attr == "cuda"] == []  # type: ignore[attr-defined]


COUNTS = (68, 98, 106)


def targets() -> list[str]:
    """Every class of the project that a file in conf/ names."""
    pattern = re.compile(rf"_target_: ((?:{'|'.join(sorted(PROJECT))})\.[\w.]+)")
    return sorted({name for path in CONF.rglob("*.yaml") for name in pattern.findall(path.read_text())})


@pytest.mark.parametrize("target", targets())
def test_values_stand_in_yaml(target: str) -> None:
    """A default in Python: the saved configuration is then not the recipe, and an old run reopens as another one."""
    module, _, name = target.rpartition(".")
    for parameter in inspect.signature(getattr(import_module(module), name)).parameters.values():
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        assert parameter.default is parameter.empty, f"{target} has a default for {parameter.name}"


def test_splits_are_typed_as_messages_say() -> None:
    """A remedy that is refused: a key that an empty mapping of the file does not have."""
    words = [*SAMPLE[("data", "folder")], "data.splits={afw: train, ibug: test}"]
    cfg = compose_config(["data=folder", *words])
    assert dict(cfg.data.splits) == {"afw": "train", "ibug": "test"}
    assert faults(["data=folder", *words]) == []
