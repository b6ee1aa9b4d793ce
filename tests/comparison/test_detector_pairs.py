"""Tests of the comparison of two detectors photo by photo."""

from pathlib import Path

import numpy as np
import pytest
from run_folders import run_compare, write_detector

from facelab.comparison.pairs import compare_detections, compare_pair
from facelab.comparison.read import Run, read_runs
from facelab.errors import RunError
from facelab.metrics.detection_files import write_detection_table
from facelab.metrics.detection_table import detection_table

PHOTOS = 40


def detector(folder: Path, found: set[int], photos: int = PHOTOS) -> Run:
    """Write the run of a detector that finds the only face of some photos, and nothing else; read it."""
    write_detector(folder, 0.8)
    rows, every = np.array(sorted(found)), np.arange(photos)
    box = np.array([[10.0, 10, 50, 50]])
    table = detection_table(
        (),
        photo_id=every,
        skipped=np.zeros(photos, bool),
        cut=np.zeros(photos),
        boxes=np.repeat(box, len(rows), axis=0),
        scores=np.full(len(rows), 0.9),
        points=np.full((len(rows), 5, 2), np.nan),
        photo=rows,
        face_id=every,
        true_boxes=np.repeat(box, photos, axis=0),
        true_points=np.full((photos, 5, 2), np.nan),
        pose=np.full((photos, 3), np.nan),
        tags=np.zeros((photos, 0), bool),
        ignore=np.zeros(photos, bool),
        true_photo=every,
    )
    write_detection_table(table, folder / "detections.npz", [f"{row}.png" for row in every])
    return read_runs([folder])[0]


def test_compare_detections_resamples_the_same_photos_for_both(tmp_path: Path) -> None:
    """Would catch independent resamples, whose interval is far wider, or a difference of the wrong sign."""
    found = set(range(0, PHOTOS, 2))
    a, b = detector(tmp_path / "a", found | {1}), detector(tmp_path / "b", found)
    pair = compare_detections(a, b, ["recall"])
    recall = pair.differences["recall"]
    assert recall.value == pytest.approx(1 / PHOTOS)
    # A finds one face more: in a resample, the difference is the share of its photo, drawn 0 to 5 times.
    assert recall.low == 0 and 2 / PHOTOS <= recall.high <= 4 / PHOTOS
    assert (pair.common, recall.faces, pair.resampled) == (PHOTOS, PHOTOS, "photos")
    swapped = compare_detections(b, a, ["recall"]).differences["recall"]
    assert (swapped.value, swapped.low, swapped.high) == (-recall.value, -recall.high, 0)


def test_compare_detections_refuses_other_photos(tmp_path: Path) -> None:
    """Would catch a difference of two tests on different photos."""
    a, b = detector(tmp_path / "a", {1, 2}), detector(tmp_path / "b", {1, 2}, photos=PHOTOS - 1)
    with pytest.raises(RunError, match="a and b were not tested on the same photos and faces"):
        compare_pair(a, b, ["recall"])


def test_compare_prints_the_pair_of_detectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch a pair that needs faces.csv, or a better run beside an equal one."""
    detector(tmp_path / "a", set(range(30)))
    detector(tmp_path / "b", set(range(10)))
    run_compare(monkeypatch, tmp_path / "a", tmp_path / "b", "--pair", "a", "b")
    pair = capsys.readouterr().out.partition("A's error smaller")[2]
    lines = {line.split()[0]: line.split() for line in pair.splitlines() if line.strip()}
    assert lines["ap50"][1] == "+49.50" and lines["ap50"][-2:] == ["-", "A"]  # at 101 recalls: 75 % and 25 %
    run_compare(monkeypatch, tmp_path / "a", tmp_path / "b", "--pair", "a", "a")
    printed = capsys.readouterr().out.partition("A's error smaller")[2]
    assert "resamples of the 40 common photos" in printed
    assert next(line for line in printed.splitlines() if line.startswith(" ap50 ")).split()[-1] == "-"
