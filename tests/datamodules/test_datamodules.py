"""Tests of the landmark datamodules: samples, batches and their random draws."""

import copy
import logging
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, face_data
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from datamodules.augmentation import Augmentation
from datamodules.landmark import FaceDataset, LandmarkDataModule, collate
from datamodules.loading import EpochSampler
from datamodules.pipnet import PIPNetDataModule
from facelab.errors import ConfigError, DatasetError
from facelab.faces.batch import LandmarkBatch
from facelab.faces.crop import BoxSource, Crop
from facelab.faces.face import Face, Photo, Split
from facelab.faces.geometry import Array, transform_points
from facelab.faces.layouts import IBUG68, Layout
from facelab.faces.pose import flipped, turned

CONF = ROOT / "conf"
NAN = np.nan
SIZE = 64
THREE = Layout(name="three", num_points=3, flip=(1, 0, 2), eye_corners=(0, 1))
"""Layout of three points: left eye, right eye, chin."""
COLOURS = np.eye(3)  # of the spots at these points
NO_BOX = np.full(4, NAN, np.float32)
NO_POSE = np.full(3, NAN, np.float32)


class InMemory:
    """Annotations in memory: photos by split."""

    def __init__(self, layout: Layout, tags: tuple[str, ...], splits: dict[str, list[Photo]]) -> None:
        self.name, self.layout, self.tags, self.splits = "drawn", layout, tags, splits

    def photos(self, split: Split) -> list[Photo]:
        return self.splits[split]


def spots(width: int, height: int, points: Array, sigma: float) -> Array:
    """Draw a spot at each point on black: the first red, the second green, the third blue."""
    y, x = np.mgrid[:height, :width]
    image = np.zeros((height, width, 3))
    for (px, py), colour in zip(points, COLOURS, strict=True):
        image += 255 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2))[..., None] * colour
    return image.clip(0, 255).astype(np.uint8)


def write(path: Path, rgb: Array) -> Path:
    assert cv2.imwrite(str(path), rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 98])
    return path


def three(points: Any, box: Any = NO_BOX, pose: Any = NO_POSE, tags: Sequence[str] = ()) -> Face:
    points = np.array(points, np.float32)
    seen = np.isfinite(points).all(axis=1)
    return Face(np.array(box, np.float32), points, seen, np.array(pose, np.float32), frozenset(tags))


def crop(**changes: Any) -> Crop:
    options: dict[str, Any] = {"size": SIZE, "scale": 1.3, "square": True, "shift": (0.0, 0.0), "box": "points"}
    return Crop(**options | changes)


@cache
def augment(name: str = "pipnet") -> Augmentation:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made: Augmentation = instantiate(compose(f"augment/{name}").augment, _convert_="all")
    return made


def affine(pixels: Any = None, **changes: float) -> Augmentation:
    """Return an augmentation with only the given changes; ``pixels`` is a composition."""
    names = ("flip_probability", "shift_probability", "shift_limit", "scale_probability", "scale_limit")
    options: dict[str, Any] = dict.fromkeys((*names, "rotation_probability", "rotation_limit"), 0.0)
    return Augmentation(**options | changes, pixels=[pixels] if pixels else [])


EVERYTHING = {
    "flip_probability": 0.5,
    "shift_probability": 1.0,
    "shift_limit": 0.1,
    "scale_probability": 1.0,
    "scale_limit": 0.2,
    "rotation_probability": 1.0,
    "rotation_limit": 40.0,
}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> InMemory:
    """Return annotations of one 68-point face per photo (13 train, 5 val, 3 test), all of one smooth noise image."""
    folder = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 11, 3)).astype(np.uint8)
    path = write(folder / "face.jpg", cv2.resize(coarse, (110, 90), interpolation=cv2.INTER_CUBIC))
    points = np.stack([rng.uniform(15, 95, 68), rng.uniform(10, 80, 68)], axis=1).astype(np.float32)

    def photo(split: str, i: int) -> Photo:
        path_i = folder / f"{split}{i}.jpg"
        path_i.hardlink_to(path)
        return Photo(path_i, (Face(NO_BOX, points, rng.random(68) < 0.7, NO_POSE, frozenset()),), "stored")

    counts = {"train": 13, "val": 5, "test": 3}
    return InMemory(IBUG68, (), {split: [photo(split, i) for i in range(n)] for split, n in counts.items()})


def module(data: Any, **changes: Any) -> LandmarkDataModule:
    options: dict[str, Any] = {
        "crop": crop(),
        "augment": augment(),
        "batch_size": 4,
        "num_workers": 0,
        "seed": 1,
        "test_split": "test",
        "max_unreadable": 1.0,
    }
    made = LandmarkDataModule(data, **options | changes)
    made.setup("fit")
    return made


def epoch(datamodule: LandmarkDataModule, number: int) -> list[LandmarkBatch]:
    loader: Any = datamodule.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def same(first: list[LandmarkBatch], second: list[LandmarkBatch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(torch.nan_to_num(a.float(), -1), torch.nan_to_num(b.float(), -1))
        for x, y in zip(first, second, strict=True)
        for a, b in zip(x, y, strict=True)
    )


# Samples


def spot_centres(image: Tensor) -> Array:
    """Return the centres of the red, the green and the blue spot, ``(3, 2)``."""
    light = image.numpy().astype(np.float64)
    light[light < 16] = 0
    y, x = np.mgrid[: light.shape[1], : light.shape[2]]
    return np.stack([[(x * c).sum() / c.sum(), (y * c).sum() / c.sum()] for c in light])


BOXES: list[tuple[BoxSource, bool]] = [("points", True), ("points", False), ("given", True), ("image", True)]


@pytest.mark.parametrize(("box", "square"), BOXES)
@pytest.mark.parametrize(("width", "height", "ending"), [(161, 131, "png"), (201, 121, "jpg"), (1203, 903, "jpg")])
def test_face_dataset_moves_pixels_like_points(
    tmp_path: Path, box: BoxSource, square: bool, width: int, height: int, ending: str
) -> None:
    """Would catch points beside their pixels: half pixels, reduced decoding, letterbox, order of the matrices."""
    points = np.array([[0.38, 0.4], [0.62, 0.42], [0.51, 0.63]]) * (width, height) + 0.3
    path = write(tmp_path / f"face.{ending}", spots(width, height, points, sigma=width / 45))
    given = [0.25 * width, 0.2 * height, 0.8 * width, 0.85 * height]
    data = InMemory(THREE, (), {"train": [Photo(path, (three(points, given),), "stored")]})
    scale = {"points": 3.5, "given": 1.2, "image": 1.0}[box]
    view = crop(size=120, scale=scale, square=square, box=box)
    dataset = FaceDataset(data, "train", view, affine(**EVERYTHING), 0, 1.0)
    flips = set()
    for number in range(6):
        sample = dataset[(number, 0)]
        expected = spot_centres(sample.image)
        is_flipped = bool(torch.det(sample.to_photo) < 0)
        flips.add(is_flipped)
        if is_flipped:
            expected = expected[list(THREE.flip)]  # the right eye is now the left one
        np.testing.assert_allclose(sample.points, expected, atol=0.1)
        back = transform_points(sample.to_photo, sample.points).numpy()
        np.testing.assert_allclose(back[list(THREE.flip)] if is_flipped else back, points, atol=0.01)
    assert flips == {True, False}


def test_face_dataset_flips_the_whole_sample(faces: InMemory) -> None:
    """Would catch a flip that leaves out the points, the visibility or the pose."""
    plain, flip = (FaceDataset(faces, "train", crop(), affine(flip_probability=p), 0, 1.0)[(0, 3)] for p in (0.0, 1.0))
    difference = (flip.image.flip(-1).float() - plain.image.float()).abs()
    assert difference.max() <= 2
    swapped = plain.points[list(IBUG68.flip)]
    np.testing.assert_allclose(flip.points[:, 0], SIZE - 1 - swapped[:, 0], atol=1e-4)
    np.testing.assert_allclose(flip.points[:, 1], swapped[:, 1], atol=1e-4)
    assert torch.equal(flip.visible, plain.visible[list(IBUG68.flip)])
    assert not torch.equal(flip.visible, plain.visible)
    np.testing.assert_allclose(flip.pose, flipped(plain.pose.numpy()), atol=1e-4)
    assert plain.pose.abs().min() > 0


def test_face_dataset_rotates_roll_with_the_points(faces: InMemory) -> None:
    """Would catch the opposite sign: the roll must change by the clockwise angle of the points."""
    plain = FaceDataset(faces, "train", crop(), None, 0, 1.0)[(0, 0)]
    dataset = FaceDataset(faces, "train", crop(), affine(rotation_probability=1.0, rotation_limit=40.0), 0, 1.0)
    for number in range(5):
        sample = dataset[(number, 0)]
        (a, b), (c, d) = plain.points[[0, 16]].numpy(), sample.points[[0, 16]].numpy()
        before, after = np.arctan2(*(b - a)[::-1]), np.arctan2(*(d - c)[::-1])
        degrees = np.rad2deg(after - before)
        assert abs(degrees) > 0.1
        np.testing.assert_allclose(sample.pose, turned(plain.pose.numpy(), degrees), atol=0.01)


def test_val_dataloader_returns_plain_crops(faces: InMemory) -> None:
    """Would catch augmentation in validation, and evaluation samples that depend on the epoch."""
    datamodule = module(faces)
    loader: Any = datamodule.val_dataloader()
    first = list(loader)
    loader.sampler.set_epoch(7)
    assert same(first, list(loader))
    plain = FaceDataset(faces, "val", crop(), None, 9, 1.0)
    assert same(first[:1], [collate([plain[(0, row)] for row in range(4)])])


def test_face_dataset_keeps_labels_and_missing_points(tmp_path: Path) -> None:
    """Would catch a missing point that becomes a valid one, and lost labels of pose, box and tags."""
    path = write(tmp_path / "a.png", np.zeros((50, 60, 3), np.uint8))
    faces = (
        three([[10, 10], [NAN, NAN], [30, 40]], box=[1, 2, 33, 44], pose=[10, 20, 30], tags=["blur"]),
        three([[10, 10], [20, 10], [30, 40]], box=[1, 2, 33, 44], pose=[1, 2, 3], tags=["pose", "blur"]),
    )
    dataset = FaceDataset(
        InMemory(THREE, ("pose", "blur"), {"train": [Photo(path, faces, "stored")]}),
        "train",
        crop(),
        None,
        0,
        1.0,
    )
    assert dataset.pose_source == "labelled"
    batch = collate([dataset[(0, 0)], dataset[(0, 1)]])
    assert batch.valid.tolist() == [[True, False, True], [True, True, True]]
    assert torch.isnan(batch.points[0, 1]).all()
    assert batch.visible.tolist() == batch.valid.tolist()
    assert batch.tags.tolist() == [[False, True], [True, True]]
    assert batch.pose.tolist() == [[10, 20, 30], [1, 2, 3]]


def test_face_dataset_estimates_unlabelled_poses(faces: InMemory) -> None:
    """Would catch labels overwritten by estimates, and a pose_source that hides the estimated ones."""
    dataset = FaceDataset(faces, "train", crop(), None, 0, 1.0)
    assert dataset.pose_source == "estimated"
    assert np.isfinite(dataset.pose).all()
    photos = copy.copy(faces.splits["train"])
    labelled = photos[2].faces[0]._replace(pose=np.array([1, 2, 3], np.float32))
    photos[2] = photos[2]._replace(faces=(labelled,))
    mixed = FaceDataset(InMemory(IBUG68, (), {"train": photos}), "train", crop(), None, 0, 1.0)
    assert mixed.pose_source == "labelled and estimated"
    assert mixed.pose[2].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(mixed.pose[:2], dataset.pose[:2])


# Unreadable photos and faces without a crop

TRUNCATED = cv2.imencode(".jpg", np.full((50, 60, 3), 200, np.uint8))[1].tobytes()[:-40]


@pytest.mark.parametrize("box", ["points", "image"])
@pytest.mark.parametrize("role", ["train", "val"])
@pytest.mark.parametrize("content", [TRUNCATED, b"no pixels", b"", None], ids=["truncated", "text", "empty", "missing"])
def test_face_dataset_returns_a_blank_sample_for_an_unreadable_photo(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None, role: Split, box: BoxSource
) -> None:
    """Would catch a crash, a changed shape, a row that the loss trains on, and a warning in every epoch."""
    good, faulty = write(tmp_path / "good.png", np.full((50, 60, 3), 200, np.uint8)), tmp_path / "faulty.jpg"
    if content is not None:
        faulty.write_bytes(content)
    face = three([[10, 10], [30, 10], [20, 40]], pose=[5, 6, 7])
    photos = [Photo(good, (face,), "stored"), Photo(faulty, (face,), "stored"), Photo(good, (face,), "stored")]
    changes = augment() if role == "train" else None
    dataset = FaceDataset(InMemory(THREE, ("blur",), {role: photos}), role, crop(box=box), changes, 0, 1.0)
    batches = [collate([dataset[(number, row)] for row in range(3)]) for number in range(3)]
    for batch in batches:
        assert batch.image.shape == (3, 3, SIZE, SIZE)
        assert batch.valid.tolist() == [[True] * 3, [False] * 3, [True] * 3]
        assert not batch.image[1].any()
        assert batch.image[0].any()
        assert not batch.visible[1].any()
        assert batch.face_id.tolist() == [0, 1, 2]
    assert [record.getMessage() for record in caplog.records if "left out" in record.getMessage()] == [
        next(record.getMessage() for record in caplog.records if "faulty.jpg" in record.getMessage())
    ]


def test_face_dataset_skips_and_names_a_face_without_box(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch a crop around NaN, and a message that does not name the required box."""
    path = write(tmp_path / "a.png", np.full((50, 60, 3), 200, np.uint8))
    photo = Photo(
        path, (three([[1, 1], [9, 1], [5, 9]]), three([[1, 1], [9, 1], [5, 9]], box=[0, 0, 10, 10])), "stored"
    )
    dataset = FaceDataset(InMemory(THREE, (), {"val": [photo]}), "val", crop(box="given"), None, 0, 1.0)
    assert [bool(dataset[(0, row)].valid.any()) for row in (0, 1)] == [False, True]
    assert "face 0 is left out" in caplog.text
    assert "a.png" in caplog.text
    assert "crop.box=given" in caplog.text


def test_face_dataset_keeps_points_outside_the_photo(tmp_path: Path) -> None:
    """Would catch points clipped to the photo or the crop."""
    path = write(tmp_path / "a.png", np.full((50, 60, 3), 200, np.uint8))
    points = np.array([[-20.0, 10], [5, 10], [-10, 40]])
    photo = Photo(path, (three(points),), "stored")
    sample = FaceDataset(InMemory(THREE, (), {"val": [photo]}), "val", crop(), None, 0, 1.0)[(0, 0)]
    assert sample.valid.all()
    np.testing.assert_allclose(transform_points(sample.to_photo, sample.points), points, atol=0.01)


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        ([[-110.0, 10], [-90, 10], [-100, 40]], "is outside of the photo of 60 x 50 pixels"),
        ([[400.0, 400], [600, 400], [500, 600]], "is outside of the photo"),
        ([[-9e5, -9e5], [9e5, -9e5], [0, 9e5]], "pixels large"),
    ],
)
def test_face_dataset_skips_a_misplaced_face(
    points: list[list[float]], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch labels made for another photo size: black training crops, gigabytes, or an error of OpenCV."""
    path = write(tmp_path / "a.png", np.full((50, 60, 3), 200, np.uint8))
    good = three([[10, 10], [30, 10], [20, 40]])
    photo = Photo(path, (three(points), good), "stored")
    dataset = FaceDataset(InMemory(THREE, (), {"val": [photo]}), "val", crop(), None, 0, 1.0)
    assert not dataset[(0, 0)].valid.any() and dataset[(0, 1)].valid.all()
    assert reason in caplog.text and "a.png" in caplog.text
    assert dataset.readings.unreadable == 0, "the photo is fine"
    dataset.readings.max_unreadable = 0.0
    with pytest.raises(DatasetError, match=r"val: 1 of 2 faces cannot be read or cut out"):
        dataset.readings.check()


def test_face_dataset_reads_the_photo_size_for_crop_box_image(tmp_path: Path) -> None:
    """Would catch a letterbox of the wrong size: the face has neither box nor points."""
    path = write(tmp_path / "a.png", np.full((50, 100, 3), 200, np.uint8))
    photo = Photo(path, (three(np.full((3, 2), NAN)),), "stored")
    sample = FaceDataset(InMemory(THREE, (), {"val": [photo]}), "val", crop(scale=1.0, box="image"), None, 0, 1.0)[
        (0, 0)
    ]
    rows = sample.image[0].any(dim=1).nonzero()
    assert (int(rows.min()), int(rows.max())) == (16, 47)
    assert not sample.valid.any()


def test_setup_refuses_an_empty_split_by_name() -> None:
    """Would catch a training that starts without faces and fails in the sampler."""
    empty = InMemory(THREE, (), {"train": [Photo(Path("a.jpg"), (), "stored")], "val": []})
    with pytest.raises(DatasetError, match="drawn: the split 'train' has no face"):
        module(empty)


def test_setup_refuses_a_split_without_points() -> None:
    """Would catch a landmark method that trains on a dataset for detectors, with a loss of 0 and `-` as results."""
    face = three(np.full((3, 2), NAN))._replace(box=np.array([1, 1, 9, 9], np.float32))
    with pytest.raises(DatasetError, match="drawn: no face of the split 'train' has an annotated point"):
        module(InMemory(THREE, (), {"train": [Photo(Path("a.jpg"), (face,), "stored")]}), crop=crop(box="given"))


def test_setup_refuses_crop_box_given_without_boxes() -> None:
    """Would catch one warning for each of thousands of faces, and a training on only blank images."""
    photo = Photo(Path("a.jpg"), (three([[1, 1], [9, 1], [5, 9]]),), "stored")
    with pytest.raises(DatasetError, match=r"no face of the split 'train' has a box; use crop\.box=points"):
        module(InMemory(THREE, (), {"train": [photo]}), crop=crop(box="given"))


# Batches


def test_collate_keeps_each_sample(faces: InMemory) -> None:
    """Would catch fields out of order, other types, and images that a convolution has to copy."""
    dataset = module(faces).faces["train"]
    samples = [dataset[(2, row)] for row in (4, 0, 9)]
    batch = collate(samples)
    assert batch.image.shape == (3, 3, SIZE, SIZE)
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    shapes = {name: (tuple(value.shape[1:]), value.dtype) for name, value in batch._asdict().items()}
    assert shapes == {
        "image": ((3, SIZE, SIZE), torch.uint8),
        "points": ((68, 2), torch.float32),
        "valid": ((68,), torch.bool),
        "visible": ((68,), torch.bool),
        "tags": ((0,), torch.bool),
        "pose": ((3,), torch.float32),
        "to_photo": ((3, 3), torch.float32),
        "face_id": ((), torch.int64),
    }
    for i, sample in enumerate(samples):
        assert same([LandmarkBatch(*(value[i] for value in batch))], [sample])
    assert same([collate(samples[:1])], [LandmarkBatch(*(value[:1] for value in batch))])


def test_evaluation_dataloaders_return_each_face_once(faces: InMemory) -> None:
    """Would catch a last batch that is dropped, or shuffled evaluation."""
    datamodule = module(faces, batch_size=2)
    datamodule.setup("test")
    for loader, count in ((datamodule.val_dataloader(), 5), (datamodule.test_dataloader(), 3)):
        assert torch.cat([batch.face_id for batch in loader]).tolist() == list(range(count))


@pytest.mark.parametrize(("batch_size", "sizes"), [(4, [4, 4, 4]), (13, [13]), (100, [13])])
def test_train_dataloader_drops_only_an_incomplete_batch(faces: InMemory, batch_size: int, sizes: list[int]) -> None:
    """Would catch a small set without any batch, and a last batch of one face that spoils batch statistics."""
    assert [len(batch.image) for batch in epoch(module(faces, batch_size=batch_size), 0)] == sizes


def test_setup_uses_the_given_test_split(faces: InMemory) -> None:
    """Would catch ``split=val`` measured on the test faces."""
    datamodule = module(faces, test_split="val")
    datamodule.setup("test")
    assert len(datamodule.faces["test"]) == 5


# Randomness


@pytest.fixture(scope="module")
def third_epoch(faces: InMemory) -> list[LandmarkBatch]:
    return epoch(module(faces), 3)


@pytest.mark.parametrize("workers", [1, 2])
def test_train_dataloader_is_independent_of_workers(
    faces: InMemory, third_epoch: list[LandmarkBatch], workers: int
) -> None:
    """Would catch draws that depend on a worker's own generator or on the number of earlier samples."""
    assert same(epoch(module(faces, num_workers=workers), 3), third_epoch)


def test_train_dataloader_is_independent_of_earlier_epochs(faces: InMemory, third_epoch: list[LandmarkBatch]) -> None:
    """Would catch a resumed run that differs from an uninterrupted one, whose workers already ran epochs 0 to 2."""
    loader: Any = module(faces, num_workers=1).train_dataloader()
    for number in range(4):
        loader.sampler.set_epoch(number)
        batches = list(loader)
    assert same(batches, third_epoch)


def test_train_dataloader_varies_with_epoch_and_seed(faces: InMemory, third_epoch: list[LandmarkBatch]) -> None:
    """Would catch changes that repeat every epoch, and seeds that share the order of their faces."""
    order = [batch.face_id.tolist() for batch in third_epoch]
    for number, seed in ((2, 1), (3, 2), (2, 2), (4, 0)):  # the sums of the last two equal that of (3, 1)
        other = epoch(module(faces, seed=seed), number)
        assert [batch.face_id.tolist() for batch in other] != order
        dataset = module(faces, seed=seed).faces["train"]
        assert not same([dataset[(number, 0)]], [module(faces).faces["train"][(3, 0)]])


def test_face_dataset_draws_differ_between_samples(faces: InMemory) -> None:
    """Would catch neighbours that share rotation, occlusion or blur; all photos are identical here."""
    warped = FaceDataset(faces, "train", crop(), affine(**EVERYTHING), 1, 1.0)
    changed = FaceDataset(faces, "train", crop(), affine(pixels=augment().pixels.transforms), 1, 1.0)
    keys = [(number, row) for number in range(4) for row in range(13)]
    assert len({warped[key].points.numpy().tobytes() for key in keys}) == len(keys)
    images = Counter(changed[key].image.numpy().tobytes() for key in keys)
    assert sum(count > 1 for count in images.values()) <= 2  # unchanged, or only converted to grey
    assert len(images) > len(keys) / 2


@pytest.mark.parametrize("count", [12, 13])
def test_epoch_sampler_splits_rows_between_ranks(count: int) -> None:
    """Would catch faces that no rank or both ranks read; one face may repeat to make the ranks equally long."""
    rows_of_split = TensorDataset(torch.arange(count))
    ranks = [EpochSampler(rows_of_split, num_replicas=2, rank=rank, shuffle=True, seed=1) for rank in (0, 1)]
    for number in range(2):
        for sampler in ranks:
            sampler.set_epoch(number)
        keys = [list(sampler) for sampler in ranks]
        assert {epoch_number for rank in keys for epoch_number, _ in rank} == {number}
        rows = [row for rank in keys for _, row in rank]
        assert set(rows) == set(range(count))
        assert len(rows) == count + count % 2
        assert len(keys[0]) == len(keys[1])


class BatchRecorder(LightningModule):
    """Module that keeps a copy of each training batch, by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.batches: list[list[LandmarkBatch]] = []

    def on_train_epoch_start(self) -> None:
        self.batches.append([])

    def training_step(self, batch: LandmarkBatch, batch_index: int) -> Tensor:
        self.batches[-1].append(LandmarkBatch(*(value.clone() for value in batch)))
        return self.weight * 0

    def validation_step(self, batch: LandmarkBatch, batch_index: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(datamodule: LandmarkDataModule, epochs: int, **options: Any) -> list[list[LandmarkBatch]]:
    """Train for some epochs and return the batches of each epoch."""
    recorder = BatchRecorder()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("trainer/cpu").trainer
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    trainer: Trainer = instantiate(cfg, max_epochs=epochs, log_every_n_steps=1, **quiet, **options)
    trainer.fit(recorder, datamodule=datamodule)
    return recorder.batches


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_trainer_passes_the_epoch_to_the_sampler(faces: InMemory, third_epoch: list[LandmarkBatch]) -> None:
    """Would catch a Trainer that does not advance the epoch of persistent workers: equal epochs."""
    epochs = fit(module(faces, num_workers=2), epochs=4)
    assert not same(epochs[0], epochs[1])
    assert same(epochs[0], epoch(module(faces), 0))
    assert same(epochs[3], third_epoch)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_overfit_batches_repeats_the_first_batches(faces: InMemory) -> None:
    """Would catch a sampler of Lightning without epochs, which fails, or another augmentation in each epoch."""
    epochs = fit(module(faces), epochs=3, overfit_batches=2)
    first = epoch(module(faces), 0)[:2]
    assert all(same(batches, first) for batches in epochs)


def test_workers_log_an_unreadable_photo_once(tmp_path: Path) -> None:
    """Would catch a list of logged names that each worker keeps for itself."""
    points = [[1, 1], [9, 1], [5, 9]]
    photos = [Photo(tmp_path / f"gone{i}.jpg", (three(points),), "stored") for i in range(6)]
    datamodule = module(InMemory(THREE, (), {"train": photos, "val": photos}), num_workers=2, batch_size=1)
    handler = logging.FileHandler(tmp_path / "log.txt")
    logger = logging.getLogger("datamodules.reading")
    logger.addHandler(handler)
    try:
        loader: Any = datamodule.train_dataloader()
        for number in range(3):
            loader.sampler.set_epoch(number)
            assert not any(batch.valid.any() for batch in loader)
    finally:
        logger.removeHandler(handler)
        handler.close()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert sorted(line.split()[1] for line in lines) == [str(i) for i in range(6)]


def test_face_dataset_survives_pickling(faces: InMemory) -> None:
    """Would catch an attribute without pickle support, which workers started by spawn (macOS, Windows) need."""
    dataset = FaceDataset(faces, "train", crop(), augment(), 1, 1.0)
    assert same([pickle.loads(pickle.dumps(dataset))[(1, 2)]], [dataset[(1, 2)]])


# PIPNet's mean shape


def pipnet(photos: list[Photo], view: Crop) -> PIPNetDataModule:
    made = PIPNetDataModule(
        InMemory(THREE, (), {"train": photos, "val": photos}), view, augment(), 4, 0, 1, "test", 1.0
    )
    made.setup("fit")
    return made


def test_mean_shape_matches_a_mean_by_hand() -> None:
    """Would catch missing points counted as zero, augmented crops, and a mean in photo pixels."""
    view = Crop(size=100, scale=1.0, square=False, shift=(0.0, 0.0), box="given")
    unit = [-0.5, -0.5, 99.5, 99.5]  # the crop is the photo
    double = [-0.5, -0.5, 199.5, 199.5]  # at half the size: (201, 41) maps to (100.25, 20.25)
    photos = [
        Photo(Path("a.jpg"), (three([[10, 10], [90, 20], [50, 90]], unit),), "stored"),
        Photo(
            Path("b.jpg"), (three([[20, 30], [NAN, NAN], [NAN, 7]], unit), three([[1, 2], [3, 4], [5, 6]])), "stored"
        ),
        Photo(Path("c.jpg"), (three([[NAN, NAN], [201, 41], [NAN, NAN]], double),), "stored"),
    ]
    expected = np.array([[15, 20], [(90 + 100.25) / 2, (20 + 20.25) / 2], [50, 90]])
    np.testing.assert_allclose(pipnet(photos, view).mean_shape(), expected)


def test_mean_shape_refuses_a_landmark_missing_in_every_face() -> None:
    """Would catch a NaN among PIPNet's neighbours."""
    photos = [Photo(Path("a.jpg"), (three([[10, 10], [90, 20], [NAN, NAN]]),), "stored")]
    with pytest.raises(DatasetError, match=r"drawn: no training face has the landmarks \[2\]"):
        pipnet(photos, crop()).mean_shape()


def test_mean_shape_refuses_photos_that_cannot_be_cropped() -> None:
    """Would catch a message that names the landmarks although the photos are missing."""
    photos = [Photo(Path("gone.jpg"), (three([[10, 10], [90, 20], [50, 90]]),), "stored")]
    with pytest.raises(DatasetError, match=r"no training face can be cut out with crop\.box=image"):
        pipnet(photos, crop(box="image")).mean_shape()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_datamodule_refuses_an_invalid_seed(faces: InMemory, seed: int) -> None:
    """Would catch a traceback from numpy in the middle of the first epoch."""
    with pytest.raises(ConfigError, match=f"^seed={seed} must be a whole number"):
        module(faces, seed=seed)


# Real photos


@pytest.fixture
def real_faces() -> Iterator[FaceDataset]:
    """Return the validation faces of ytf68."""
    root = face_data("ytf68")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        data = instantiate(compose("data/ytf68", [f"data.root={root}"]).data)
    yield FaceDataset(data, "val", crop(size=128), augment(), 1, 1.0)


def test_face_dataset_crops_real_faces_completely(real_faces: FaceDataset) -> None:
    """Would catch crops beside the face, and points that do not map back to the photo."""
    for row in range(0, len(real_faces), len(real_faces) // 20):
        sample, face = real_faces[(0, row)], real_faces.faces[row]
        assert sample.valid.all()
        assert sample.image.float().mean() > 5
        back = transform_points(sample.to_photo.double(), sample.points.double()).numpy()
        truth = face.points[list(IBUG68.flip)] if torch.det(sample.to_photo) < 0 else face.points
        np.testing.assert_allclose(back, truth, atol=0.01)
        assert ((sample.points > -60) & (sample.points < 188)).all()


# Resuming within an epoch


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("used", [0, 1, 2])
def test_train_dataloader_resumes_after_the_used_batches(faces: InMemory, used: int, num_workers: int) -> None:
    """Would catch faces that are trained on twice or left out, in this epoch or in the next."""
    uninterrupted = module(faces)
    expected = [epoch(uninterrupted, 4), epoch(uninterrupted, 5)]
    loader: Any = module(faces, num_workers=num_workers).train_dataloader()
    loader.sampler.set_epoch(4)
    loader.load_state_dict({"used": used})
    assert len(loader) == len(expected[0]) == 3
    iterator = iter(loader)
    assert loader.state_dict() == {"used": used}
    rest = [next(iterator)]
    assert loader.state_dict() == {"used": used + 1}
    rest += list(iterator)
    assert loader.state_dict() == {"used": 3}
    assert same(rest, expected[0][used:])
    loader.sampler.set_epoch(5)
    assert same(list(loader), expected[1])


def test_train_dataloader_keeps_the_rng_state(faces: InMemory) -> None:
    """Would catch an epoch that draws from the global RNG: a resumed run begins one epoch more."""
    loader: Any = module(faces).train_dataloader()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


# Photos that become unreadable during a run


def loader_of(photos: list[Photo], share: float, workers: int = 0) -> Any:
    """Return the validation loader of these photos."""
    datamodule = LandmarkDataModule(
        InMemory(THREE, (), {"train": photos, "val": photos}), crop(), None, 2, workers, 1, "test", share
    )
    datamodule.setup("validate")
    return datamodule.val_dataloader()


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_raises_when_photos_disappear(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a network disk that fails while the training continues with black faces and finishes."""
    monkeypatch.setattr("datamodules.reading.RETRY_AFTER", (0.01, 0.02))
    path = write(tmp_path / "a.png", np.full((50, 60, 3), 200, np.uint8))
    photos = [Photo(path, (three([[10, 10], [30, 10], [20, 40]]),), "stored") for _ in range(6)]
    loader = loader_of(photos, 1.0, workers)
    assert sum(int(batch.valid.any(1).sum()) for batch in loader) == 6
    path.rename(tmp_path / "b.png")
    with pytest.raises(DatasetError, match=r"a\.png: this photo, one of \d, was read before and cannot be read any"):
        list(loader)


def test_face_dataset_retries_a_missing_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a face that is lost because a busy disk failed for a moment."""
    path = write(tmp_path / "a.png", np.full((50, 60, 3), 200, np.uint8))
    photo = Photo(path, (three([[10, 10], [30, 10], [20, 40]]),), "stored")
    dataset = FaceDataset(InMemory(THREE, (), {"val": [photo]}), "val", crop(), None, 0, 0.0)
    path.rename(tmp_path / "b.png")
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            (tmp_path / "b.png").rename(path)

    monkeypatch.setattr("datamodules.reading.RETRY_AFTER", (0.2, 1.0, 5.0))
    monkeypatch.setattr("datamodules.reading.time.sleep", sleep)
    assert dataset[(0, 0)].valid.all()
    assert waits == [0.2, 1.0] and dataset.readings.unreadable == 0
    dataset.readings.check()


def test_loader_raises_above_max_unreadable(tmp_path: Path) -> None:
    """Would catch a half-copied set that trains on black faces, and one bad photo among many that stops the run."""
    good, bad = write(tmp_path / "a.png", np.full((50, 60, 3), 200, np.uint8)), tmp_path / "bad.jpg"
    bad.write_bytes(b"no photo")
    face = three([[10, 10], [30, 10], [20, 40]])
    photos = [Photo(path, (face,), "shown") for path in (good, good, bad, good, good, good)]
    for share in (0.2, 0.01):
        loader = loader_of(photos, share)
        assert [int(batch.valid.any(1).sum()) for batch in loader] == [2, 1, 2], "one may always fail"
        assert loader.dataset.readings.unreadable == 1
    with pytest.raises(
        DatasetError, match=r"val: 2 of 7 faces cannot be read or cut out, .*bad\.jpg; .*max_unreadable=0\.1"
    ):
        list(loader_of([*photos, photos[2]], 0.1))
    nothing = [Photo(good, (three(np.full((3, 2), NAN)),), "stored") for _ in range(3)]
    with pytest.raises(DatasetError, match=r"(2|3) of 4 faces"):
        list(loader_of([photos[0], *nothing], 0.01))


def test_face_dataset_does_not_retry_a_damaged_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch seconds lost per damaged photo in each epoch, and minutes when a whole disk is missing."""
    waits: list[float] = []
    monkeypatch.setattr("datamodules.reading.RETRY_AFTER", (0.2, 1.0))
    monkeypatch.setattr("datamodules.reading.time.sleep", waits.append)
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    face = (three([[10, 10], [30, 10], [20, 40]]),)
    for orientation in ("shown", "stored"):
        photos = [Photo(tmp_path / "bad.jpg", face, orientation)]  # type: ignore[arg-type]
        dataset = FaceDataset(InMemory(THREE, (), {"val": photos}), "val", crop(), None, 0, 1.0)
        for epoch in range(2):
            assert not dataset[(epoch, 0)].valid.any()
    assert waits == []
    path = write(tmp_path / "a.png", np.full((50, 60, 3), 200, np.uint8))
    dataset = FaceDataset(InMemory(THREE, (), {"val": [Photo(path, face, "stored")] * 5}), "val", crop(), None, 0, 1.0)
    for row in range(5):
        dataset[(0, row)]
    path.unlink()
    for row in range(5):
        dataset[(1, row)]
    assert waits == [0.2, 1.0], "the others need not wait"


def test_face_dataset_accepts_a_face_that_some_shifts_move_outside(tmp_path: Path) -> None:
    """Would catch a shift beyond the photo's edge reported as a missing photo, which resuming cannot fix."""
    path = write(tmp_path / "a.png", np.full((50, 60, 3), 200, np.uint8))
    photo = Photo(path, (three([[-30, 10], [1, 10], [-15, 40]]),), "stored")
    shifted = affine(shift_probability=1.0, shift_limit=0.6)
    dataset = FaceDataset(InMemory(THREE, (), {"train": [photo]}), "train", crop(scale=1.0), shifted, 0, 1.0)
    seen = {bool(dataset[(epoch, 0)].valid.any()) for epoch in range(40)}
    assert seen == {True, False}
    dataset.readings.check()
