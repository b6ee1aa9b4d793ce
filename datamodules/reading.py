"""Photos of a dataset that cannot be read: retries, a log line for each, and a limit of their share."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from facelab.errors import DatasetError, ImageError
from facelab.faces.image import CropError

log = logging.getLogger(__name__)

Sample = TypeVar("Sample")
RETRY_AFTER = (0.2, 1.0, 5.0)
"""Waiting times in seconds before each retry to read a photo that was readable before."""


class MissingBoxError(DatasetError):
    """Error of a face without the box that the crop needs."""


class Readings:
    """State of reading the samples of a split, shared by the worker processes of a loader.

    Args:
        name: dataset and split, for messages.
        noun: what a sample is, for messages: ``face`` or ``photo``.
        paths: photo of each sample.
        max_unreadable: largest share of samples that cannot be read or cut out. One may always fail unless it is 0.
    """

    def __init__(self, name: str, noun: str, paths: Sequence[Path], max_unreadable: float) -> None:
        self.name, self.noun, self.paths, self.max_unreadable = name, noun, paths, max_unreadable
        # One row of flags per state: photo was read; sample reported as left out; photo unreadable; photo became
        # unreadable.
        flags = torch.zeros(4, len(paths), dtype=torch.bool).share_memory_()
        self._read, self._reported, self._unreadable, self._lost = flags

    def attempt(self, row: int, read: Callable[[], Sample]) -> Sample | None:
        """Read a sample; return None if it cannot be read or cut out, and log the reason once.

        A photo that was read before or is missing is retried: its disk may be unavailable for seconds.
        """
        waits = iter(RETRY_AFTER)
        while True:
            try:
                sample = read()
            except (MissingBoxError, CropError) as error:
                self._report(row, error)
                return None
            except ImageError as error:
                # Pillow's UnidentifiedImageError is an OSError without errno: the file exists but is not an image.
                missing = isinstance(error.__cause__, OSError) and error.__cause__.errno is not None
                retry = (missing or bool(self._read[row])) and not self._unreadable[row] and not self._lost.any()
                if retry and (wait := next(waits, None)) is not None:
                    time.sleep(wait)
                    continue
                self._unreadable[row] = True
                self._lost[row] = self._read[row]
                self._report(row, error)
                return None
            self._read[row] = True
            return sample

    def _report(self, row: int, error: Exception) -> None:
        """Log a sample that is left out, once."""
        if not self._reported[row]:
            self._reported[row] = True
            log.warning("%s %d is left out: %s", self.noun, row, error)

    @property
    def unreadable(self) -> int:
        """Return the number of samples whose photo this process and its workers could not read so far."""
        return int(self._unreadable.sum())

    def check(self) -> None:
        """Stop the run if photos have become unreadable, or if too many samples are left out.

        Raises:
            DatasetError: a photo that was read before cannot be read any more, or more samples than ``max_unreadable``
                are left out.
        """
        if (count := int(self._reported.sum())) == 0:
            return
        if len(lost := self._lost.nonzero()):
            raise DatasetError(
                f"{self.paths[int(lost[0])]}: this photo, one of {len(lost)}, was read before and cannot be read any "
                f"more, after retries for {sum(RETRY_AFTER):.0f} seconds; check its disk, then resume with resume=RUN"
            )
        # One may always fail, unless the limit is 0.
        if count > max(self.max_unreadable * len(self.paths), float(self.max_unreadable > 0)):
            first = int(self._reported.nonzero()[0])
            raise DatasetError(
                f"{self.name}: {count} of {len(self.paths)} {self.noun}s cannot be read or cut out, among them "
                f"{self.paths[first]}; see the log for the reasons. The largest allowed share is "
                f"max_unreadable={self.max_unreadable}"
            )
