"""Tests of the curves of detectors, against the records of the same table and plain counts."""

from pathlib import Path

import numpy as np
import pytest

from facelab.faces.geometry import Array
from facelab.metrics.detection import FALSE_PER_PHOTO, definitions
from facelab.metrics.detection_curves import MOST_POINTS, Curve, curves, read_curves, write_curves
from facelab.metrics.detection_table import DetectionTable, detection_table
from facelab.metrics.ranking import RECALLS
from facelab.metrics.wider import LISTS

PHOTOS = 60


def scenes(detections: int, *, ties: bool, tags: tuple[str, ...] = LISTS) -> tuple[DetectionTable, Array, Array]:
    """Return a table whose detections are copies of faces, each once, or false, and what each is.

    Every third photo has no face, one in ten faces is ignored, and the last photo could not be read.

    Returns:
        Table; scores ``(D,)``; for each score 1 for a found face, 0 for a false detection, -1 for an ignored face.
    """
    rng = np.random.default_rng(3)
    faces = detections // 2
    true_photo = 3 * rng.integers(0, PHOTOS // 3, faces)
    corner = 50.0 * np.arange(faces)[:, None] * [1, 1]  # no two overlap
    true_boxes, ignore = np.concatenate([corner, corner + 40], axis=1), rng.random(faces) < 0.1
    copied = np.flatnonzero(rng.random(faces) < 0.8)
    false = detections - len(copied)
    photo = np.concatenate([true_photo[copied], rng.integers(0, PHOTOS - 1, false)])
    scores = np.concatenate([rng.random(len(copied)) ** 0.5, rng.random(false) ** 2])
    scores = scores.round(1) if ties else scores
    table = detection_table(
        tags,
        photo_id=np.arange(PHOTOS),
        skipped=np.arange(PHOTOS) == PHOTOS - 1,
        cut=np.zeros(PHOTOS, np.bool_),
        boxes=np.concatenate([true_boxes[copied], -100 - 50 * rng.random((false, 1)) + [[0, 0, 30, 30]]]),
        scores=scores,
        points=np.full((detections, 5, 2), np.nan),
        photo=photo,
        face_id=np.arange(faces),
        true_boxes=true_boxes,
        true_points=np.full((faces, 5, 2), np.nan),
        pose=np.full((faces, 3), np.nan),
        tags=rng.random((faces, len(tags))) < 0.5,
        ignore=ignore,
        true_photo=true_photo,
    )
    return table, scores, np.concatenate([np.where(ignore[copied], -1, 1), np.zeros(false, int)])


@pytest.mark.parametrize("ties", [True, False])
def test_curves_count_at_each_distinct_score(ties: bool) -> None:
    """Would catch equal scores as several points, an ignored face that counts, and photos without faces left out."""
    table, scores, kinds = scenes(400, ties=ties)
    curve = curves(table)["ap50"]
    thresholds = np.unique(scores[kinds >= 0])[::-1]
    np.testing.assert_array_equal(curve.score, thresholds)
    assert (len(thresholds) == 11) == ties
    best = 0.0
    for i in reversed(range(len(thresholds))):
        hits, false = (int(((scores >= thresholds[i]) & (kinds == kind)).sum()) for kind in (1, 0))
        best = max(best, hits / (hits + false))
        expected = [hits / (~table.ignore).sum(), hits / (hits + false), best, false / (PHOTOS - 1)]
        assert [column[i] for column in curve[1:]] == pytest.approx(expected, rel=1e-12)


def area(curve: Curve) -> float:
    """Return the area under the envelope as the AP of WIDER FACE defines it."""
    return float((np.diff(curve.recall, prepend=0) * curve.envelope).sum())


@pytest.mark.parametrize("detections", [20, 400, 6000])
def test_curves_from_a_file_give_the_records(tmp_path: Path, detections: int) -> None:
    """Would catch a curve of other faces than its AP, and points left out or rounded that a record depends on."""
    table = scenes(detections, ties=False)[0]
    whole = curves(table)
    write_curves(whole, tmp_path / "curves.csv")
    read, records = read_curves(tmp_path / "curves.csv"), definitions(table)
    assert list(read) == ["ap50", "wider_easy", "wider_medium", "wider_hard"]
    assert max(len(curve.score) for curve in read.values()) <= MOST_POINTS
    curve = read["ap50"]
    at = np.searchsorted(curve.recall, RECALLS)
    ap = curve.envelope[at[at < len(curve.envelope)]].sum() / len(RECALLS)
    assert ap == pytest.approx(records["ap50"].value(), rel=1e-12)
    assert curve.recall[-1] == records["recall"].value() and curve.score[-1] == whole["ap50"].score[-1]
    for name, false in FALSE_PER_PHOTO.items():
        recall = np.append(0, curve.recall)[np.count_nonzero(curve.false_per_photo <= false)]
        assert recall == records[f"recall_fppi_{name}"].value()
    for name in LISTS:
        assert area(read[f"wider_{name}"]) == pytest.approx(records[f"wider_{name}"].value(), abs=5e-3)


def test_thinned_curve_is_close_to_the_whole_one() -> None:
    """Would catch points left out between which the curve bends visibly, in either figure."""
    whole = curves(scenes(6000, ties=False)[0])["ap50"]
    thin = whole.thinned()
    assert len(thin.score) <= MOST_POINTS < len(whole.score) / 20
    below, above = (np.interp(whole.recall + step, thin.recall, thin.envelope) for step in (0.01, -0.01))
    assert (below - 0.002 < whole.envelope).all() and (whole.envelope < above + 0.002).all()
    shown = (whole.false_per_photo >= 0.05) & (whole.false_per_photo <= 10)
    drawn = np.interp(np.log(whole.false_per_photo[shown]), np.log(thin.false_per_photo + 1e-9), thin.recall)
    assert np.abs(drawn - whole.recall[shown]).max() < 0.01


def test_curves_without_points_are_left_out() -> None:
    """Would catch a curve of NaN, and lists of WIDER FACE on a dataset that has none."""
    table = scenes(20, ties=False, tags=("blur",))[0]
    assert list(curves(table)) == ["ap50"]
    assert curves(table._replace(ignore=np.ones_like(table.ignore))) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", r"curves\.csv:1: has the columns a, b, expected score, recall"),
        ("", r"curves\.csv:1: has the columns"),
        ("{}ap50,1,1,1,1\n", r"curves\.csv:2: expected a name and 5 finite numbers"),
        ("{}ap50,1,1,1,1,nan\n", r"curves\.csv:2: expected a name and 5 finite numbers"),
        ("{}ap50,1,1,1,1,0\nap50,1,much,1,1,0\n", r"curves\.csv:3: could not convert"),
        ("{}\n", r"curves\.csv:2: not enough values"),
        ("{}" + "ap50,1,1,1,1,0\n" * 70_000, r"curves\.csv: has more than 1,048,576 bytes"),
    ],
)
def test_read_curves_names_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    """Would catch a traceback without file and line, or megabytes of points from a received folder."""
    file = tmp_path / "curves.csv"
    file.write_text(text.format("metric,score,recall,precision,envelope,false_per_photo\n"))
    with pytest.raises(ValueError, match=message):
        read_curves(file)
