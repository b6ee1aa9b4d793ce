"""Rendered faces: a dataset that needs no download and whose labels are exact.

It is a test bed: position, pose, visibility and tags of :mod:`facelab.annotations.rendered_head` are exact. A number
measured here says that a method learns, and nothing about photographs.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np

from facelab import signals
from facelab.annotations.rendered_head import PIECES, Head, View, ahead, random_head, random_look, render, to_camera
from facelab.bounds import Text
from facelab.errors import ConfigError, DatasetError
from facelab.faces.face import Face, Photo, Split
from facelab.faces.geometry import Array, bounding_box, from_cells
from facelab.faces.layouts import Layout
from facelab.files import naming

log = logging.getLogger(__name__)

VERSION = 1
"""Part of the name of a rendered set: raise it when the same parameters give other pictures or labels."""
TAGS = ("profile", "frontal", "head_up", "head_down", "expression", "occlusion")
"""The six classes of PFLD (Guo et al., arXiv 1902.10859, section 3.1); the paper does not define them, we do in
:func:`tags_of`."""
PROFILE_YAW, FRONTAL_PITCH, OPEN_MOUTH, SHUT_EYE, BROAD_SMILE, OCCLUDED_SHARE = 30.0, 15.0, 0.4, 0.3, 0.6, 0.05
SPLITS: tuple[Split, ...] = ("train", "val", "test")
MOST = 10**7
"""Photos of a split: a week of rendering on a large machine."""
REPORTED = 1000  # photos from one line of the log to the next


def tags_of(pose: Array, head: Head, hidden: float) -> frozenset[str]:
    """The classes a face belongs to.

    profile: yaw beyond 30 degrees. frontal: yaw within 30 and pitch within 15. head_up, head_down: pitch over 15,
    under -15. expression: the mouth wide open or smiling broadly, or the eyes shut. occlusion: the occluder hides more
    than one landmark in 20 (``hidden`` is the share).
    """
    yaw, pitch = pose[:2]
    expression = head.mouth_open > OPEN_MOUTH or head.smile > BROAD_SMILE or head.eye_open < SHUT_EYE
    level = abs(pitch) <= FRONTAL_PITCH
    holds = (abs(yaw) > PROFILE_YAW, abs(yaw) <= PROFILE_YAW and level, pitch > FRONTAL_PITCH, pitch < -FRONTAL_PITCH)
    return frozenset(tag for tag, true in zip(TAGS, (*holds, expression, hidden > OCCLUDED_SHARE), strict=True) if true)


class Synthetic:
    """Rendered faces, one per photo, written once and then read like any set on disk.

    The photos lie in ``cache/<hash>/<split>/``, their labels in ``cache/<hash>/faces.npz`` with the points of every
    layout, so that one set serves all of them. The hash stands for everything that changes a picture or a label. A
    photo depends on the seed, its split and its number alone. The box of a face is that of its points and the hairline.
    Nothing is rendered before the first call of :meth:`photos`.

    Args:
        name: of the dataset, in run names and tables.
        cache: folder of the rendered sets. Not called ``root``: nothing may be written where a real set is read.
        layout: one of the layouts in PIECES.
        seed: another seed, other faces.
        train: number of photos.
        val: number of photos.
        test: number of photos.
        size: side of a photo in pixels.
        yaw: largest yaw in degrees, to both sides.
        wide_yaw: the same in the wide part of the test split.
        wide_share: expected share of that part.
        pitch: largest pitch in degrees, up and down.
        roll: largest roll in degrees, to both sides.
        occlusion: probability of an occluder.

    Raises:
        ConfigError: for a layout whose curves are not known, and for numbers out of range.
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
            raise ConfigError("", f": rendered faces have the layouts {', '.join(PIECES)}, not {layout.name!r}")
        ranges: dict[str, tuple[float, float, float]] = {
            **{key: (count, 0, MOST) for key, count in (("train", train), ("val", val), ("test", test))},
            "size": (size, 32, 4096),
            "seed": (seed, 0, 2**32 - 1),
            **{key: (angle, 0, 90) for key, angle in (("yaw", yaw), ("wide_yaw", wide_yaw), ("pitch", pitch))},
            "roll": (roll, 0, 180),
            **{key: (share, 0, 1) for key, share in (("wide_share", wide_share), ("occlusion", occlusion))},
        }
        for key, (value, least, most) in ranges.items():
            if not least <= value <= most:
                raise ConfigError(key, f"={value} must be from {least} to {most}")
        if not max(train, val, test):
            raise ConfigError("train", "=0, and neither val nor test has photos")
        self.name, self.layout = name, layout
        self.counts = dict(zip(SPLITS, (train, val, test), strict=True))
        self.seed, self.size, self.yaw, self.pitch, self.roll = seed, size, yaw, pitch, roll
        self.wide_yaw, self.wide_share, self.occlusion = wide_yaw, wide_share, occlusion
        recipe = {key: value for key, value in vars(self).items() if key not in ("name", "layout")}
        digest = hashlib.sha256(json.dumps([VERSION, recipe], sort_keys=True).encode()).hexdigest()
        self.folder = Path(cache) / digest[:12]

    def photos(self, split: Split) -> list[Photo]:
        """The photos of a split, rendered first if they are not there.

        Raises:
            DatasetError: when the set on disk has lost its labels.
        """
        if not self.folder.exists():
            self._write()
        file = self.folder / "faces.npz"
        try:
            with np.load(file) as labels:
                columns = [labels[key] for key in ("path", "box", self.layout.name, f"visible_{self.layout.name}")]
                rows = list(zip(*columns, labels["pose"], labels["tags"], strict=True))
        except (OSError, EOFError, KeyError, ValueError, BadZipFile) as error:
            raise DatasetError(f"{file}: {error}. Delete {self.folder}: the photos are then rendered anew") from error
        names = np.array(TAGS)
        return [
            Photo(self.folder / path, (Face(box, points, seen, pose, frozenset(names[tags].tolist())),), "stored")
            for path, box, points, seen, pose, tags in rows
            if split in ("all", path.split("/")[0])
        ]

    def _write(self) -> None:
        """Render into a folder of this process's own and rename it, so that a set is there as a whole or not at all."""
        jobs = [(split, index) for split in SPLITS for index in range(self.counts[split])]
        log.info("rendering %d photos of faces into %s", len(jobs), self.folder)
        own = self.folder.with_name(f".{self.folder.name}-{uuid.uuid4().hex}")
        try:
            with naming(self.folder):
                for split in SPLITS:
                    (own / split).mkdir(parents=True)
                rows = self._rows([(own / split / f"{index:05d}.jpg", split, index) for split, index in jobs], own)
                columns = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
                np.savez(own / "faces.npz", allow_pickle=False, **columns)
            try:
                own.rename(self.folder)
            except OSError:
                if not self.folder.exists():  # else another process was faster: its photos are the same
                    raise
        finally:
            shutil.rmtree(own, ignore_errors=True)

    def _rows(self, jobs: list[tuple[Path, Split, int]], own: Path) -> list[dict[str, Array]]:
        # Elsewhere there is no safe fork: Windows has none, and the libraries of macOS may crash in one.
        processes = min(len(os.sched_getaffinity(0)), len(jobs) // 20) if sys.platform == "linux" else 1
        if processes < 2:
            return _reported(map(self.write_photo, jobs), len(jobs))
        # fork: a fresh interpreter would run the caller's script again, which may lack a __main__ guard.
        with ProcessPoolExecutor(processes, get_context("fork"), _start_renderer, (own,)) as pool:
            try:
                with signals.held():
                    rows = pool.map(self.write_photo, jobs, chunksize=20)
                return _reported(rows, len(jobs))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def write_photo(self, job: tuple[Path, Split, int]) -> dict[str, Array]:
        """Render one photo into a file and return its labels."""
        path, split, index = job
        rng = np.random.default_rng([self.seed, SPLITS.index(split), index])
        head, look = random_head(rng), random_look(rng)
        yaw = self.wide_yaw if split == "test" and rng.random() < self.wide_share else self.yaw
        pose = rng.uniform(-1, 1, 3) * [yaw, self.pitch, self.roll]
        scale = rng.uniform(0.24, 0.33) * self.size
        view = View(pose, scale, from_cells(rng.normal([0.5, 0.54], 0.05), self.size))
        picture = render(rng, head, look, view, self.size, self.occlusion)
        path.write_bytes(cv2.imencode(".jpg", picture.photo, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())

        places, brow = picture.points.values(), ahead(head, np.array([[0, head.hairline]]))
        labels = {
            "path": np.array(f"{split}/{path.name}"),
            "box": bounding_box(np.concatenate([*places, to_camera(brow, view)])[:, :2]).astype(np.float32),
            "pose": pose.astype(np.float32),
            "tags": np.array([tag in tags_of(pose, head, (picture.seen & picture.hidden).mean()) for tag in TAGS]),
        }
        open_views = np.split(picture.seen & ~picture.hidden, np.cumsum([len(place) for place in places])[:-1])
        for name, place, open_view in zip(picture.points, places, open_views, strict=True):
            labels |= {name: place[:, :2].astype(np.float32), f"visible_{name}": open_view}
        return labels


def _start_renderer(own: Path) -> None:
    """Prepare a process of the pool; when the parent was killed, it removes the folder that is not finished."""

    def tidy() -> None:
        for _ in range(20):  # the others may still write there
            shutil.rmtree(own, ignore_errors=True)
            if not own.exists():
                return
            time.sleep(0.1)

    signals.obey_parent(tidy)
    # 0: to go down to 1 thread OpenCV waits for the end of the parent's, which are not in the child, and hangs
    cv2.setNumThreads(0)


def _reported(rows: Iterable[dict[str, Array]], total: int) -> list[dict[str, Array]]:
    """Collect the labels of ``total`` photos as they come, and say now and then how far it is."""
    done = []
    for row in rows:
        done.append(row)
        if len(done) % REPORTED == 0:
            log.info("%d of %d photos are rendered", len(done), total)
    return done
