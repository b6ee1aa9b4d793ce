"""Dataset of rendered faces, with exact labels and without a download.

It is a test bed: positions, pose, visibility and tags of :mod:`facelab.annotations.rendered_head` are exact. Results on
it show that a method learns, but do not transfer to photographs.
"""

from pathlib import Path

import cv2
import numpy as np

from facelab.annotations.rendered_head import PIECES, Head, View, ahead, random_head, random_look, render, to_camera
from facelab.annotations.rendered_set import SPLITS, Labels, check_ranges, folder_name, read_set, write_set
from facelab.bounds import Text
from facelab.errors import ConfigError
from facelab.faces.face import Face, Photo, Split
from facelab.faces.geometry import Array, bounding_box, from_cells
from facelab.faces.layouts import Layout

VERSION = 1
"""Version of the renderer, part of the name of a rendered set: increase it if equal parameters give other photos or
labels."""
TAGS = ("profile", "frontal", "head_up", "head_down", "expression", "occlusion")
"""Six classes of PFLD (Guo et al., arXiv 1902.10859, section 3.1). The paper does not define them; :func:`tags_of`
does."""
PROFILE_YAW = 30.0
"""Absolute yaw in degrees beyond which a face is ``profile``, see :func:`tags_of`."""
FRONTAL_PITCH = 15.0
"""Largest absolute pitch in degrees of a ``frontal`` face; beyond it a face is ``head_up`` or ``head_down``."""
OPEN_MOUTH = 0.4
"""Limit of the open mouth of an ``expression``, in the measure of :class:`Head`."""
SHUT_EYE = 0.3
"""Limit of the shut eyes of an ``expression``, in the measure of :class:`Head`."""
BROAD_SMILE = 0.6
"""Limit of the broad smile of an ``expression``, in the measure of :class:`Head`."""
OCCLUDED_SHARE = 0.05
"""Share of hidden landmarks beyond which a face is in ``occlusion``."""


def tags_of(pose: Array, head: Head, hidden: float) -> frozenset[str]:
    """Determine the classes of a face.

    * profile: yaw beyond 30 degrees.
    * frontal: yaw within 30 degrees and pitch within 15 degrees.
    * head_up, head_down: pitch above 15 degrees, below -15 degrees.
    * expression: the mouth is wide open or smiles broadly, or the eyes are shut.
    * occlusion: the occluder hides more than 5 % of the landmarks.

    Args:
        pose: ``(3,)`` yaw, pitch, roll in degrees.
        head: shape and expression.
        hidden: share of the landmarks that the occluder hides.
    """
    yaw, pitch = pose[:2]
    expression = head.mouth_open > OPEN_MOUTH or head.smile > BROAD_SMILE or head.eye_open < SHUT_EYE
    level = abs(pitch) <= FRONTAL_PITCH
    by_pose = (abs(yaw) > PROFILE_YAW, abs(yaw) <= PROFILE_YAW and level, pitch > FRONTAL_PITCH, pitch < -FRONTAL_PITCH)
    return frozenset(
        tag for tag, member in zip(TAGS, (*by_pose, expression, hidden > OCCLUDED_SHARE), strict=True) if member
    )


class Synthetic:
    """Dataset of rendered faces, one per photo, written once and then read from disk.

    The photos are in ``cache/<hash>/<split>/``, their labels in ``cache/<hash>/faces.npz``, which contains the points
    of every layout, so all layouts share one set. The hash covers all parameters except ``name``, ``cache`` and
    ``layout``. A photo depends on its split, its number and these parameters, except the numbers of photos. The box of
    a face encloses its points and the hairline. The first call of :meth:`photos` renders the set.

    Args:
        name: name of the dataset, for run names and tables.
        cache: folder of the rendered sets. It is not called ``root``, because no reader writes to the root of a
            dataset.
        layout: one of the layouts in PIECES.
        seed: seed of the faces.
        train: number of train photos.
        val: number of val photos.
        test: number of test photos.
        size: side of a photo in pixels.
        yaw: largest yaw in degrees, to both sides.
        wide_yaw: largest yaw in degrees in the wide part of the test split.
        wide_share: expected share of the wide part.
        pitch: largest pitch in degrees, up and down.
        roll: largest roll in degrees, to both sides.
        occlusion: probability of an occluder.

    Raises:
        ConfigError: the layout is not in PIECES, or a number is out of range.
    """

    tags = TAGS

    def __init__(
        self,
        name: Text,
        cache: Text,
        layout: Layout,
        seed: int,
        train: int,
        val: int,
        test: int,
        size: int,
        yaw: float,
        wide_yaw: float,
        wide_share: float,
        pitch: float,
        roll: float,
        occlusion: float,
    ):
        if layout.name not in PIECES:
            raise ConfigError("", f": rendered faces support the layouts {', '.join(PIECES)}, not {layout.name!r}")
        self.counts: dict[Split, int] = {"train": train, "val": val, "test": test}
        check_ranges(
            self.counts,
            {
                "size": (size, 32, 4096),
                "seed": (seed, 0, 2**32 - 1),
                **{key: (angle, 0, 90) for key, angle in (("yaw", yaw), ("wide_yaw", wide_yaw), ("pitch", pitch))},
                "roll": (roll, 0, 180),
                **{key: (share, 0, 1) for key, share in (("wide_share", wide_share), ("occlusion", occlusion))},
            },
        )
        self.name, self.layout = name, layout
        self.seed, self.size, self.yaw, self.pitch, self.roll = seed, size, yaw, pitch, roll
        self.wide_yaw, self.wide_share, self.occlusion = wide_yaw, wide_share, occlusion
        recipe = {key: value for key, value in vars(self).items() if key not in ("name", "layout")}
        self.folder = Path(cache) / folder_name(VERSION, recipe)

    def photos(self, split: Split) -> list[Photo]:
        """Return the photos of a split; render the set first if it does not exist.

        Raises:
            DatasetError: the labels of the set on disk cannot be read.
        """
        if not self.folder.exists():
            write_set(self.folder, self.counts, self.write_photo, np.stack)
        keys = ("path", "box", self.layout.name, f"visible_{self.layout.name}", "pose", "tags")
        labels = read_set(self.folder, keys)
        rows = zip(*(labels[key] for key in keys), strict=True)
        names = np.array(TAGS)
        return [
            Photo(self.folder / path, (Face(box, points, seen, pose, frozenset(names[tags].tolist())),), "stored")
            for path, box, points, seen, pose, tags in rows
            if split in ("all", path.split("/")[0])
        ]

    def write_photo(self, path: Path, split: Split, index: int) -> Labels:
        """Render one photo into a file and return its labels.

        Args:
            path: the file.
            split: split of the photo.
            index: number of the photo in the split.
        """
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index])
        head, look = random_head(rng), random_look(rng)
        yaw = self.wide_yaw if split == "test" and rng.random() < self.wide_share else self.yaw
        pose = rng.uniform(-1, 1, 3) * [yaw, self.pitch, self.roll]
        scale = rng.uniform(0.24, 0.33) * self.size
        view = View(pose, scale, from_cells(rng.normal([0.5, 0.54], 0.05), self.size))
        picture = render(rng, head, look, view, self.size, self.occlusion)
        path.write_bytes(cv2.imencode(".jpg", picture.photo, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())

        points, top = picture.points.values(), ahead(head, np.array([[0, head.hairline]]))
        labels = {
            "path": np.array(f"{split}/{path.name}"),
            "box": bounding_box(np.concatenate([*points, to_camera(top, view)])[:, :2]).astype(np.float32),
            "pose": pose.astype(np.float32),
            "tags": np.array([tag in tags_of(pose, head, (picture.seen & picture.hidden).mean()) for tag in TAGS]),
        }
        visible = np.split(picture.seen & ~picture.hidden, np.cumsum([len(each) for each in points])[:-1])
        for name, layout_points, layout_visible in zip(picture.points, points, visible, strict=True):
            labels |= {name: layout_points[:, :2].astype(np.float32), f"visible_{name}": layout_visible}
        return labels
