"""Datamodule of PIPNet."""

import numpy as np

from datamodules.landmark import LandmarkDataModule
from datamodules.reading import MissingBoxError
from facelab.errors import DatasetError, ImageError
from facelab.faces.geometry import Array, transform_points


class PIPNetDataModule(LandmarkDataModule):
    """Faces for PIPNet (Jin, Liao, Shao, IJCV 2021) and the mean shape, which determines the neighbours."""

    def mean_shape(self) -> Array:
        """Compute the mean ``(N, 2)`` of each landmark over the training faces, in pixels of the unaugmented crop.

        The reference code stores it in ``meanface.txt``, divided by the side of the crop. Points without an annotation
        are left out of the mean.

        Raises:
            DatasetError: no training face can be cut out, or a landmark is annotated in none.
        """
        train = self.faces["train"]
        shapes = []
        for row, face in enumerate(train.faces):
            try:
                shapes.append(transform_points(train.to_crop(row), face.points))
            except (MissingBoxError, ImageError):
                continue  # the face is logged and left out when its sample is loaded
        if not shapes:
            raise DatasetError(f"{self.data.name}: no training face can be cut out with crop.box={self.crop.box}")
        points = np.stack(shapes)  # (F, N, 2)
        annotated = np.isfinite(points).all(axis=2).any(axis=0)  # (N,)
        if not annotated.all():
            missing = np.flatnonzero(~annotated).tolist()
            raise DatasetError(
                f"{self.data.name}: no training face has the landmarks {missing}, so PIPNet cannot find their "
                f"neighbours; use a layout without them"
            )
        return np.nanmean(points, axis=0)
