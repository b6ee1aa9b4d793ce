"""Tests of photos that are read, and of crops cut out of them: pixels and points keep their relation."""

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from facelab.errors import ImageError
from facelab.faces.crop import Crop
from facelab.faces.geometry import Array, affine_about_centre, flip_image, transform_points
from facelab.faces.image import CropError, PhotoFile, image_size, read_image, reduction, upright, warp

WIDTH, HEIGHT = 1203, 901  # no multiples of 8: at an eighth the last pixels cover 3 and 5
PLACE = (611.7, 415.2)
SIGMA = 18.0


def cut_out(path: Path, matrix: Array, size: int) -> Array:
    """Cut a square crop of the stored pixels of a photo."""
    return PhotoFile(path, "stored").cut_out(matrix, size)


@cache
def photo(ending: str) -> bytes:
    """Encode a photo with a Gaussian spot at PLACE."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    spot = 255 * np.exp(-((x - PLACE[0]) ** 2 + (y - PLACE[1]) ** 2) / (2 * SIGMA**2))
    done, data = cv2.imencode(ending, cv2.merge([spot.astype(np.uint8)] * 3), [cv2.IMWRITE_JPEG_QUALITY, 97])
    assert done
    return data.tobytes()


def centroid(image: Array) -> Array:
    light = image.astype(np.float64).mean(axis=2)
    light[light < 4] = 0  # the noise of JPEG
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(x * light).sum(), (y * light).sum()]) / light.sum()


def picture(width: int = 61, height: int = 41) -> Array:
    """Return a smooth coloured picture, ``(H, W, 3)`` uint8 RGB."""
    coarse = np.random.default_rng(1).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def save(path: Path, image: Array, mode: str = "RGB", **options: Any) -> Path:
    Image.fromarray(image).convert(mode).save(path, **options)
    return path


def exif_with_orientation(tag: int) -> Image.Exif:
    """Return EXIF data with an orientation tag."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = tag
    return exif


# Positions in a crop

INSIDE = [450.0, 300, 750, 560]
OUTSIDE = [400.0, -300, 1500, 700]
WHOLE = [-0.5, -0.5, WIDTH - 0.5, HEIGHT - 0.5]


@pytest.mark.parametrize("ending", [".jpg", ".png"])
@pytest.mark.parametrize("square", [True, False], ids=["square", "stretched"])
@pytest.mark.parametrize(
    ("box", "size", "reduce"),
    [(INSIDE, 256, 1), (INSIDE, 100, 2), (OUTSIDE, 256, 4), (WHOLE, 500, 2), (WHOLE, 200, 4), (WHOLE, 100, 8)],
)
def test_photo_file_cut_out_agrees_with_the_points(
    tmp_path: Path, ending: str, square: bool, box: list[float], size: int, reduce: int
) -> None:
    """Would catch half pixels lost in reduced decoding, in boxes beyond the photo, and in files that are not JPEG."""
    path = tmp_path / f"photo{ending}"
    path.write_bytes(photo(ending))
    crop = Crop(size=size, scale=1.0, square=square, shift=(0.02, -0.03), box="given")
    matrix = crop.matrix(np.array(box))
    if ending == ".jpg" and square:
        assert reduction(path, matrix) == reduce
    np.testing.assert_allclose(
        centroid(cut_out(path, matrix, size)), transform_points(matrix, np.array([PLACE]))[0], atol=0.1
    )


@pytest.mark.parametrize("size", [300, 120, 60])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("degrees", "scale", "shift"), [(25, 1.0, (0.0, 0.0)), (-170, 0.8, (0.0, 0.0)), (5, 1.1, (5.5, -9))]
)
def test_photo_file_cut_out_applies_augmentation_like_the_points(
    tmp_path: Path, size: int, flip: bool, degrees: float, scale: float, shift: tuple[float, float]
) -> None:
    """Would catch an order of the matrices that differs between image and points, at any reduction."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo(".jpg"))
    matrix = Crop(size, 1.0, True, (0.0, 0.0), "given").matrix(np.array([350.0, 200, 900, 700]))
    shift = (shift[0] * size / 100, shift[1] * size / 100)
    matrix = affine_about_centre(size, degrees, scale, shift) @ (flip_image(size) if flip else np.eye(3)) @ matrix
    np.testing.assert_allclose(
        centroid(cut_out(path, matrix, size)), transform_points(matrix, np.array([PLACE]))[0], atol=0.1
    )


def test_photo_file_cut_out_fills_with_black(tmp_path: Path) -> None:
    """Would catch a border that is repeated or flipped, and a crop outside of the photo that does not raise."""
    path = save(tmp_path / "white.png", np.full((40, 40, 3), 255, np.uint8))
    crop = Crop(64, 1.0, False, (0.0, 0.0), "given")
    half = cut_out(path, crop.matrix(np.array([19.5, -0.5, 59.5, 39.5])), 64)
    assert (half[1:-1, :31] == 255).all()
    assert (half[:, 33:] == 0).all()
    with pytest.raises(CropError, match="outside of the photo of 40 x 40 pixels"):
        cut_out(path, crop.matrix(np.array([500.0, 500, 600, 600])), 64)


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_photo_file_cut_out_averages_large_photos(tmp_path: Path, ending: str) -> None:
    """Would catch aliasing: interpolation alone reads 4 of 60 pixels and turns a fine pattern into a coarse one."""
    fine = np.random.default_rng(0).integers(0, 256, (600, 900, 1)).astype(np.uint8)
    path = save(tmp_path / f"fine.{ending}", fine.repeat(3, axis=2))
    small = cut_out(path, Crop(64, 1.0, False, (0.0, 0.0), "given").matrix(np.array([10.0, 10, 810, 510])), 64)
    assert small.std() < fine.std() / 4


def test_reduction_follows_the_less_reduced_side(tmp_path: Path) -> None:
    """Would catch a factor by area: a tall box stretched to a square would be blurred horizontally."""
    tall = Crop(100, 1.0, False, (0.0, 0.0), "given").matrix(np.array([0.0, 0, 150, 600]))
    assert reduction(Path("a.jpg"), tall) == 1
    assert reduction(Path("a.JPG"), affine_about_centre(100, degrees=45, scale=0.24)) == 4
    assert reduction(Path("a.png"), affine_about_centre(100, scale=0.24)) == 1


def test_photo_file_cut_out_handles_a_png_named_jpg(tmp_path: Path) -> None:
    """Would catch trust in the ending: OpenCV rounds the sizes of other files down, 1.5 pixels off in the corner."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo(".png"))
    matrix = Crop(100, 1.0, True, (0.0, 0.0), "given").matrix(np.array(WHOLE))
    assert read_image(path, reduce=8).shape == (113, 151, 3)
    np.testing.assert_allclose(
        centroid(cut_out(path, matrix, 100)), transform_points(matrix, np.array([PLACE]))[0], atol=0.1
    )


# Reading


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("a.png", mode) for mode in ("RGB", "L", "RGBA", "P", "1")),
        *((name, "RGB") for name in ("a.bmp", "a.tif", "a.webp", "a.jpg")),
        *(("a.jpeg", mode) for mode in ("L", "CMYK")),
    ],
)
@pytest.mark.parametrize("reduce", [1, 2, 8])
def test_read_image_returns_rgb_for_every_format(tmp_path: Path, name: str, mode: str, reduce: int) -> None:
    """Would catch red and blue swapped (also in reduced decoding), one or four channels, and sizes rounded down."""
    path = save(tmp_path / name, picture(), mode)
    image = read_image(path, reduce=reduce)
    assert image.dtype == np.uint8
    assert image.shape == (-(-41 // reduce), -(-61 // reduce), 3)
    truth = np.asarray(Image.open(path).convert("RGB")).astype(float)
    if reduce == 1:
        np.testing.assert_allclose(image, truth, atol=3)
    padded = np.pad(truth, ((0, -41 % reduce), (0, -61 % reduce), (0, 0)), mode="edge")
    averages = padded.reshape(image.shape[0], reduce, image.shape[1], reduce, 3).mean(axis=(1, 3))
    assert np.abs(image - averages).mean() < 5  # JPEG keeps colours at half the size
    assert np.abs(image - averages)[-1].mean() < 12


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_read_image_scales_sixteen_bits_to_eight(tmp_path: Path, name: str, channels: int) -> None:
    """Would catch values cut off at 255, which makes a photo white, or read as uint16."""
    image = picture()[..., :channels]
    cv2.imwrite(str(tmp_path / name), (image.astype(np.uint16) * 257)[..., ::-1])
    np.testing.assert_array_equal(read_image(tmp_path / name), np.broadcast_to(image, (*image.shape[:2], 3)))


def big_png(side: int = 100_000) -> bytes:
    """Return a PNG of a few hundred bytes whose header gives ``side`` pixels a side, 10 billion in total by default."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def encoded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, kind, **options)
    return file.getvalue()


def with_preview() -> bytes:
    """Return a JPEG with a complete small JPEG in its header, as cameras write them."""
    return encoded("JPEG", exif=b"Exif\0\0" + encoded("JPEG", quality=20))


FAULTY = {
    "text.jpg": b"These are no pixels.",
    "empty.jpg": b"",
    "start.jpg": b"\xff\xd8",
    "lost.jpg": b"\xff\xd8\xff\xe0\xff\xff",
    "cut.jpg": encoded("JPEG")[:-200],
    "progressive.jpg": encoded("JPEG", progressive=True)[:-20],
    "preview.jpg": with_preview()[:-200],
    "cut.png": encoded("PNG")[:-200],
    "cut.webp": encoded("WEBP")[:-50],
    "cut.bmp": encoded("BMP")[:-200],
    "huge.png": big_png(),
}


@pytest.mark.parametrize("name", FAULTY)
def test_read_image_refuses_a_damaged_file_by_name(tmp_path: Path, name: str) -> None:
    """Would catch half pictures accepted as complete, and errors that do not name the file."""
    (tmp_path / name).write_bytes(FAULTY[name])
    with pytest.raises(ImageError, match=name):
        read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["cut.jpg", "progressive.jpg", "preview.jpg", "start.jpg", "lost.jpg"])
def test_read_image_reports_a_truncated_jpeg(tmp_path: Path, name: str) -> None:
    """Would catch trust in OpenCV versions that return half a picture, and in the end marker of a preview."""
    (tmp_path / name).write_bytes(FAULTY[name])
    with pytest.raises(ImageError, match=f"{name}: the JPEG is truncated"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("read", [read_image, image_size, upright])
def test_image_functions_refuse_a_missing_file_by_name(tmp_path: Path, read: Any) -> None:
    """Would catch an OSError that stops the training."""
    with pytest.raises(ImageError, match=r"gone\.jpg: No such file"):
        read(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["text.jpg", "empty.jpg", "huge.png"])
def test_image_size_refuses_a_header_without_a_size(tmp_path: Path, name: str) -> None:
    """Would catch errors of PIL that are not an OSError, such as the one against decompression bombs."""
    (tmp_path / name).write_bytes(FAULTY[name])
    with pytest.raises(ImageError, match=name):
        image_size(tmp_path / name)


@pytest.mark.parametrize(
    "data",
    [
        encoded("JPEG") + bytes(1000),
        with_preview(),
        encoded("JPEG", progressive=True),
        encoded("JPEG").replace(b"\xff\xdb", b"\xff\xff\xff\xdb", 1),
    ],
    ids=["something behind it", "a preview", "progressive", "padding"],
)
def test_read_image_accepts_unusual_complete_jpegs(tmp_path: Path, data: bytes) -> None:
    """Would catch a check of only the last two bytes, and one that misreads the markers."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    np.testing.assert_allclose(read_image(path), picture(), atol=40)


@pytest.mark.parametrize("mark", range(1, 9))
def test_upright_matrix_moves_the_stored_photo(tmp_path: Path, mark: int) -> None:
    """Would catch a tag that rotates the wrong way, and sets labelled as stored that are read upright."""
    path = save(tmp_path / "photo.png", picture(), exif=exif_with_orientation(mark))
    matrix, box = upright(path)
    stored, shown = read_image(path), read_image(path, orientation="shown")
    np.testing.assert_array_equal(stored, picture())
    assert image_size(path) == (61, 41)
    np.testing.assert_allclose(box, [-0.5, -0.5, shown.shape[1] - 0.5, shown.shape[0] - 0.5])
    moved = cv2.warpAffine(stored, matrix[:2], shown.shape[1::-1])
    np.testing.assert_array_equal(moved, shown)


def test_read_image_reduced_keeps_the_stored_orientation(tmp_path: Path) -> None:
    """Would catch an orientation tag applied only in reduced decoding: width and height would be swapped."""
    path = save(tmp_path / "photo.jpg", picture(), exif=exif_with_orientation(6))
    assert read_image(path, reduce=2).shape == (21, 31, 3)
    assert read_image(path, reduce=2, orientation="shown").shape == (31, 21, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"nonsense"])
def test_upright_ignores_a_damaged_orientation_tag(tmp_path: Path, exif: bytes) -> None:
    """Would catch a photo refused because of damaged metadata although its pixels are complete."""
    path = save(tmp_path / "photo.png", picture(), exif=exif)
    np.testing.assert_array_equal(upright(path)[0], np.eye(3))


def test_warp_agrees_at_every_reduction(tmp_path: Path) -> None:
    """Would catch a matrix of the reduced photo where the matrix of the full photo is needed."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo(".jpg"))
    matrix = Crop(150, 1.0, True, (0.0, 0.0), "given").matrix(np.array(WHOLE))
    expected = transform_points(matrix, np.array([PLACE]))[0]
    for reduce in (1, 2, 4, 8):
        crop = warp(read_image(path, reduce=reduce), matrix, 150, reduce=reduce)
        np.testing.assert_allclose(centroid(crop), expected, atol=0.1)


def test_image_functions_refuse_photos_over_the_size_limit(tmp_path: Path) -> None:
    """Would catch a file of 300 bytes that needs gigabytes, and a phone's 200-megapixel photo that is refused too."""
    path = tmp_path / "a.png"
    path.write_bytes(big_png(20_000))
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match=r"a\.png"):
            read(path)
    path.write_bytes(big_png(14_200))
    assert image_size(path) == (14_200, 14_200)


def test_photo_file_cut_out_limits_its_memory(tmp_path: Path) -> None:
    """Would catch a photo of 20,000 x 5 pixels padded to gigabytes for a box fifty times as large."""
    path = save(tmp_path / "a.png", np.zeros((5, 20_000, 3), np.uint8))
    view = Crop(64, 1.0, False, (0.0, 0.0), "given")
    assert not cut_out(path, view.matrix(np.array([-0.5, -0.5, 19999.5, 4.5])), 64).any()
    with pytest.raises(CropError, match="pixels large"):
        cut_out(path, view.matrix(np.array([-4e5, -4e5, 4e5, 4e5])), 64)
