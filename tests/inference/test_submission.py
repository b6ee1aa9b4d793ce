"""Tests of the submission format of WIDER FACE."""

from pathlib import Path

import numpy as np
import pytest

from facelab.errors import DatasetError
from facelab.faces.boxes import from_corner_and_size
from facelab.inference.submission import read_submission, write_submission
from facelab.metrics.detection_table import DetectionTable, detection_table

PHOTOS = [Path("images/0--Parade/a.b.jpg"), Path("images/0--Parade/empty.jpg"), Path("images/1--Ball/c.png")]


def make_table(boxes: list[list[float]], scores: list[float], photo: list[int]) -> DetectionTable:
    """Return a table of three photos without faces."""
    return detection_table(
        (),
        photo_id=np.arange(3),
        skipped=np.zeros(3, np.bool_),
        cut=np.zeros(3),
        boxes=np.array(boxes),
        scores=np.array(scores),
        points=np.full((len(boxes), 5, 2), np.nan),
        photo=np.array(photo),
        face_id=np.arange(0),
        true_boxes=np.empty((0, 4)),
        true_points=np.empty((0, 5, 2)),
        pose=np.empty((0, 3)),
        tags=np.empty((0, 0), np.bool_),
        ignore=np.empty(0, np.bool_),
        true_photo=np.arange(0),
    )


@pytest.fixture
def table() -> DetectionTable:
    return make_table([[-1.4, 2.0, 10.25, 20.9], [4.6, 5, 8, 9], [0, 0, 3, 4]], [0.25, 1 / 3, 0.5], [0, 0, 2])


def test_write_submission_writes_what_the_evaluation_code_reads(table: DetectionTable, tmp_path: Path) -> None:
    """Would catch rows in rising order, half a pixel, a photo without a file, or a header that the code cannot read."""
    write_submission(table, PHOTOS, tmp_path / "out", truncated=False)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.txt"))
    assert files == ["out/0--Parade/a.b.txt", "out/0--Parade/empty.txt", "out/1--Ball/c.txt"]
    first, second = (tmp_path / "out" / "0--Parade" / "a.b.txt").read_text().splitlines()[2:]
    assert [float(word) for word in first.split()] == pytest.approx([5.1, 5.5, 3.4, 4, 1 / 3])
    assert [float(word) for word in second.split()] == pytest.approx([-0.9, 2.5, 11.65, 18.9, 0.25])
    assert (tmp_path / "out" / "0--Parade" / "empty.txt").read_text() == "empty\n0\n"
    assert (tmp_path / "out" / "1--Ball" / "c.txt").read_text() == "c\n1\n0.5 0.5 3.0 4.0 0.5\n"


def test_write_submission_truncates_corners_like_the_reference_code(table: DetectionTable, tmp_path: Path) -> None:
    """Would catch sizes that are truncated themselves, rounding, or truncation downwards below 0."""
    write_submission(table, PHOTOS, tmp_path / "out", truncated=True)
    assert (tmp_path / "out" / "0--Parade" / "a.b.txt").read_text().splitlines()[2:] == [
        f"5 5 {int(8.5) - int(5.1)} {int(9.5) - int(5.5)} {1 / 3}",
        f"0 2 {int(10.75) - int(-0.9)} {int(21.4) - int(2.5)} 0.25",
    ]


def test_read_submission_reads_what_was_written(table: DetectionTable, tmp_path: Path) -> None:
    """Would catch rounded numbers: the same AP needs the same boxes and scores."""
    write_submission(table, PHOTOS, tmp_path / "out", truncated=False)
    rows, scores = read_submission(tmp_path / "out")
    assert rows.names == ["0--Parade/a.b", "0--Parade/empty", "1--Ball/c"]
    assert rows.ends == [2, 2, 3]
    np.testing.assert_allclose(from_corner_and_size(rows.boxes), table.boxes, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(scores, table.scores)
    assert rows.places[2] == f"{tmp_path / 'out' / '1--Ball' / 'c.txt'}, line 3"


def test_write_submission_refuses_two_photos_of_one_name(table: DetectionTable, tmp_path: Path) -> None:
    """Would catch detections that are overwritten by those of another photo."""
    with pytest.raises(DatasetError, match=r"images/0--Parade/empty.png: the split has two photos 0--Parade/empty"):
        write_submission(table, [*PHOTOS[:2], Path("images/0--Parade/empty.png")], tmp_path / "out", truncated=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"a.txt is empty"),
        ("a\n", r"a.txt, line 2: expected the number of detections, found the end of the file"),
        ("1 2 3 4 0.5\n1 2 3 4 0.4\n", r"a.txt, line 2: expected the number of detections, found '1 2 3 4 0.4'"),
        ("a\n2\n1 2 3 4 0.5\n", r"a.txt, line 2: 2 detections are announced, but 1 lines follow"),
        ("a\n1\n1 2 3 4 0.5\n1 2 3 4 0.5\n", r"a.txt, line 2: 1 detections are announced, but 2 lines follow"),
        ("a\n2\n1 2 3 4 0.5\n1 2 3 4\n", r"a.txt, line 4: found 4 values, expected 5 \(x y width height score\)"),
        ("a\n1\n1 2 3 4 0.5 7\n", r"a.txt, line 3: found 6 values, expected 5"),
        ("a\n1\n1 2 nan 4 0.5\n", r"a.txt, line 3: 'nan'"),
        ("a\n1\n1 2 inf 4 0.5\n", r"a.txt, line 3: 'inf' is not a finite number"),
        ("a\n1\n1,2,3,4,0.5\n", r"a.txt, line 3: found 1 values"),
        ("a\n1\n1 2 3 4 high\n", r"a.txt, line 3: 'high' is not a number"),
    ],
)
def test_read_submission_names_file_line_and_fault(content: str, message: str, tmp_path: Path) -> None:
    """Would catch a traceback, or a row that is dropped silently."""
    (tmp_path / "0--Parade").mkdir()
    (tmp_path / "0--Parade" / "a.txt").write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_submission(tmp_path)


def test_read_submission_refuses_an_empty_folder(tmp_path: Path) -> None:
    """Would catch a path to the wrong folder that becomes an AP of 0."""
    with pytest.raises(DatasetError, match=r"contains no file EVENT/PHOTO.txt"):
        read_submission(tmp_path)


def test_read_submission_warns_of_a_file_of_another_photo(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Would catch files whose contents were exchanged, and warnings about the usual forms of the first line."""
    for name, header in {"a.b": "0--Parade/a.b.jpg", "c": "c", "d": "/data/images/d.jpg"}.items():
        (tmp_path / f"{name}.txt").write_text(f"{header}\n0\n")
    read_submission(tmp_path)
    assert not caplog.records
    (tmp_path / "c.txt").write_text("d.jpg\n0\n")
    read_submission(tmp_path)
    assert f"{tmp_path / 'c.txt'}, line 1: names another photo than the file does (1 such files)" in caplog.text
