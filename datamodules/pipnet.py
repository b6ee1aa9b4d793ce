"""How PIPNet is fed."""

import numpy as np

from datamodules.landmark import LandmarkDataModule, MissingBoxError
from facelab.errors import DatasetError, ImageError
from facelab.faces.geometry import Array, transform_points


class PIPNetDataModule(LandmarkDataModule):
    """Faces for PIPNet (Jin, Liao, Shao, IJCV 2021), and the mean shape that says which landmarks are neighbours."""

    def mean_shape(self) -> Array:
        """The mean of every landmark over the training faces, in pixels of the unchanged crop, ``(N, 2)``.

        The reference code keeps it as ``meanface.txt`` and divides by the crop's side. Missing points are left out of
        the mean.

        Raises:
            DatasetError: a landmark is annotated in no training face.
        """
        train = self.faces["train"]
        shapes = []
        for row, face in enumerate(train.faces):
            try:
                shapes.append(transform_points(train.to_crop(row), face.points))
            except (MissingBoxError, ImageError):
                continue  # the face is reported and left out when it is asked for
        if not shapes:
            raise DatasetError(f"{self.data.name}: no training face can be cut out with crop.box={self.crop.box}")
        points = np.stack(shapes)  # (F, N, 2)
        seen = np.isfinite(points).all(axis=2).any(axis=0)  # (N,)
        if not seen.all():
            unseen = np.flatnonzero(~seen).tolist()
            raise DatasetError(
                f"{self.data.name}: no training face has the landmarks {unseen}, so PIPNet cannot know their "
                f"neighbours; use a layout without them"
            )
        return np.nanmean(points, axis=0)
