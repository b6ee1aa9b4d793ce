"""PIPNet: Pixel-in-Pixel Net (Jin, Liao, Shao, IJCV 2021, arXiv 2003.03771)."""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from facelab.coders.pipnet import PIPCoder, PIPMaps
from facelab.faces.geometry import Array
from facelab.faces.layouts import Layout
from facelab.networks.backbone import TimmBackbone
from facelab.networks.official import OfficialLayers
from facelab.networks.pipnet import PIPHead, match_pipnet_layers
from lightning_modules.landmark import LandmarkModule


class HasMeanShape(Protocol):
    """Datamodule with the mean shape that PIPNet needs."""

    def mean_shape(self) -> Array:
        """Compute the mean landmarks ``(N, 2)`` of the training faces in pixels of the crop."""
        ...


class PIPNet(LandmarkModule):
    """Method that predicts scores per cell of the coarsest feature map and offsets of landmarks and their neighbours.

    The neighbours are computed from the mean shape of the training faces and stored in the checkpoint.

    Args:
        layout: layout of the predicted landmarks.
        backbone: network that returns a pyramid of feature maps; only the coarsest is used.
        head: function of the backbone's channels and strides and the coder's stride and number of neighbours that
            returns the head.
        coder: conversion between points and maps.
        loss: loss of predicted and target maps.
        optimizer: see :class:`LandmarkModule`.
        scheduler: see :class:`LandmarkModule`.
        flip_test: see :class:`LandmarkModule`.
    """

    def __init__(
        self,
        layout: Layout,
        backbone: TimmBackbone,
        head: Callable[..., PIPHead],
        coder: PIPCoder,
        loss: nn.Module | None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None,
        scheduler: Callable[[Optimizer], LRScheduler] | None,
        flip_test: bool,
    ) -> None:
        super().__init__(layout, coder, loss, optimizer, scheduler, flip_test)
        self.backbone = backbone
        self.head: PIPHead = head(
            channels=backbone.channels,
            strides=backbone.strides,
            classifier=backbone.classifier,
            num_points=layout.num_points,
            num_neighbours=coder.num_neighbours,
            stride=coder.stride,
        )

    def fit_statistics(self, datamodule: HasMeanShape) -> None:
        """Compute the neighbours from the mean shape of the training faces."""
        self.coder.set_mean_shape(torch.from_numpy(datamodule.mean_shape()))

    def official(self) -> OfficialLayers:
        """Return the correspondence of the layers and those of jhb86253817/PIPNet; see :func:`match_pipnet_layers`."""
        return match_pipnet_layers(self.backbone, self.head)

    def forward(self, image: Tensor) -> PIPMaps:
        """Predict the maps of crops ``(B, 3, H, W)`` uint8."""
        return self.head(self.backbone(image))
