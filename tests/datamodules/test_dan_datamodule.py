"""Tests of DAN's statistics of the training faces and of its perturbation."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from composing import compose_config, small
from scipy.linalg import orthogonal_procrustes

from datamodules.augmentation import UNCHANGED
from datamodules.dan import ShapePerturbation, align_shapes, place_shape
from facelab.errors import DatasetError
from facelab.faces.crop import ShapeCrop
from facelab.faces.geometry import Array, bounding_box, transform_points
from facelab.runs.build import build

SIZE = 112
CROP = ShapeCrop(size=SIZE, scale=2.0, square=True, shift=(0.0, -0.054), box="points", aspect=1.038)


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("FACELAB_STAMP", "now")
    monkeypatch.setenv("FACELAB_CACHE", str(cache))


def build_datamodule(*words: str) -> Any:
    """Build the datamodule of a small configuration and read its training faces."""
    datamodule = build(compose_config([*small("dan"), *words]), "datamodule")
    datamodule.setup("fit")
    return datamodule


def random_shapes(count: int = 200, noise: float = 0.02) -> tuple[Array, Array]:
    """Return a shape ``(30, 2)`` and noisy copies ``(count, 30, 2)`` of other sizes, places and angles."""
    rng = np.random.default_rng(0)
    shape = rng.normal(size=(30, 2)) * (1.0, 1.4)
    shape -= shape.mean(0)
    angle, scale = rng.normal(0, 0.3, count), rng.uniform(5, 300, count)
    rotation = np.stack([np.cos(angle), np.sin(angle), -np.sin(angle), np.cos(angle)], -1).reshape(-1, 2, 2)
    noisy = shape + rng.normal(0, noise, (count, 30, 2))
    return shape, (noisy @ rotation) * scale[:, None, None] + rng.uniform(0, 500, (count, 1, 2))


def distance(one: Array, other: Array) -> float:
    """Return the largest distance of two shapes after both have the same position and size."""
    one, other = ((each - each.mean(0)) / np.linalg.norm(each - each.mean(0)) for each in (one, other))
    return float(np.linalg.norm(one - other, axis=1).max())


def test_align_shapes_finds_the_common_shape() -> None:
    """Would catch faces weighted by their size, an average without rotation, or a mean that is turned or flipped."""
    shape, shapes = random_shapes()
    mean = align_shapes(shapes)
    turned, _ = orthogonal_procrustes(shape, mean)
    assert distance(shape @ turned, mean) < 0.002
    assert turned[0, 0] > 0.99 and np.linalg.det(turned) > 0
    np.testing.assert_allclose([np.abs(mean.mean(0)).max(), np.square(mean).sum(-1).mean()], [0, 1], atol=1e-9)


def test_align_shapes_uses_faces_with_missing_points() -> None:
    """Would catch a missing point counted as 0, or a face that is dropped for one missing point."""
    shape, shapes = random_shapes(noise=0.0)
    shapes[np.random.default_rng(1).random(shapes.shape[:2]) < 0.4] = np.nan
    shapes[0] = np.nan
    mean = align_shapes(shapes)
    turned, _ = orthogonal_procrustes(shape, mean)
    assert distance(shape @ turned, mean) < 0.01
    shapes[:, 7] = np.nan
    with pytest.raises(ValueError, match=r"landmarks \[7\]"):
        align_shapes(shapes)


def test_place_shape_puts_the_face_into_the_middle_half() -> None:
    """Would catch a mean shape at another place than the faces of the crops, or the wrong side of the face."""
    shape, _ = random_shapes()
    shape *= 3
    placed = place_shape(shape, CROP)
    box = bounding_box(placed)
    assert max(box[2:] - box[:2]) == pytest.approx(SIZE / 2, rel=0.2)  # exact for a shape of the crop's proportions
    face_box = bounding_box(shape)
    np.testing.assert_allclose(transform_points(CROP.matrix(face_box), face_box.reshape(2, 2)).mean(0),
                               box.reshape(2, 2).mean(0), atol=1e-9)  # fmt: skip


def test_statistics_match_a_loop_over_the_faces() -> None:
    """Would catch unperturbed crops, another order of draws, luma, or a deviation of the whole batch."""
    datamodule = build_datamodule("data.train=10", "datamodule.batch_size=4")
    _, mean, deviation = datamodule.statistics()
    faces = datamodule.faces["train"]
    grey = np.stack([faces[0, row].image.numpy().astype(np.float64).mean(0) for row in range(len(faces))])
    np.testing.assert_allclose(mean, grey.mean(0), atol=1e-3)
    np.testing.assert_allclose(deviation, np.maximum(grey.std(0), 1), atol=1e-3)


def test_statistics_place_the_mean_shape_on_the_faces() -> None:
    """Would catch a shape in pixels of the photo, or one that is shifted against the crops."""
    datamodule = build_datamodule("augment=none")
    shape, _, _ = datamodule.statistics()
    faces = datamodule.faces["train"]
    points = np.stack([faces[0, row].points.numpy() for row in range(len(faces))])
    assert np.abs(shape.mean(0) - points.mean((0, 1))).max() < 3  # pixels; 16 heads are turned unevenly
    assert distance(shape, points.mean(0)) < 0.03  # the rendered heads are turned in all directions


def test_statistics_skip_unreadable_photos(tmp_path: Path) -> None:
    """Would catch a black image of a missing photo in the mean, and a division by 0 if none is left."""
    every = build_datamodule().statistics()[1]
    one_missing, all_missing = (build_datamodule("datamodule.max_unreadable=1.0") for _ in range(2))
    one_missing.faces["train"].paths[3] = tmp_path / "gone.jpg"
    rows = [row for row in range(16) if row != 3]
    grey = np.stack([one_missing.faces["train"][0, row].image.numpy().astype(np.float64).mean(0) for row in rows])
    mean = one_missing.statistics()[1]
    np.testing.assert_allclose(mean, grey.mean(0), atol=1e-3)
    assert np.abs(mean - every).max() > 1
    all_missing.faces["train"].paths[:] = [tmp_path / "gone.jpg"] * 16
    with pytest.raises(DatasetError, match="no training face can be read"):
        all_missing.statistics()


@pytest.mark.parametrize("rank", [0, 1])
def test_statistics_are_computed_by_one_process(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch processes that all decode every photo, or that wait after an error of the first."""
    datamodule = build_datamodule()
    sent: list[Any] = []

    def broadcast(outcome: Any) -> Any:
        sent.append(outcome)
        return outcome if rank == 0 else DatasetError("no training face")

    strategy = SimpleNamespace(broadcast=broadcast)
    trainer = SimpleNamespace(world_size=2, is_global_zero=rank == 0, strategy=strategy, fast_dev_run=False)
    datamodule.trainer = trainer
    calls: list[int] = []
    monkeypatch.setattr(datamodule, "_compute_statistics", lambda: calls.append(rank) or "the statistics")
    if rank == 0:
        assert datamodule.statistics() == "the statistics"
    else:
        with pytest.raises(DatasetError, match="no training face"):
            datamodule.statistics()
    assert calls == [0] * (rank == 0) and len(sent) == 1


def draws(count: int, **changes: Any) -> tuple[Array, Array]:
    """Return the shifts ``(count, 2)`` of the centroid and the linear parts ``(count, 4)`` of perturbed shapes."""
    options: dict[str, Any] = {"flip_probability": 0.0, "shift_deviation": 0.2, "scale_deviation": 0.25}
    options |= {"rotation_deviation": 20.0, "pixels": []} | changes
    augment = ShapePerturbation(**options)
    points = np.array([[28.0, 30.0], [84, 86], [np.nan, np.nan], [84, 30]])
    maps = np.stack(
        [np.linalg.inv(augment.draw(np.random.default_rng(seed), SIZE, points).matrix) for seed in range(count)]
    )
    centre = np.full((1, 2), (SIZE - 1) / 2)
    return transform_points(maps, centre)[:, 0] - centre, maps[:, :2, :2].reshape(-1, 4)


def test_shape_perturbation_has_the_deviations_of_the_reference_code() -> None:
    """Would catch a uniform distribution, a variance for a deviation, or a shift of the crop's side."""
    shift, linear = draws(4000)
    np.testing.assert_allclose(shift.std(0), 0.2 * np.array([56, 56]), rtol=0.05)
    scale, angle = np.hypot(linear[:, 0], linear[:, 2]), np.degrees(np.arctan2(linear[:, 2], linear[:, 0]))
    assert scale.mean() == pytest.approx(1, abs=0.02) and scale.std() == pytest.approx(0.25, rel=0.05)
    assert angle.mean() == pytest.approx(0, abs=1.5) and angle.std() == pytest.approx(20, rel=0.05)
    assert scale.min() == pytest.approx(0.25)


def test_shape_perturbation_turns_the_labels_with_the_crop() -> None:
    """Would catch an angle of the pose in the other direction, and a flip that is not told to the labels."""
    points = np.array([[28.0, 30.0], [84, 86]])
    augment = ShapePerturbation(0.5, 0.0, 0.0, 20.0, [])
    flips = []
    for seed in range(50):
        warp = augment.draw(np.random.default_rng(seed), SIZE, points)
        x, y = warp.matrix[:2, 0] * (-1 if warp.flipped else 1)
        assert np.degrees(np.arctan2(y, x)) == pytest.approx(warp.degrees)
        assert np.linalg.det(warp.matrix) == pytest.approx(-1 if warp.flipped else 1)
        flips.append(warp.flipped)
    assert 10 < sum(flips) < 40


def test_shape_perturbation_leaves_a_face_without_points() -> None:
    """Would catch a NaN map of a face that has no annotated point."""
    augment = ShapePerturbation(0.5, 0.2, 0.25, 20.0, [])
    assert augment.draw(np.random.default_rng(0), SIZE, np.full((3, 2), np.nan)) is UNCHANGED
