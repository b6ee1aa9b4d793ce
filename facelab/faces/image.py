"""Reading photos, and cutting crops out of them."""

import struct
from pathlib import Path
from stat import S_ISREG
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from facelab import MAX_PIXELS
from facelab.errors import ImageError
from facelab.faces.geometry import Array, bounding_box, flip_image, image_box, reduce_image, transform_points

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
Orientation = Literal["shown", "stored"]
"""``shown``: turned as the camera's orientation mark (EXIF) says, as every viewer and label tool shows the photo;
``stored``: as the pixels lie in the file."""
MAX_BYTES = 1 << 30
"""Largest file that is read."""
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow warns over it and refuses twice as many; its own 0.09 are under a phone's


def read_image(path: Path, *, reduce: int = 1, orientation: Orientation = "stored") -> NDArray[np.uint8]:
    """Read a photo as RGB; grey, CMYK and 16-bit files are converted, transparency is left out.

    Args:
        path: a file that OpenCV decodes.
        reduce: 1, 2, 4 or 8: give the photo at 1 / ``reduce`` of its size. A JPEG is decoded so, which is much faster;
            of other files the means of whole squares of pixels are taken.
        orientation: ``stored`` leaves the orientation mark alone; but OpenCV always follows that of a TIFF.

    Returns:
        ``(H, W, 3)`` uint8; of a reduced photo H and W are rounded up.

    Raises:
        ImageError: missing, no file but a pipe or a folder, empty, broken, or over :data:`facelab.MAX_PIXELS`. Not
            every version of OpenCV notices that a JPEG was cut off, and some return half a picture; so a JPEG without
            its end marker is refused here.
    """
    data = _content(path)
    is_jpeg = data.startswith(JPEG_START)
    if is_jpeg and not _is_whole(data):
        raise ImageError(f"{path}: the JPEG was cut off (it has no end marker)")
    # OpenCV would shrink other files to sizes rounded down, by a factor that then is not quite the one asked for.
    decoded = reduce if is_jpeg else 1
    flag = {
        1: cv2.IMREAD_COLOR_RGB,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }[decoded]
    if orientation == "stored":
        flag |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    except cv2.error as error:
        raise ImageError(f"{path}: {error.err}") from error
    if image is None:
        raise ImageError(f"{path}: not an image that can be decoded ({len(data)} bytes)")
    if decoded > 1:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # there is no flag for both
    return np.asarray(_averaged(image, reduce // decoded), np.uint8)


def _kind(path: Path) -> str:
    return "Is a directory" if path.is_dir() else "Is no regular file"


def _content(path: Path) -> bytes:
    """Read a file, if it is one: a pipe would be waited for, and a device never ends."""
    try:
        about = path.stat()
        if not S_ISREG(about.st_mode):
            raise ImageError(f"{path}: {_kind(path)}")
        if about.st_size > MAX_BYTES:
            raise ImageError(f"{path}: a file of {about.st_size / 1e9:.1f} GB; photos up to 1.1 GB are read")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error


def _is_whole(jpeg: bytes) -> bool:
    """Whether the end marker comes after the start of the picture; a preview in the header has an end of its own."""
    place = len(JPEG_START)
    while (place := jpeg.find(0xFF, place)) >= 0:
        marker = jpeg[place : place + 2]
        if marker == JPEG_SCAN:
            return jpeg.rfind(JPEG_END, place) >= 0
        # Any number of bytes FF may stand before a marker; a length, which counts itself, stands behind it.
        place += 1 if marker == b"\xff\xff" else 2 + int.from_bytes(jpeg[place + 2 : place + 4])
    return False


def _averaged(image: Array, factor: int) -> Array:
    """An image ``(H, W, 3)`` at 1 / ``factor`` of its size as :func:`reduce_image` maps it: the means of squares."""
    if factor == 1:
        return image
    height, width = image.shape[:2]
    whole = cv2.copyMakeBorder(image, 0, -height % factor, 0, -width % factor, cv2.BORDER_REPLICATE)
    size = whole.shape[1] // factor, whole.shape[0] // factor
    return cv2.resize(whole, size, interpolation=cv2.INTER_AREA)


def _header(path: Path) -> tuple[tuple[int, int], bytes]:
    """Read width and height of the stored pixels, and the EXIF block."""
    try:
        if not S_ISREG(path.stat().st_mode):
            raise ImageError(f"{path}: {_kind(path)}")
        with Image.open(path) as image:
            size, exif = image.size, image.info.get("exif", b"")
    except ImageError:
        raise
    except Exception as error:  # Pillow refuses odd chunks of a header by exceptions of a dozen kinds
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{path}: {reason}") from error
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(
            f"{path}: {size[0]} x {size[1]} pixels; photos up to {MAX_PIXELS // 10**6} megapixels are read"
        )
    return size, exif if isinstance(exif, bytes) else b""


def has_mark(path: Path) -> bool:
    """Tell whether a photo is shown other than it is stored; a photo that cannot be read is not."""
    try:
        return not np.array_equal(upright(path)[0], np.eye(3))
    except ImageError:
        return False


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of the stored pixels, from the file's header.

    Raises:
        ImageError: missing, not an image, or so large that it may be an attack.
    """
    size, _ = _header(path)
    return size


def upright(path: Path) -> tuple[Array, Array]:
    """How the stored pixels of a photo become the picture that people see: by the camera's orientation mark (EXIF).

    Returns:
        The map from stored to upright pixels, ``(3, 3)`` float64, which moves whole pixels to whole pixels, and the box
        ``(4,)`` of the whole upright photo. The mark of a TIFF is left out, since OpenCV always follows it.

    Raises:
        ImageError: as :func:`image_size`.
    """
    (width, height), exif = _header(path)
    swap = np.eye(3)[[1, 0, 2]]  # x for y
    across, down = flip_image(width), swap @ flip_image(height) @ swap
    matrix = {
        2: across,
        3: across @ down,
        4: down,
        5: swap,
        6: swap @ down,
        7: swap @ across @ down,
        8: swap @ across,
    }.get(_orientation(exif), np.eye(3))
    corners = image_box(width, height).astype(np.float64).reshape(2, 2)
    return matrix, bounding_box(transform_points(matrix, corners))


def _orientation(exif: bytes) -> int:
    """The orientation mark, 1 to 8; 1, as the photo is stored, where there is none or the block is damaged."""
    tags = Image.Exif()
    try:
        tags.load(exif)
        return int(tags.get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, ValueError, TypeError, struct.error):
        return 1


def reduction(path: Path, matrix: Array) -> int:
    """How much smaller a photo may be decoded for a crop: faster, and it avoids aliasing.

    Args:
        path: the photo; only a JPEG can be decoded smaller.
        matrix: ``(3, 3)`` stored pixels to crop pixels.

    Returns:
        1, 2, 4 or 8: the largest that leaves at least one pixel for each pixel of the crop, across and down.
    """
    if path.suffix.lower() not in {".jpg", ".jpeg"}:
        return 1
    shrink = max(_shrink(matrix), 1)
    return max(factor for factor in (1, 2, 4, 8) if factor <= shrink)


def _shrink(matrix: Array) -> float:
    """Pixels of the photo for a pixel of the crop, along that axis of the photo which is shrunk less."""
    return 1 / float(np.hypot(matrix[0, :2], matrix[1, :2]).max())


def warp(image: Array, matrix: Array, size: int, *, reduce: int) -> NDArray[np.uint8]:
    """Cut a crop out of a decoded photo, interpolating once.

    Where it is still more than twice too large, the means of squares of its pixels are taken first: interpolation looks
    at four pixels only and would pass over the others.

    Args:
        image: ``(H, W, 3)`` uint8, decoded at 1 / ``reduce`` of its size.
        matrix: ``(3, 3)`` pixels of the photo at its full size to crop pixels.
        size: side of the crop.
        reduce: see ``image``.

    Returns:
        ``(size, size, 3)`` uint8, black outside the photo.
    """
    to_crop = matrix @ reduce_image(1 / reduce)
    factor = max(int(_shrink(to_crop)), 1)
    if factor > 1:
        image, to_crop = _averaged(image, factor), to_crop @ reduce_image(1 / factor)
    return cv2.warpAffine(image, to_crop[:2], (size, size), flags=cv2.INTER_LINEAR).astype(np.uint8, copy=False)


class CropError(ImageError):
    """A crop that cannot be cut out of a photo which itself can be read."""


class PhotoFile:
    """A photo on disk, out of which crops are cut.

    Args:
        path: the file.
        orientation: which pixels all coordinates mean.
    """

    def __init__(self, path: Path, orientation: Orientation) -> None:
        self.path, self.orientation = path, orientation
        self._decoded: dict[int, Array] = {}  # by how much smaller

    def box(self) -> Array:
        """Return the box ``(4,)`` of the whole photo, from its header.

        Raises:
            ImageError: the header cannot be read.
        """
        return upright(self.path)[1] if self.orientation == "shown" else image_box(*image_size(self.path))

    def cut_out(self, matrix: Array, size: int) -> NDArray[np.uint8]:
        """Cut a crop out, interpolating once.

        The photo is decoded once for each size that crops ask for, however many they are.

        Args:
            matrix: ``(3, 3)`` pixels of the photo to crop pixels.
            size: side of the crop.

        Returns:
            ``(size, size, 3)`` uint8 RGB, black outside the photo.

        Raises:
            ImageError: the file cannot be read whole.
            CropError: nothing of the photo lies in the crop, or a side of it in less than a pixel.
        """
        from_stored = matrix @ upright(self.path)[0] if self.orientation == "shown" else matrix
        if not np.isfinite(from_stored).all():
            raise CropError(f"{self.path}: the crop has no finite place")
        reduce = reduction(self.path, from_stored)
        if reduce not in self._decoded:
            self._decoded[reduce] = read_image(self.path, reduce=reduce)
        image = self._decoded[reduce]
        height, width = (reduce * side for side in image.shape[:2])
        if _shrink(from_stored) > min(width, height):  # else it would be padded to a multiple of that
            raise CropError(f"{self.path}: a face that is {_shrink(from_stored) * size:.3g} pixels large")
        corners = transform_points(np.linalg.inv(from_stored), image_box(size, size).astype(np.float64).reshape(2, 2))
        low, high = corners.min(axis=0), corners.max(axis=0)
        if (high <= -0.5).any() or (low >= (width - 0.5, height - 0.5)).any():
            raise CropError(f"{self.path}: a face that lies outside of the photo of {width} x {height} pixels")
        try:
            return warp(image, from_stored, size, reduce=reduce)
        except cv2.error as error:
            raise CropError(f"{self.path}: {error.err}") from error
