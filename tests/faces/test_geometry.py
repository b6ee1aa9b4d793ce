"""Tests of the coordinates: the first pixel's centre is (0, 0), and images and points use the same matrices."""

import cv2
import numpy as np
import pytest
import torch

from facelab.faces.geometry import (
    Array,
    affine_about_centre,
    bounding_box,
    box_to_image,
    flip_image,
    from_cells,
    image_box,
    reduce_image,
    to_cells,
    transform_points,
)

NAN = np.nan


def blob(width: int, height: int, place: tuple[float, float], sigma: float) -> Array:
    """Return a white Gaussian spot on black, float64 (height, width)."""
    y, x = np.mgrid[:height, :width]
    return 255 * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * sigma**2))


def centroid(image: Array) -> Array:
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(x * image).sum(), (y * image).sum()]) / image.sum()


def test_transform_points_agrees_in_numpy_torch_and_by_hand() -> None:
    """Would catch a transposed matrix, a forgotten offset, and NaN that spreads to other points."""
    matrix = np.array([[2.0, 0.5, 10], [-1, 3, 20], [0, 0, 1]])
    points = np.array([[1.0, 2], [NAN, NAN], [0, 0]])
    expected = np.array([[2 + 1 + 10, -1 + 6 + 20], [NAN, NAN], [10, 20]])
    np.testing.assert_allclose(transform_points(matrix, points), expected)
    np.testing.assert_allclose(transform_points(torch.tensor(matrix), torch.tensor(points)).numpy(), expected)


def test_transform_points_takes_one_matrix_per_row() -> None:
    """Would catch broadcasting of matrices along the points instead of along the batch."""
    matrices = np.stack([affine_about_centre(64, degrees=d) for d in (0, 30, -70)])
    points = np.random.default_rng(0).uniform(0, 64, (3, 5, 2))
    together = transform_points(torch.tensor(matrices), torch.tensor(points)).numpy()
    for matrix, face, moved in zip(matrices, points, together, strict=True):
        np.testing.assert_allclose(moved, transform_points(matrix, face))


@pytest.mark.parametrize(
    "matrix",
    [
        affine_about_centre(64, degrees=30),
        affine_about_centre(64, degrees=-115, scale=0.8),
        affine_about_centre(64, scale=1.7, shift=(-7.3, 4.6)),
        flip_image(64),
        flip_image(64) @ affine_about_centre(64, degrees=20, scale=1.2, shift=(3, 3)),
        box_to_image(np.array([10.2, 5.7, 60.1, 50.3]), 64, 64),
        reduce_image(2),
        reduce_image(1 / 3),
    ],
)
def test_transform_points_agrees_with_warp_affine(matrix: Array) -> None:
    """Would catch a half-pixel difference between the coordinates of the points and those that OpenCV warps by."""
    place = (30.3, 33.8)
    size = 192
    warped = cv2.warpAffine(blob(64, 64, place, sigma=3), matrix[:2], (size, size), flags=cv2.INTER_LINEAR)
    np.testing.assert_allclose(centroid(warped), transform_points(matrix, np.array([place]))[0], atol=0.1)


def test_to_cells_counts_from_the_edge_of_the_first_pixel() -> None:
    """Would catch cells counted from the pixel's centre: points on a border would be in the next cell."""
    pixels = np.array([-0.5, 0.0, 15.5, 31.5])
    np.testing.assert_allclose(to_cells(pixels, 32), [0, 0.5 / 32, 0.5, 1])
    np.testing.assert_allclose(from_cells(to_cells(pixels, 32), 32), pixels)


def test_bounding_box_ignores_missing_points() -> None:
    """Would catch a box that is NaN for one missing point, or all zeros for a face without points."""
    faces = np.array([[[3.0, 9], [NAN, NAN], [1, 11]], [[NAN, NAN]] * 3])
    np.testing.assert_array_equal(bounding_box(faces), [[1, 9, 3, 11], [NAN] * 4])
    assert bounding_box(faces.astype(np.float32)).dtype == np.float32


def test_image_box_maps_to_the_identity() -> None:
    """Would catch an image box that runs from pixel centre to pixel centre, which stretches every letterbox."""
    np.testing.assert_allclose(box_to_image(image_box(37, 20), 37, 20), np.eye(3), atol=1e-12)


def test_box_to_image_maps_edges_to_edges() -> None:
    """Would catch corners mapped to the centres of the corner pixels (align_corners)."""
    matrix = box_to_image(np.array([10.0, 20, 30, 80]), 100, 50)
    np.testing.assert_allclose(transform_points(matrix, np.array([[10.0, 20], [30, 80]])), [[-0.5, -0.5], [99.5, 49.5]])


def test_flip_image_swaps_first_and_last_column() -> None:
    """Would catch a flip about width / 2, which is half a pixel off, and one that is not its own inverse."""
    np.testing.assert_allclose(transform_points(flip_image(10), np.array([[0.0, 3], [9, 4]])), [[9, 3], [0, 4]])
    np.testing.assert_allclose(flip_image(10) @ flip_image(10), np.eye(3))


def test_affine_about_centre_rotates_clockwise() -> None:
    """Would catch the other direction, a centre at size / 2, and a shift that is also rotated or scaled."""
    right_of_centre, centre = np.array([[14.5, 9.5]]), np.array([[9.5, 9.5]])
    np.testing.assert_allclose(
        transform_points(affine_about_centre(20, degrees=90), right_of_centre), [[9.5, 14.5]], atol=1e-9
    )
    changed = affine_about_centre(20, degrees=33, scale=2, shift=(3, -4))
    np.testing.assert_allclose(transform_points(changed, centre), [[12.5, 5.5]])
    assert np.sqrt(np.linalg.det(changed[:2, :2])) == pytest.approx(2)


@pytest.mark.parametrize("factor", [2, 4, 8, 3])
def test_reduce_image_centres_each_reduced_pixel(factor: int) -> None:
    """Would catch a division without the half pixel: at an eighth it moves every point by 3.5 pixels."""
    matrix = reduce_image(factor)
    np.testing.assert_allclose(transform_points(matrix, np.array([[(factor - 1) / 2, -0.5]])), [[0, -0.5]], atol=1e-12)
    np.testing.assert_allclose(reduce_image(1 / factor) @ matrix, np.eye(3), atol=1e-12)
