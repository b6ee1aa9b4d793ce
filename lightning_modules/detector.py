"""Base class of the face detectors: validation, test and prediction steps."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, Generic, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from facelab.faces.batch import DetectionBatch, Detections
from facelab.faces.detections import CascadeRule, DetectionRule
from facelab.faces.layouts import FIVE5
from facelab.metrics.detection import Definition, definitions, example
from facelab.metrics.detection_errors import DetectionErrors
from facelab.metrics.detection_table import DetectionTable
from facelab.metrics.wider import ROUNDED
from lightning_modules.method import MethodModule

Rule = TypeVar("Rule", bound=DetectionRule | CascadeRule)
"""Type of the rule by which a method searches a photo."""


class DetectorModule(MethodModule, Generic[Rule]):
    """Base class of the detectors. A method builds its network and overrides :meth:`detect`.

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
        detection: Rule,
        loss: nn.Module | None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        scheduler: Callable[[Optimizer], LRScheduler] | None,
    ) -> None:
        super().__init__(loss, optimizer, scheduler)
        self.detection: Rule = detection
        self.val_detection: Rule = detection

    def collector(self, tags: tuple[str, ...]) -> DetectionErrors:
        """Build the metric that collects the detections of an epoch; see :class:`MethodModule`."""
        return DetectionErrors(tags)

    @abstractmethod
    def detect(self, image: Tensor, size: Tensor, rule: Rule | None = None) -> Detections:
        """Find the faces in a batch of photos.

        Args:
            image: ``(B, 3, H, W)`` uint8 RGB, padded at the right and below.
            size: ``(B, 2)`` height and width of each photo in ``image``; 0 for a photo that could not be read.
            rule: rule of the search; None for ``detection``.
        """

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

    def _measure(self, batch: DetectionBatch, rule: Rule) -> Detections:
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
