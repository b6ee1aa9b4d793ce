"""Tests of the doors with a detector: import of published weights, evaluation, comparison, and what is refused."""

import csv
import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from composing import compose_config
from conftest import ROOT, metrics_of, open_door
from mtcnn_weights import LAYERS
from mtcnn_weights import published as published_mtcnn
from torch import Tensor

from facelab.metrics.detection_files import read_detection_table
from facelab.runs.build import build
from facelab.runs.checkpoint import load_run

HEADS = {"ClassHead": 4, "BboxHead": 8, "LandmarkHead": 20}
"""Output channels of the three convolutions of the public code that are one here."""
FACES = {"a": [(10, 12, 40, 44)], "b": [], "c": [(5, 5, 30, 30), (50, 20, 70, 45)]}
"""Corners of the faces of each photo."""
LANDMARK_RUN = ROOT / "tests" / "recorded" / "finished"


def published(weights: dict[str, Tensor], layers: dict[str, tuple[str, ...]], bgr: frozenset[str]) -> dict[str, Tensor]:
    """Return weights under the names of the public code, as DataParallel saves them."""
    state = {}
    for name, tensor in weights.items():
        layer, _, kind = name.rpartition(".")
        if layer in layers:
            sizes = [HEADS[theirs.partition(".")[0]] for theirs in layers[layer]] if len(layers[layer]) > 1 else []
            parts = tensor.split(sizes) if sizes else [tensor]
            for theirs, part in zip(layers[layer], parts, strict=True):
                state[f"module.{theirs}.{kind}"] = part.flip(1) if layer in bgr and part.ndim == 4 else part
    return state


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a set of three photos and a file of random weights, and import it as ``imported``."""
    folder = tmp_path_factory.mktemp("detector")
    for name in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (folder / "voc" / name).mkdir(parents=True)
    (folder / "voc" / "ImageSets" / "Main" / "val.txt").write_text("".join(f"{name}\n" for name in FACES))
    rng = np.random.default_rng(0)
    for name, boxes in FACES.items():
        size = (64, 80) if name != "b" else (50, 40)
        cv2.imwrite(str(folder / "voc" / "JPEGImages" / f"{name}.png"), rng.integers(0, 256, (*size, 3), np.uint8))
        tags = ("xmin", "ymin", "xmax", "ymax")
        corners = ["".join(f"<{t}>{v}</{t}>" for t, v in zip(tags, box, strict=True)) for box in boxes]
        objects = "".join(f"<object><name>with_mask</name><bndbox>{each}</bndbox></object>" for each in corners)
        (folder / "voc" / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACELAB_STAMP", "now")
        torch.manual_seed(0)
        module = build(compose_config(["model=retinaface", "backbone.pretrained=false"]), "model")
    official = module.official()
    torch.save(published(module.state_dict(), dict(official.layers), official.bgr), folder / "weights.pth")
    torch.save(module.state_dict(), folder / "own.pth")
    words = ("model=retinaface", "data=mask_voc", f"data.root={folder / 'voc'}", "weights=weights.pth")
    open_door("import_weights", *words, "hydra.run.dir=imported", folder=folder)
    return folder


def evaluate(folder: Path, run: str, *words: str) -> Path:
    """Evaluate the imported run; return the folder of the results."""
    options = ("split=val", "num_workers=0", "logger=none", "callbacks.progress=null")
    open_door("evaluate", "ckpt=imported", *options, *words, f"hydra.run.dir={run}", folder=folder)
    return folder / run


def test_import_weights_writes_a_detector_that_opens(folder: Path) -> None:
    """Would catch weights under other names, and a detector that needs the crop of a landmark method."""
    run = load_run(folder / "imported", None)
    expected = torch.load(folder / "own.pth", weights_only=True)
    opened = run.module.state_dict()
    assert opened.keys() == expected.keys()
    assert all(torch.equal(opened[name], tensor) for name, tensor in expected.items())
    assert run.module.detection.official_areas
    assert "crop" not in run.cfg


def test_evaluate_measures_a_detector(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch metrics that depend on the batch size, a missing file, or a protocol without the rule."""
    options = ("detection.scale=vga", "detection.candidates=50", "detection.threshold=0.3")
    one, two = (evaluate(folder, f"batch{size}", f"batch_size={size}", *options) for size in (1, 3))
    assert "mask_voc val, 3 photos, 3 faces, scale: vga" in capsys.readouterr().out.replace("\n", " ")
    content = json.loads((one / "metrics.json").read_text())
    assert content["metrics"] == json.loads((two / "metrics.json").read_text())["metrics"]
    protocol = content["protocol"]
    assert protocol.pop("truth") and protocol.pop("evaluator")
    assert protocol == {
        "dataset": "mask_voc",
        "split": "val",
        "photos": 3,
        "faces": 3,
        "ignore": ["difficult"],
        "scale": "vga",
        "threshold": 0.3,
        "candidates": 50,
        "nms_iou": 0.4,
        "most": 750,
        "official_areas": True,
    }
    metrics = metrics_of(one)
    assert (metrics["photos"].value, metrics["faces"].value, metrics["photos_cut"].value) == (3, 3, 3)
    table, names = read_detection_table(one / "detections.npz")
    assert names == ["a.png", "b.png", "c.png"]
    with (one / "detections.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(table.scores) > 3
    with (one / "photos.csv").open() as file:
        assert [row["faces"] for row in csv.DictReader(file)] == ["1", "0", "2"]
    assert (one / "samples" / "worst.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["box=given"], "box=given is an option of landmark methods; this run is of RetinaFace"),
        (["flip_test=true"], "flip_test=True is an option of landmark methods"),
        (["box_jitter={scale:[0.9,1.3],shift:0.1}"], "box_jitter=.* is an option of landmark methods"),
        (["detection.scale=big"], r"detection.scale: 'big' given, Literal\['original', 'vga', 'large', 'multiple'\]"),
        (["data=synthetic68"], "data=synthetic68 has the 68 landmarks of ibug68, but the run predicts the 5 of five5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_evaluate_refuses_options_that_a_detector_does_not_have(folder: Path, words: list[str], message: str) -> None:
    """Would catch an option that is accepted silently and changes nothing."""
    with pytest.raises(SystemExit, match=message):
        evaluate(folder, "refused", *words)


def test_evaluate_refuses_options_of_a_detector_for_landmarks(tmp_path: Path) -> None:
    """Would catch a scale that is accepted silently although crops have one size."""
    with pytest.raises(SystemExit, match=r"detection.scale=vga is an option of detectors; this run is of PIPNet"):
        open_door("evaluate", f"ckpt={LANDMARK_RUN}", "detection.scale=vga", "hydra.run.dir=run", folder=tmp_path)


@pytest.mark.parametrize(
    ("door", "words", "message"),
    [
        ("train", ["model=retinaface"], "model: without loss and optimizer this version trains no RetinaFace"),
        ("benchmark", ["model=retinaface"], "model=retinaface: a detector; benchmark.py measures"),
        ("benchmark", ["ckpt=imported"], "imported: a detector; benchmark.py measures"),
        ("predict", ["images=voc/JPEGImages", "landmarker=imported"], r"last.ckpt is a detector, which finds faces"),
    ],
)
def test_doors_refuse_a_detector_that_they_cannot_use(folder: Path, door: str, words: list[str], message: str) -> None:
    """Would catch a traceback, or a training without a loss."""
    with pytest.raises(SystemExit, match=message):
        open_door(door, *words, "hydra.run.dir=refused", folder=folder)


def test_compare_shows_detectors_beside_landmark_methods(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a crash on a folder without faces.csv, or a detector in the table of a landmark method."""
    run = evaluate(folder, "compared", "detection.candidates=20")
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["compare.py", str(run), str(LANDMARK_RUN), "--html", str(folder / "page.html")])
        runpy.run_path(str(ROOT / "compare.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "Table 1: mask_voc val, 3 photos, 3 faces, scale: original" in out
    assert "with 95 % intervals over photos" in out and "with 95 % intervals over faces" in out
    assert (
        out.index("ap50") < out.index("Table 2: synthetic68 test, 8 faces, ibug68, box: points") < out.index("nme_box")
    )
    page = (folder / "page.html").read_text()
    assert "Worst photos" in page and "Worst faces" in page


# MTCNN


@pytest.fixture(scope="module")
def mtcnn(folder: Path) -> Path:
    """Write files of weights of MTCNN beside the set of photos, and import them as ``onet`` and ``pnet``."""
    (folder / "mtcnn").mkdir()
    for name in LAYERS:
        torch.save(
            {key.partition(".")[2]: v for key, v in published_mtcnn(name).items()}, folder / "mtcnn" / f"{name}.pt"
        )
    for model in ("onet", "pnet"):
        words = (f"model={model}", "data=mask_voc", f"data.root={folder / 'voc'}", "weights=mtcnn")
        open_door("import_weights", *words, f"hydra.run.dir={model}", folder=folder)
    return folder


def test_import_weights_writes_a_cascade_that_opens_alone(mtcnn: Path) -> None:
    """Would catch a stage whose earlier networks are not in its checkpoint, or keep random weights."""
    whole, first = (load_run(mtcnn / name, None).module for name in ("onet", "pnet"))
    assert list(whole.cascade.networks()) == ["pnet", "rnet", "onet"]
    assert list(first.cascade.networks()) == ["pnet"]
    assert whole.detection.official_pixels
    weights = torch.load(mtcnn / "mtcnn" / "pnet.pt", weights_only=True)
    for module in (whole, first):
        torch.testing.assert_close(module.cascade.pnet.features[0].weight, weights["conv1.weight"].float())
    source = json.loads((mtcnn / "onet" / "status.json").read_text())["imported"]
    assert source["file"] == "mtcnn" and len(source["sha256"]) == 64


@pytest.mark.parametrize("run", ["onet", "pnet"])
def test_evaluate_measures_a_cascade(mtcnn: Path, run: str) -> None:
    """Would catch a stage that cannot be measured, results that depend on the batch, and a rule that is not changed."""
    options = ("split=val", "num_workers=0", "logger=none", "callbacks.progress=null", "detection.thresholds=[0.4,0,0]")
    metrics = []
    for size in (1, 3):
        words = (*options, f"batch_size={size}", "detection.min_face=15", f"hydra.run.dir={run}-{size}")
        open_door("evaluate", f"ckpt={run}", *words, folder=mtcnn)
        metrics.append(json.loads((mtcnn / f"{run}-{size}" / "metrics.json").read_text()))
    assert metrics[0]["metrics"] == metrics[1]["metrics"]
    protocol = metrics[0]["protocol"]
    assert (protocol["min_face"], protocol["thresholds"], protocol["official_pixels"]) == (15, [0.4, 0, 0], True)
    table, _ = read_detection_table(mtcnn / f"{run}-1" / "detections.npz")
    assert len(table.scores) > 3
    assert np.isfinite(table.points).all() == (run == "onet")


@pytest.mark.parametrize(
    ("door", "words", "message"),
    [
        ("train", ["model=rnet"], "model: without loss and optimizer this version trains no RNet"),
        ("evaluate", ["ckpt=onet", "detection.scale=vga"], "detection.scale=vga is an option of detectors; .* of ONet"),
        ("evaluate", ["ckpt=onet", "detection.factor=1"], "detection.factor: 1 given"),
        ("import_weights", ["model=onet", "weights=weights.pth"], "weights=weights.pth: a folder with a file of each"),
        ("import_weights", ["model=onet", "weights=voc"], "weights=voc: a folder with a file of each network"),
        ("import_weights", ["model=onet", "weights=partial"], "missing from the file: rnet.conv1.bias"),
    ],
)
def test_doors_refuse_what_a_cascade_cannot_do(mtcnn: Path, door: str, words: list[str], message: str) -> None:
    """Would catch a traceback, an option without effect, and a cascade with random weights in a stage."""
    (mtcnn / "partial").mkdir(exist_ok=True)
    for name in ("pnet", "onet"):
        (mtcnn / "partial" / f"{name}.pt").write_bytes((mtcnn / "mtcnn" / f"{name}.pt").read_bytes())
    with pytest.raises(SystemExit, match=message):
        open_door(door, *words, "hydra.run.dir=refused", folder=mtcnn)
