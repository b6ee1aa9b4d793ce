"""Reading of photos, and cutting of crops from them."""

import struct
from pathlib import Path
from stat import S_ISREG
from typing import Annotated, Any, Literal, TypeAlias

import cv2
import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray
from PIL import ExifTags, Image

from facelab import MAX_PIXELS
from facelab.errors import ImageError
from facelab.faces.geometry import Array, bounding_box, flip_image, image_box, reduce_image, transform_points

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
"""JPEG markers: start of the image, start of a scan (the compressed pixels), end of the image."""
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
"""Endings of the image files that are read, in lower case."""
Orientation = Literal["shown", "stored"]
"""Orientation in which the coordinates are pixels. ``shown``: the photo rotated by the orientation tag of the camera
(EXIF), as every viewer and label tool shows it; ``stored``: the pixels as stored in the file."""
Interpolation = Literal["linear", "cubic", "nearest", "lanczos"]
"""Interpolation of a crop between the pixels of the photo."""
INTERPOLATIONS: dict[Interpolation, int] = {
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "nearest": cv2.INTER_NEAREST,
    "lanczos": cv2.INTER_LANCZOS4,
}
"""OpenCV's constants of the interpolations."""
Level: TypeAlias = Annotated[int, Interval(ge=0, le=255)]
"""Brightness of a channel."""
Colour: TypeAlias = tuple[Level, Level, Level]
"""Red, green and blue, 0 to 255."""
BLACK: Colour = (0, 0, 0)
"""Colour of a crop outside of the photo, unless another is chosen."""
MAX_BYTES = 1 << 30
"""Size of the largest file that is read, in bytes."""
# Pillow warns above this limit and raises above twice the limit. Its default, 90 megapixels, is too low for
# photos of phones.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


def read_image(path: Path, *, reduce: int = 1, orientation: Orientation = "stored") -> NDArray[np.uint8]:
    """Read a photo as RGB; grey, CMYK and 16-bit files are converted, transparency is dropped.

    Args:
        path: a file that OpenCV decodes.
        reduce: 1, 2, 4 or 8: return the photo at 1 / ``reduce`` of its size. A JPEG is decoded at this size, which is
            much faster; other files are averaged over squares of pixels.
        orientation: ``stored`` ignores the orientation tag, except for a TIFF, whose tag OpenCV always applies.

    Returns:
        ``(H, W, 3)`` uint8; H and W of a reduced photo are rounded up.

    Raises:
        ImageError: the file is missing, not a regular file, empty, broken, or larger than :data:`facelab.MAX_PIXELS`.
            Also a JPEG without its end marker, since some versions of OpenCV return half of a truncated image without
            an error.
    """
    data = _content(path)
    is_jpeg = data.startswith(JPEG_START)
    if is_jpeg and not _has_end(data):
        raise ImageError(f"{path}: the JPEG is truncated (it has no end marker)")
    # OpenCV rounds the reduced size of other files down, so their factor would differ slightly from ``reduce``.
    decoder_factor = reduce if is_jpeg else 1
    flag = {
        1: cv2.IMREAD_COLOR_RGB,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }[decoder_factor]
    if orientation == "stored":
        flag |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    except cv2.error as error:
        raise ImageError(f"{path}: {error.err}") from error
    if image is None:
        raise ImageError(f"{path}: OpenCV cannot decode it as an image ({len(data)} bytes)")
    if decoder_factor > 1:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # no flag combines reduction with RGB
    return np.asarray(_average_squares(image, reduce // decoder_factor), np.uint8)


def _irregular(path: Path) -> str:
    """Describe a path that is not a regular file, for an error message."""
    return "Is a directory" if path.is_dir() else "Is not a regular file"


def _content(path: Path) -> bytes:
    """Read a regular file; reading a pipe could block, and reading a device could never end."""
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):
            raise ImageError(f"{path}: {_irregular(path)}")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{path}: the file has {status.st_size / 1e9:.1f} GB; the largest allowed is 1.1 GB")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error


def _has_end(jpeg: bytes) -> bool:
    """Return whether a JPEG has an end marker after its first scan; a preview in the header has its own end marker."""
    position = len(JPEG_START)
    while (position := jpeg.find(0xFF, position)) >= 0:
        marker = jpeg[position : position + 2]
        if marker == JPEG_SCAN:
            return jpeg.rfind(JPEG_END, position) >= 0
        # Any number of bytes FF may precede a marker; the two bytes after it are a length that includes them.
        position += 1 if marker == b"\xff\xff" else 2 + int.from_bytes(jpeg[position + 2 : position + 4])
    return False


def _average_squares(image: Array, factor: int) -> Array:
    """Reduce an image ``(H, W, 3)`` to 1 / ``factor`` of its size by means of squares; see :func:`reduce_image`."""
    if factor == 1:
        return image
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, 0, -height % factor, 0, -width % factor, cv2.BORDER_REPLICATE)
    size = padded.shape[1] // factor, padded.shape[0] // factor
    return cv2.resize(padded, size, interpolation=cv2.INTER_AREA)


def _header(path: Path) -> tuple[tuple[int, int], bytes]:
    """Read width and height of the stored image, and its EXIF block."""
    try:
        if not S_ISREG(path.stat().st_mode):
            raise ImageError(f"{path}: {_irregular(path)}")
        with Image.open(path) as image:
            size, exif = image.size, image.info.get("exif", b"")
    except ImageError:
        raise
    except Exception as error:  # Pillow raises many types of exceptions for malformed headers
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{path}: {reason}") from error
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(
            f"{path}: {size[0]} x {size[1]} pixels; the largest allowed is {MAX_PIXELS // 10**6} megapixels"
        )
    return size, exif if isinstance(exif, bytes) else b""


def is_rotated_by_tag(path: Path) -> bool:
    """Return whether the orientation tag changes how a photo is shown; False if the photo cannot be read."""
    try:
        return not np.array_equal(upright(path)[0], np.eye(3))
    except ImageError:
        return False


def image_size(path: Path) -> tuple[int, int]:
    """Read width and height of the stored image from the header of its file.

    Raises:
        ImageError: the file is missing, not an image, or too large (possibly a decompression bomb).
    """
    size, _ = _header(path)
    return size


def upright(path: Path) -> tuple[Array, Array]:
    """Compute the map from the stored pixels of a photo to the upright photo, by the orientation tag (EXIF).

    Returns:
        The map from stored to upright pixels, ``(3, 3)`` float64, which maps whole pixels to whole pixels, and the box
        ``(4,)`` of the whole upright photo. The tag of a TIFF is ignored, since OpenCV always applies it.

    Raises:
        ImageError: as :func:`image_size`.
    """
    (width, height), exif = _header(path)
    swap = np.eye(3)[[1, 0, 2]]  # exchanges x and y
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
    """Read the orientation tag, 1 to 8; 1 (as stored) if it is missing or the EXIF block is damaged."""
    tags = Image.Exif()
    try:
        tags.load(exif)
        return int(tags.get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, ValueError, TypeError, struct.error):
        return 1


def reduction(path: Path, matrix: Array) -> int:
    """Choose the factor by which a photo is reduced while it is decoded for a crop, for speed and against aliasing.

    Args:
        path: the photo; only a JPEG can be reduced by the decoder.
        matrix: ``(3, 3)`` map from stored pixels to crop pixels.

    Returns:
        1, 2, 4 or 8: the largest factor that keeps at least one pixel per pixel of the crop in both directions.
    """
    if path.suffix.lower() not in {".jpg", ".jpeg"}:
        return 1
    shrink = max(_shrink(matrix), 1)
    return max(factor for factor in (1, 2, 4, 8) if factor <= shrink)


def _shrink(matrix: Array) -> float:
    """Compute the photo pixels per crop pixel, along the axis of the photo that is reduced less."""
    return 1 / float(np.hypot(matrix[0, :2], matrix[1, :2]).max())


def warp(
    image: Array,
    matrix: Array,
    size: int,
    *,
    reduce: int,
    interpolation: Interpolation = "linear",
    border: Colour = BLACK,
) -> NDArray[np.uint8]:
    """Cut a crop from a decoded photo with a single interpolation.

    An image with at least two pixels per crop pixel is averaged over squares first: bilinear interpolation reads only
    four pixels and would skip the others.

    Args:
        image: ``(H, W, 3)`` uint8, the photo at 1 / ``reduce`` of its size.
        matrix: ``(3, 3)`` map from pixels of the photo at full size to crop pixels.
        size: side of the crop in pixels.
        reduce: factor by which ``image`` was reduced.
        interpolation: between the pixels of the image.
        border: colour outside the photo.

    Returns:
        ``(size, size, 3)`` uint8.
    """
    to_crop = matrix @ reduce_image(1 / reduce)
    factor = max(int(_shrink(to_crop)), 1)
    if factor > 1:
        image, to_crop = _average_squares(image, factor), to_crop @ reduce_image(1 / factor)
    flags = INTERPOLATIONS[interpolation]
    crop = cv2.warpAffine(image, to_crop[:2], (size, size), flags=flags, borderValue=tuple(border))
    return crop.astype(np.uint8, copy=False)


def cut_rectangle(image: Array, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
    """Cut whole pixels from an image, without interpolation; see :meth:`PhotoFile.rectangle`."""
    return _cut_pixels(image, np.array([[1.0, 0, -x0], [0, 1, -y0], [0, 0, 1]]), (x1 - x0, y1 - y0))


def _cut_pixels(image: Array, matrix: Array, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Map whole pixels to whole pixels, black outside the image ``(H, W, 3)``."""
    return cv2.warpAffine(image, matrix[:2], size, flags=cv2.INTER_NEAREST).astype(np.uint8, copy=False)


def rgb_image(image: Any, name: str) -> NDArray[np.uint8]:
    """Return an image in memory as an array.

    Raises:
        ImageError: it is not ``(H, W, 3)`` uint8, or has no pixel; the message begins with ``name``.
    """
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ImageError(
            f"{name}: expected an RGB image (height, width, 3) of uint8, found {array.shape} of {array.dtype}"
        )
    return array


class CropError(ImageError):
    """Crop that cannot be cut from a readable photo."""


class PhotoFile:
    """Photo on disk from which crops are cut.

    Args:
        path: the file.
        orientation: orientation in which all coordinates are pixels.
    """

    def __init__(self, path: Path, orientation: Orientation) -> None:
        self.path, self.orientation = path, orientation
        self._decoded: dict[int, Array] = {}  # reduction factor -> image

    def box(self) -> Array:
        """Read the box ``(4,)`` of the whole photo from its header.

        Raises:
            ImageError: the header cannot be read.
        """
        return upright(self.path)[1] if self.orientation == "shown" else image_box(*image_size(self.path))

    def cut_out(
        self, matrix: Array, size: int, *, interpolation: Interpolation = "linear", border: Colour = BLACK
    ) -> NDArray[np.uint8]:
        """Cut a crop from the photo with a single interpolation.

        The photo is decoded once per reduction factor, for any number of crops.

        Args:
            matrix: ``(3, 3)`` map from pixels of the photo to crop pixels.
            size: side of the crop in pixels.
            interpolation: between the pixels of the photo.
            border: colour outside the photo.

        Returns:
            ``(size, size, 3)`` uint8 RGB.

        Raises:
            ImageError: the file cannot be read completely.
            CropError: the crop and the photo do not overlap, or a side of the photo is smaller than a crop pixel.
        """
        from_stored = self._from_stored(matrix)
        if not np.isfinite(from_stored).all():
            raise CropError(f"{self.path}: the position of the crop is not finite")
        reduce = self._reduction(from_stored)
        image = self._read(reduce)
        height, width = (reduce * side for side in image.shape[:2])
        if _shrink(from_stored) > min(width, height):  # averaging would pad a side to this number of pixels
            raise CropError(
                f"{self.path}: the face is {_shrink(from_stored) * size:.3g} pixels large, too large for the photo"
            )
        self._check_overlap(from_stored, (size, size), (width, height))
        try:
            return warp(image, from_stored, size, reduce=reduce, interpolation=interpolation, border=border)
        except cv2.error as error:
            raise CropError(f"{self.path}: {error.err}") from error

    def rectangle(self, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
        """Cut whole pixels from the photo, without interpolation.

        Args:
            x0: first column.
            y0: first row.
            x1: column behind the last.
            y1: row behind the last.

        Returns:
            ``(y1 - y0, x1 - x0, 3)`` uint8 RGB, black outside the photo.

        Raises:
            ImageError: the file cannot be read completely.
            CropError: the rectangle and the photo do not overlap, or it is larger than :data:`facelab.MAX_PIXELS`.
        """
        size = x1 - x0, y1 - y0
        if size[0] * size[1] > MAX_PIXELS:
            raise CropError(f"{self.path}: the face is {size[0]} x {size[1]} pixels large, too large for the photo")
        from_stored = self._from_stored(np.array([[1.0, 0, -x0], [0, 1, -y0], [0, 0, 1]]))
        image = self._read(1)
        self._check_overlap(from_stored, size, image.shape[1::-1])
        try:
            return _cut_pixels(image, from_stored, size)
        except cv2.error as error:
            raise CropError(f"{self.path}: {error.err}") from error

    def _from_stored(self, matrix: Array) -> Array:
        """Return the same map from pixels of the stored photo."""
        return matrix @ upright(self.path)[0] if self.orientation == "shown" else matrix

    def _reduction(self, matrix: Array) -> int:
        """Choose the factor by which the photo is reduced while it is decoded; see :func:`reduction`."""
        return reduction(self.path, matrix)

    def _read(self, reduce: int) -> Array:
        """Read the photo at 1 / ``reduce`` of its size, once."""
        if reduce not in self._decoded:
            self._decoded[reduce] = read_image(self.path, reduce=reduce)
        return self._decoded[reduce]

    def _check_overlap(self, from_stored: Array, crop: tuple[int, int], photo: tuple[int, ...]) -> None:
        """Raise CropError if a crop and the stored photo, both width and height in pixels, do not overlap."""
        width, height = photo
        corners = transform_points(np.linalg.inv(from_stored), image_box(*crop).astype(np.float64).reshape(2, 2))
        low, high = corners.min(axis=0), corners.max(axis=0)
        photo_low, photo_high = image_box(width, height).reshape(2, 2)
        if (high <= photo_low).any() or (low >= photo_high).any():
            raise CropError(f"{self.path}: the face is outside of the photo of {width} x {height} pixels")


class PhotoArray(PhotoFile):
    """Photo in memory from which crops are cut.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        name: name of the photo in error messages.

    Raises:
        ImageError: ``image`` is not such an array, or has no pixel.
    """

    def __init__(self, image: Array, name: str) -> None:
        super().__init__(Path(name), "stored")
        self._decoded[1] = np.ascontiguousarray(rgb_image(image, name))

    def box(self) -> Array:
        """Return the box ``(4,)`` of the whole image."""
        height, width = self._decoded[1].shape[:2]
        return image_box(width, height)

    def _reduction(self, matrix: Array) -> int:
        """Return 1: the image is decoded."""
        return 1
