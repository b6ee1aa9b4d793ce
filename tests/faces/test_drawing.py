"""Tests of landmarks drawn on faces, and of grids of faces."""

import numpy as np
import pytest

from facelab.faces.drawing import PREDICTION, TRUTH, draw_detections, draw_landmarks, grid, photo_tile, tile
from facelab.faces.geometry import Array
from facelab.faces.layouts import Layout

NAN = np.nan
THREE = Layout(
    name="three",
    num_points=3,
    flip=(1, 0, 2),
    eye_corners=(0, 1),
    regions={"eyes": ((0, 1),), "chin": ((2,),)},
)
WHITE = (255, 255, 255)


def black(height: int = 60, width: int = 80) -> Array:
    return np.zeros((height, width, 3), np.uint8)


def centroid(image: Array) -> Array:
    light = image.astype(np.float64).sum(axis=2)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(x * light).sum(), (y * light).sum()]) / light.sum()


@pytest.mark.parametrize("place", [(20.0, 30.0), (20.25, 30.5), (41.75, 11.3)])
def test_draw_landmarks_keeps_sub_pixel_positions(place: tuple[float, float]) -> None:
    """Would catch points rounded to whole pixels, x and y swapped, and an offset of half a pixel."""
    points = np.array([[NAN, NAN], [NAN, NAN], place])
    drawn = draw_landmarks(black(), points, THREE, WHITE, lines=True)
    np.testing.assert_allclose(centroid(drawn), place, atol=0.2)


def test_draw_landmarks_copies_its_image() -> None:
    """Would catch a batch that is changed before the next callback reads it, and views that OpenCV refuses."""
    image = black(60, 80)[:, ::-1]
    drawn = draw_landmarks(image, np.array([[9.0, 9], [20, 9], [15, 20]]), THREE, WHITE, lines=True)
    assert not image.any()
    assert drawn.any()


def test_draw_landmarks_joins_the_points_of_a_region() -> None:
    """Would catch lines that are always drawn, and lines to a point that is not annotated."""
    points = np.array([[10.0, 10], [70, 10], [40, 50]])
    assert not draw_landmarks(black(), points, THREE, WHITE, lines=False)[8:13, 30:50].any()
    assert draw_landmarks(black(), points, THREE, WHITE, lines=True)[8:13, 30:50].any(axis=(0, 2)).all()
    points[1] = NAN
    assert not draw_landmarks(black(), points, THREE, WHITE, lines=True)[8:13, 30:50].any()


@pytest.mark.parametrize(("side", "thickness"), [(100, 1), (800, 2), (2400, 6)])
def test_draw_landmarks_scales_line_thickness(side: int, thickness: int) -> None:
    """Would catch outlines that cannot be seen on a large photo."""
    points = np.array([[0.1 * side, 0.5 * side], [0.9 * side, 0.5 * side], [NAN, NAN]])
    drawn = draw_landmarks(black(side, side), points, THREE, WHITE, lines=True)
    assert (drawn[:, side // 2, 0] > 127).sum() == pytest.approx(thickness, abs=1)


@pytest.mark.parametrize("place", [NAN, np.inf, 1e12, -4e9])
def test_draw_landmarks_skips_non_finite_and_huge_points(place: float) -> None:
    """Would catch an overflow in OpenCV's fixed-point numbers: a diverged network predicts such points."""
    points = np.array([[place, 10], [place, place], [40, 50]])
    drawn = draw_landmarks(black(), points, THREE, WHITE, lines=True)
    np.testing.assert_allclose(centroid(drawn), [40, 50], atol=0.2)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 48), (30, 100)])
def test_tile_scales_image_and_points_alike(height: int, width: int) -> None:
    """Would catch points scaled from pixel centres while the image is scaled from its edges, and swapped colours."""
    place, side = np.array([[20.0, 12.0]]), 240
    spot = np.zeros((height, width, 3), np.uint8)
    spot[11:14, 19:22] = (0, 0, 255)
    points = np.concatenate([place, np.full((2, 2), NAN)])
    plain = tile(spot, THREE, side=side, truth=None, prediction=None, caption="")
    assert plain.shape == (side, side, 3)
    for names, colour in (
        ({"truth": points, "prediction": None}, TRUTH),
        ({"truth": None, "prediction": points}, PREDICTION),
    ):
        picture = tile(np.zeros_like(spot), THREE, side=side, caption="", **names)
        np.testing.assert_allclose(centroid(picture), centroid(plain), atol=0.6)
        assert (picture == colour).all(axis=2).any()


def test_tile_writes_the_caption() -> None:
    """Would catch a caption outside of the tile."""
    assert tile(black(64, 64), THREE, side=192, truth=None, prediction=None, caption="3.2 %")[160:].any()


def test_grid_fills_row_by_row() -> None:
    """Would catch columns exchanged with rows, and a last row that does not fit."""
    tiles = [np.full((4, 4, 3), value, np.uint8) for value in (1, 2, 3, 4, 5)]
    picture = grid(tiles, columns=3)
    assert picture.shape == (8, 12, 3)
    assert picture[::4, ::4, 0].tolist() == [[1, 2, 3], [4, 5, 0]]


def test_photo_tile_draws_boxes_in_pixels_of_the_photo() -> None:
    """Would catch boxes that are not resized with the photo, exchanged colours, and points that hide a small face."""
    truth, boxes = np.array([[40.0, 80, 160, 280]]), np.array([[200.0, 80, 320, 280], [340.0, 100, 360, 120]])
    points = np.array([[[230.0, 150], [290, 150], [260, 190], [240, 230], [280, 230]], [[350, 110]] * 5])
    drawn = photo_tile(
        black(300, 400), side=200, truth=truth, boxes=boxes, scores=np.array([0.9, 0.5]), points=points, caption=""
    )
    assert drawn.shape == (200, 200, 3)
    assert not drawn[150:].any()
    for column, colour in ((20, TRUTH), (100, PREDICTION)):
        assert np.abs(drawn[90, column - 1 : column + 1].astype(int).sum(axis=0) - colour).max() < 80
    assert drawn[75, 115].tolist() == list(PREDICTION)  # a point of the large face
    assert not drawn[53:57, 173:177].any()  # inside of the small face


def test_photo_tile_without_faces_and_points() -> None:
    """Would catch a crash for a photo without a face, and for a detector that predicts no points."""
    none = np.empty((0, 4))
    empty = photo_tile(
        black(3, 400), side=50, truth=none, boxes=none, scores=np.empty(0), points=np.empty((0, 5, 2)), caption=""
    )
    assert not empty.any()
    box, points = np.array([[0.0, 0, 300, 300]]), np.full((1, 5, 2), np.nan)
    drawn = photo_tile(black(300, 300), side=50, truth=none, boxes=box, scores=np.ones(1), points=points, caption="x")
    assert drawn.any()


@pytest.mark.parametrize("corner", [(-20.0, -20.0), (100.0, 0.5), (370.0, 150.0), (-20.0, 290.0), (390.0, 5.0)])
def test_draw_detections_keeps_the_score_within_the_image(corner: tuple[float, float]) -> None:
    """Would catch a score that is cut off at the border of the image, as faces often are."""
    sizes = []
    for x, y in (corner, (150.0, 150.0)):
        image = black(300, 400)
        draw_detections(image, np.array([[x, y, x + 40, y + 40]]), np.array([0.5]), np.full((1, 5, 2), NAN))
        sizes.append((image.min(axis=2) > 130).sum())  # white on red
    assert sizes[0] == sizes[1] > 20


def test_draw_detections_draws_points_in_the_size_of_the_face() -> None:
    """Would catch dots of one pixel on a large face, and points that hide a small one."""
    boxes = np.array([[20.0, 20, 220, 220], [300.0, 100, 320, 120]])
    points = np.array([[[120.0, 120]] * 5, [[310.0, 110]] * 5])
    image = black(300, 400)
    draw_detections(image, boxes, np.array([0.9, 0.8]), points)
    assert 7 <= (image[120, 100:140] == PREDICTION).all(axis=1).sum() <= 13
    assert not image[105:115, 305:315].any()


@pytest.mark.parametrize("length", [5, 38, 90])
def test_tile_fits_each_line_of_its_caption(length: int) -> None:
    """Would catch a long name that is cut at the edge of the tile, or lines that cover each other."""
    picture = tile(black(64, 64), THREE, side=240, truth=None, prediction=None, caption=f"12 missed\n{'W' * length}")
    rows, columns = np.nonzero(picture[..., 0] > 100)
    assert columns.max() < 238
    written = np.unique(rows)
    assert (np.diff(written) > 1).sum() == 1  # one gap: two lines


def test_tile_writes_a_long_line_smaller() -> None:
    """Would catch names that differ only at the end, which is cut off."""
    captions = ("12_Group_Large_Group_Large_551", "12_Group_Large_Group_Large_557")
    one, other = (
        tile(black(64, 64), THREE, side=192, truth=None, prediction=None, caption=caption) for caption in captions
    )
    assert (one != other).any()


def test_tile_shortens_a_line_that_could_not_be_read() -> None:
    """Would catch a name in letters of two pixels."""
    pictures = [
        tile(black(64, 64), THREE, side=240, truth=None, prediction=None, caption="W" * length) for length in (60, 90)
    ]
    assert (pictures[0] == pictures[1]).all()
    rows = np.nonzero(pictures[0])[0]
    assert np.ptp(rows) >= 6
