"""Crops that equal those of the public codes, for networks with their published weights."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facelab.errors import ConfigError
from facelab.faces.crop import Crop, ShapeCrop, box_corners
from facelab.faces.geometry import (
    Array,
    affine_about_centre,
    bounding_box,
    box_to_image,
    from_cells,
    image_box,
    transform_points,
)
from facelab.faces.image import CropError, PhotoFile, cut_rectangle

HRNET_UNIT = 200.0
"""Pixels per unit of the scale in the lists of HRNet-Facial-Landmark-Detection."""
HRNET_SHRINK = 2.0
"""Photo pixels per crop pixel from which HRNet-Facial-Landmark-Detection shrinks the photo before it cuts."""

DAN_SHIFT = 0.5
"""Shift in x and y in crop pixels: DeepAlignmentNetwork puts the centroid at half of the side, counted from the centre
of the first pixel."""


class Rectangle(NamedTuple):
    """Part of a photo that a public code cuts out, both corners as x0 y0 x1 y1 in the numbers of that code."""

    labels: Array  # (4,) float64: the labels are divided by its sides
    pixels: Array  # (4,) int64: first column and row, and the column and row behind the last


@dataclass(frozen=True)
class OfficialCrop(Crop, ABC):
    """Base class of crops that equal those of a public code, to run its published weights.

    The public codes cut whole pixels and resize them, without averaging in large photos. They divide a label by the
    sides of the crop and do not add the half pixel between the edge of the first pixel and its centre. The image is
    therefore at least half a photo pixel right of and below the labels. A network that was trained on such crops has
    learned this displacement. The two maps of this class reproduce it.

    PIPNet and PFLD also store the crop as an image file. A JPEG changes its pixels; this step is not reproduced.

    Args:
        first_pixel: number of the top-left pixel in the annotation that the public code reads: 1 for 300W and COFW,
            whose numbers it uses as they are, so that the image is one more pixel right and below; 0 for other sets.
    """

    first_pixel: Literal[0, 1]

    @abstractmethod
    def rectangle(self, box: Array, photo: Array | None) -> Rectangle:
        """Compute the part of the photo that the public code cuts out.

        Args:
            box: ``(4,)`` reference box in the numbers of the annotation, the top-left pixel is :attr:`first_pixel`.
            photo: see :meth:`Crop.matrix`.

        Raises:
            ValueError: the box has no area or is not finite.
            CropError: not one whole pixel of the photo is left.
        """

    def matrix(self, box: Array, photo: Array | None = None) -> Array:
        """Compute the map of landmarks; see :meth:`Crop.matrix`."""
        labels = self._rectangle(box, photo).labels - self.first_pixel
        return box_to_image(labels, self.size, self.size)

    def image_matrix(self, box: Array, photo: Array | None = None) -> Array:
        """Compute the map of the image; see :meth:`Crop.image_matrix`."""
        return _pixels_to_image(self._rectangle(box, photo).pixels, self.size)

    def cut_out(self, file: PhotoFile, box: Array, photo: Array | None = None) -> Array:
        """Cut the crop from a photo; see :meth:`Crop.cut_out`."""
        part = file.rectangle(*self._rectangle(box, photo).pixels.tolist())
        return np.asarray(cv2.resize(part, (self.size, self.size), interpolation=cv2.INTER_LINEAR))

    def _rectangle(self, box: Array, photo: Array | None) -> Rectangle:
        """Compute the part of the photo for a box in pixels of this project."""
        return self.rectangle(np.asarray(box, np.float64) + self.first_pixel, photo)


class OfficialPIPNetCrop(OfficialCrop):
    """Crop as jhb86253817/PIPNet prepares it.

    With ``box="points"`` the rule of 300W: the box of the truncated landmarks, enlarged by whole pixels. With another
    box the rule of WFLW, COFW and AFLW: only the pixels are truncated, so that image and labels differ by half a pixel
    to one and a half. Both rules stop at the border of the photo, one pixel before its right and lower edge.

    Raises:
        ConfigError: ``square`` is true.
    """

    needs_photo = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.square:
            raise ConfigError("square", "=true: the official crop of PIPNet is stretched")

    def rectangle(self, box: Array, photo: Array | None) -> Rectangle:
        """Compute the part of the photo; see :meth:`OfficialCrop.rectangle`."""
        corners, more, shift = box_corners(box), np.asarray(self.scale) - 1, np.asarray(self.shift)
        # Number of the last column and row; the code does not cut them out.
        last = np.full(2, np.inf) if photo is None else from_cells(np.asarray(photo, np.float64)[2:], 1)
        if self.box == "points":
            corners = np.trunc(corners)
            sides = corners[1] - corners[0]
            first = corners[0] - np.trunc(more / 2 * sides) + np.trunc(shift * sides)
            first, sides = np.maximum(first, 0), np.trunc(sides * np.asarray(self.scale))
            sides = np.minimum(sides, last - first)
            corners = np.stack([first, first + sides])
        else:
            sides = corners[1] - corners[0]
            low, high = corners[0] - sides * more / 2, corners[1] + sides * more / 2
            corners = np.stack([np.maximum(low + shift * sides, 0), np.minimum(high + shift * sides, last)])
        return _build_rectangle(corners, np.trunc(corners))


class OfficialPFLDCrop(OfficialCrop):
    """Crop as polarisZhao/PFLD-pytorch and Hsintao/pfld_106_face_landmarks prepare it.

    Corners, centre and side of the square are truncated to whole pixels; outside the photo it is black.

    Raises:
        ConfigError: ``square`` is false.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.square:
            raise ConfigError("square", "=false: the official crop of PFLD is square")

    def rectangle(self, box: Array, photo: Array | None) -> Rectangle:
        """Compute the part of the photo; see :meth:`OfficialCrop.rectangle`."""
        first, last = np.trunc(box_corners(box))
        sides = last - first + 1
        centre = np.trunc(first + sides / 2 + np.asarray(self.shift) * sides)
        side = np.trunc((sides * np.asarray(self.scale)).max())
        corner = centre - side // 2
        corners = np.stack([corner, corner + side])
        return _build_rectangle(corners, corners)


class OfficialHRNetCrop(OfficialCrop):
    """Crop as HRNet/HRNet-Facial-Landmark-Detection prepares it.

    With ``box="points"`` the rule of 300W, WFLW and COFW: the box of the landmarks is enlarged to whole pixels first.
    AFLW has ``box="given"``. A crop of two or more photo pixels per crop pixel is cut from a photo that was shrunk by
    that factor. The code resizes by ``scipy.misc.imresize``, which is Pillow's bilinear resize after a contrast stretch
    of the image from its minimum and maximum to 0 and 255. Outside the photo the crop is black.

    Crops of a training with augmentation are not shrunk or stretched; this class is for the evaluation of imported
    weights.

    Raises:
        ConfigError: ``square`` is false.
    """

    needs_photo = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.square:
            raise ConfigError("square", "=false: the official crop of HRNet is square")

    def rectangle(self, box: Array, photo: Array | None) -> Rectangle:
        """Compute the part of the shrunk photo in ``pixels``, of the photo in ``labels``."""
        centre, side = self._square(box)
        shrink = self._shrink(side)
        # The code stores the centre as float32, and truncates after the inverse of its matrix.
        shrunk_centre = (centre.astype(np.float32) / np.float32(shrink)).astype(np.float64)
        shrunk_side = side / shrink
        offset = self.size * (-shrunk_centre / shrunk_side + 0.5)
        to_crop = np.array(
            [[self.size / shrunk_side, 0, offset[0]], [0, self.size / shrunk_side, offset[1]], [0, 0, 1]]
        )
        from_crop = np.linalg.inv(to_crop)
        pixels = [np.trunc((from_crop @ [corner, corner, 1])[:2]) + 1 for corner in (-1, self.size - 1)]
        return _build_rectangle(np.stack([centre - side / 2, centre + side / 2]), np.stack(pixels))

    def image_matrix(self, box: Array, photo: Array | None = None) -> Array:
        """Compute the map of the image; see :meth:`Crop.image_matrix`."""
        matrix = super().image_matrix(box, photo)
        if photo is None or (size := self._shrunk_size(box, photo)) is None:
            return matrix
        return matrix @ box_to_image(photo, *size)

    def cut_out(self, file: PhotoFile, box: Array, photo: Array | None = None) -> Array:
        """Cut the crop from a photo; see :meth:`Crop.cut_out`."""
        rectangle = self._rectangle(box, photo).pixels.tolist()
        whole = file.box() if photo is None else photo
        if size := self._shrunk_size(box, whole):
            width, height = (whole[2:] - whole[:2]).round().astype(int).tolist()
            part = cut_rectangle(_stretched_and_resized(file.rectangle(0, 0, width, height), size), *rectangle)
        else:
            part = file.rectangle(*rectangle)
        return _stretched_and_resized(part, (self.size, self.size))

    def _square(self, box: Array) -> tuple[Array, float]:
        """Compute centre ``(2,)`` and side of the crop in photo pixels, in the numbers of the annotation."""
        corners = box_corners(box)
        if self.box == "points":
            corners = np.stack([np.floor(corners[0]), np.ceil(corners[1])])
        sides = corners[1] - corners[0]
        centre = corners.mean(axis=0) + np.asarray(self.shift) * sides
        # In the order of the code, whose truncations depend on the last bit.
        return centre, float(HRNET_UNIT * ((sides / HRNET_UNIT) * np.asarray(self.scale)).max())

    def _shrink(self, side: float) -> float:
        """Return the factor by which the photo is shrunk before a square is cut out; 1 for none."""
        factor = side / self.size
        return 1.0 if factor < HRNET_SHRINK else factor

    def _shrunk_size(self, box: Array, photo: Array) -> tuple[int, int] | None:
        """Return width and height of the shrunk photo; None if it is not shrunk.

        Raises:
            CropError: the shrunk photo has no pixel.
        """
        shrink = self._shrink(self._square(np.asarray(box, np.float64) + self.first_pixel)[1])
        if shrink == 1:
            return None
        width, height = np.floor((photo[2:] - photo[:2]).round() / shrink).astype(int).tolist()
        if min(width, height) < 1:
            raise CropError(f"the face is {shrink * self.size:.3g} pixels large, too large for the photo")
        return width, height


@dataclass(frozen=True)
class OfficialDANCrop(ShapeCrop):
    """Crop as MarekKowalski/DeepAlignmentNetwork prepares it.

    The photo is grey, the truncated mean of its channels, and interpolated by cubic splines, without averaging in large
    photos; outside it is black. The centroid of the initial shape is half a pixel right of and below the centre of the
    crop.
    """

    def matrix(self, box: Array, photo: Array | None = None) -> Array:
        """Compute the map of landmarks; see :meth:`Crop.matrix`."""
        return affine_about_centre(self.size, shift=(DAN_SHIFT, DAN_SHIFT)) @ super().matrix(box, photo)

    def cut_out(self, file: PhotoFile, box: Array, photo: Array | None = None) -> Array:
        """Cut the crop from a photo; see :meth:`Crop.cut_out`."""
        from scipy import ndimage  # takes a tenth of a second

        from_crop = np.linalg.inv(self.matrix(box, photo))
        whole = file.box() if photo is None else photo
        crop = bounding_box(transform_points(from_crop, image_box(self.size, self.size).reshape(2, 2)))
        if not ((crop[:2] < whole[2:]) & (whole[:2] < crop[2:])).all():
            raise CropError("the crop and the photo do not overlap")
        width, height = (whole[2:] - whole[:2]).round().astype(int).tolist()
        grey = file.rectangle(0, 0, width, height).mean(axis=2).astype(np.uint8)
        # Rows before columns, that is y before x.
        linear, offset = from_crop[1::-1, 1::-1], from_crop[1::-1, 2]
        cut = ndimage.affine_transform(grey, linear, offset, output_shape=(self.size, self.size))
        return np.repeat(cut[..., None], 3, axis=2)


def _build_rectangle(labels: Array, pixels: Array) -> Rectangle:
    """Return a rectangle of whole pixels.

    Raises:
        CropError: it has not one pixel.
    """
    if not (pixels[1] > pixels[0]).all():
        raise CropError("the box leaves not one whole pixel of the photo")
    return Rectangle(labels.ravel(), pixels.ravel().astype(np.int64))


def _pixels_to_image(pixels: Array, size: int) -> Array:
    """Compute the map ``(3, 3)`` of whole pixels ``(4,)`` to an image of ``size`` x ``size`` pixels."""
    edges = from_cells(pixels.reshape(2, 2).astype(np.float64), 1)
    return box_to_image(edges.ravel(), size, size)


def _stretched_and_resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Stretch the contrast of an image to 0..255 and resize it to width and height, as ``scipy.misc.imresize``."""
    low, high = float(image.min()), float(image.max())
    scale = 255 / (high - low or 1)
    stretched = ((image.astype(np.float32) - low) * scale).clip(0, 255) + 0.5
    return np.asarray(Image.fromarray(stretched.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR))
