"""Tests of predict.py: landmarks on photos without annotations."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import metrics_of, open_door
from omegaconf import OmegaConf
from PIL import ExifTags, Image

from facelab.errors import ConfigError, DatasetError, ImageError
from facelab.faces.geometry import Array, bounding_box
from facelab.faces.image import PhotoFile, read_image, reduction, upright
from facelab.faces.layouts import FIVE5
from facelab.inference import boxes_file, landmarks
from facelab.inference import write as write_module
from facelab.inference.photos import Photos, find_photos
from facelab.runs.build import build
from facelab.runs.checkpoint import load_run
from lightning_modules.pipnet import PIPNet

FACE = np.array([[0.2, 0.3], [0.8, 0.25], [0.5, 0.5], [0.3, 0.8], [0.7, 0.85]])  # FIVE5 in the unit square
TO_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""Orientation tag -> transposition that turns the upright picture into the stored one."""


def cut_out(path: Path, matrix: Array, size: int) -> Array:
    """Cut a square crop of the stored pixels of a photo."""
    return PhotoFile(path, "stored").cut_out(matrix, size)


def picture(seed: int, width: int, height: int) -> np.ndarray:
    """Return a smooth picture ``(H, W, 3)`` without repeated parts."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def save(image: np.ndarray, path: Path, tag: int = 1) -> Path:
    """Write a picture as a camera stores it with this orientation tag."""
    stored = Image.fromarray(image)
    exif = Image.Exif()
    if tag != 1:
        stored = stored.transpose(TO_STORED[tag])
        exif[0x112] = tag
    path.parent.mkdir(parents=True, exist_ok=True)
    stored.save(path, exif=exif, quality=95)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Return the run folder of a briefly trained network, and the photos and points of its training set."""
    root, run = tmp_path_factory.mktemp("faces"), tmp_path_factory.mktemp("run") / "run"
    rng = np.random.default_rng(0)
    points: dict[str, np.ndarray] = {}
    for split in ("train", "val", "test"):
        for number in range(4):
            # The first JPEG of each split is large enough for reduced decoding; its sides are no multiples of 8.
            width, height = (331, 285) if number == 0 else (97, 83)
            name = f"{split}/face{number}." + ("jpg" if number < 2 else "png")
            save(picture(len(points), width, height), root / name)
            face = FACE + rng.normal(0, 0.03, FACE.shape)
            points[name] = (face * [width, height]).astype(np.float32)
            np.savetxt((root / name).with_suffix(".txt"), points[name], fmt="%.9g")
    open_door(
        "train",
        *("data=folder", f"data.root={root}", "data.layout.path=facelab.faces.layouts.FIVE5", "logger=none"),
        *("backbone=timm", "backbone.name=test_resnet", "backbone.pretrained=false", "head.trunk=null"),
        *("crop.size=64", "coder.num_neighbours=2", "datamodule.batch_size=2", "datamodule.num_workers=0"),
        *("trainer.max_epochs=2", f"hydra.run.dir={run}"),
        folder=run.parent,
    )
    return SimpleNamespace(root=root, run=run, points=points)


@pytest.fixture
def predict(trained: SimpleNamespace, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that runs predict.py and returns the content of landmarks.json."""

    def run(*overrides: object) -> dict[str, Any]:
        overrides = (f"landmarker={trained.run}", "device=cpu", "hydra.run.dir=prediction", *overrides)
        open_door("predict", *overrides, folder=tmp_path)
        return json.loads((tmp_path / "prediction/landmarks.json").read_text())

    return run


def write_boxes(path: Path, rows: Sequence[tuple[object, ...]]) -> Path:
    """Write a CSV file of boxes."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([boxes_file.COLUMNS, *rows])
    return path


def first_points(result: dict[str, Any], name: str) -> np.ndarray:
    """Return the points of the first face of a photo."""
    return np.array(result["images"][name]["faces"][0]["points"])


# Predictions


def test_predict_matches_the_test_dataloader(
    trained: SimpleNamespace, predict: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Would catch a crop, decoding or mapping to the photo that differs from training and moves every point."""
    run = load_run(trained.run, OmegaConf.load(trained.run / "config.yaml").paths)
    datamodule = build(run.cfg, "datamodule")
    datamodule.setup("test")
    faces = datamodule.faces["test"]
    assert {reduction(path, faces.to_crop(row)) for row, path in enumerate(faces.paths)} == {1, 2}
    expected: dict[str, np.ndarray] = {}
    with torch.inference_mode():
        for number, batch in enumerate(datamodule.test_dataloader()):
            points = run.module.predict_step(batch, number).points.numpy()
            expected |= {faces.paths[row].name: points[i] for i, row in enumerate(batch.face_id.tolist())}

    boxes = {name: bounding_box(trained.points[f"test/{name}"]) for name in expected}
    file = write_boxes(tmp_path / "boxes.csv", [(name, *box.tolist()) for name, box in boxes.items()])
    result = predict(f"images={trained.root / 'test'}", f"boxes={file}", "batch_size=3")

    assert result["images"].keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(first_points(result, name), expected[name], atol=0.01)
    assert result["crop"]["scale"] == 1.1
    assert result["crop"]["box"] == "given"


def test_predict_keeps_faces_with_their_photo(
    trained: SimpleNamespace, predict: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Would catch faces that change places within a batch and are assigned to another photo."""
    photos = trained.root / "test"
    boxes = {
        "face0.jpg": [[10, 20, 110, 120], [150, 20, 300, 270]],
        "face1.jpg": [],
        "face2.png": [[5, 5, 60, 70]],
        "face3.png": [[5, 5, 60, 70], [20.5, 10, 90, 80], [0, 0, 97, 83]],
    }
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(boxes))
    together = predict(f"images={photos}", f"boxes={file}", "batch_size=4")
    assert {name: [face["box"] for face in photo["faces"]] for name, photo in together["images"].items()} == boxes
    alone = predict(f"images={photos / 'face3.png'}", f"boxes={file}", "batch_size=1")
    for one, other in zip(alone["images"]["face3.png"]["faces"], together["images"]["face3.png"]["faces"], strict=True):
        np.testing.assert_allclose(one["points"], other["points"], atol=0.01)
    assert {skip["image"] for skip in alone["skipped"]} == {"face0.jpg", "face1.jpg", "face2.png"}


def test_predict_uses_the_given_scale_or_the_whole_photo(
    trained: SimpleNamespace, predict: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Would catch the training's scale, made for boxes around landmarks, applied to a whole photo."""
    photo = trained.root / "test" / "face2.png"
    whole = predict(f"images={photo}")
    file = write_boxes(tmp_path / "boxes.csv", [("face2.png", -0.5, -0.5, 96.5, 82.5)])
    overridden = predict(f"images={photo}", f"boxes={file}", "crop.scale=1", "crop.square=false")
    trained_scale = predict(f"images={photo}", f"boxes={file}")
    np.testing.assert_array_equal(first_points(whole, "face2.png"), first_points(overridden, "face2.png"))
    assert np.abs(first_points(whole, "face2.png") - first_points(trained_scale, "face2.png")).max() > 0.1
    assert whole["crop"] | {"box": "given"} == overridden["crop"]
    assert whole["images"]["face2.png"]["size"] == [97, 83]


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_predict_applies_the_orientation_tag(
    suffix: str, predict: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Would catch a photo that is predicted sideways, or whose points are drawn sideways."""
    image = picture(7, 97, 83)
    if suffix == "webp":
        image = np.asarray(Image.open(save(image, tmp_path / "lossy.webp")).convert("RGB"))
    for tag in range(1, 9):
        path = save(image, tmp_path / "photos" / f"{tag}.png", tag)
        if suffix == "webp":
            Image.open(path).save(path.with_suffix(".webp"), lossless=True, exif=Image.open(path).getexif())
            path.unlink()
    boxes = {f"{tag}.{suffix}": [[20, 10, 80, 75]] for tag in range(1, 9)}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    result = predict(f"images={tmp_path / 'photos'}", f"boxes={tmp_path / 'boxes.json'}")
    for name in boxes:
        np.testing.assert_allclose(first_points(result, name), first_points(result, f"1.{suffix}"), atol=0.01)
        assert result["images"][name]["size"] == [97, 83]
    ending = "" if suffix == "png" else ".png"
    drawn = [read_image(tmp_path / f"prediction/pictures/{name}{ending}").astype(int) for name in boxes]
    assert all(np.abs(other - drawn[0]).mean() < 1 for other in drawn)


@pytest.mark.parametrize("mark", range(1, 9))
def test_upright_of_a_reduced_jpeg_agrees_with_the_upright_photo(mark: int, tmp_path: Path) -> None:
    """Would catch a partly filled last pixel on the wrong side after the rotation of a reduced JPEG."""
    image = picture(3, 331, 285)
    stored = save(image, tmp_path / "turned.jpg", mark)
    to_upright, box = upright(stored)
    np.testing.assert_array_equal(box, [-0.5, -0.5, 330.5, 284.5])
    matrix = np.diag([1 / 5, 1 / 5, 1.0])
    assert reduction(stored, matrix @ to_upright) == 4
    straight = save(image, tmp_path / "straight.jpg")
    shifted = matrix + np.array([[0, 0, 0.5], [0, 0, 0], [0, 0, 0]])
    inner = slice(4, 48)  # without the edge of the photo, where a crop fades to black
    expected, same, moved = (
        cut_out(path, to_crop, 52)[inner, inner].astype(float)
        for path, to_crop in ((straight, matrix), (stored, matrix @ to_upright), (straight, shifted))
    )
    assert np.abs(same - expected).mean() < np.abs(moved - expected).mean() / 4


def test_upright_ignores_a_damaged_orientation_block(tmp_path: Path) -> None:
    """Would catch a photo that is lost because of broken metadata although its pixels are complete."""
    path = tmp_path / "photo.jpg"
    Image.fromarray(picture(1, 40, 30)).save(path, exif=b"Exif\0\0 nothing of the kind")
    matrix, box = upright(path)
    np.testing.assert_array_equal(matrix, np.eye(3))
    np.testing.assert_array_equal(box, [-0.5, -0.5, 39.5, 29.5])


def test_predict_reads_grey_transparent_and_16_bit_photos(
    predict: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Would catch grey, transparent and 16-bit photos that are refused or read in other colours."""
    photos = tmp_path / "photos"
    photos.mkdir()
    grey = picture(5, 97, 83)[..., 0]
    rgb = np.dstack([grey] * 3)
    kinds = {"rgb": rgb, "grey": grey, "rgba": np.dstack([rgb, grey]), "deep": grey.astype(np.uint16) * 256}
    for name, image in kinds.items():
        Image.fromarray(image).save(photos / f"{name}.png")
    cv2.imwrite(str(photos / "deep_rgb.tif"), rgb.astype(np.uint16) * 256)
    result = predict(f"images={photos}")
    assert result["images"].keys() == {f"{name}.png" for name in kinds} | {"deep_rgb.tif"}
    for name in result["images"]:
        np.testing.assert_allclose(first_points(result, name), first_points(result, "rgb.png"), atol=0.01)


def test_predict_writes_the_table_and_the_pictures(
    trained: SimpleNamespace, predict: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a table that differs from the JSON, or a picture with other points or another size."""
    result = predict(f"images={trained.root}")
    with (tmp_path / "prediction/landmarks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == list(result["images"])
    for row in rows:
        face = result["images"][row["image"]]["faces"][0]
        points = [[float(row[f"p{i}_{axis}"]) for axis in "xy"] for i in range(FIVE5.num_points)]
        assert points == face["points"]
        assert [float(row[key]) for key in ("x0", "y0", "x1", "y1")] == face["box"]
        assert float(row["mean_confidence"]) == pytest.approx(np.mean(face["confidence"]), abs=2e-3)
    name = "test/face2.png"
    before, after = read_image(trained.root / name), read_image(tmp_path / "prediction/pictures" / name)
    changed = np.argwhere((before != after).any(axis=2))[:, ::-1]
    inside = [(point >= 0).all() and (point < [97, 83]).all() for point in first_points(result, name)]
    assert any(inside)
    for point in first_points(result, name)[inside]:
        assert np.linalg.norm(changed - point, axis=1).min() < 1
    assert result["left_aside"] == {".txt": 12}
    printed = capsys.readouterr().out
    assert "12 faces in 12 of 12 photos" in printed
    assert "each whole photo" in printed
    assert "12 .txt" in printed
    assert json.loads((tmp_path / "prediction/status.json").read_text())["state"] == "finished"


# Skipped photos and faces


def test_predict_skips_and_reports_damaged_photos(
    trained: SimpleNamespace, predict: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch one bad file among thousands that stops the run, or that is missing in the results."""
    photos = tmp_path / "photos"
    good = save(picture(2, 97, 83), photos / "sub" / "good.jpg")
    (photos / "half.jpg").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (photos / "text.jpg").write_text("no picture")
    (photos / "empty.png").touch()
    result = predict(f"images={photos}")
    assert list(result["images"]) == ["sub/good.jpg"]
    assert {skip["image"] for skip in result["skipped"]} == {"half.jpg", "text.jpg", "empty.png"}
    printed = capsys.readouterr().out
    assert "skipped half.jpg: the JPEG is truncated" in printed
    assert "1 face in 1 of 4 photos" in printed


def test_predict_skips_and_reports_unusable_boxes(
    trained: SimpleNamespace, predict: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Would catch a box of no photo or without pixels that is dropped without a message, or shifts later faces."""
    rows = [
        ("face2.png", 50, 40, 20, 30),
        ("face2.png", 500, 10, 600, 90),
        ("./face2.png", -20, 10, 60, 70),
        ("nobody.png", 1, 1, 5, 5),
    ]
    file = write_boxes(tmp_path / "boxes.csv", rows)
    result = predict(f"images={trained.root / 'test'}", f"boxes={file}")
    assert [face["face"] for face in result["images"]["face2.png"]["faces"]] == [2]
    reasons = {(skip["image"], skip["face"]): skip["reason"] for skip in result["skipped"]}
    assert "no area" in reasons["face2.png", 0]
    assert "outside" in reasons["face2.png", 1]
    assert "not among the photos" in reasons["nobody.png", None]
    assert {name for (name, _), reason in reasons.items() if "does not contain it" in reason} == {
        *("face0.jpg", "face1.jpg", "face3.png")
    }


def test_predict_fails_without_any_face(predict: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Would catch an empty result that a script around predict.py takes for success."""
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(SystemExit, match="no face was predicted") as stop:
        predict(f"images={tmp_path / 'text.jpg'}")
    assert stop.value.code
    assert json.loads((tmp_path / "prediction/status.json").read_text())["state"] == "failed"
    skipped = json.loads((tmp_path / "prediction/landmarks.json").read_text())["skipped"]
    assert [skip["image"] for skip in skipped] == ["text.jpg"]


# Refused arguments and files


def test_find_photos_reads_folders_files_and_patterns(tmp_path: Path) -> None:
    """Would catch a photo skipped because of its upper-case ending or its folder, or a pattern with other matches."""
    for name in ("a.JPG", "b/c.png", "b/d/e.tiff", ".hidden/f.jpg", "notes.txt", "README"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    photos = find_photos(str(tmp_path))
    assert sorted(photos.paths) == ["a.JPG", "b/c.png", "b/d/e.tiff"]
    assert photos.left_aside == {".txt": 1, "no ending": 1}
    assert list(find_photos(f"{tmp_path}/**/*.png").paths) == ["b/c.png"]
    assert list(find_photos(f"{tmp_path}/b/[c]*").paths) == ["c.png"]
    assert list(find_photos(f"{tmp_path}/b/c.png").paths) == ["c.png"]


@pytest.mark.parametrize("images", ["nowhere", "nowhere/*.jpg", "empty", "notes"])
def test_find_photos_refuses_a_place_without_photos(images: str, tmp_path: Path) -> None:
    """Would catch a mistyped folder that looks like a run without faces."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(ConfigError, match=images.partition("/")[0]):
        find_photos(str(tmp_path / images))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("b.csv", "", "empty"),
        ("b.csv", "a.jpg,1,2,3,4", "line 1: expected the header image,x0,y0,x1,y1"),
        ("b.csv", "image,x0,y0,x1,y1\n\na.jpg,1,2,3", "line 3: found 4 values, expected 5"),
        ("b.csv", "image,x0,y0,x1,y1\na.jpg,1,2,x,4", "line 2: 'x' is not a number"),
        ("b.csv", "image,x0,y0,x1,y1\na.jpg,1,2,3,4\na.jpg,1,nan,3,4", "line 3: 'nan'"),
        ("b.csv", "image,x0,y0,x1,y1\na.jpg,1,2,inf,4", "line 2: 'inf' is not a finite number"),
        ("b.csv", "image,x0,y0,x1,y1\n ,1,2,3,4", "line 2: the name of the image is empty"),
        ("b.json", '{"a.jpg": [[1, 2, 3, 4]],\n oops}', "line 2: not valid JSON"),
        ("b.json", "[[1, 2, 3, 4]]", "found a list"),
        ("b.json", '{"a.jpg": {"box": 1}}', "'a.jpg': expected a list of boxes"),
        ("b.json", '{"a.jpg": [1, 2, 3, 4]}', "'a.jpg', face 0: expected"),
        ("b.json", '{"a.jpg": [[1, 2, 3, 4], [1, 2, 3]]}', "'a.jpg', face 1: expected"),
        ("b.json", '{"a.jpg": [[1, 2, NaN, 4]]}', "'a.jpg', face 0: expected"),
        ("b.json", '{"a.jpg": [[1, 2, true, 4]]}', "'a.jpg', face 0: expected"),
        ("b.json", '{"a.jpg": [], "a.jpg": [[1, 2, 3, 4]]}', "'a.jpg' occurs more than once"),
        ("b.json", '{"images": {"a.jpg": {"faces": [{"box": [1, 2, 3, 4]}]}}}', "'a.jpg': expected the faces of a"),
        ("b.json", '{"images": {"a.jpg": {"faces": [{"points": [[1, 2, 3]]}]}}}', "'a.jpg': expected the faces of a"),
        (
            "b.json",
            '{"images": {"a.jpg": {"faces": [{"points": [[null, 2], [3, 4]]}]}}}',
            "'a.jpg': expected the faces of",
        ),
        ("b.json", '{"images": {"a.jpg": {"faces": [{"points": []}]}}}', "'a.jpg': expected the faces of a"),
        ("b.json", '{"detection": {}, "images": {"a.jpg": {"faces": [[1, 2, 3, 4]]}}}', "faces of a detections.json"),
        ("b.json", '{"detection": {}, "images": {"a.jpg": {"faces": [{"box": [1, 2]}]}}}', "'a.jpg', face 0: expected"),
        ("b.csv", "image,face,x0,y0,x1,y1\na.jpg,0,1,2,3,4", "of the results of predict.py, pass the .json file"),
        ("b.txt", "a.jpg 1 2 3 4", "the ending .csv or .json"),
    ],
)
def test_read_boxes_refuses_a_malformed_file(name: str, text: str, expected: str, tmp_path: Path) -> None:
    """Would catch an error without the line in a long file, or faces that are lost without a message."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DatasetError, match=name) as error:
        boxes_file.read_boxes(path)
    assert expected in str(error.value)


def test_read_boxes_takes_the_landmarks_of_another_prediction(tmp_path: Path) -> None:
    """Would catch the boxes that the other method started from instead of those of its landmarks."""
    face = {"box": [0, 0, 50, 50], "points": [[10.5, 21], [30, 20], [15, 44.25]], "confidence": [1, 1, 1]}
    content = {"units": "pixels", "images": {"a.jpg": {"size": [90, 80], "faces": [face]}, "b.jpg": {"faces": []}}}
    (tmp_path / "landmarks.json").write_text(json.dumps(content))
    boxes = boxes_file.read_boxes(tmp_path / "landmarks.json")
    assert boxes["b.jpg"] == [] and [box.tolist() for box in boxes["a.jpg"]] == [[10.5, 20, 30, 44.25]]


def test_read_boxes_takes_the_boxes_of_a_detector(tmp_path: Path) -> None:
    """Would catch the boxes of the five points, which cut off forehead and chin, and a refused detection on a line."""
    face = {"face": 0, "box": [0, 0, 50, 50.5], "score": 0.9, "points": [[10.5, 21]] * 5}
    content = {"detection": {"threshold": 0.5}, "images": {"a.jpg": {"faces": [face, face]}, "b.jpg": {"faces": []}}}
    (tmp_path / "detections.json").write_text(json.dumps(content))
    boxes = boxes_file.read_boxes(tmp_path / "detections.json")
    assert boxes["b.jpg"] == [] and [box.tolist() for box in boxes["a.jpg"]] == [[0, 0, 50, 50.5]] * 2


def test_read_boxes_refuses_a_missing_file(tmp_path: Path) -> None:
    """Would catch a traceback for a mistyped name."""
    with pytest.raises(DatasetError, match="No such file"):
        boxes_file.read_boxes(tmp_path / "boxes.csv")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("images=nowhere", "images=nowhere: there is no such file or folder"),
        ('images="~nobody-of-this-name/photos"', "there is no such file or folder"),
        ("boxes=nowhere.csv", "nowhere.csv"),
        ("landmarker=nowhere", "neither a run folder nor a checkpoint"),
        ("crop.scale=0", "crop.scale: 0 given"),
        ("crop.scale=large", "crop.scale"),
        ("crop.shift=[1]", "crop.shift"),
        ("crop.square=3", "crop.square"),
        ("batch_size=0", "batch_size: 0 given, int >= 1 expected"),
        ("device=tpu", "device: 'tpu' given"),
        ("pictures=some", "pictures: 'some' given"),
        ("output=/proc/nothing", "output=/proc/nothing: nothing can be written there (/proc: "),
        ("images=.", "is in the folder of the photos"),
    ],
)
def test_predict_refuses_invalid_overrides(
    word: str,
    expected: str,
    trained: SimpleNamespace,
    predict: Callable[..., dict[str, Any]],
) -> None:
    """Would catch a traceback after minutes for a wrong value, or a value that is read as another one."""
    with pytest.raises(SystemExit) as stop:
        predict(f"images={trained.root / 'test'}", word)
    assert expected in str(stop.value.code)


def test_predict_skips_nan_points(trained: SimpleNamespace) -> None:
    """Would catch files full of NaN from a diverged network."""
    paths = {"face2.png": trained.root / "test" / "face2.png"}
    nothing = torch.full((1, FIVE5.num_points, 2), torch.nan), torch.zeros(1, FIVE5.num_points)
    module: Any = SimpleNamespace(device="cpu", predict=lambda _: (*nothing, None))
    crop = build(OmegaConf.load(trained.run / "config.yaml"), "crop")
    boxes = {"face2.png": [np.array([1.0, 1.0, 50.0, 50.0])]}
    with ThreadPoolExecutor(1) as pool:
        ((photo,),) = landmarks.predict(module, crop, Photos(Path(), paths, {}), boxes, 2, pool, fractions=False)
    assert photo.faces == []
    assert "diverge" in photo.skipped[0].reason


def test_predict_writes_the_pose(
    trained: SimpleNamespace, predict: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch predicted angles that are missing, belong to another face, or are written without a pose branch."""
    assert "pose" not in predict(f"images={trained.root / 'test'}")
    monkeypatch.setattr(
        PIPNet, "predict", lambda self, image: self.predict_points(image)._replace(pose=image.float().mean((2, 3)))
    )
    folders = {size: tmp_path / str(size) for size in (1, 3)}
    for size, folder in folders.items():
        overrides = (f"landmarker={trained.run}", f"images={trained.root / 'test'}", "device=cpu", f"batch_size={size}")
        open_door("predict", *overrides, f"hydra.run.dir={folder}", folder=tmp_path)
    singly, together = (json.loads((folder / "landmarks.json").read_text()) for folder in folders.values())
    assert "degrees" in singly["pose"]
    alone, poses = (
        {name: image["faces"][0]["pose"] for name, image in result["images"].items()} for result in (singly, together)
    )
    assert len(set(map(tuple, poses.values()))) == 4
    assert all(pose == pytest.approx(alone[name], abs=0.01) for name, pose in poses.items())
    with (folders[3] / "landmarks.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert [float(row[angle]) for angle in ("yaw", "pitch", "roll")] == poses[row["image"]]


# Unusual names and boxes


def test_predict_accepts_names_that_are_not_utf8(
    trained: SimpleNamespace, predict: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Would catch a zip from another system whose names crash the writer or OpenCV."""
    photos = tmp_path / "photos"
    photos.mkdir()
    data = (trained.root / "test/face1.jpg").read_bytes()
    for raw in (b"caf\xe9.jpg", b"\xd5\xd5\xc6\xac.jpg", "ä.jpg".encode(), b"a" * 225 + b".jpg"):
        Path(os.fsdecode(os.path.join(os.fsencode(photos), raw))).write_bytes(data)  # noqa: PTH118  of bytes
    result = predict(f"images={photos}")
    names = {"caf\\udce9.jpg", "\\udcd5\\udcd5Ƭ.jpg", "ä.jpg", "a" * 225 + ".jpg"}
    assert result["images"].keys() == names
    assert {path.name for path in (tmp_path / "prediction/pictures").iterdir()} == names
    rows = (tmp_path / "prediction/landmarks.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 5
    (tmp_path / "boxes.csv").write_bytes(b"image,x0,y0,x1,y1\ncaf\xe9.jpg,5,5,90,80\n")
    assert len(predict(f"images={photos}", f"boxes={tmp_path / 'boxes.csv'}")["images"]["caf\\udce9.jpg"]["faces"]) == 1


def test_predict_skips_only_the_bad_boxes_of_a_photo(
    trained: SimpleNamespace, predict: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Would catch a box of 1e38, of 10,000,000 pixels or of fractions that loses the good faces of its photo."""
    name = "test/face1.jpg"
    bad_boxes = [(-1e38, -1e38, 1e38, 1e38), (0, 0, 1e7, 1e7), (0.2, 0.2, 0.8, 0.8), (500, 500, 600, 600)]
    rows = [(name, 5, 5, 90, 80), *((name, *box) for box in bad_boxes), (name, 6, 6, 91, 81)]
    result = predict(f"images={trained.root}", f"boxes={write_boxes(tmp_path / 'boxes.csv', rows)}")
    assert [face["face"] for face in result["images"][name]["faces"]] == [0, 5]
    reasons = {skip["face"]: skip["reason"] for skip in result["skipped"] if skip["image"] == name}
    assert reasons.keys() == {1, 2, 3, 4}
    assert "over 50 times as large as the photo" in reasons[1] and "over 50 times" in reasons[2]
    assert "units=fraction" in reasons[3] and "outside the photo" in reasons[4]


def test_predict_reads_boxes_as_fractions(
    trained: SimpleNamespace, predict: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Would catch boxes in fractions that are misread by half a pixel or by the size of the photo."""
    name, (width, height) = "test/face1.jpg", (97, 83)
    pixels = np.array([9.5, 7.5, 80.5, 70.5])
    fractions = (pixels + 0.5) / [width, height, width, height]
    faces = {}
    for units, box in (("pixels", pixels), ("fraction", fractions)):
        rows = [(name, *map(repr, box.tolist()))]
        overrides = (f"images={trained.root}", f"boxes={write_boxes(tmp_path / 'boxes.csv', rows)}", f"units={units}")
        faces[units] = predict(*overrides)["images"][name]["faces"][0]
    np.testing.assert_allclose(faces["fraction"]["box"], pixels, atol=1e-3)
    np.testing.assert_allclose(faces["fraction"]["points"], faces["pixels"]["points"], atol=0.05)


def test_predict_reports_one_damaged_photo_and_continues(
    trained: SimpleNamespace, predict: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch one unreadable header or one unwritable picture after which no result is written."""
    shutil.copytree(trained.root / "test", tmp_path / "photos")
    loop = tmp_path / "photos" / "loop"
    loop.symlink_to(".")
    real_open = landmarks.PhotoFile.box

    def odd_header(photo: Any) -> Any:
        if photo.path.name == "face2.png":
            raise ImageError(f"{photo.path}: an odd chunk")
        return real_open(photo)

    monkeypatch.setattr(landmarks.PhotoFile, "box", odd_header)
    write = write_module.write_picture

    def full_disk(photo: Any, *given: Any) -> None:
        if photo.name == "face3.png":
            raise OSError(28, "No space left on device")
        write(photo, *given)

    monkeypatch.setattr(write_module, "write_picture", full_disk)
    result = predict(f"images={tmp_path / 'photos'}")
    assert result["images"].keys() == {"face0.jpg", "face1.jpg", "face3.png"}
    assert [(skip["image"], skip["reason"]) for skip in result["skipped"]] == [("face2.png", "an odd chunk")]


# Training and evaluation with custom photos


def test_train_handles_a_missing_test_or_val_split(trained: SimpleNamespace, tmp_path: Path) -> None:
    """Would catch a missing test split reported only after the training, or a set without val that cannot train."""
    root = tmp_path / "set"
    shutil.copytree(trained.root / "train", root / "train")
    overrides = [
        *("data=folder", f"data.root={root}", "data.layout.path=facelab.faces.layouts.FIVE5", "logger=none"),
        *("backbone=timm", "backbone.name=test_resnet", "backbone.pretrained=false", "head.trunk=null"),
        *("crop.size=64", "coder.num_neighbours=2", "datamodule.batch_size=2", "datamodule.num_workers=0"),
        *("trainer.max_epochs=1", "data.val_share=0"),
    ]
    with pytest.raises(SystemExit, match=r"the split 'test' has no photo.*test=false trains without a test"):
        open_door("train", *overrides, "hydra.run.dir=a", folder=tmp_path)
    assert not (tmp_path / "a" / "checkpoints").exists(), "the training ran before the error"
    with pytest.raises(SystemExit, match="test_ckpt=best: without a validation"):
        shutil.copytree(trained.root / "test", root / "test")
        open_door("train", *overrides, "test_ckpt=best", "hydra.run.dir=b", folder=tmp_path)
    shutil.rmtree(root / "test")
    open_door("train", *overrides, "test=false", "hydra.run.dir=c", folder=tmp_path)
    assert json.loads((tmp_path / "c/status.json").read_text())["state"] == "finished"
    assert (tmp_path / "c/checkpoints/last.ckpt").is_file() and not (tmp_path / "c/metrics.json").exists()


def test_evaluate_applies_the_orientation_of_custom_photos(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch labels made on upright photos that are compared with pixels as the camera stored them."""
    shutil.copytree(trained.root / "test", tmp_path / "plain/test")
    for kind in ("turned", "broken"):
        shutil.copytree(tmp_path / "plain", tmp_path / kind)
    for photo in (tmp_path / "turned/test").glob("*.jpg"):
        image = Image.open(photo).convert("RGB")
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(photo, exif=exif, quality=99, subsampling=0)
    for name in ("face0.jpg", "face1.jpg"):
        (tmp_path / "broken/test" / name).write_bytes(b"no photo")
    metrics = {}
    for kind in ("plain", "turned", "broken"):
        overrides = [f"ckpt={trained.run}", "data=folder", f"data.root={tmp_path / kind}", "data.name=mine"]
        overrides += ["data.layout.path=facelab.faces.layouts.FIVE5"]
        open_door("evaluate", *overrides, "max_unreadable=0.5", f"hydra.run.dir={kind}_run", folder=tmp_path)
        metrics[kind] = json.loads((tmp_path / f"{kind}_run/metrics.json").read_text())
    printed = capsys.readouterr().out
    plain, turned = (metrics_of(tmp_path / f"{kind}_run")["nme_box"].value for kind in ("plain", "turned"))
    assert turned == pytest.approx(plain, rel=0.05)
    assert metrics["turned"]["protocol"]["orientation"] == "shown" and "orientation" not in metrics["plain"]["protocol"]
    assert metrics["broken"]["unreadable"] == {"test": 2}
    assert "2 faces could not be measured" in printed
    with pytest.raises(SystemExit, match=r"2 of 4 faces cannot be read or cut out, among them .*face0\.jpg"):
        open_door("evaluate", *overrides, "hydra.run.dir=d", folder=tmp_path)
