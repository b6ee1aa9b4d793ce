"""Base class of the face detectors: validation, test and prediction steps, search of a photo."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from facelab.faces.batch import DetectionBatch, Detections
from facelab.faces.detections import (
    Candidates,
    DetectionRule,
    concatenate,
    first_of_each,
    order,
    resize,
    suppress,
    vote,
)
from facelab.faces.geometry import box_to_image, flip_image, image_box, transform_points
from facelab.faces.layouts import FIVE5
from facelab.metrics.detection import Definition, definitions, example
from facelab.metrics.detection_errors import DetectionErrors
from facelab.metrics.detection_table import DetectionTable
from facelab.metrics.wider import ROUNDED
from lightning_modules.method import MethodModule


class DetectorModule(MethodModule):
    """Base class of the detectors. A method builds its network and overrides :meth:`search`.

    Args:
        detection: rule of the search.
        loss: see :class:`MethodModule`.
        optimizer: see :class:`MethodModule`.
        scheduler: see :class:`MethodModule`.

    Attributes:
        val_detection: rule of the search in the validation; here that of ``detection``.
        table: detections and faces of the last validation or test.
        wider_rounded: whether the AP of WIDER FACE rounds as its Matlab code; ``evaluate.py`` sets it.
    """

    in_progress_bar = "ap50"  # also the metric that detectors monitor
    layout = FIVE5
    wider_rounded = False
    table: DetectionTable

    def __init__(
        self,
        detection: DetectionRule,
        loss: nn.Module | None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        scheduler: Callable[[Optimizer], LRScheduler] | None,
    ) -> None:
        super().__init__(loss, optimizer, scheduler)
        self.detection = self.val_detection = detection

    def setup(self, stage: str) -> None:
        """Create the metric. Prediction does not need it."""
        if stage != "predict":
            self.errors = DetectionErrors(self.trainer.datamodule.data.tags)  # type: ignore[attr-defined]

    @abstractmethod
    def search(self, image: Tensor) -> tuple[Candidates, Tensor]:
        """Find candidates in images of one size, before the suppression.

        Args:
            image: ``(B, 3, H, W)`` uint8 RGB.

        Returns:
            At most ``detection.candidates`` of each image with at least ``detection.threshold``, in pixels of the
            image; and the images ``(I,)`` in which the limit left out some.
        """

    def detect(self, image: Tensor, size: Tensor, rule: DetectionRule | None = None) -> Detections:
        """Find the faces in a batch of photos.

        Photos of one size are searched together, without the padding of the batch. The result is therefore that of
        each photo alone.

        Args:
            image: ``(B, 3, H, W)`` uint8 RGB, padded at the right and below.
            size: ``(B, 2)`` height and width of each photo in ``image``; 0 for a photo that could not be read.
            rule: rule of the search; None for ``detection``. Threshold and number of candidates are always those of
                ``detection``.
        """
        rule = rule or self.detection
        cut_photos = torch.zeros(len(image), dtype=torch.bool, device=image.device)
        parts = [Candidates(*(torch.empty(0, *shape, device=image.device) for shape in ((4,), (), (5, 2), ())))]
        parts[0] = parts[0]._replace(photo=parts[0].photo.long())
        for height, width in sorted({(int(height), int(width)) for height, width in size.tolist()}):
            if height * width == 0:  # the photo could not be read
                continue
            rows = (size == size.new_tensor([height, width])).all(dim=1).nonzero().squeeze(1)
            same = image[rows, :, :height, :width]
            for new_height, new_width, flipped in rule.searches(height, width):
                found, cut = self._search_resized(same, new_height, new_width, flipped=flipped)
                cut_photos[rows[cut]] = True
                parts.append(found._replace(photo=rows[found.photo]))
        found = concatenate(parts)
        found = found.take(order(found.photo, found.scores))
        found = (vote if rule.votes else suppress)(found, rule)
        found = found.take(order(found.photo, found.scores))
        kept = first_of_each(found.photo, rule.most)
        cut_photos[found.photo[~kept]] = True
        return Detections(*found.take(kept), cut_photos)

    def _search_resized(self, image: Tensor, height: int, width: int, *, flipped: bool) -> tuple[Candidates, Tensor]:
        """Search resized images; return the candidates in pixels of ``image``."""
        resized = resize(image, height, width).contiguous(memory_format=self.memory_format)
        found, cut = self.search(resized.flip(-1) if flipped else resized)
        back = box_to_image(image_box(width, height), image.shape[-1], image.shape[-2])
        if flipped:
            back = back @ flip_image(width)
        if (height, width) == image.shape[-2:] and not flipped:
            return found, cut
        matrix = torch.as_tensor(back, dtype=torch.float32, device=image.device)
        corners = transform_points(matrix, found.boxes.unflatten(-1, (2, 2)))
        points = transform_points(matrix, found.points)
        if flipped:
            corners = torch.stack([corners.amin(dim=-2), corners.amax(dim=-2)], dim=-2)
            points = points[:, list(self.layout.flip)]
        return found._replace(boxes=corners.flatten(-2), points=points), cut

    def validation_step(  # type: ignore[override]
        self, batch: DetectionBatch, batch_index: int
    ) -> Detections:
        """Find the faces of a batch and update the metric. Callbacks use the returned detections."""
        return self._measure(batch, self.val_detection)

    def test_step(  # type: ignore[override]
        self, batch: DetectionBatch, batch_index: int
    ) -> Detections:
        """Find the faces of a batch and update the metric, see :meth:`validation_step`."""
        return self._measure(batch, self.detection)

    def _measure(self, batch: DetectionBatch, rule: DetectionRule) -> Detections:
        """Find the faces of a batch and update the metric."""
        detections = self.detect(batch.image, batch.size, rule)
        self.errors.update(detections, batch)
        return detections

    def example(self, tags: tuple[str, ...]) -> DetectionTable:
        """Build a table of one photo for the names of the metrics; see :class:`MethodModule`."""
        return example(tags)

    def metrics(self, table: DetectionTable) -> dict[str, Definition]:
        """Define the metrics of a table by name."""
        return definitions(table, wider_rounded=self.wider_rounded)

    def protocol(self) -> dict[str, Any]:
        """Return the settings of the method that must be equal for two results to be comparable."""
        return {**asdict(self.detection), **({"wider": ROUNDED} if self.wider_rounded else {})}

    def predict_step(self, batch: DetectionBatch, batch_index: int) -> Detections:
        """Find the faces of a batch, in pixels of its images."""
        return self.detect(batch.image, batch.size)
