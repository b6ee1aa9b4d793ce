"""Tests of the AP of WIDER FACE: known numbers, and a loop over photos and thresholds as in the evaluation code."""

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import face_data
from scipy.io import loadmat

from facelab.faces.boxes import from_corner_and_size
from facelab.faces.geometry import Array
from facelab.metrics import wider
from facelab.metrics.detection import definitions
from facelab.metrics.detection_table import DetectionTable, detection_table
from facelab.metrics.ranking import area_under_curve
from facelab.metrics.wider import LISTS, THRESHOLDS, best_faces, ends, ranking

Rows = list[list[float]]

TRUTH: list[Rows] = [
    [[100, 100, 60, 80], [300, 100, 40, 40], [500, 300, 20, 24], [50, 400, 8, 9]],
    [[10, 10, 30, 36], [200, 200, 12, 14]],
    [[0, 0, 0, 0]],
    [[5, 5, 70, 90]],
]
"""Faces x y w h of the four photos of the toy set; the third has the row of a photo without a face."""
FOUND: list[Rows] = [
    [
        [102, 98, 60, 82, 0.99],
        [105, 110, 60, 80, 0.90],
        [298, 104, 44, 40, 0.80],
        [700, 50, 50, 50, 0.70],
        [501, 302, 20, 22, 0.60],
        [51, 401, 8, 8, 0.30],
    ],
    [[400, 400, 30, 30, 0.95], [11, 10, 28, 36, 0.85], [200, 201, 12, 12, 0.50], [203, 203, 12, 14, 0.20]],
    [[300, 300, 40, 40, 0.40], [20, 20, 15, 15, 0.05]],
    [],
]
"""Detections x y w h score of the four photos."""
KEPT = {"easy": [[1], [], [], [1]], "medium": [[1, 2], [1], [], [1]], "hard": [[1, 2, 3], [1, 2], [], [1]]}
"""Rows of the faces in each list, from 1."""


def make_table(truth: list[Array], found: list[Array], kept: dict[str, list[Array]]) -> DetectionTable:
    """Return a table of photos with faces (F, 4), detections (D, 5), and rows of the lists from 1."""
    photo, true_photo = (np.repeat(np.arange(len(truth)), [len(rows) for rows in each]) for each in (found, truth))
    faces, detections = np.concatenate(truth).astype(float), np.concatenate(found)
    first = np.cumsum([0, *map(len, truth)])
    tags = np.zeros((len(faces), len(LISTS)), np.bool_)
    for i, name in enumerate(LISTS):
        for start, rows in zip(first, kept[name], strict=False):
            tags[start + np.asarray(rows, int).ravel() - 1, i] = True
    photos = np.arange(len(truth))
    return detection_table(
        LISTS,
        photo_id=photos,
        skipped=photos < 0,
        cut=photos < 0,
        boxes=from_corner_and_size(detections[:, :4]),
        scores=detections[:, 4],
        points=np.full((len(detections), 5, 2), np.nan),
        photo=photo,
        face_id=np.arange(len(faces)),
        true_boxes=from_corner_and_size(faces),
        true_points=np.full((len(faces), 5, 2), np.nan),
        pose=np.full((len(faces), 3), np.nan),
        tags=tags,
        ignore=np.zeros(len(faces), np.bool_),
        true_photo=true_photo,
    )


def toy() -> DetectionTable:
    found = [np.array(rows, float).reshape(-1, 5) for rows in FOUND]
    return make_table([np.array(rows, float) for rows in TRUTH], found, KEPT)  # type: ignore[arg-type]


def aps(table: DetectionTable, *, rounded: bool = False) -> dict[str, float]:
    """Return the AP of each list."""
    best = best_faces(table, rounded=rounded)
    ranked = {name: ranking(table, best, table.tags[:, i]) for i, name in enumerate(LISTS)}
    return {name: float(area_under_curve(each.counts(ends(each)))[0]) for name, each in ranked.items()}


# The evaluation code, as loops


def pixel_overlap(a: Array, b: Array) -> float:
    """Return the overlap of x y x+w y+h, corners counted as covered pixels."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    if w <= 0 or h <= 0:
        return 0.0
    size = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return w * h / (size[0] + size[1] - w * h)


def half_up(value: float) -> int:
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def loop_ap(
    truth: list[Array], found: list[Array], kept: list[Array], rounded: bool = False
) -> tuple[float, list[tuple[int, int]], list[list[float]]]:
    """Evaluate as the published code: AP, (proposals, matched faces) by threshold, stretched scores of each photo."""
    scores = [row[4] for rows in found for row in rows]
    low, high = min(scores), max(scores)
    totals = [[0, 0] for _ in range(1000)]
    stretched = []
    for faces, rows, keep in zip(truth, found, kept, strict=True):
        rows = sorted(rows.tolist(), key=lambda row: -row[4])
        scaled = [(row[4] - low) / (high - low) for row in rows]
        stretched.append(scaled)
        if not rows or not len(faces):
            continue
        corners = [[x, y, x + w, y + h] for x, y, w, h in faces]
        state = {i: 1 if i + 1 in np.asarray(keep).ravel() else -1 for i in range(len(faces))}  # 1 free, 0 taken
        matched, counted, cumulative = 0, [], []
        for x, y, w, h, _ in rows:
            box = [x, y, x + w, y + h]
            if rounded:
                box = [half_up(value) for value in box]
            overlaps = [pixel_overlap(box, corner) for corner in corners]
            if rounded:
                overlaps = [half_up(value) for value in overlaps]
            best = int(np.argmax(overlaps))
            counted.append(True)
            if overlaps[best] >= 0.5:
                if state[best] == -1:
                    counted[-1] = False
                elif state[best] == 1:
                    state[best] = 0
                    matched += 1
            cumulative.append(matched)
        for k in range(1000):
            above = [i for i, score in enumerate(scaled) if score >= 1 - (k + 1) / 1000]
            if above:
                totals[k][0] += sum(counted[: above[-1] + 1])
                totals[k][1] += cumulative[above[-1]]
    faces = sum(len(np.asarray(keep).ravel()) for keep in kept)
    precision = [0.0, *(hits / proposals if proposals else 0.0 for proposals, hits in totals), 0.0]
    recall = [0.0, *(hits / faces for _, hits in totals), 1.0]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    ap = sum((recall[i + 1] - recall[i]) * precision[i + 1] for i in range(len(recall) - 1))
    return ap, [(proposals, hits) for proposals, hits in totals], stretched


# Known numbers


def test_toy_set_has_its_known_numbers() -> None:
    """Would catch any other rule: best face also if taken, faces outside of the list, thresholds, empty photos."""
    table, best = toy(), best_faces(toy(), rounded=False)
    expected = {"easy": (2, 7, 1, 0.5), "medium": (4, 9, 3, 0.55), "hard": (6, 11, 5, 7 / 12)}
    for i, name in enumerate(LISTS):
        faces, counted, hits, ap = expected[name]
        ranked = ranking(table, best, table.tags[:, i])
        counts = ranked.counts(ends(ranked))
        assert (counts.faces[0], counts.hits[-1, 0] + counts.false[-1, 0], counts.hits[-1, 0]) == (faces, counted, hits)
        assert area_under_curve(counts)[0] == pytest.approx(ap, abs=1e-9)
        metric = definitions(table)[f"wider_{name}"]
        assert metric.value() == pytest.approx(ap, abs=1e-9)
        assert metric.resampled is not None
        assert metric.resampled(np.ones((4, 1)))[0] == pytest.approx(ap, abs=1e-9)
    assert ranking(table, best, table.tags[:, 2]).score.round(5).tolist() == [
        *(1, 0.95745, 0.90426, 0.85106, 0.79787, 0.69149, 0.58511, 0.47872, 0.37234, 0.15957, 0),
    ]


def test_loop_has_the_known_numbers_of_the_toy_set() -> None:
    """Would catch a mistake in the loop with which the next tests compare."""
    found = [np.array(rows, float).reshape(-1, 5) for rows in FOUND]
    for name, (counted, hits, ap) in {"easy": (7, 1, 0.5), "medium": (9, 3, 0.55), "hard": (11, 5, 7 / 12)}.items():
        value, totals, scores = loop_ap(list(map(np.array, TRUTH)), found, KEPT[name])  # type: ignore[arg-type]
        assert (totals[-1], value) == ((counted, hits), pytest.approx(ap, abs=1e-9))
    assert np.round(scores[1], 5).tolist() == [0.95745, 0.85106, 0.47872, 0.15957]


def random_photos(seed: int) -> tuple[list[Array], list[Array], list[Array]]:
    """Return faces, detections and listed rows of 25 photos: crowded, with doubled faces, equal scores, or empty."""
    rng = np.random.default_rng(seed)
    truth, found, kept = [], [], []
    for photo in range(25):
        faces = np.concatenate([rng.integers(0, 120, (12, 2)), rng.integers(0, 45, (12, 2))], axis=1).astype(float)
        faces = np.concatenate([faces, faces[:2]])[: rng.integers(0, 15)]
        rows = faces[rng.integers(0, len(faces), 25)] if len(faces) else np.tile([5.0, 5, 20, 20], (25, 1))
        rows = rows + rng.normal(0, 3, rows.shape).round(rng.integers(0, 3))
        rows = np.concatenate([rows, rng.random((25, 1)).round(1 + 3 * (photo % 2))], axis=1)
        truth.append(faces)
        found.append(rows[: rng.integers(0, 26)])
        kept.append(1 + np.flatnonzero(rng.random(len(faces)) < 0.6))
    return truth, found, kept


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_ap_agrees_with_the_loop_on_random_photos(seed: int, rounded: bool) -> None:
    """Would catch a tie of overlaps, equal scores, a photo without rows or detections that is treated otherwise."""
    truth, found, kept = random_photos(seed)
    expected, _, _ = loop_ap(truth, found, kept, rounded)
    assert 0.1 < expected < 0.9
    assert aps(make_table(truth, found, dict.fromkeys(LISTS, kept)), rounded=rounded)["easy"] == pytest.approx(
        expected, abs=1e-12
    )


def test_definitions_round_on_request() -> None:
    """Would catch an option of the evaluation that changes the protocol alone."""
    truth, found, kept = random_photos(0)
    table = make_table(truth, found, dict.fromkeys(LISTS, kept))
    exact, rounded = (definitions(table, wider_rounded=each)["wider_hard"].value() for each in (False, True))
    assert (exact, rounded) == (aps(table)["hard"], aps(table, rounded=True)["hard"])
    assert exact != rounded


def test_a_resample_has_the_ap_of_the_repeated_photos() -> None:
    """Would catch weights of other photos, or faces of the list that are not weighted."""
    truth, found, kept = random_photos(0)
    weights = np.arange(25) % 3 + 1  # no photo is missing: the scores are stretched alike
    repeats = np.repeat(np.arange(25), weights)
    expected, _, _ = loop_ap(*([each[photo] for photo in repeats] for each in (truth, found, kept)))
    metric = definitions(make_table(truth, found, dict.fromkeys(LISTS, kept)))["wider_hard"]
    assert metric.resampled is not None
    assert metric.resampled(weights[:, None].astype(float))[0] == pytest.approx(expected, abs=1e-12)


# The official val


@functools.cache
def official(root: Path) -> tuple[list[str], list[Array], dict[str, list[Array]]]:
    """Return names, faces x y w h, and rows of each list from 1, of the 3,226 photos."""
    whole = loadmat(root / "wider_face_val.mat")
    events = [str(event[0]) for event in whole["event_list"][:, 0]]
    files = zip(events, whole["file_list"][:, 0], strict=True)
    names = [f"{event}/{name[0]}" for event, of_event in files for name in of_event[:, 0]]
    truth = [rows.astype(np.float64) for photos in whole["face_bbx_list"][:, 0] for rows in photos[:, 0]]
    kept = {
        name: [rows for photos in loadmat(root / f"wider_{name}_val.mat")["gt_list"][:, 0] for rows in photos[:, 0]]
        for name in LISTS
    }
    return names, truth, kept


def made(truth: list[Array], case: str) -> list[Array]:
    """Return detections made of the faces: equal to them, moved, or the large ones beside false ones."""
    found = []
    for rows in truth:
        x, y, w, h = rows[(rows[:, 2:] > 0).all(axis=1)].T
        score = (31 * x + 17 * y + 7 * w + 3 * h) % 1000 / 1000
        if case == "moved":
            x, y = x + np.floor(0.2 * w), y + np.floor(0.1 * h)
        rows = np.column_stack([x, y, w, h, score])
        if case == "false":
            large = rows[h >= 20]
            wrong = large + np.stack([2 * large[:, 2], *np.zeros((4, len(large)))], axis=1)
            large[:, 4], wrong[:, 4] = 0.5 + large[:, 4] / 2, wrong[:, 4] / 2 + 0.2
            rows = np.concatenate([large, wrong])
        found.append(rows[np.argsort(-rows[:, 4], kind="stable")])
    return found


@pytest.mark.parametrize(
    ("case", "exact", "rounded"),
    [
        ("equal", (1, 1, 0.999918), (0.999792, 0.999708, 0.999309)),
        ("moved", (0.999659, 0.999372, 0.999338), (0.999672, 0.999159, 0.999075)),
        ("false", (0.854077, 0.902206, 0.579247), (0.853869, 0.901942, 0.578991)),
    ],
)
def test_official_val_has_its_known_numbers(case: str, exact: Any, rounded: Any) -> None:
    """Would catch a rule that only crowded photos, degenerate rows or doubled faces show."""
    _, truth, kept = official(face_data("WIDER", "ground_truth"))
    table = make_table(truth, made(truth, case), kept)
    assert table.tags.sum(axis=0).tolist() == [7211, 13319, 31958]
    assert list(aps(table).values()) == pytest.approx(exact, abs=1e-6)
    assert list(aps(table, rounded=True).values()) == pytest.approx(rounded, abs=1e-6)


def test_ap_agrees_with_the_loop_on_real_photos() -> None:
    """Would catch a mistake that whole numbers hide: detections with fractions on the photos that are on disk."""
    root = face_data("WIDER", "ground_truth")
    names, truth, kept = official(root)
    photos = (root.parent / "WIDER_val" / "images").glob("*/*.jpg")
    on_disk = {path.with_suffix("").relative_to(path.parents[1]).as_posix() for path in photos}
    rows = [i for i, name in enumerate(names) if name in on_disk]
    assert len(rows) == len(on_disk) > 50
    rng, truth = np.random.default_rng(0), [truth[i] for i in rows]
    found = []
    for faces in truth:
        source = faces[rng.integers(0, len(faces), 3 * len(faces))]
        boxes = source + rng.normal(0, 0.12, source.shape) * source[:, 2:3]
        found.append(np.concatenate([boxes, rng.random((len(boxes), 1))], axis=1))
    lists = {name: [kept[name][i] for i in rows] for name in LISTS}
    for rounded in (False, True):
        measured = aps(make_table(truth, found, lists), rounded=rounded)
        for name in LISTS:
            expected = loop_ap(truth, found, lists[name], rounded)[0]
            assert 0.2 < expected < 0.95
            assert measured[name] == pytest.approx(expected, abs=1e-12)


# Edges


def test_one_score_is_above_every_threshold() -> None:
    """Would catch 0 / 0 where all scores are equal."""
    table = toy()
    equal = table._replace(scores=np.full(len(table.scores), 0.7))
    ranked = ranking(equal, best_faces(equal, rounded=False), equal.tags[:, 2])
    assert (ends(ranked) == 11).all() and len(THRESHOLDS) == 1000
    assert aps(equal)["hard"] == pytest.approx(5 / 6 * 5 / 11)


def test_no_detection_has_ap_0_and_no_listed_face_none() -> None:
    """Would catch a crash of an evaluation of one event or photo, or a 0 where nothing can be found."""
    table = toy()
    nothing = {name: getattr(table, name)[:0] for name in ("boxes", "scores", "points", "photo")}
    assert list(aps(table._replace(**nothing)).values()) == [0, 0, 0]
    assert all(np.isnan(value) for value in aps(table._replace(tags=np.zeros_like(table.tags))).values())
    assert wider.LISTS == LISTS and "wider_easy" not in definitions(table._replace(tag_names=("a", "b", "c")))
