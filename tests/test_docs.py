"""Tests of the examples in docs/extending.md: written into copies of their folders, each is checked, built and used."""

import importlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from composing import CONF, SMALL_BATCHES, SMALL_FACES, compose_config, faults
from conftest import ROOT

from facelab.faces.geometry import Array
from facelab.faces.layouts import IBUG68
from facelab.runs.build import build

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning")
PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
"""Content of the example files by their path."""
EXAMPLE = re.MULTILINE | re.DOTALL
"""Flags of a pattern whose beginning and end are those of lines."""
POINTS_CSV = ("data=points_csv", "data.root=points", "crop.box=points")
"""Overrides that choose the example of a dataset."""


def write_expectation() -> dict[str, str]:
    """Write the files of the wholly new method, which the page describes as changes of the example before."""
    module = FILES["lightning_modules/direct.py"].partition("        super().__init__")[0]
    block = re.search(r"is `direct.py` with these types, and\n\n```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    model = FILES["conf/model/direct.yaml"]
    changes = re.search(
        r"^`conf/model/expectation.yaml` is `direct.yaml` with (.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL
    )
    assert block and changes
    for group, option in re.findall(r"`/(\w+): (\w+)`", changes[1]):
        model, count = re.subn(rf"- /{group}: \w+", f"- /{group}: {option}", model)
        assert count == 1, group
    for old, new in (
        ("class Direct", "class Expectation"),
        ("facelab.coders.regression import RegressionCoder", "facelab.coders.expectation import ExpectationCoder"),
        (
            "facelab.networks.pfld import LiteHead, MultiScaleHead",
            "facelab.networks.expectation import ExpectationHead",
        ),
        ("MultiScaleHead | LiteHead", "ExpectationHead"),
        ("RegressionCoder", "ExpectationCoder"),
    ):
        assert old in module, old
        module = module.replace(old, new)
    return {
        "lightning_modules/expectation.py": module + block[1],
        "conf/model/expectation.yaml": model.replace("direct.Direct", "expectation.Expectation"),
    }


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write the examples, make their modules importable, and return the copy of conf/ with their options."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(CONF, root / "conf")
    before = set(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        for name, text in {**FILES, **write_expectation()}.items():
            path = root / name
            assert not (ROOT / name).exists(), f"{name} of the page exists already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            if path.suffix == ".py":
                package = importlib.import_module(path.parent.relative_to(root).as_posix().replace("/", "."))
                patch.setattr(package, "__path__", [*package.__path__, str(path.parent)])
        importlib.invalidate_caches()
        yield root / "conf"
    for name in set(sys.modules) - before:
        if name.replace(".", "/") + ".py" in {*FILES, "lightning_modules/expectation.py"}:
            del sys.modules[name]


@pytest.fixture
def truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Array:
    """Write two faces in the format of the example of a dataset, into points/ of the working folder."""
    points = np.random.default_rng(0).uniform(20, 80, (2, IBUG68.num_points, 2)).round(2).astype(np.float32)
    (tmp_path / "points" / "photos").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (tmp_path / "points" / "photos" / name).touch()
    lines = [
        f"{name},{','.join(map(str, face.ravel()))}\n" for name, face in zip(("a.png", "b.png"), points, strict=True)
    ]
    for split in ("train", "val", "test"):
        (tmp_path / "points" / f"{split}.csv").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    return points


def test_extending_shows_every_kind_of_part() -> None:
    """Would catch an example that this file no longer finds."""
    assert {path.rpartition("/")[0] for path in FILES} >= {
        *("conf/backbone", "conf/coder", "conf/data", "conf/datamodule", "conf/head", "conf/loss", "conf/model"),
        *("facelab/annotations", "facelab/coders", "facelab/losses", "facelab/networks", "lightning_modules"),
        "tests/small",
    }


@pytest.mark.parametrize(
    "words",
    [
        ["model=pipnet", "backbone=lite0", "backbone.pretrained=false"],
        ["model=pfld", "loss=huber", "backbone.width=0.25"],
        ["model=pfld", "loss=charbonnier", "backbone.width=0.25"],
        ["model=direct", "backbone.width=0.25"],
        ["model=expectation", "coder.stride=16", "backbone.pretrained=false"],
    ],
    ids=" ".join,
)
def test_extending_examples_train(words: list[str], conf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an example that a change of the code made wrong."""
    monkeypatch.setenv("FACELAB_STAMP", "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))
    words = [*words, *SMALL_FACES, *SMALL_BATCHES]
    assert faults(words, folder=conf) == []
    cfg = compose_config(words, folder=conf)
    module, datamodule = build(cfg, "model"), build(cfg, "datamodule")
    datamodule.setup("fit")
    module.fit_statistics(datamodule)
    loss = module.train().training_step(next(iter(datamodule.train_dataloader())), 0)
    assert loss.isfinite() and loss > 0
    loss.backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in module.parameters())


def test_extending_dataset_is_read(conf: Path, truth: Array) -> None:
    """Would catch a reader that calls the functions of facelab/annotations/points_file.py with wrong arguments."""
    words = ["model=pfld", *POINTS_CSV]
    assert faults(words, folder=conf) == []
    photos = build(compose_config(words, folder=conf), "data").photos("all")
    assert [photo.path.name for photo in photos] == ["a.png", "b.png"] * 3
    np.testing.assert_array_equal([photo.faces[0].points for photo in photos[:2]], truth)


def test_extending_metric_has_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch an example that changes one place where two are needed."""
    from facelab.metrics import landmarks
    from facelab.metrics.face_table import face_table

    (function, entry) = re.findall(r"```python\n(def worst_point.*?|    metrics\[.worst_.*?)^```$", PAGE, EXAMPLE)
    names = dict(vars(landmarks))
    exec(function + "def add(table, metrics):\n" + entry + "    return metrics\n", names)
    definitions = landmarks.definitions
    monkeypatch.setattr(landmarks, "definitions", lambda table: names["add"](table, definitions(table)))
    faces = 20
    truth = np.random.default_rng(0).uniform(0, 100, (faces, IBUG68.num_points, 2))
    predicted = truth.copy()
    predicted[:, 0, 0] += np.arange(1, faces + 1)
    table = face_table(
        IBUG68,
        face_id=np.arange(faces),
        predicted=predicted,
        points=truth,
        valid=np.arange(faces)[:, None]
        < np.full(IBUG68.num_points, faces - 1),  # nothing is annotated in the last face
        to_photo=np.tile(np.eye(3), (faces, 1, 1)),
        pose=np.full((faces, 3), np.nan),
        tags=np.zeros((faces, 0), np.bool_),
        tag_names=(),
    )
    record = landmarks.definitions(table)["worst_point"].record(100, seed=0)
    assert record.value == pytest.approx(10)
    assert record.low < 10 < record.high and record[3:7] == (19, 1, "pixels", "lower")
