"""Set of rendered photos on disk: written once, by several processes, and complete or absent."""

import hashlib
import json
import logging
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np

from facelab import signals
from facelab.errors import ConfigError, DatasetError
from facelab.faces.face import Split
from facelab.faces.geometry import Array
from facelab.files import name_in_errors

log = logging.getLogger(__name__)

SPLITS: tuple[Split, ...] = ("train", "val", "test")
MAX_PHOTOS = 10**7
"""Largest number of photos of a split: a week of rendering on a large machine."""
LOG_INTERVAL = 1000
"""Number of photos between two log messages."""
Labels = dict[str, Array]
"""Arrays of labels by name: of one photo, or of all photos of a set."""
WritePhoto = Callable[[Path, Split, int], Labels]
"""Function that renders one photo into a file. Its arguments are the file, the split and the number of the photo in the
split."""


def check_ranges(counts: Mapping[Split, int], ranges: Mapping[str, tuple[float, float, float]]) -> None:
    """Refuse options of a rendered set that are out of range.

    Args:
        counts: number of photos of each split.
        ranges: name of an option to its value, the least and the largest one.

    Raises:
        ConfigError: a number is out of range, or there is no photo.
    """
    numbers = [(str(split), (count, 0, MAX_PHOTOS)) for split, count in counts.items()]
    for key, (value, least, most) in [*numbers, *ranges.items()]:
        if not least <= value <= most:
            raise ConfigError(key, f"={value} must be from {least} to {most}")
    if not any(counts.values()):
        raise ConfigError("train", "=0, and val and test are 0 too; at least one split needs photos")


def folder_name(*recipe: Any) -> str:
    """Return the name of the folder of a set: a hash of its versions and options."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def read_set(folder: Path, keys: Iterable[str]) -> Labels:
    """Read labels of all photos of a set.

    Args:
        folder: folder of the set.
        keys: names of the labels.

    Raises:
        DatasetError: the file cannot be read.
    """
    file = folder / "faces.npz"
    try:
        with np.load(file) as labels:
            return {key: labels[key] for key in keys}
    except (OSError, EOFError, KeyError, ValueError, BadZipFile) as error:
        raise DatasetError(f"{file}: {error}. Delete {folder} to render the photos again") from error


def write_set(
    folder: Path, counts: Mapping[Split, int], write_photo: WritePhoto, join: Callable[[list[Array]], Array]
) -> None:
    """Render into a temporary folder and rename it, so a set on disk is always complete.

    Args:
        folder: folder of the set, with a folder of photos for each split and the labels in ``faces.npz``.
        counts: number of photos of each split.
        write_photo: renders a photo and returns its labels.
        join: joins the labels of the photos, one array of each photo, in the order of the splits.
    """
    jobs = [(split, index) for split in SPLITS for index in range(counts[split])]
    log.info("rendering %d photos of faces into %s", len(jobs), folder)
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        with name_in_errors(folder):
            for split in SPLITS:
                (temporary / split).mkdir(parents=True)
            paths = [(temporary / split / f"{index:05d}.jpg", split, index) for split, index in jobs]
            rows = _rows(write_photo, paths, temporary)
            columns = {key: join([row[key] for row in rows]) for key in rows[0]}
            np.savez(temporary / "faces.npz", allow_pickle=False, **columns)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process has rendered the same photos
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rows(write_photo: WritePhoto, jobs: list[tuple[Path, Split, int]], temporary: Path) -> list[Labels]:
    """Render the photos in several processes, and return the labels of each."""
    # Only Linux has a safe fork: Windows has none, and the libraries of macOS may crash in a forked process.
    processes = min(len(os.sched_getaffinity(0)), len(jobs) // 20) if sys.platform == "linux" else 1
    arguments = zip(*jobs, strict=True)
    if processes < 2:
        return _collect(map(write_photo, *arguments), len(jobs))
    # fork, because spawn would import the caller's script again, which may have no __main__ guard.
    with ProcessPoolExecutor(processes, get_context("fork"), _start_renderer, (temporary,)) as pool:
        try:
            with signals.deferred():
                rows = pool.map(write_photo, *arguments, chunksize=20)
            return _collect(rows, len(jobs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start_renderer(temporary: Path) -> None:
    """Initialise a worker of the pool; if the parent is killed, the worker removes the temporary folder."""

    def remove() -> None:
        """Remove the temporary folder; try again while other workers write to it."""
        for _ in range(20):  # other workers may still write files
            shutil.rmtree(temporary, ignore_errors=True)
            if not temporary.exists():
                return
            time.sleep(0.1)

    signals.end_with_pool_parent(remove)
    # Not 1: OpenCV would wait for the threads of the parent to end, which do not exist in a forked process.
    cv2.setNumThreads(0)


def _collect(rows: Iterable[Labels], total: int) -> list[Labels]:
    """Collect the labels of ``total`` photos, and log the progress."""
    collected = []
    for row in rows:
        collected.append(row)
        if len(collected) % LOG_INTERVAL == 0:
            log.info("%d of %d photos are rendered", len(collected), total)
    return collected
