"""HRNet and other heatmap networks (Wang et al., TPAMI 2020, arXiv 1908.07919)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from facelab.coders.heatmap import HeatmapCoder, Heatmaps
from facelab.errors import ConfigError
from facelab.faces.batch import LandmarkBatch
from facelab.faces.geometry import transform_points
from facelab.faces.layouts import Layout
from facelab.networks.hrnet import HRNetHead, HRNetTrunk, check_size, match_hrnet_layers
from facelab.networks.official import OfficialLayers
from facelab.networks.simple_baseline import SimpleBaselineHead
from lightning_modules.landmark import LandmarkModule, Prediction


class HRNet(LandmarkModule):
    """One heatmap per landmark, of HRNet's trunk or of any other backbone.

    Args:
        layout: layout of the predicted landmarks.
        backbone: pyramid of features.
        head: finished with the backbone's channels and strides, the number of landmarks and the coder's stride.
        coder: landmarks to heatmaps and back.
        loss: between heatmaps; also receives the visible landmarks.
        optimizer: see :class:`LandmarkModule`.
        scheduler: see :class:`LandmarkModule`.
        flip_test: see :class:`LandmarkModule`.
        official_rounding: truncate points to whole pixels of the photo and add 1, as the reference code does. It shifts
            points by half a pixel in the mean. Departure: in the first column and row of 300W, whose annotation begins
            at 1, the result is one pixel larger.

    Raises:
        ConfigError: HRNet's trunk with the head of Simple Baselines.
    """

    def __init__(
        self,
        layout: Layout,
        backbone: nn.Module,
        head: Callable[..., HRNetHead | SimpleBaselineHead],
        coder: HeatmapCoder,
        loss: nn.Module | None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        flip_test: bool,
        official_rounding: bool,
    ) -> None:
        super().__init__(layout, coder, loss, optimizer, scheduler, flip_test)
        self.backbone, self.official_rounding = backbone, official_rounding
        self.head: HRNetHead | SimpleBaselineHead = head(
            channels=backbone.channels, strides=backbone.strides, num_points=layout.num_points, stride=coder.stride
        )
        if isinstance(backbone, HRNetTrunk) and isinstance(self.head, SimpleBaselineHead):
            raise ConfigError(
                "head",
                ": simple_baseline uses the coarsest features alone, so that the finer branches of backbone=hrnet_* "
                "would not be trained; use head=hrnet",
                mounted=True,
            )

    def official(self) -> OfficialLayers:
        """Return the correspondence of the layers and those of the reference code; see :func:`match_hrnet_layers`."""
        return match_hrnet_layers(self.backbone, self.head)

    def forward(self, image: Tensor) -> Heatmaps:
        """Predict the heatmaps of crops ``(B, 3, H, W)`` uint8.

        Raises:
            ConfigError: the side of the crops is not a multiple of the backbone's largest stride.
        """
        check_size(image, self.backbone.strides[-1])  # type: ignore[index, arg-type]
        return self.head(self.backbone(image))

    def training_step(self, batch: LandmarkBatch, batch_index: int) -> Tensor:
        """Return the sum of the loss's terms."""
        target = self.coder.encode(batch.points, batch.valid, batch.image.shape[-1])
        image = batch.image.contiguous(memory_format=self.memory_format)
        return self.total(self.loss(self(image), target, batch.valid, batch.visible), batch)

    def validation_step(  # type: ignore[override]
        self, batch: LandmarkBatch, batch_index: int
    ) -> Prediction:
        """Measure a batch; see :class:`LandmarkModule`."""
        prediction = self.predict(batch.image)
        if self.official_rounding:
            points = self.map_to_photo(prediction.points, batch.to_photo)
            prediction = prediction._replace(points=transform_points(torch.linalg.inv(batch.to_photo), points))
        self.errors.update(prediction.points, batch, prediction.pose)
        return prediction

    def map_to_photo(self, points: Tensor, to_photo: Tensor) -> Tensor:
        """Convert points to pixels of the photo, rounded as in the reference code if ``official_rounding``."""
        points = super().map_to_photo(points, to_photo)
        return points.trunc() + 1 if self.official_rounding else points
