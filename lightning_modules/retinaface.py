"""RetinaFace (Deng et al., CVPR 2020, arXiv 1905.00641), as in biubug6/Pytorch_Retinaface."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from facelab.coders.anchors import AnchorCoder
from facelab.faces.batch import DetectionBatch, Detections
from facelab.faces.detections import Candidates, DetectionRule, Scale
from facelab.faces.search import search_photos
from facelab.networks.official import OfficialLayers
from facelab.networks.retinaface import AnchorPrediction, RetinaFaceHead, match_retinaface_layers
from lightning_modules.detector import DetectorModule


class RetinaFace(DetectorModule[DetectionRule]):
    """Class, box and five landmarks of each anchor of a feature pyramid.

    Args:
        backbone: feature maps of stride 8, 16 and 32, and possibly others.
        head: finished with the backbone's channels and strides and the number of anchors of a cell.
        coder: faces to anchors and back.
        detection: see :class:`DetectorModule`.
        val_scale: scale of the search in the validation, see :class:`DetectionRule`; the other values of the rule are
            those of ``detection``.
        loss: function of prediction and target that returns weighted terms; see :class:`MethodModule`.
        optimizer: see :class:`DetectorModule`.
        scheduler: see :class:`DetectorModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Callable[..., RetinaFaceHead],
        coder: AnchorCoder,
        detection: DetectionRule,
        val_scale: Scale,
        loss: nn.Module | None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        scheduler: Callable[[Optimizer], LRScheduler] | None,
    ) -> None:
        super().__init__(detection, loss, optimizer, scheduler)
        self.val_detection = replace(detection, scale=val_scale)
        self.backbone, self.coder = backbone, coder
        self.head = head(channels=backbone.channels, strides=backbone.strides, anchors=coder.per_cell)

    def official(self) -> OfficialLayers:
        """Return the correspondence of the layers and those of the reference code."""
        return match_retinaface_layers(self.backbone, self.head)

    def forward(self, image: Tensor) -> AnchorPrediction:
        """Predict all anchors of images ``(B, 3, H, W)`` uint8 RGB."""
        prediction: AnchorPrediction = self.head(self.backbone(image))
        return prediction

    def training_step(self, batch: DetectionBatch, batch_index: int) -> Tensor:
        """Compute the sum of the loss terms of a batch of photos or crops of one size."""
        prediction = self(batch.image.contiguous(memory_format=self.memory_format))
        target = self.coder.target(batch, self.coder.anchors(prediction.shapes, batch.image.device))
        return self.total(self.loss(prediction, target), batch)

    def search(self, image: Tensor) -> tuple[Candidates, Tensor]:
        """Find candidates in images of one size; see :data:`facelab.faces.search.SearchOfOneSize`.

        They are at most ``detection.candidates`` of each image, and have at least ``detection.threshold``.
        """
        logits, boxes, points, shapes = self(image.contiguous(memory_format=self.memory_format))
        anchors = self.coder.anchors(shapes, image.device)
        rule = self.detection
        return self.coder.detect(logits, boxes, points, anchors, rule.threshold, rule.candidates)

    def detect(self, image: Tensor, size: Tensor, rule: DetectionRule | None = None) -> Detections:
        """Find the faces in a batch of photos; see :class:`DetectorModule`.

        Threshold and number of candidates are always those of ``detection``.
        """
        return search_photos(self.search, image, size, rule or self.detection)
