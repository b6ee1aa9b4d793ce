"""Tests of the checks of many faces at once."""

from pathlib import Path

import numpy as np
import pytest

from facelab.annotations.points_file import REMEDIES, check_boxes, check_face, check_faces
from facelab.errors import DatasetError


def fault_of(points: np.ndarray) -> str:
    """Return the fault of a face; empty if it has none."""
    try:
        check_face(points, "list.txt, line 7", REMEDIES)
    except DatasetError as error:
        return str(error)
    return ""


def test_check_faces_finds_every_fault_of_a_single_face() -> None:
    """Would catch a shortcut that lets a faulty face pass, or names another line."""
    rng, faults = np.random.default_rng(0), set()
    for _ in range(800):
        face = rng.integers(-2, 6, (rng.integers(1, 8), 2)) * rng.choice([0.3, 1, 20])
        face = (abs(face) if rng.random() < 0.3 else face).astype(np.float32)
        if rng.random() < 0.2:
            face[rng.integers(len(face))] = np.nan
        if rng.random() < 0.5:
            face[:3] = face[0]
        faces = np.stack([np.arange(2 * len(face), dtype=np.float32).reshape(-1, 2) * 9 + 1, face])
        if fault := fault_of(face):
            faults.add(fault.partition(": ")[2][:5])
            with pytest.raises(DatasetError) as error:
                check_faces(faces, 6, Path("list.txt"), REMEDIES)
            assert str(error.value) == fault
        else:
            check_faces(faces, 6, Path("list.txt"), REMEDIES)
    assert len(faults) > 4, "the random faces do not have all kinds of faults"


def test_check_boxes_names_the_line() -> None:
    """Would catch another line than that of the faulty box, or a missing box that is refused."""
    boxes = np.array([[10, 10, 50, 60], [0, 0, 0, 0], [np.nan] * 4, [0.1, 0.1, 0.9, 0.9]], np.float32)
    check_boxes(boxes[:3], 2, Path("list.txt"), REMEDIES)
    with pytest.raises(DatasetError, match=r"list.txt, line 5: the box \[0.1, 0.1, 0.9, 0.9\] looks like fractions"):
        check_boxes(boxes, 2, Path("list.txt"), REMEDIES)
