"""Reading photos."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


class FaultyImage(ValueError):
    """A file that cannot be read as a whole image."""


def read_image(path: Path, *, reduce: int = 1, upright: bool = False) -> NDArray[np.uint8]:
    """Read a photo as RGB; grey, RGBA and 16-bit files are converted.

    Args:
        path: a file that OpenCV decodes.
        reduce: 1, 2, 4 or 8: decode a JPEG at this fraction of its size, which is much faster.
        upright: follow the camera's orientation mark (EXIF). Datasets are annotated on the stored pixels, so their
            photos are read without; a user's photos are shown upright everywhere else, so ``predict.py`` reads with.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        FaultyImage: missing, empty or broken. OpenCV returns half a picture for a JPEG that was cut off; a JPEG
            without its end marker is refused instead.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FaultyImage(f"{path}: {error.strerror}") from error
    if data.startswith(JPEG_START) and data.rfind(JPEG_END) < 0:
        raise FaultyImage(f"{path}: the JPEG was cut off (it has no end marker)")
    flag = {
        1: cv2.IMREAD_COLOR_RGB,
        2: cv2.IMREAD_REDUCED_COLOR_2,
        4: cv2.IMREAD_REDUCED_COLOR_4,
        8: cv2.IMREAD_REDUCED_COLOR_8,
    }[reduce]
    if not upright:
        flag |= cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    if image is None:
        raise FaultyImage(f"{path}: not an image that can be decoded ({len(data)} bytes)")
    return image if reduce == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of the stored pixels, from the file's header.

    Raises:
        FaultyImage: missing or not an image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, UnidentifiedImageError) as error:
        raise FaultyImage(f"{path}: {error}") from error
