"""Trained methods in Python: :func:`load` opens a run as a :class:`Landmarker` or a :class:`Detector`."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np

from facelab.bounds import Device
from facelab.errors import ConfigError, ImageError, RunError
from facelab.faces.crop import BoxSource, Crop
from facelab.faces.drawing import draw_detections
from facelab.faces.geometry import Array
from facelab.faces.image import PhotoArray, rgb_image
from facelab.faces.layouts import FIVE5, Layout
from facelab.files import expand_home
from facelab.inference import detections, landmarks
from facelab.inference.boxes_file import Boxes
from facelab.inference.detections import DetectedFace
from facelab.inference.landmarks import FaceCrops, PredictedFace
from facelab.inference.photos import Photos, PredictedPhoto
from facelab.inference.write import draw_face
from facelab.networks.fusion import fuse_normalisations
from facelab.runs.build import choose_device
from facelab.runs.checkpoint import LoadedRun, build_crop, build_rule, is_detector, load_run
from facelab.runs.targets import trusting
from lightning_modules.detector import DetectorModule
from lightning_modules.landmark import LandmarkModule

log = logging.getLogger(__name__)

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
        images, single = _images(image, batch_size)
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
        photo = PhotoArray(image, name)
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
    ) -> Iterator[list[PredictedPhoto[PredictedFace]]]:
        """Predict the landmarks of all faces of photo files; see :func:`facelab.inference.landmarks.predict`."""
        crop = self.image_crop if boxes is None else self.crop
        return landmarks.predict(self.module, crop, photos, boxes, batch_size, pool, fractions=fractions)

    def draw(self, image: Array, faces: Sequence[PredictedFace]) -> Array:
        """Draw landmarks and outlines of faces on a copy of an image ``(H, W, 3)`` uint8 RGB."""
        drawn = image.copy()
        for face in faces:
            draw_face(drawn, face.points, self.layout)
        return drawn


class Detector:
    """Trained face detector.

    Args:
        module: the method in evaluation mode, on its device, with the rule of the search. Its convolutions contain
            their normalisations, so it cannot be trained further.
        checkpoint: file of the weights.

    Attributes:
        layout: meaning of the five points.

    Example:
        >>> detector = facelab.load("logs/import_weights/runs/STAMP_NAME")  # doctest: +SKIP
        >>> faces = detector.predict(image)  # doctest: +SKIP
        >>> faces[0].box, faces[0].score  # doctest: +SKIP
    """

    layout: Layout = FIVE5

    def __init__(self, module: DetectorModule, checkpoint: Path) -> None:
        self.module, self.checkpoint = module, checkpoint

    @overload
    def predict(self, image: Array, *, batch_size: int = 32) -> list[DetectedFace]: ...

    @overload
    def predict(self, image: Sequence[Array], *, batch_size: int = 32) -> list[list[DetectedFace]]: ...

    def predict(self, image: Any, *, batch_size: int = 32) -> Any:
        """Find the faces in one image or in several.

        Args:
            image: ``(H, W, 3)`` uint8 RGB, or a list of such images of any sizes.
            batch_size: largest number of images of one size in a forward pass.

        Returns:
            The faces, highest score first: ``box`` ``(4,)`` and ``points`` ``(5, 2)`` in pixels of the image, in the
            coordinates of :mod:`facelab.faces.geometry`, ``score``, and ``pose`` ``(3,)`` yaw, pitch, roll in degrees,
            estimated from the points. ``points`` and ``pose`` are None from a detector without points, ``pose`` also
            if the points are on a line. For a list of images a list of these. A warning is logged for faces that are
            left out.

        Raises:
            ImageError: an image is no such array, or too large where it is searched; the message names it.
            ConfigError: ``batch_size`` is not a whole number, 1 or more.
        """
        given, single = _images(image, batch_size)
        images = [rgb_image(each, f"image {number}") for number, each in enumerate(given)]
        for number, each in enumerate(images):
            detections.check_searched(self.module.detection, each, f"image {number}")
        found = detections.search(self.module, images, batch_size)
        for number, (_, left_out) in enumerate(found):
            for _, reason in left_out:
                log.warning("image %d: left out: %s", number, reason)
        return found[0].faces if single else [each.faces for each in found]

    def predict_photos(
        self, photos: Photos, batch_size: int, pool: Executor
    ) -> Iterator[list[PredictedPhoto[DetectedFace]]]:
        """Find the faces in photo files; see :func:`facelab.inference.detections.predict`."""
        return detections.predict(self.module, photos, batch_size, pool)

    def draw(self, image: Array, faces: Sequence[DetectedFace]) -> Array:
        """Draw boxes, scores and points of faces on a copy of an image ``(H, W, 3)`` uint8 RGB."""
        drawn = np.ascontiguousarray(image).copy()
        nowhere = np.full((FIVE5.num_points, 2), np.nan)
        draw_detections(
            drawn,
            np.array([face.box for face in faces]).reshape(-1, 4),
            np.array([face.score for face in faces]),
            np.array([nowhere if face.points is None else face.points for face in faces]).reshape(-1, *nowhere.shape),
        )
        return drawn


def _images(image: Any, batch_size: Any) -> tuple[list[Any], bool]:
    """Return what was passed as a list of images, and whether it was one image.

    Raises:
        ImageError: it is neither an array nor a list.
        ConfigError: ``batch_size`` is not a whole number, 1 or more.
    """
    single = isinstance(image, np.ndarray)
    if not single and not isinstance(image, list | tuple):
        raise ImageError(f"expected an image as a numpy array, or a list of such images; found {type(image)}")
    if type(batch_size) is not int or batch_size < 1:
        raise ConfigError("batch_size", f"={batch_size} must be a whole number, 1 or more", mounted=True)
    return [image] if single else list(image), single


def load(
    path: str | Path,
    *,
    device: Device = "auto",
    crop: Mapping[CropChange, Any] | None = None,
    detection: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
    supplements: Mapping[str, Any] | None = None,
) -> Landmarker | Detector:
    """Open a trained landmark method or detector.

    Args:
        path: run folder of train.py or import_weights.py, or a checkpoint file.
        device: ``cpu``, ``cuda``, or ``auto`` for cuda where torch finds a CUDA device.
        crop: arguments of the crop of a landmark method to change, such as ``{"scale": 1.3}`` for boxes that are
            smaller than those of the training.
        detection: arguments of the rule of a detector to change, such as ``{"threshold": 0.3, "scale": "vga"}``. The
            smallest score is :data:`facelab.inference.detections.THRESHOLD` unless it is changed.
        trust: packages of your own whose classes the run may build; their code runs.
        supplements: values that the run lacks because its class has gained an argument, such as
            ``{"model.backbone_lr": 0.1}``.

    Raises:
        FacelabError: there is no such run, it cannot be opened here, or a value is invalid or of the other kind.
    """
    with trusting(trust):
        opened = _open(path, device, None, supplements or {})
        if is_detector(opened.cfg):
            if crop is not None:
                raise ConfigError("crop", f"={crop!r}: {opened.checkpoint} is a detector, which has none", mounted=True)
            return _detector(opened, detection or {})
        if detection is not None:
            problem = f"={detection!r}: {opened.checkpoint} is a landmark method, which has none"
            raise ConfigError("detection", problem, mounted=True)
        return _landmarker(opened, crop or {})


def open_landmarker(
    path: str | Path, device: Device, crop: Mapping[CropChange, Any], paths: Any, supplements: Mapping[str, Any]
) -> Landmarker:
    """Open a trained landmark method for a script; see :func:`load`.

    Args:
        path: see :func:`load`.
        device: see :func:`load`.
        crop: see :func:`load`; None keeps the value of the training.
        paths: the ``paths`` node of the script.
        supplements: see :func:`load`.

    Raises:
        RunError: the run is a detector.
    """
    opened = _open(path, device, paths, supplements)
    if is_detector(opened.cfg):
        raise RunError(
            f"{opened.checkpoint} is a detector, which finds faces and not the landmarks in the crop of a face: "
            f"detector={path}"
        )
    return _landmarker(opened, crop)


def open_detector(
    path: str | Path, device: Device, detection: Mapping[str, Any], paths: Any, supplements: Mapping[str, Any]
) -> Detector:
    """Open a detector for a script; see :func:`open_landmarker`.

    Args:
        path: see :func:`load`.
        device: see :func:`load`.
        detection: see :func:`load`; None keeps the value of the run, and :data:`detections.THRESHOLD`.
        paths: the ``paths`` node of the script.
        supplements: see :func:`load`.

    Raises:
        RunError: the run is a landmark method.
    """
    opened = _open(path, device, paths, supplements)
    if not is_detector(opened.cfg):
        raise RunError(
            f"{opened.checkpoint} is a landmark method, which finds the landmarks of a face whose box is known: "
            f"landmarker={path}"
        )
    return _detector(opened, detection)


def _open(path: str | Path, device: Device, paths: Any, supplements: Mapping[str, Any]) -> LoadedRun:
    """Open a run of either kind on its device."""
    values, chosen = _plain("supplements", supplements, None), choose_device(device)
    run = load_run(expand_home(str(path)), paths, values)
    run.module.to(chosen)
    return run


def _landmarker(run: LoadedRun, crop: Mapping[CropChange, Any]) -> Landmarker:
    """Build the crops of an opened landmark method."""
    changes = _plain("crop", crop, get_args(CropChange))
    boxes: tuple[BoxSource, BoxSource] = ("given", "image")
    around_box, around_image = (build_crop(run, box, changes) for box in boxes)
    return Landmarker(run.module, around_box, around_image, run.checkpoint)


def _detector(run: LoadedRun, detection: Mapping[str, Any]) -> Detector:
    """Change the rule of an opened detector, and prepare its network for inference."""
    known = [field.name for field in fields(run.module.detection)]
    changes = _plain("detection", detection, known)
    # A cascade has one threshold for each stage; those of its rule are meant for pictures already.
    if "threshold" in known and changes.get("threshold") is None:
        changes["threshold"] = detections.THRESHOLD
    run.module.detection = build_rule(run, changes)
    fuse_normalisations(run.module)
    run.module.to(memory_format=run.module.memory_format)
    return Detector(run.module, run.checkpoint)


def _plain(name: str, given: Mapping[Any, Any], known: Sequence[str] | None) -> dict[str, Any]:
    """Convert the values of a mapping from numpy's types; refuse keys that are not known.

    Raises:
        ConfigError: it is no mapping, or has another key.
    """
    keys = f"with the keys {', '.join(known)}" if known else "of dotted keys to values"
    if not isinstance(given, Mapping):
        raise ConfigError(name, f"={given!r}: expected a mapping {keys}", mounted=True)
    for key in given:
        if known and key not in known:
            raise ConfigError(f"{name}.{key}", f"={given[key]}: expected a mapping {keys}", mounted=True)
    return {str(key): value.tolist() if isinstance(value, NUMPY) else value for key, value in given.items()}
