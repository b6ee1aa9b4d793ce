"""Tests of the use from Python: facelab.load, predictions on arrays, and the example of the docs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, open_door

import facelab
from facelab.errors import ConfigError, FacelabError, ImageError
from facelab.faces.geometry import Array
from facelab.faces.image import PhotoArray, read_image
from facelab.files import read_json


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """Return smooth random photos of different sizes."""
    rng = np.random.default_rng(0)
    sizes = {"a": (120, 200), "b": (90, 70)}
    return {
        name: cv2.resize(rng.integers(0, 256, (12, 12, 3), np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
        for name, size in sizes.items()
    }


BOXES = {"a": [[20.5, 10, 100, 110], [-15, 30, 60, 90.25]], "b": [[0, 0, 69, 89]]}


def test_predict_on_arrays_equals_predict_script(trained: Path, photos: dict[str, Array], tmp_path: Path) -> None:
    """Would catch another crop, pixels half a pixel apart, or faces in another order than predict.py."""
    for name, image in photos.items():
        cv2.imwrite(str(tmp_path / f"{name}.png"), image[..., ::-1])
    lines = [f"{name}.png,{','.join(map(str, box))}" for name, boxes in BOXES.items() for box in boxes]
    (tmp_path / "boxes.csv").write_text("\n".join(["image,x0,y0,x1,y1", *lines]))
    words = [f"images={tmp_path}/*.png", f"landmarker={trained}", f"boxes={tmp_path}/boxes.csv", "pictures=false"]
    open_door("predict", *words, "hydra.run.dir=predicted", folder=tmp_path)
    expected = read_json(tmp_path / "predicted" / "landmarks.json")["images"]
    landmarker = facelab.load(trained, device="cpu")
    together = landmarker.predict(list(photos.values()), [BOXES[name] for name in photos])
    for faces, (name, image) in zip(together, photos.items(), strict=True):
        alone = landmarker.predict(image, BOXES[name], batch_size=1)
        written = expected[f"{name}.png"]["faces"]
        assert len(faces) == len(alone) == len(written)
        for face, single, content in zip(faces, alone, written, strict=True):
            np.testing.assert_allclose(face.points, content["points"], atol=0.006)  # written with two decimals
            np.testing.assert_allclose(face.points, single.points, atol=1e-3)
            np.testing.assert_allclose(face.confidence, content["confidence"], atol=0.006)
            assert face.pose is None


def test_predict_without_boxes_takes_the_whole_image(trained: Path, photos: dict[str, Array]) -> None:
    """Would catch the margin of the training's boxes around a whole image, which has none."""
    landmarker = facelab.load(trained, device="cpu")
    image = photos["b"]
    (face,) = landmarker.predict(image)
    np.testing.assert_allclose(face.box, [-0.5, -0.5, 69.5, 89.5])
    plain = facelab.load(trained, device="cpu", crop={"scale": 1.0, "shift": [0.0, 0.0]})
    (boxed,) = plain.predict(image, [[-0.5, -0.5, 69.5, 89.5]])
    np.testing.assert_allclose(face.points, boxed.points, atol=1e-3)


def test_predict_on_nothing_gives_nothing(trained: Path, photos: dict[str, Array]) -> None:
    """Would catch a photo without a face, or no photo, that ends in an error."""
    landmarker = facelab.load(trained, device="cpu")
    assert landmarker.predict(photos["a"], []) == []
    assert landmarker.predict([]) == []
    assert landmarker.predict([photos["a"], photos["b"]], [[], BOXES["b"]])[0] == []


def test_load_changes_the_crop(trained: Path, photos: dict[str, Array]) -> None:
    """Would catch a change of the crop without effect."""
    landmarkers = [facelab.load(trained, device="cpu", crop={"scale": scale}) for scale in (1.0, 1.5)]
    one, other = (landmarker.predict(photos["a"], BOXES["a"])[0].points for landmarker in landmarkers)
    assert np.abs(one - other).max() > 1


@pytest.mark.parametrize(
    ("image", "boxes", "message"),
    [
        (np.zeros((9, 9), np.uint8), None, r"image 0: expected an RGB image .* found \(9, 9\) of uint8"),
        (np.zeros((9, 9, 3)), None, r"found \(9, 9, 3\) of float64"),
        (np.zeros((0, 9, 3), np.uint8), None, r"found \(0, 9, 3\)"),
        (np.zeros((9, 9, 3), np.uint8), [1, 2, 3, 4], r"expected boxes \(F, 4\)"),
        (np.zeros((9, 9, 3), np.uint8), [[1, 2, 3, 4], [5, 5, 2, 8]], "image 0, face 1: the box .* has no area"),
        (np.zeros((9, 9, 3), np.uint8), [[50, 50, 60, 60]], "image 0, face 0: the box .* is outside the photo"),
        ([np.zeros((9, 9, 3), np.uint8)] * 2, [[[1, 2, 3, 4]]], "2 images need as many lists of boxes; found 1"),
        (np.zeros((9, 9, 3), np.uint8), [[1, 2, 3], [1]], "image 0: expected boxes"),
        (np.zeros((9, 9, 3), np.uint8), "a b", "image 0: expected boxes"),
        (np.zeros((9, 9, 3), np.uint8), {"a": 1}, "image 0: expected boxes"),
        (torch.zeros(9, 9, 3, dtype=torch.uint8), None, "expected an image as a numpy array, or a list.*Tensor"),
        (Path("photo.jpg"), None, "expected an image as a numpy array"),
    ],
)
def test_predict_refuses_wrong_input(image: Any, boxes: Any, message: str, trained: Path) -> None:
    """Would catch a traceback of OpenCV, or points of a face that is not in the image."""
    with pytest.raises(ImageError, match=message):
        facelab.load(trained, device="cpu").predict(image, boxes)


def test_load_raises_errors_of_the_project(trained: Path, tmp_path: Path) -> None:
    """Would catch an exit of the process or a traceback of Hydra in a notebook."""
    with pytest.raises(FacelabError, match="neither a run folder nor a checkpoint file"):
        facelab.load(tmp_path / "nothing")
    for crop in ({"scale": -1}, {"scale": np.float64(-1)}, {"size": 128}, {"box": "points"}, "scale=1"):
        with pytest.raises(FacelabError, match=r"crop.scale=-1|crop.*=.*: expected a mapping with the keys scale"):
            facelab.load(trained, crop=crop)  # type: ignore[arg-type]
    for device in ("gpu", "cuda:0"):
        with pytest.raises(ConfigError, match=f"device={device}: expected auto, cpu, cuda"):
            facelab.load(trained, device=device)  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch finds no CUDA device"):
            facelab.load(trained, device="cuda")


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_predict_refuses_a_batch_size_below_one(size: Any, trained: Path, photos: dict[str, Array]) -> None:
    """Would catch a StopIteration or a TypeError from within."""
    with pytest.raises(ConfigError, match=f"batch_size={size} must be a whole number"):
        facelab.load(trained, device="cpu").predict(photos["a"], batch_size=size)


def test_photo_array_does_not_read_a_file_of_its_name(photos: dict[str, Array]) -> None:
    """Would catch an array whose name ends in .jpg and that is reduced while a file of that name is decoded."""
    crop = np.diag([0.2, 0.2, 1.0])
    named, plain = (PhotoArray(photos["a"], name).cut_out(crop, 20) for name in ("photo.jpg", "photo"))
    assert (named == plain).all()


def test_draw_changes_a_copy(trained: Path, photos: dict[str, Array]) -> None:
    """Would catch points drawn into the user's own image."""
    landmarker = facelab.load(trained, device="cpu")
    image = photos["a"].copy()
    drawn = landmarker.draw(image, landmarker.predict(image, BOXES["a"]))
    assert (image == photos["a"]).all() and (drawn != image).any()


def test_python_example_of_the_docs_runs(trained: Path, photos: dict[str, Array], tmp_path: Path) -> None:
    """Would catch an example that a user cannot copy."""
    page = (ROOT / "docs" / "running.md").read_text()
    found = re.search(r"^## Python\n\n```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found
    cv2.imwrite(str(tmp_path / "photo.jpg"), photos["a"])
    code = found[1].replace("logs/train/runs/STAMP_NAME", str(trained)).replace('"photo.jpg"', "photo")
    names: dict[str, Any] = {"photo": str(tmp_path / "photo.jpg")}
    exec(compile(code, "docs/running.md", "exec"), names)
    assert names["points"].shape == (68, 2) and names["drawn"].shape == (120, 200, 3)
    assert (names["image"] == read_image(tmp_path / "photo.jpg")).all()


def test_import_of_facelab_is_fast() -> None:
    """Would catch an import of torch by ``import facelab``, which takes seconds, or no completion of ``load``."""
    code = "import sys, facelab; print({'torch', 'hydra', 'numpy', 'cv2'} & set(sys.modules), 'load' in dir(facelab))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set() True"
