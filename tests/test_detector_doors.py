"""Tests of the doors and of facelab.load with a detector: import, evaluation, prediction, comparison, and refusals."""

import csv
import json
import math
import re
import runpy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from composing import compose_config
from conftest import ROOT, metrics_of, open_door
from mtcnn_weights import LAYERS
from mtcnn_weights import published as published_mtcnn
from omegaconf import OmegaConf
from torch import Tensor

import facelab
from facelab.errors import FacelabError, ImageError
from facelab.faces.image import read_image
from facelab.metrics.detection_curves import read_curves
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
    """Would catch metrics that depend on the batch size or batches of one photo, a missing file, or a missing rule."""
    options = ("detection.scale=vga", "detection.candidates=50", "detection.threshold=0.3")
    one, two = (evaluate(folder, f"batch{size}", f"batch_size={size}", *options) for size in (1, 3))
    assert "mask_voc val, 3 photos, 3 faces, scale: vga" in capsys.readouterr().out.replace("\n", " ")
    assert OmegaConf.load(two / "config.yaml").datamodule.eval_batch_size == 3, "photos, not training squares"
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
    assert read_curves(one / "detection_curves.csv")["ap50"].recall[-1] == metrics["recall"].value


@pytest.mark.slow
def test_evaluate_logs_the_curves_of_a_detector(folder: Path) -> None:
    """Would catch charts of a detector that W&B refuses, or that no test of a run logs."""
    words = ("ckpt=imported", "split=val", "num_workers=0", "logger=wandb", "callbacks.progress=null")
    open_door("evaluate", *words, "hydra.run.dir=logged", folder=folder)
    curve = read_curves(folder / "logged" / "detection_curves.csv")["ap50"]
    (run,) = (folder / "logged" / "wandb").glob("offline-run-*")
    (file,) = run.glob("files/media/table/test/precision_recall_table*.json")
    table = json.loads(file.read_text())
    assert [row[0] for row in table["data"]] == pytest.approx(100 * curve.precision_line()[0])
    assert len([*run.glob("files/media/table/test/recall_fppi_table*.json")]) == 1


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
    for word in ("detection.scale=vga", "submission=float", "wider_rounded=True"):
        with pytest.raises(SystemExit, match=rf"{word} is an option of detectors; this run is of PIPNet"):
            open_door("evaluate", f"ckpt={LANDMARK_RUN}", word, "hydra.run.dir=run", folder=tmp_path)


RULE = ("scale=original", "threshold=0.3", "candidates=50", "nms_iou=0.4", "most=750", "official_areas=true")
"""Options of the search of :func:`measured`, after ``detection.``."""


@pytest.fixture(scope="module")
def measured(folder: Path) -> Path:
    """Evaluate the imported run with few detections, and write them as a submission."""
    words = (f"detection.{word}" for word in RULE)
    return evaluate(folder, "measured", *words, "submission=float", "name=mine", "wider_rounded=true")


def evaluate_predictions(folder: Path, path: Path, run: str, *words: str) -> Path:
    """Evaluate predictions on the three photos; return the folder of the results."""
    data = ("data=mask_voc", f"data.root={folder / 'voc'}", "split=val")
    open_door("evaluate", f"predictions={path}", *data, *words, f"hydra.run.dir={run}", folder=folder)
    return folder / run


def test_evaluate_gives_the_same_table_for_the_file_of_a_run(folder: Path, measured: Path) -> None:
    """Would catch another truth, order, precision or rule in the evaluation of predictions than in that of a run."""
    stated = (f"detection.{word}" for word in RULE)
    again = evaluate_predictions(folder, measured, "again", *stated, "wider_rounded=true")
    (first, names), (second, others) = (read_detection_table(run / "detections.npz") for run in (measured, again))
    assert len(first.scores) > 3 and first.cut.any() and names == others
    for one, two in zip(first[1:], second[1:], strict=True):
        np.testing.assert_array_equal(one, two)
    one, two = (json.loads((run / "metrics.json").read_text()) for run in (measured, again))
    assert one["metrics"] == two["metrics"]
    assert one["protocol"] == two["protocol"]
    assert one["protocol"]["wider"] == "rounded as in Matlab"
    for name in ("detections.csv", "photos.csv"):
        assert (measured / name).read_text() == (again / name).read_text()


def test_evaluate_reads_the_submission_that_it_writes(folder: Path, measured: Path) -> None:
    """Would catch a submission of other boxes, and a limit or points that nobody knows and that are reported as 0."""
    again = evaluate_predictions(folder, measured / "submission", "submitted", "submission=integer", "name=them")
    (first, _), (second, _) = (read_detection_table(run / "detections.npz") for run in (measured, again))
    np.testing.assert_array_equal(first.scores, second.scores)
    np.testing.assert_allclose(first.boxes, second.boxes, rtol=0, atol=1e-9)
    assert math.isnan(metrics_of(again)["photos_cut"].value)
    with (again / "photos.csv").open() as file:
        assert [row["cut"] for row in csv.DictReader(file)] == ["", "", ""]
    assert json.loads((again / "metrics.json").read_text())["protocol"]["scale"] == "unknown"
    written = sorted(path.name for path in (again / "submission" / "JPEGImages").iterdir())
    assert written == ["a.txt", "b.txt", "c.txt"]
    truncated, exact = (
        (run / "submission" / "JPEGImages" / "a.txt").read_text().splitlines()[2] for run in (again, measured)
    )
    assert "." not in truncated.rpartition(" ")[0] and "." in exact.rpartition(" ")[0]
    third = evaluate_predictions(folder, again / "detections.npz", "third")
    assert math.isnan(metrics_of(third)["photos_cut"].value), "unknown becomes 0"


def test_compare_shows_predictions_beside_a_run(
    folder: Path, measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch predictions in another table than the run although the same rule is stated, or a crash."""
    stated = (f"detection.{word}" for word in RULE)
    other = evaluate_predictions(folder, measured / "submission", "beside", *stated, "wider_rounded=true")
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["compare.py", str(measured), str(other), "--html", str(folder / "both.html")])
        runpy.run_path(str(ROOT / "compare.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "measured" in out and "beside" in out and "Table 2" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"ckpt: name either a run \(ckpt=RUN\) or detections \(predictions=PATH data=...\)"),
        (["ckpt=imported", "predictions=measured/submission"], "ckpt: name either a run"),
        (["ckpt=imported", "predicted.missing=empty"], "predicted.missing=... has no effect without predictions=PATH"),
        (["predictions=measured/submission"], "data: predictions need the dataset of their photos"),
        (["predictions=measured/submission", "data=synthetic68"], "data=synthetic68 has the 68 landmarks of ibug68"),
        (["predictions=measured/submission", "flip_test=true"], "flip_test=... has no effect on predictions"),
        (["predictions=measured/submission", "trainer=gpu"], "trainer=... has no effect on predictions"),
        (["predictions=measured/submission", "predicted.missing=skip"], "predicted.missing: 'skip' given"),
        (["predictions=voc", "data=mask_voc", "data.root=voc", "split=val"], r"val.txt, line 2: expected the number"),
        (
            ["predictions=measured/submission", "data=mask_voc", "data.root=voc", "predicted.ignore=[dificult]"],
            r"predicted.ignore=\[dificult\]: no face of mask_voc has this tag; did you mean difficult",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_evaluate_refuses_predictions_that_it_cannot_measure(
    folder: Path, measured: Path, words: list[str], message: str
) -> None:
    """Would catch a traceback, or an option without effect that is accepted."""
    with pytest.raises(SystemExit, match=message):
        open_door("evaluate", *words, "hydra.run.dir=refused", folder=folder)


@pytest.mark.parametrize(
    ("door", "words", "message"),
    [
        ("train", ["model=retinaface", "backbone.pretrained=true"], "backbone.weights=null: no server offers ImageNet"),
        ("benchmark", ["model=retinaface"], "model=retinaface: a detector; benchmark.py measures"),
        ("benchmark", ["ckpt=imported"], "imported: a detector; benchmark.py measures"),
        ("predict", ["images=voc/JPEGImages", "landmarker=imported"], r"is a detector, .*: detector=imported"),
    ],
)
def test_doors_refuse_a_detector_that_they_cannot_use(folder: Path, door: str, words: list[str], message: str) -> None:
    """Would catch a traceback, or a training without a loss."""
    with pytest.raises(SystemExit, match=message):
        open_door(door, *words, "hydra.run.dir=refused", folder=folder)


def predict(folder: Path, run: str, *words: str) -> dict[str, Any]:
    """Find faces in the photos of the set; return the content of detections.json."""
    options = ("images=voc/JPEGImages", "detector=imported", "device=cpu", f"hydra.run.dir={run}")
    open_door("predict", *options, *words, folder=folder)
    content: dict[str, Any] = json.loads((folder / run / "detections.json").read_text())
    return content


def test_predict_writes_the_faces_that_a_detector_finds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch faces of another photo, files that differ, another rule than the typed one, or missing pictures."""
    rule = {"threshold": 0.4, "most": 20, "scale": "vga"}
    content = predict(folder, "found", *(f"detection.{key}={value}" for key, value in rule.items()), "batch_size=2")
    printed = capsys.readouterr().out
    assert content["detection"] | rule == content["detection"] and content["detection"]["official_areas"]
    assert content["layout"] == "five5" and "degrees" in content["pose"]
    detector = facelab.load(folder / "imported", device="cpu", detection=rule)
    assert isinstance(detector, facelab.Detector)
    images = {name: read_image(folder / "voc" / "JPEGImages" / name) for name in content["images"]}
    assert list(images) == ["a.png", "b.png", "c.png"]
    with (folder / "found" / "detections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for (name, image), faces in zip(images.items(), detector.predict(list(images.values())), strict=True):
        photo = content["images"][name]
        assert photo["size"] == [image.shape[1], image.shape[0]] and len(faces) == len(photo["faces"]) == 20
        lines = [row for row in rows if row["image"] == name]
        for face, written, line in zip(faces, photo["faces"], lines, strict=True):
            for key in ("box", "score", "points", "pose"):
                np.testing.assert_allclose(getattr(face, key), written[key], atol=2e-3)
            assert [float(line[key]) for key in ("x0", "y0", "x1", "y1")] == written["box"]
            assert [float(line[key]) for key in ("p4_x", "p4_y")] == written["points"][4]
            assert [float(line[key]) for key in ("score", "yaw", "pitch", "roll")] == [
                written["score"],
                *written["pose"],
            ]
        drawn = read_image(folder / "found" / "pictures" / name)
        assert (drawn == detector.draw(image, faces)).all() and (drawn != image).any()
    assert "60 faces in 3 of 3 photos" in printed and "scale=vga, threshold=0.4" in printed
    assert "skipped a.png: some detections of the lowest scores" in printed
    assert json.loads((folder / "found" / "status.json").read_text())["state"] == "finished"


def test_predict_landmarks_in_the_boxes_of_a_detector(folder: Path) -> None:
    """Would catch results of a detector that cannot be passed to a landmark method."""
    found = predict(folder, "boxes", "detection.threshold=0.4", "detection.most=2", "pictures=false")
    words = ("images=voc/JPEGImages", f"landmarker={LANDMARK_RUN}", "boxes=boxes/detections.json", "device=cpu")
    open_door("predict", *words, "pictures=false", "hydra.run.dir=landmarks", folder=folder)
    faces = json.loads((folder / "landmarks" / "landmarks.json").read_text())["images"]
    for name, photo in found["images"].items():
        assert [face["box"] for face in faces[name]["faces"]] == [face["box"] for face in photo["faces"]] != []
        assert all(len(face["points"]) == 68 for face in faces[name]["faces"])


def test_predict_without_a_face_is_no_failure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch a script that stops at a folder without faces, and a default that is the threshold of the AP."""
    content = predict(folder, "nobody", "detection.threshold=1")
    assert [photo["faces"] for photo in content["images"].values()] == [[], [], []] and "pose" not in content
    assert len((folder / "nobody" / "detections.csv").read_text().splitlines()) == 1
    assert "0 faces in 0 of 3 photos" in capsys.readouterr().out
    assert not (folder / "nobody" / "pictures").exists()
    assert predict(folder, "default", "pictures=false")["detection"]["threshold"] == 0.5


def test_predict_fails_if_no_photo_can_be_read(folder: Path) -> None:
    """Would catch a folder of broken photos that looks like one without faces."""
    (folder / "broken.jpg").write_text("no picture")
    with pytest.raises(SystemExit, match="no photo could be searched"):
        predict(folder, "unreadable", "images=broken.jpg")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "landmarker=RUN is missing, which finds landmarks, or detector=RUN, which finds faces"),
        (
            ["detector=imported", "landmarker=other"],
            r"run detector=imported alone first, .* boxes=FOLDER/detections.json",
        ),
        ([f"detector={LANDMARK_RUN}"], f"is a landmark method, .*: landmarker={LANDMARK_RUN}"),
        (["detector=imported", "boxes=boxes.csv"], "boxes=boxes.csv is an option of landmark methods"),
        (["detector=imported", "units=fraction"], "units=fraction is an option of landmark methods"),
        (["detector=imported", "crop.scale=2"], "crop.scale=2 is an option of landmark methods"),
        (["landmarker=imported", "detection.scale=vga"], "detection.scale=vga is an option of detectors"),
        (["detector=imported", "detection.scale=big"], r"detection.scale: 'big' given, Literal\['original', 'vga'"),
        (["detector=imported", "detection.threshold=50"], "detection.threshold: 50 given"),
        (["detector=imported", "+model.nothing=1"], "`RetinaFace` has no argument `nothing`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_predict_refuses_options_of_the_other_kind(folder: Path, words: list[str], message: str) -> None:
    """Would catch an option without effect, and a message that does not say what to type instead."""
    with pytest.raises(SystemExit, match=message):
        open_door("predict", "images=voc/JPEGImages", *words, "hydra.run.dir=refused", folder=folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detection": {"scale": "big"}}, "detection.scale: 'big' given"),
        ({"detection": {"threshold": np.float64(2)}}, "detection.threshold: 2.0 given"),
        ({"detection": {"score": 0.5}}, "expected a mapping with the keys scale, threshold, candidates"),
        ({"detection": 0.5}, "detection=0.5: expected a mapping"),
        ({"crop": {"scale": 2}}, "crop=.* is a detector, which has none"),
    ],
)
def test_load_of_a_detector_refuses_wrong_changes(folder: Path, changes: dict[str, Any], message: str) -> None:
    """Would catch a change without effect, or another message than that of evaluate.py."""
    with pytest.raises(FacelabError, match=message):
        facelab.load(folder / "imported", **changes)


def test_load_of_a_landmark_method_refuses_a_rule() -> None:
    """Would catch a threshold that changes nothing."""
    with pytest.raises(FacelabError, match=r"detection=.* is a landmark method, which has none"):
        facelab.load(LANDMARK_RUN, detection={"threshold": 0.3})


def test_detector_predicts_arrays(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a traceback for a wrong array, a list for one image, and faces lost without a message."""
    detector = facelab.load(folder / "imported", device="cpu", detection={"threshold": 0.3, "most": 2})
    assert isinstance(detector, facelab.Detector)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    faces = detector.predict(image)
    assert len(faces) == 2 and faces[0].score >= faces[1].score
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "image 0: left out: some detections of the lowest" in record.message
    assert detector.predict([]) == [] and [len(each) for each in detector.predict([image, image[:30]])] == [2, 2]
    assert (detector.draw(image, []) == image).all()
    for wrong, message in (
        (np.zeros((9, 9)), "image 0: expected an RGB image"),
        ([image, np.zeros((0, 9, 3), np.uint8)], "image 1: expected an RGB image"),
        ("photo.jpg", "expected an image as a numpy array, or a list"),
    ):
        with pytest.raises(ImageError, match=message):
            detector.predict(wrong)
    with pytest.raises(FacelabError, match="batch_size=0 must be a whole number"):
        detector.predict(image, batch_size=0)


def test_python_example_of_a_detector_runs(folder: Path) -> None:
    """Would catch an example of the docs that a user cannot copy."""
    page = (ROOT / "docs" / "running.md").read_text()
    found = re.search(r"^```python\n(detector = .*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found
    code = found[1].replace("logs/import_weights/runs/STAMP_NAME", str(folder / "imported"))
    names: dict[str, Any] = {"facelab": facelab, "image": np.zeros((30, 40, 3), np.uint8)}
    names["landmarker"] = facelab.load(LANDMARK_RUN, device="cpu")
    exec(compile(code, "docs/running.md", "exec"), names)
    assert len(names["faces"]) == len(names["found"]) and names["drawn"].shape == (30, 40, 3)


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
