"""Tests of the photos of a detector: batches, faces, photos that cannot be read, and a whole test."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor

from datamodules.detection import DetectionDataModule, MissingPhotoError, fingerprint, photo_names, true_columns
from facelab.errors import ConfigError, DatasetError
from facelab.faces.batch import DetectionBatch, Detections
from facelab.faces.detections import Candidates, DetectionRule
from facelab.faces.face import Face, Photo, Split
from facelab.faces.layouts import FIVE5, IBUG68, Layout
from facelab.faces.search import search_photos
from lightning_modules.detector import DetectorModule

SIZES = ((40, 60), (50, 30), (40, 60))
"""Height and width of the photos."""
BOXES = ([[10.0, 10, 20, 22], [30, 5, 50, 30]], [], [[5.0, 5, 25, 25]])
"""Faces of each photo; the second of the first photo is ignored."""


class Scenes:
    """Reader of three photos."""

    name = "scenes"
    tags: tuple[str, ...] = ("blur", "invalid")

    def __init__(self, root: Path, layout: Layout = FIVE5) -> None:
        self.root, self.layout = root, layout
        for index, (height, width) in enumerate(SIZES):
            image = np.zeros((height, width, 3), np.uint8)
            for face, (x0, y0, x1, y1) in enumerate(np.array(BOXES[index]).reshape(-1, 4).astype(int)):
                image[y0:y1, x0:x1] = 255 - 100 * face
            cv2.imwrite(str(root / f"{index}.png"), image)

    def photos(self, split: Split) -> list[Photo]:
        if split != "test":
            return []
        photos = []
        for index, boxes in enumerate(BOXES):
            faces = []
            for row, box in enumerate(boxes):
                centre = (np.array(box[:2]) + box[2:]) / 2
                points = np.tile(centre, (5, 1)).astype(np.float32)
                points[4] = np.nan
                tags = frozenset({"invalid"} if row else {"blur"})
                faces.append(Face(np.float32(box), points, np.ones(5, np.bool_), np.full(3, np.nan, np.float32), tags))
            photos.append(Photo(self.root / f"{index}.png", tuple(faces), "stored"))
        return photos


def module_of(data: Any, **changes: Any) -> DetectionDataModule:
    values: dict[str, Any] = {"batch_size": 3, "num_workers": 0, "seed": 0, "test_split": "test"}
    values |= {"max_unreadable": 0.0, "ignore": ["invalid"]}
    return DetectionDataModule(data, **values | changes)


def batches(module: DetectionDataModule) -> list[DetectionBatch]:
    module.setup("test")
    return list(module.test_dataloader())


@pytest.fixture
def scenes(tmp_path: Path) -> Scenes:
    return Scenes(tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_joins_photos_of_different_sizes(scenes: Scenes, workers: int) -> None:
    """Would catch a face of another photo, a shifted image, or a photo without a face that is left out."""
    (batch,) = batches(module_of(scenes, num_workers=workers))
    assert batch.image.shape == (3, 3, 50, 60)
    assert batch.size.tolist() == [list(size) for size in SIZES]
    assert batch.photo_id.tolist() == [0, 1, 2]
    assert batch.photo.tolist() == [0, 0, 2]
    assert batch.face_id.tolist() == [0, 1, 2]
    assert batch.ignore.tolist() == [False, True, False]
    assert batch.tags.tolist() == [[True, False], [False, True], [True, False]]
    assert batch.valid[:, 4].tolist() == [False] * 3
    assert batch.valid[:, :4].all()
    for row, size in enumerate(SIZES):
        photo = cv2.imread(str(scenes.root / f"{row}.png"))
        assert np.array_equal(batch.image[row, :, : size[0], : size[1]].permute(1, 2, 0).numpy(), photo)
    assert not batch.image[1, :, :, 30:].any()


def test_loader_without_any_face(scenes: Scenes) -> None:
    """Would catch a crash in a batch in which no photo has a face."""
    module = module_of(scenes, batch_size=1)
    _, empty, _ = batches(module)
    assert [len(column) for column in (empty.boxes, empty.points, empty.valid, empty.pose, empty.photo)] == [0] * 5
    assert empty.tags.shape == (0, 2)
    assert empty.boxes.dtype == torch.float32


def test_loader_marks_photos_that_cannot_be_read(scenes: Scenes) -> None:
    """Would catch a photo that is dropped without a trace, or black pixels that are searched as a photo."""
    (scenes.root / "0.png").write_bytes(b"no image")
    (batch,) = batches(module_of(scenes, max_unreadable=0.5))
    assert batch.size.tolist() == [[0, 0], [50, 30], [40, 60]]
    assert batch.photo.tolist() == [0, 0, 2]
    with pytest.raises(DatasetError, match=r"scenes test: 1 of 3 photos cannot be read .*0.png"):
        batches(module_of(scenes, max_unreadable=0.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"ignore": ["invalidd"]}, r"ignore=\[invalidd\]: no face of scenes has this tag; did you mean invalid")],
)
def test_datamodule_refuses_options(scenes: Scenes, changes: dict[str, Any], message: str) -> None:
    """Would catch a mistyped tag, whose faces would count as faces to find."""
    with pytest.raises(ConfigError, match=message):
        module_of(scenes, **changes)


def test_datamodule_refuses_landmark_data_and_empty_splits(scenes: Scenes, tmp_path: Path) -> None:
    """Would catch a detector that is measured without boxes, or on nothing."""
    with pytest.raises(ConfigError, match=r"has the 68 landmarks of .* a detector needs"):
        module_of(Scenes(tmp_path, IBUG68))
    with pytest.raises(MissingPhotoError, match="the split 'val' has no photo"):
        module_of(scenes).setup("validate")


def test_datamodule_ignores_the_tags_that_a_dataset_has(scenes: Scenes) -> None:
    """Would catch a default that names the tags of several datasets and is refused by each of them."""
    module = module_of(scenes, ignore=["difficult", "invalid"])
    assert module.ignore == ("invalid",)
    assert batches(module)[0].ignore.tolist() == [False, True, False]


def test_fingerprint_depends_on_names_boxes_and_points_only(scenes: Scenes) -> None:
    """Would catch results of other boxes in one table, and equal data on another machine in two."""
    photos = scenes.photos("test")
    reference = fingerprint(photos)
    moved = [photo._replace(path=Path("/other", photo.path.name)) for photo in photos]
    assert fingerprint(moved) == reference
    first, *rest = photos
    face = first.faces[0]
    for other in (face._replace(box=face.box + 1), face._replace(points=face.points + 1)):
        assert fingerprint([first._replace(faces=(other, *first.faces[1:])), *rest]) != reference
    assert fingerprint(rest) != reference
    assert fingerprint([first._replace(path=Path("other.png")), *rest]) != reference


class WhiteDetector(DetectorModule[DetectionRule]):
    """Detector that finds the white area of a photo, and nothing in a photo without one."""

    def search(self, image: Tensor) -> tuple[Candidates, Tensor]:
        rows, boxes = [], []
        for row, photo in enumerate(image[:, 0] == 255):
            y, x = photo.nonzero(as_tuple=True)
            if len(y):
                rows.append(row)
                boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
        corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        points = ((corners[:, :2] + corners[:, 2:]) / 2)[:, None].expand(-1, 5, 2)
        photo_of = torch.tensor(rows, dtype=torch.int64)
        return Candidates(corners, torch.full((len(rows),), 0.9), points, photo_of), photo_of[:0]

    def detect(self, image: Tensor, size: Tensor, rule: DetectionRule | None = None) -> Detections:
        return search_photos(self.search, image, size, rule or self.detection)


def test_detector_is_measured_on_a_split(scenes: Scenes, tmp_path: Path) -> None:
    """Would catch a face that is counted twice, or an unreadable photo or ignored face that costs recall."""
    (scenes.root / "1.png").unlink()
    rule = DetectionRule("original", 0.02, 5000, 0.4, 750, official_areas=False)
    module = WhiteDetector(rule, None, None, None)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    (numbers,) = trainer.test(module, module_of(scenes, max_unreadable=0.5), verbose=False)
    assert numbers["test/ap50"] == numbers["test/recall"] == 1
    assert (numbers["test/faces"], numbers["test/photos"], numbers["test/photos_skipped"]) == (2, 2, 1)
    assert numbers["test/nme5_box"] == pytest.approx(0, abs=1e-6)
    assert len(module.errors.compute()["photo_id"]) == 0, "the next validation would contain this test"
    assert module.table.boxes.tolist() == [[10, 10, 20, 22], [5, 5, 25, 25]]


def test_photo_names_are_those_of_the_files_unless_two_are_equal() -> None:
    """Would catch a detections.npz that cannot be read for its own dataset, because its names are ambiguous."""
    paths = ("/set/a/1.jpg", "/set/b/1.jpg", "/set/b/2.jpg")
    assert photo_names([Photo(Path(path), (), "stored") for path in paths]) == ["a/1.jpg", "b/1.jpg", "2.jpg"]


def test_true_columns_are_those_of_the_batches(scenes: Scenes) -> None:
    """Would catch predictions that are measured on other faces, tags or ignored ones than a run."""
    datamodule = module_of(scenes)
    datamodule.setup("test")
    dataset = datamodule.photos["test"]
    samples = [dataset[(0, row)] for row in range(len(dataset))]
    columns = true_columns(dataset.photos, dataset.tag_names, datamodule.ignore)
    names = {"true_boxes": "boxes", "true_points": "points", "true_photo": "photo"}
    assert columns["ignore"].any() and not columns["ignore"].all()
    for name, column in columns.items():
        parts = [getattr(sample, names.get(name, name)).numpy() for sample in samples]
        if name == "true_photo":
            parts = [part + row for row, part in enumerate(parts)]
        np.testing.assert_array_equal(column, np.concatenate(parts))
