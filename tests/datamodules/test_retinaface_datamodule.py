"""Tests of the training squares of RetinaFace: their choice, the faces in them, and photos that cannot be read."""

import logging
from pathlib import Path
from typing import Any

import albumentations
import cv2
import numpy as np
import pytest
import torch

from datamodules.detection import collate
from datamodules.retinaface import RandomSquare, RetinaFaceDataModule, Square, SquareDataset
from facelab.errors import DatasetError
from facelab.faces.batch import DetectionBatch
from facelab.faces.face import Face, Photo, Split
from facelab.faces.geometry import Array
from facelab.faces.image import PhotoFile
from facelab.faces.layouts import FIVE5

WIDTH, HEIGHT = 120, 80
"""Size of the photos in pixels."""
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255)]
"""Colour of the patch at each landmark."""


def face(x0: float, y0: float, x1: float, y1: float, tags: frozenset[str] = frozenset()) -> Face:
    """Return a face with its five landmarks at fixed places of its box."""
    places = np.array([[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.3, 0.8], [0.7, 0.8]])
    points = np.array([x0, y0]) + places * np.array([x1 - x0, y1 - y0])
    return Face(np.array([x0, y0, x1, y1]), points, np.ones(5, bool), np.array([20.0, 5, 10]), tags)


class Photos:
    """Photos of three faces, the third with the tag ``invalid``; the landmarks are coloured patches."""

    name, layout, tags = "three", FIVE5, ("invalid", "small")

    def __init__(self, folder: Path, faces: list[Face] | None = None, photos: int = 2) -> None:
        self.faces = faces or [
            face(9.5, 9.5, 39.5, 39.5),
            face(70, 30, 95, 60),
            face(50, 5, 60, 15, frozenset({"invalid"})),
        ]
        image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
        for each in self.faces:
            for (x, y), colour in zip(each.points.round().astype(int).tolist(), COLOURS, strict=True):
                image[y - 1 : y + 2, x - 1 : x + 2] = colour
        self.files = [folder / f"{number}.png" for number in range(photos)]
        for file in self.files:
            cv2.imwrite(str(file), image[..., ::-1])

    def photos(self, split: Split) -> list[Photo]:
        return [Photo(file, tuple(self.faces), "stored") for file in self.files]


def squares(**values: Any) -> RandomSquare:
    """Return an augmentation without changes of pixels."""
    plain: dict[str, Any] = {
        "size": 64,
        "factors": [0.6, 1.0],
        "tries": 50,
        "flip_probability": 0.0,
        "smallest": 0.0,
        "interpolations": ["linear"],
        "border": (123, 117, 104),
        "pixels": [],
    }
    return RandomSquare(**(plain | values))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


PHOTO = np.array([-0.5, -0.5, WIDTH - 0.5, HEIGHT - 0.5])


def square_of(drawn: Square, size: int = 64) -> Array:
    """Return the square in pixels of the photo, from its matrix."""
    corners = np.linalg.inv(drawn.matrix) @ np.array([[-0.5, size - 0.5], [-0.5, size - 0.5], [1, 1]])
    x, y = np.sort(corners[0]), np.sort(corners[1])
    return np.array([x[0], y[0], x[1], y[1]])


def test_square_contains_a_whole_face_and_stays_in_the_photo() -> None:
    """Would catch a square without a face, one of a wrong side, or one that leaves the photo."""
    boxes = np.array([[9.5, 9.5, 39.5, 39.5], [70, 30, 95, 60]])
    sides = set()
    for seed in range(40):
        found = square_of(squares().draw(rng(seed), PHOTO, boxes))
        sides.add(round(float(found[2] - found[0]), 6))
        assert ((boxes[:, :2] >= found[:2] - 1e-6) & (boxes[:, 2:] <= found[2:] + 1e-6)).all(axis=1).any()
        assert (found[:2] >= PHOTO[:2] - 1e-6).all() and (found[2:] <= PHOTO[2:] + 1e-6).all()
        assert np.abs((found + 0.5) - np.round(found + 0.5)).max() < 1e-6, "the square has whole pixels"
    assert sides == {48.0, 80.0}


def test_square_of_a_photo_without_a_fitting_face_is_the_whole_photo() -> None:
    """Would catch a photo whose only face is larger than every square, and that is then learned without it."""
    found = square_of(squares().draw(rng(), PHOTO, np.array([[0.0, 0, 110, 79]])))
    np.testing.assert_allclose(found, [-0.5, -0.5, WIDTH - 0.5, WIDTH - 0.5], atol=1e-6)


def test_square_larger_than_the_photo_has_a_border_on_all_sides() -> None:
    """Would catch enlarged squares that leave out the face or always begin at the same corner."""
    drawn = [square_of(squares(factors=[2.0]).draw(rng(s), PHOTO, np.array([[10.0, 10, 40, 40]]))) for s in range(20)]
    starts = np.array([found[:2] for found in drawn])
    assert (starts <= -0.5).all() and (starts >= np.array([WIDTH, HEIGHT]) - 160 - 0.5).all()
    assert len(np.unique(starts.round(3), axis=0)) > 10


def dataset(folder: Path, photos: Photos | None = None, seed: int = 1, **values: Any) -> SquareDataset:
    data: Any = photos or Photos(folder)
    return SquareDataset(data, "train", ["invalid"], 0.5, squares(**values), seed)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_faces_lie_on_their_pixels(tmp_path: Path, flip: float) -> None:
    """Would catch points that are not swapped by the flip, or boxes and points beside their pixels."""
    sample = dataset(tmp_path, flip_probability=flip, factors=[1.0], size=240)[(0, 0)]
    image = sample.image[0].permute(1, 2, 0).numpy().astype(int)
    checked = 0
    for points in sample.points.numpy():
        for number, (x, y) in enumerate(points):
            if np.isfinite(x):
                mirrored = FIVE5.flip[number] if flip else number
                assert np.abs(image[int(y.round()), int(x.round())] - COLOURS[mirrored]).max() < 40
                checked += 1
    assert checked >= 5
    assert (sample.pose[:, 0] == (-20 if flip else 20)).all()


COLUMNS = ("boxes", "points", "valid", "pose", "tags", "ignore", "face_id", "photo")
"""Fields of a batch with a row for each face."""


def test_faces_are_cut_at_the_edge_and_landmarks_outside_are_not_annotated() -> None:
    """Would catch landmarks that are moved to the edge and learned there, or a face whose centre is outside."""
    augment = squares(size=60)
    half = Square(np.array([[1.0, 0, -25], [0, 1, 0], [0, 0, 1]]), flipped=False)  # columns 25 to 84 of the photo
    photo = DetectionBatch(*([None] * 12))._replace(  # type: ignore[arg-type]
        to_photo=torch.eye(3)[None],
        boxes=torch.tensor([[10.0, 10, 50, 40], [0, 10, 30, 40], [70, 70, 80, 74]]),
        points=torch.stack([torch.from_numpy(face(10, 10, 50, 40).points).float()] * 3),
        pose=torch.zeros(3, 3),
        tags=torch.zeros(3, 1, dtype=torch.bool),
        ignore=torch.tensor([False, True, False]),
        face_id=torch.tensor([7, 8, 9]),
        photo=torch.zeros(3, dtype=torch.int64),
    )
    placed = augment.place(photo, half)
    assert placed.face_id.tolist() == [7]
    assert {len(column) for name, column in placed._asdict().items() if name in COLUMNS} == {1}
    np.testing.assert_allclose(placed.boxes.numpy(), [[-0.5, 10, 25, 40]])
    np.testing.assert_allclose(placed.to_photo[0].numpy(), [[1, 0, 25], [0, 1, 0], [0, 0, 1]])
    assert not placed.ignore.item()
    assert squares(size=60, smallest=26).place(photo, half).ignore.item(), "25.5 of its 40 pixels are in the square"
    assert placed.valid.tolist() == [[False, True, True, False, True]]
    assert placed.points.isnan().all(dim=-1).tolist() == [[True, False, False, True, False]]


def test_small_faces_are_ignored(tmp_path: Path) -> None:
    """Would catch faces below the limit that are learned as faces or as background."""
    sample = dataset(tmp_path, factors=[2.0], smallest=11.0)[(0, 0)]  # 160 px of the photo become 64
    sides = (sample.boxes[:, 2:] - sample.boxes[:, :2]).amin(dim=1)
    assert len(sides) == 3
    assert sample.ignore.tolist() == (sides < 11).tolist() == [False, True, True]


def test_squares_depend_on_seed_epoch_and_row_alone(tmp_path: Path) -> None:
    """Would catch equal squares in every epoch, for every photo or seed, or draws that depend on the order."""
    noise = [albumentations.RandomBrightnessContrast(p=1.0)]
    wide: dict[str, Any] = {"pixels": noise, "interpolations": ["linear", "nearest"], "flip_probability": 0.5}

    def images(seed: int, keys: list[tuple[int, int]]) -> list[bytes]:
        faces = dataset(tmp_path, seed=seed, **wide)
        return [faces[key].image.numpy().tobytes() for key in keys]

    keys = [(0, 0), (0, 1), (1, 0)]
    assert images(1, keys) == images(1, keys[::-1])[::-1]
    assert len({*images(1, keys), *images(2, keys)}) == 6


def test_square_contains_a_face_that_is_learned(tmp_path: Path) -> None:
    """Would catch squares around an ignored face or a box without area alone, which contribute nothing to the loss."""
    faces = [face(9.5, 9.5, 39.5, 39.5), face(100, 5, 110, 15, frozenset({"invalid"})), face(80, 60, 80, 60)]
    train = dataset(tmp_path, Photos(tmp_path, faces), factors=[0.6], tries=1000)
    for epoch in range(20):
        sample = train[(epoch, 0)]
        (own,) = sample.boxes[sample.face_id == 0]
        assert (own[2:] - own[:2]).tolist() == pytest.approx([40, 40], abs=1e-3), "30 of 48 pixels become 40 of 64"


def test_one_of_the_interpolations_is_drawn_for_each_photo(tmp_path: Path) -> None:
    """Would catch interpolations that are never used."""
    augment = squares(interpolations=["linear", "nearest", "cubic"])
    (photo, _), whole = Photos(tmp_path).photos("train"), Square(np.diag([64 / 120, 64 / 120, 1]), flipped=False)
    file = PhotoFile(photo.path, photo.orientation)
    assert len({augment.cut_out(rng(seed), file, whole).tobytes() for seed in range(20)}) == 3


def test_outside_of_the_photo_is_the_border_colour(tmp_path: Path) -> None:
    """Would catch a black border, whose edge a network would take for a feature."""
    image = dataset(tmp_path, factors=[2.0])[(0, 0)].image[0].permute(1, 2, 0).reshape(-1, 3)
    assert (image == torch.tensor([123, 117, 104], dtype=torch.uint8)).all(dim=1).float().mean() > 0.4


def test_photo_that_cannot_be_read_is_black_and_has_no_face(tmp_path: Path) -> None:
    """Would catch a broken photo that stops the training, has another size, or teaches faces on black."""
    photos = Photos(tmp_path, [face(9.5, 9.5, 39.5, 39.5), face(-40, -40, -10, -10)])  # the second beside the photo
    photos.files[0].write_bytes(b"no image")
    train = dataset(tmp_path, photos)
    batch = collate([train[(0, 0)], train[(0, 1)]])
    assert batch.image.shape == (2, 3, 64, 64)
    assert not batch.image[0].any() and batch.image[1].any()
    assert set(batch.photo.tolist()) == {1}
    assert len(train[(0, 0)].boxes) == 0
    assert train.readings.unreadable == 1


def datamodule(data: Any, **values: Any) -> RetinaFaceDataModule:
    options: dict[str, Any] = {"batch_size": 2, "eval_batch_size": 1, "num_workers": 0, "seed": 1}
    options |= {"test_split": "test", "max_unreadable": 0.5, "ignore": ["invalid"], "augment": squares()}
    return RetinaFaceDataModule(data, **(options | values))


def test_datamodule_trains_on_squares_and_validates_on_photos(tmp_path: Path) -> None:
    """Would catch a validation on squares, one batch size for both, an order that is not shuffled, or a fixed seed."""
    module = datamodule(Photos(tmp_path, photos=8))
    module.setup("fit")
    assert module.has_validation()
    train, val = (list(loader) for loader in (module.train_dataloader(), module.val_dataloader()))
    assert [batch.image.shape for batch in train] == [(2, 3, 64, 64)] * 4
    assert [batch.image.shape for batch in val] == [(1, 3, HEIGHT, WIDTH)] * 8
    names = [name for batch in train for name in module.names(batch)]
    assert sorted(names) == [f"{number}.png" for number in range(8)] != names
    other = datamodule(Photos(tmp_path), seed=2)
    other.setup("fit")
    first, second = (each.photos["train"][(0, 0)].to_photo for each in (module, other))
    assert not torch.equal(first, second), "the squares do not depend on the seed"


def test_datamodule_without_validation_photos_trains(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a set without validation photos that cannot be trained on, or that silently has no validation."""

    class NoVal(Photos):
        def photos(self, split: Split) -> list[Photo]:
            return [] if split == "val" else super().photos(split)

    module = datamodule(NoVal(tmp_path))
    module.setup("fit")
    assert "three: the split val has no photo; the run trains without validation" in caplog.text
    assert not module.has_validation() and module.val_dataloader() == []
    assert len(list(module.train_dataloader())) == 1
    with pytest.raises(DatasetError, match="the split 'val' has no photo"):
        module.setup("validate")


def test_datamodule_refuses_a_training_without_faces(tmp_path: Path) -> None:
    """Would catch a training whose loss is always 0."""
    photos = Photos(tmp_path, [face(50, 5, 60, 15, frozenset({"invalid"})), face(5, 5, 5, 20)])
    with pytest.raises(DatasetError, match="three: no face of the split 'train' has a box that can be learned"):
        datamodule(photos).setup("fit")


def test_datamodule_logs_what_contributes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch photos, ignored faces or rows without a box that are left out silently."""

    class OneEmpty(Photos):
        def photos(self, split: Split) -> list[Photo]:
            first, second, *rest = super().photos(split)
            rows = (face(np.nan, 5, 5, 20), face(5, 5, 5, 20), *second.faces)
            return [first._replace(faces=()), second._replace(faces=rows), *rest]

    module = datamodule(OneEmpty(tmp_path, photos=3))
    with caplog.at_level(logging.INFO):
        module.setup("fit")
    assert "three train: 3 photos, 4 faces" in caplog.text
    assert "2 more faces have an ignored tag" in caplog.text
    assert "2 more rows have no box with an area" in caplog.text
    assert "1 of these photos have no face" in caplog.text
    assert all(batch.image.shape == (2, 3, 64, 64) for batch in module.train_dataloader())
