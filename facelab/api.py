"""Trained methods in Python: :func:`load` opens a run, :meth:`Landmarker.predict` finds landmarks in an array."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np

from facelab.bounds import Device
from facelab.errors import ConfigError, ImageError, RunError
from facelab.faces.crop import BoxSource, Crop
from facelab.faces.geometry import Array
from facelab.faces.image import PhotoArray
from facelab.faces.layouts import Layout
from facelab.files import expand_home
from facelab.inference import landmarks
from facelab.inference.boxes_file import Boxes
from facelab.inference.landmarks import FaceCrops, Photos, PredictedFace, PredictedPhoto
from facelab.inference.write import draw_face
from facelab.runs.build import choose_device
from facelab.runs.checkpoint import build_crop, is_detector, load_run
from facelab.runs.targets import trusting
from lightning_modules.landmark import LandmarkModule

CropChange = Literal["scale", "square", "shift"]
"""Argument of a crop that may differ from that of the training; the others belong to the network."""
NUMPY = (np.generic, np.ndarray)
"""Types of numpy, which a configuration cannot hold."""
BoxesOfImage = Sequence[Sequence[float]] | Array
"""Boxes ``(F, 4)`` x0 y0 x1 y1 of the faces of an image, in pixels of the image."""


class Landmarker:
    """Trained landmark method.

    Args:
        module: the method in evaluation mode, on its device.
        crop: crop around the box of a face.
        image_crop: crop around a whole image of one face.
        checkpoint: file of the weights.

    Attributes:
        layout: meaning of the predicted landmarks.

    Example:
        >>> landmarker = facelab.load("logs/train/runs/STAMP_NAME")  # doctest: +SKIP
        >>> faces = landmarker.predict(image, boxes=[[40, 50, 150, 160]])  # doctest: +SKIP
        >>> faces[0].points  # doctest: +SKIP
    """

    def __init__(self, module: LandmarkModule, crop: Crop, image_crop: Crop, checkpoint: Path) -> None:
        self.module, self.crop, self.image_crop, self.checkpoint = module, crop, image_crop, checkpoint
        self.layout: Layout = module.layout

    @overload
    def predict(
        self, image: Array, boxes: BoxesOfImage | None = None, *, batch_size: int = 32
    ) -> list[PredictedFace]: ...

    @overload
    def predict(
        self, image: Sequence[Array], boxes: Sequence[BoxesOfImage] | None = None, *, batch_size: int = 32
    ) -> list[list[PredictedFace]]: ...

    def predict(self, image: Any, boxes: Any = None, *, batch_size: int = 32) -> Any:
        """Predict the landmarks of all faces of one image or of several.

        Args:
            image: ``(H, W, 3)`` uint8 RGB, or a list of such images of any sizes.
            boxes: boxes ``(F, 4)`` x0 y0 x1 y1 of the faces in pixels of the image, in the coordinates of
                :mod:`facelab.faces.geometry`; for a list of images a list of these. None: each image is one face.
            batch_size: largest number of faces in a forward pass.

        Returns:
            The faces in the order of the boxes: ``points`` ``(N, 2)`` in pixels of the image, ``confidence`` ``(N,)``,
            and ``pose`` ``(3,)`` yaw, pitch, roll in degrees, or None if the method predicts none. For a list of images
            a list of these.

        Raises:
            ImageError: an image is no such array, or a face cannot be cut out; the message names image and face.
            ConfigError: ``batch_size`` is not a whole number, 1 or more.
        """
        single = isinstance(image, np.ndarray)
        if not single and not isinstance(image, list | tuple):
            raise ImageError(f"expected an image as a numpy array, or a list of such images; found {type(image)}")
        if type(batch_size) is not int or batch_size < 1:
            raise ConfigError("batch_size", f"={batch_size} must be a whole number, 1 or more", mounted=True)
        images = [image] if single else list(image)
        every = [None] * len(images) if boxes is None else [boxes] if single else list(boxes)
        if len(every) != len(images):
            raise ImageError(f"{len(images)} images need as many lists of boxes; found {len(every)}")
        cut = [self._cut(f"image {number}", *pair) for number, pair in enumerate(zip(images, every, strict=True))]
        crops = [crop for faces in cut for crop in faces.images]
        predictions = landmarks.predict_crops(self.module, crops, batch_size)
        photos = [landmarks.collect(self.module, "", Path(), faces, predictions) for faces in cut]
        for number, photo in enumerate(photos):
            for skip in photo.skipped:
                raise ImageError(f"image {number}, face {skip.face}: {skip.reason}")
        return photos[0].faces if single else [photo.faces for photo in photos]

    def _cut(self, name: str, image: Array, boxes: BoxesOfImage | None) -> FaceCrops:
        """Crop the faces of an image.

        Raises:
            ImageError: see :meth:`predict`.
        """
        photo = PhotoArray(np.asarray(image), name)
        if boxes is None:
            cut = landmarks.cut_faces(name, photo, None, self.image_crop)
        else:
            try:
                given = np.asarray(boxes, np.float64)
            except (TypeError, ValueError) as error:
                raise ImageError(f"{name}: expected boxes (F, 4), x0 y0 x1 y1 of each face: {error}") from error
            if given.size and (given.ndim != 2 or given.shape[1] != 4):
                raise ImageError(f"{name}: expected boxes (F, 4), x0 y0 x1 y1 of each face; found {given.shape}")
            cut = landmarks.cut_faces(name, photo, list(given.reshape(-1, 4)), self.crop)
        for skip in cut.skipped:
            raise ImageError(f"{name}, face {skip.face}: {skip.reason}")
        return cut

    def predict_photos(
        self, photos: Photos, boxes: Boxes | None, batch_size: int, pool: Executor, *, fractions: bool
    ) -> Iterator[list[PredictedPhoto]]:
        """Predict the landmarks of all faces of photo files; see :func:`facelab.inference.landmarks.predict`."""
        crop = self.image_crop if boxes is None else self.crop
        return landmarks.predict(self.module, crop, photos, boxes, batch_size, pool, fractions=fractions)

    def draw(self, image: Array, faces: Sequence[PredictedFace]) -> Array:
        """Draw landmarks and outlines of faces on a copy of an image ``(H, W, 3)`` uint8 RGB."""
        drawn = image.copy()
        for face in faces:
            draw_face(drawn, face.points, self.layout)
        return drawn


def load(
    path: str | Path,
    *,
    device: Device = "auto",
    crop: Mapping[CropChange, Any] | None = None,
    trust: Sequence[str] = (),
    supplements: Mapping[str, Any] | None = None,
) -> Landmarker:
    """Open a trained landmark method.

    Args:
        path: run folder of train.py or import_weights.py, or a checkpoint file.
        device: ``cpu``, ``cuda``, or ``auto`` for cuda where torch finds a CUDA device.
        crop: arguments of the crop to change, such as ``{"scale": 1.3}`` for boxes that are smaller than those of the
            training.
        trust: packages of your own whose classes the run may build; their code runs.
        supplements: values that the run lacks because its class has gained an argument, such as
            ``{"model.backbone_lr": 0.1}``.

    Raises:
        FacelabError: there is no such run, it cannot be opened here, or a value is invalid.
    """
    with trusting(trust):
        return open_landmarker(path, device, crop or {}, None, supplements or {})


def open_landmarker(
    path: str | Path, device: Device, crop: Mapping[CropChange, Any], paths: Any, supplements: Mapping[str, Any]
) -> Landmarker:
    """Open a trained landmark method for a script; see :func:`load`.

    Args:
        path: see :func:`load`.
        device: see :func:`load`.
        crop: see :func:`load`; None keeps the value of the training.
        paths: the ``paths`` node of the script; None outside of one.
        supplements: see :func:`load`.
    """
    if not isinstance(crop, Mapping) or set(crop) - {*get_args(CropChange)}:
        known = ", ".join(get_args(CropChange))
        raise ConfigError("crop", f"={crop!r}: expected a mapping with the keys {known}", mounted=True)
    if not isinstance(supplements, Mapping):
        raise ConfigError("supplements", f"={supplements!r}: expected a mapping of dotted keys to values", mounted=True)
    changes, supplements = (
        {str(key): value.tolist() if isinstance(value, NUMPY) else value for key, value in given.items()}
        for given in (crop, supplements)
    )
    chosen = choose_device(device)
    run = load_run(expand_home(str(path)), paths, supplements)
    if is_detector(run.cfg):
        raise RunError(f"{run.checkpoint} is a detector, which finds faces and not the landmarks in the crop of a face")
    boxes: tuple[BoxSource, BoxSource] = ("given", "image")
    around_box, around_image = (build_crop(run, box, changes) for box in boxes)
    return Landmarker(run.module.to(chosen), around_box, around_image, run.checkpoint)
