"""Dataset of rendered scenes for face detectors, with exact labels and without a download.

It is a test bed: boxes, five points, pose, visibility and tags of :mod:`facelab.annotations.rendered_scene` are exact.
Results on it show that a detector learns; they say nothing about photographs.

*Boxes.* The box of a face encloses its surface from the hairline to the chin and from ear to ear, without the ears, as
the boxes of WIDER FACE do. It is that of the whole face, also where other things hide it. Where the border of the photo
cuts a face, it cuts the box too.

*Points.* Pupils, tip of the nose, corners of the mouth. A point outside of the photo is NaN. A point behind the head or
behind something else is not ``visible``.
"""

from pathlib import Path

import cv2
import numpy as np

from facelab.annotations import synthetic
from facelab.annotations.rendered_scene import Recipe, render_scene
from facelab.annotations.rendered_set import SPLITS, Labels, check_ranges, folder_name, read_set, write_set
from facelab.annotations.synthetic import tags_of
from facelab.bounds import Text
from facelab.errors import ConfigError
from facelab.faces.boxes import clip
from facelab.faces.face import Face, Photo, Split
from facelab.faces.layouts import FIVE5, LAPA106, Layout

VERSION = 1
"""Version of the scenes, part of the name of a set: increase it if equal parameters give other scenes or labels. A
change of the heads increases the VERSION of :mod:`facelab.annotations.synthetic`, which is part of the name too."""
TAGS = (*synthetic.TAGS, "cut")
"""Tags of rendered faces, see :func:`facelab.annotations.synthetic.tags_of`, and ``cut`` for a face whose box reaches
beyond the photo."""
FIVE = [i for (i,) in LAPA106.five]
"""Five points among the rendered ones."""
QUALITIES = 40, 95
"""Smallest and largest quality of a JPEG."""
LABELS = ("box", "points", "visible", "pose", "tags")
"""Labels of faces in a set; all photos one after the other."""


class SyntheticScenes:
    """Dataset of rendered scenes, written once and then read from disk.

    The photos are in ``cache/<hash>/<split>/``, their labels in ``cache/<hash>/faces.npz``. The hash covers all
    parameters except ``name``, ``cache`` and ``layout``. A photo depends on its split, its number and these parameters,
    except the numbers of photos. The first call of :meth:`photos` renders the set.

    Args:
        name: name of the dataset, for run names and tables.
        cache: folder of the rendered sets.
        layout: layout of the points, five points.
        seed: seed of the scenes.
        train: number of train photos.
        val: number of val photos.
        test: number of test photos.
        width: width of a photo in pixels.
        height: height of a photo in pixels.
        faces: largest number of faces in a photo.
        smallest: smallest height of the box of a face in pixels, before the border cuts it.
        largest: largest height of the box of a face in pixels, before the border cuts it.
        yaw: largest yaw in degrees, to both sides.
        pitch: largest pitch in degrees, up and down.
        roll: largest roll in degrees, to both sides.
        occlusion: probability of an occluder over a face, besides nearer heads.

    Raises:
        ConfigError: the layout has other points, or a number is out of range.
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
        width: int,
        height: int,
        faces: int,
        smallest: float,
        largest: float,
        yaw: float,
        pitch: float,
        roll: float,
        occlusion: float,
    ) -> None:
        if layout.name != FIVE5.name:
            raise ConfigError("layout", f": rendered scenes have the points of {FIVE5.name}, not of {layout.name!r}")
        self.counts: dict[Split, int] = {"train": train, "val": val, "test": test}
        check_ranges(
            self.counts,
            {
                "seed": (seed, 0, 2**32 - 1),
                "width": (width, 64, 4096),
                "height": (height, 64, 4096),
                "faces": (faces, 0, 100),
                "largest": (largest, 8, min(width, height)),
                "smallest": (smallest, 8, largest),
                "yaw": (yaw, 0, 90),
                "pitch": (pitch, 0, 90),
                "roll": (roll, 0, 180),
                "occlusion": (occlusion, 0, 1),
            },
        )
        self.name, self.layout, self.seed = name, layout, seed
        self.recipe = Recipe((width, height), faces, (smallest, largest), (yaw, pitch, roll), occlusion)
        self.folder = Path(cache) / folder_name(synthetic.VERSION, VERSION, seed, self.counts, self.recipe)

    def photos(self, split: Split) -> list[Photo]:
        """Return the photos of a split; render the set first if it does not exist.

        Raises:
            DatasetError: the labels of the set on disk cannot be read.
        """
        if not self.folder.exists():
            write_set(self.folder, self.counts, self.write_photo, np.concatenate)
        labels, names = read_set(self.folder, ("path", "number", *LABELS)), np.array(TAGS)
        rows = zip(*(labels[key] for key in LABELS), strict=True)
        faces = [Face(box, xy, seen, pose, frozenset(names[its].tolist())) for box, xy, seen, pose, its in rows]
        ends = np.cumsum(labels["number"]).tolist()
        return [
            Photo(self.folder / path, tuple(faces[end - number : end]), "stored")
            for path, number, end in zip(labels["path"], labels["number"], ends, strict=True)
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
        photo, faces = render_scene(rng, self.recipe)
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(*QUALITIES, endpoint=True))]
        path.write_bytes(cv2.imencode(".jpg", photo, quality)[1].tobytes())

        whole = np.array([face.box for face in faces], np.float32).reshape(-1, 4)
        boxes = clip(whole, *self.recipe.size)
        points = np.array([np.where(face.inside[:, None], face.points, np.nan)[FIVE] for face in faces], np.float32)
        tags = [
            {*tags_of(face.pose, face.head, face.hidden), *(("cut",) if cut else ())}
            for face, cut in zip(faces, (boxes != whole).any(axis=1), strict=True)
        ]
        return {
            "path": np.array([f"{split}/{path.name}"]),
            "number": np.array([len(faces)]),
            "box": boxes,
            "points": points.reshape(-1, len(FIVE), 2),
            "visible": np.array([(face.seen & ~face.covered)[FIVE] for face in faces], np.bool_).reshape(-1, len(FIVE)),
            "pose": np.array([face.pose for face in faces], np.float32).reshape(-1, 3),
            "tags": np.array([[tag in its for tag in TAGS] for its in tags], np.bool_).reshape(-1, len(TAGS)),
        }
