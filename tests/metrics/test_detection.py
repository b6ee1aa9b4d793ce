"""Tests of the detection metrics, against plain loops over photos and against faster-coco-eval."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch.utils.data import DistributedSampler, TensorDataset

from facelab.faces.batch import DetectionBatch, Detections
from facelab.faces.geometry import Array
from facelab.metrics import detection
from facelab.metrics.detection import FALSE_PER_PHOTO, IOUS, SIZE_BUCKETS, count_photos, definitions, example
from facelab.metrics.detection_curves import curves
from facelab.metrics.detection_errors import DetectionErrors
from facelab.metrics.detection_files import (
    COLUMNS,
    read_detection_table,
    write_detection_table,
    write_detections,
    write_photos,
)
from facelab.metrics.detection_table import DetectionTable, detection_table
from facelab.metrics.landmarks import YAW_BUCKETS

TAGS = ("blur", "invalid")
PHOTOS = 30


def scenes(seed: int = 0, *, ties: bool = True) -> dict[str, Array]:
    """Return the columns of a table: crowded photos, doubled and shifted detections, ignored faces, missing points.

    Photos 3 to 5 have no face, 5 to 7 no detection; 8 could not be read. With ``ties`` there are few distinct scores.
    """
    rng = np.random.default_rng(seed)
    true_photo = np.sort(rng.integers(0, PHOTOS, 160))
    true_photo = true_photo[(true_photo < 3) | (true_photo > 5)]
    faces = len(true_photo)
    corner, sides = rng.uniform(0, 120, (faces, 2)), np.exp(rng.uniform(np.log(8), np.log(160), (faces, 1)))
    true_boxes = np.concatenate([corner, corner + sides * rng.uniform(0.8, 1.25, (faces, 2))], axis=1)
    true_boxes[:: faces // 3, 2] = true_boxes[:: faces // 3, 0] - 2
    shape = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])
    true_points = corner[:, None] + shape * (true_boxes[:, None, 2:] - corner[:, None])
    true_points += rng.normal(0, 0.03, true_points.shape) * sides[:, None]
    true_points[rng.random(faces) < 0.3] = np.nan
    true_points[rng.random((faces, 5)) < 0.05] = np.nan
    source = rng.integers(0, faces, 3 * faces)
    noise = rng.normal(0, 0.08, (len(source), 4)) * sides[source]
    random = rng.random(len(source)) < 0.15
    noise[random] += rng.normal(0, 60, (random.sum(), 1))
    photo = true_photo[source]
    photo[rng.random(len(source)) < 0.1] = 4
    kept = (photo < 5) | (photo > 7)
    scores = rng.random(len(source)) ** np.where(random, 3, 1)
    pose = rng.uniform(-90, 90, (faces, 3))
    pose[::2] = np.nan
    return {
        "photo_id": np.arange(PHOTOS) + 100,
        "skipped": np.arange(PHOTOS) == 8,
        "cut": np.arange(PHOTOS) % 9 == 0,
        "boxes": (true_boxes[source] + noise)[kept],
        "scores": (scores.round(1) if ties else scores)[kept],
        "points": (true_points.clip(-99, 999)[source] + noise[:, None, :2])[kept],
        "photo": photo[kept] + 100,
        "face_id": np.arange(faces) * 2,
        "true_boxes": true_boxes,
        "true_points": true_points,
        "pose": pose,
        "tags": rng.random((faces, 2)) < 0.3,
        "ignore": rng.random(faces) < 0.15,
        "true_photo": true_photo + 100,
    }


def shuffled(columns: dict[str, Array], seed: int) -> dict[str, Array]:
    """Reorder the rows of the photos, the detections and the faces."""
    rng = np.random.default_rng(seed)
    order = {axis: rng.permutation(len(columns[name])) for axis, name in (("P", "photo_id"), ("D", "scores"))}
    order["F"] = rng.permutation(len(columns["face_id"]))
    return {name: column[order[COLUMNS[name][1][0]]] for name, column in columns.items()}  # type: ignore[index]


def table_of(columns: dict[str, Array]) -> DetectionTable:
    return detection_table(TAGS, **columns)


def values(table: DetectionTable) -> dict[str, float]:
    return {name: definition.value() for name, definition in definitions(table).items()}


def assert_same(a: DetectionTable, b: DetectionTable) -> None:
    assert a.tag_names == b.tag_names
    for name in a._fields[1:]:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


# Plain loops


def overlap(a: Any, b: Any) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    size = [max(x1 - x0, 0) * max(y1 - y0, 0) for x0, y0, x1, y1 in (a, b)]
    return both / (sum(size) - both) if both else 0.0


def loop_matches(table: DetectionTable, least: float, faces: Array) -> list[tuple[float, int, int, int]]:
    """Match detections one after the other: (score, photo, detection, face); face -1: false, -2: on an ignored face."""
    result = []
    for photo in range(len(table.photo_id)):
        free = [f for f in range(len(faces)) if table.true_photo[f] == photo]
        rows = [d for d in range(len(table.scores)) if table.photo[d] == photo]
        for d in sorted(rows, key=lambda d: (-table.scores[d], *table.boxes[d])):
            overlaps = {f: overlap(table.boxes[d], table.true_boxes[f]) for f in free}
            near = {f: o for f, o in overlaps.items() if o >= least}
            own = {f: o for f, o in near.items() if faces[f]}
            face = max(own, key=lambda f: own[f]) if own else -2 if near else -1
            if face >= 0:
                free.remove(face)
            result.append((table.scores[d], photo, d, face))
    return result


def loop_points(matches: list[tuple[float, int, int, int]]) -> list[tuple[int, int]]:
    """Return hits and false detections at or above each distinct score, from the highest."""
    points = []
    for threshold in sorted({score for score, *_ in matches}, reverse=True):
        above = [face for score, _, _, face in matches if score >= threshold]
        points.append((sum(face >= 0 for face in above), sum(face == -1 for face in above)))
    return points


def loop_ap(points: list[tuple[int, int]], faces: int) -> float:
    if not faces:
        return math.nan
    total = 0.0
    for recall in np.linspace(0, 1, 101):
        total += max((hits / (hits + false) for hits, false in points if hits and hits / faces >= recall), default=0)
    return total / 101


def oracle(table: DetectionTable) -> dict[str, float]:
    """Compute the metrics with plain loops, from their definitions."""
    to_find = ~table.ignore
    faces, photos = int(to_find.sum()), int((~table.skipped).sum())
    aps = {least: loop_ap(loop_points(loop_matches(table, least, to_find)), faces) for least in IOUS}
    matches = loop_matches(table, 0.5, to_find)
    points = loop_points(matches)
    expected = {"ap50": aps[0.5], "ap": sum(aps.values()) / 10, "recall": points[-1][0] / faces}
    for name, false in FALSE_PER_PHOTO.items():
        allowed = [hits for hits, wrong in points if wrong / photos <= false]
        expected[f"recall_fppi_{name}"] = max(allowed, default=0) / faces

    for most in detection.PROPOSALS:  # more than any photo has; another test has small limits
        expected[f"recall_first_{most}"] = expected["recall"]

    def part(name: str, members: Array, counts: Any = lambda d: True) -> None:
        rows = [m for m in loop_matches(table, 0.5, to_find & members) if m[3] >= 0 or counts(m[2])]
        number = int((to_find & members).sum())
        expected[f"ap50_{name}"] = loop_ap(loop_points(rows), number)
        expected[f"recall_{name}"] = sum(m[3] >= 0 for m in rows) / number if number else math.nan

    for i, tag in enumerate(TAGS):
        part(f"tag_{tag}", table.tags[:, i])
    edges = [0, 16, 32, 64, 128, math.inf]
    size, own = ([max((b[2] - b[0]) * (b[3] - b[1]), 0) ** 0.5 for b in x] for x in (table.true_boxes, table.boxes))
    for name, low, high in zip(SIZE_BUCKETS, edges, edges[1:], strict=False):
        members = np.array([low <= s < high for s in size])
        part(f"size_{name}", members, lambda d, low=low, high=high: low <= own[d] < high)
    yaw, yaws = np.abs(table.pose[:, 0]), [-1, 30, 60, 90]
    errors: dict[int, float] = {}
    annotated = [f for f in range(len(to_find)) if to_find[f] and not np.isnan(table.true_points[f]).any(-1).all()]
    for _, _, d, f in matches:
        if f in annotated:
            known = [i for i in range(5) if not np.isnan(table.true_points[f, i]).any()]
            distances = [math.hypot(*(table.points[d, i] - table.true_points[f, i])) for i in known]
            errors[f] = sum(distances) / len(distances) / size[f] if not np.isnan(distances).any() else math.inf
    expected["nme5_recall"] = len(errors) / len(annotated)
    expected["nme5_box"] = sum(errors.values()) / len(errors)
    expected["fr10_5"] = sum(e > 0.1 for e in errors.values()) / len(errors)
    for name, low, high in zip(YAW_BUCKETS, yaws, yaws[1:], strict=False):
        part(f"yaw_{name}", (low < yaw) & (yaw <= high))
        some = [e for f, e in errors.items() if low < yaw[f] <= high]
        expected[f"nme5_box_yaw_{name}"] = sum(some) / len(some)
    counts = {"faces": faces, "photos": photos, "photos_skipped": 1, "photos_cut": sum(table.cut)}
    return expected | counts


@pytest.mark.parametrize("seed", [0, 1])
def test_definitions_agree_with_plain_loops(seed: int) -> None:
    """Would catch a wrong match, threshold, bucket edge, tag, normaliser or mask in the vectorised code."""
    columns = scenes(seed)
    columns["points"][np.isnan(columns["points"]).any(-1)] = 0
    table = table_of(columns)
    measured, expected = values(table), oracle(table)
    assert measured.keys() == expected.keys()
    assert 0.1 < expected["ap"] < expected["ap50"] < 0.9 and 0.02 < expected["nme5_box"] < 1
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value, nan_ok=True, rel=1e-12), name


def test_ap_agrees_with_faster_coco_eval(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch another interpolation, range of overlaps or order of matching than those of COCO."""
    faster_coco_eval = pytest.importorskip("faster_coco_eval")
    columns = scenes(2, ties=False)
    columns["ignore"][:] = False
    columns["skipped"][:] = False
    columns["boxes"] = np.sort(columns["boxes"].reshape(-1, 2, 2), axis=1).reshape(
        -1, 4
    )  # COCO ignores a negative area
    table = table_of(columns)
    truth = faster_coco_eval.COCO()
    sides = table.true_boxes[:, 2:] - table.true_boxes[:, :2]
    kept = np.flatnonzero(~table.ignore)
    truth.dataset = {
        "images": [{"id": int(photo)} for photo in table.photo_id],
        "categories": [{"id": 1}],
        "annotations": [
            {
                "id": int(f) + 1,
                "image_id": int(table.photo_id[table.true_photo[f]]),
                "category_id": 1,
                "bbox": [*table.true_boxes[f, :2].tolist(), *sides[f].tolist()],
                "area": float(sides[f].prod()),
                "iscrowd": 0,
            }
            for f in kept
        ],
    }
    truth.createIndex()
    sizes = table.boxes[:, 2:] - table.boxes[:, :2]
    rows = np.column_stack([table.photo_id[table.photo], table.boxes[:, :2], sizes, table.scores, np.ones(len(sizes))])
    evaluator = faster_coco_eval.COCOeval_faster(truth, truth.loadRes(rows), "bbox")
    evaluator.params.maxDets = [1, 10, 10_000]
    evaluator.evaluate()
    evaluator.accumulate()
    precision = evaluator.eval["precision"][:, :, 0, 0, 2]  # (overlap, recall)
    measured = values(table)
    assert measured["ap50"] == pytest.approx(precision[0].mean(), abs=1e-9)
    assert measured["ap"] == pytest.approx(precision.mean(), abs=1e-9)


# Order, ties, empty cases


def test_metrics_depend_on_no_order() -> None:
    """Would catch an AP that changes with the order of the photos or of equal scores, at which rows tie in a photo."""
    expected = values(table_of(scenes()))
    for seed in range(3):
        measured = values(table_of(shuffled(scenes(), seed)))
        assert measured == pytest.approx(expected, nan_ok=True, rel=1e-12)


def test_table_orders_equal_boxes_by_their_points() -> None:
    """Would catch an error of points that depends on which of two equal detections is listed first."""
    columns = scenes()
    twin = {name: columns[name][:1] for name, (_, axes) in COLUMNS.items() if axes[0] == "D"}
    twin["points"] = twin["points"] + 5
    both = {name: np.concatenate([columns[name], twin[name]]) for name in twin}
    tables = [
        table_of(columns | {name: column[order] for name, column in both.items()})
        for order in (np.arange(len(both["scores"])), np.arange(len(both["scores"]))[::-1])
    ]
    assert_same(*tables)


def test_equal_scores_are_one_threshold() -> None:
    """Would catch a curve that puts the hits before the false detections of the same score."""
    columns = scenes()
    columns["scores"][:] = 0.5
    points = curves(table_of(columns))["ap50"]
    assert len(points.score) == 1
    ap = definitions(table_of(columns))["ap50"].value()
    assert ap == pytest.approx(points.precision[0] * math.floor(points.recall[0] * 100 + 1) / 101)


def test_metrics_without_faces_detections_or_photos() -> None:
    """Would catch a crash, or a 0 for what is not defined."""
    columns = scenes()
    empty = {"P": slice(0), "D": slice(0), "F": slice(0)}
    for axes in ("D", "F", "DF", "PDF"):
        some = {
            name: column[empty[COLUMNS[name][1][0]]] if COLUMNS[name][1][0] in axes else column  # type: ignore[index]
            for name, column in columns.items()
        }
        table = table_of(some)
        records = {name: each.record(20, seed=0) for name, each in definitions(table).items()}
        for name, record in records.items():
            if record.unit != "count" and "F" in axes:
                assert np.isnan([record.value, record.low, record.high]).all(), name
        if axes == "D":
            assert records["ap50"][:3] == records["recall"][:3] == (0, 0, 0)
            assert math.isnan(records["nme5_box"].value) and records["nme5_recall"].value == 0
        assert records["photos"].value == (0 if "P" in axes else PHOTOS - 1)
        assert curves(table) == {}


def test_points_that_nobody_annotated_or_predicted_have_no_error() -> None:
    """Would catch an NME of 0 on a set without points, or from a detector that has none."""
    for name in ("true_points", "points"):
        columns = scenes()
        columns[name][:] = np.nan
        measured = definitions(table_of(columns))
        assert math.isnan(measured["nme5_box"].value()) and math.isnan(measured["fr10_5"].value())
    assert measured["nme5_recall"].value() > 0.5


def test_one_missing_predicted_point_fails() -> None:
    """Would catch a diverged point that the mean leaves out."""
    columns = scenes()
    columns["points"][np.isnan(columns["points"]).any(-1)] = 0
    columns["points"][:, 2] = np.inf
    record = definitions(table_of(columns))["nme5_box"].record(20, seed=0)
    assert record.value == record.low == record.high == math.inf
    assert definitions(table_of(columns))["fr10_5"].value() > 0.9


def test_ignored_faces_are_neither_to_find_nor_background() -> None:
    """Would catch a detection on an ignored face that is false, and a missed ignored face."""
    box = np.array([[0.0, 0, 40, 40]])
    table = example(TAGS)._replace(true_boxes=box, boxes=box, ignore=np.array([True]))
    record = definitions(table)["ap50"].record(10, seed=0)
    assert math.isnan(record.value) and (record.faces, record.left_out) == (0, 1)
    assert [column.tolist() for column in count_photos(table, 0.3)] == [[0], [0], [0], [0]]
    assert curves(table) == {}


# Intervals


def test_intervals_contain_the_value_and_shrink() -> None:
    """Would catch a bootstrap of other numbers than the value's, weights of the wrong photos, and a fixed interval."""
    few, many = scenes(), scenes()
    blocks = 8
    for name, column in many.items():
        many[name] = np.concatenate([column] * blocks)
        if name in ("photo_id", "photo", "true_photo", "face_id"):
            many[name] += 1000 * np.arange(blocks).repeat(len(column))
    narrow, wide = definitions(table_of(many)), definitions(table_of(few))
    for name in ("ap50", "ap", "recall", "ap50_tag_blur", "ap50_size_32_64", "nme5_recall"):
        a, b = wide[name].record(200, seed=0), narrow[name].record(200, seed=0)
        assert a.value == pytest.approx(b.value, abs=0.01)
        assert a.low < a.value < a.high and b.low < b.value < b.high
        assert (b.high - b.low) * 2 < a.high - a.low
    assert wide["ap50"].record(200, seed=1) != wide["ap50"].record(200, seed=0) == wide["ap50"].record(200, seed=0)


def repeated(columns: dict[str, Array], weights: Array) -> dict[str, Array]:
    """Return the columns with each photo as often as its weight says, under new ids."""
    blocks = []
    for copy in range(weights.max()):
        kept = set((100 + np.flatnonzero(weights > copy)).tolist())
        rows = {
            axis: np.isin(columns[name], [*kept])
            for axis, name in zip("PDF", ("photo_id", "photo", "true_photo"), strict=True)
        }
        block = {name: column[rows[COLUMNS[name][1][0]]] for name, column in columns.items()}  # type: ignore[index]
        ids = ("photo_id", "photo", "true_photo", "face_id")
        blocks.append(block | {name: block[name] + 1000 * copy for name in ids})
    return {name: np.concatenate([block[name] for block in blocks]) for name in columns}


@pytest.mark.parametrize("seed", range(3))
def test_a_resample_has_the_numbers_of_the_repeated_photos(seed: int) -> None:
    """Would catch weights of other photos, faces that are not weighted, and thresholds that change a number."""
    columns = scenes(seed)
    readable = ~columns["skipped"]
    weights = np.random.default_rng(seed).multinomial(PHOTOS - 1, np.full(PHOTOS - 1, 1 / (PHOTOS - 1)))
    all_weights = np.zeros(PHOTOS, int)
    all_weights[readable] = weights
    metrics = definitions(table_of(columns))
    expected = values(table_of(repeated(columns, all_weights)))
    for name, metric in metrics.items():
        if metric.resampled is not None:
            (value,) = metric.resampled(weights[:, None].astype(float))
            assert value == pytest.approx(expected[name], nan_ok=True, rel=1e-9), name


def test_intervals_of_scarce_parts_use_the_resamples_with_a_face() -> None:
    """Would catch an interval that is lost because one resample lacks the only photo of a tag."""
    columns = scenes()
    columns["tags"][:] = False
    columns["ignore"][1] = False
    columns["tags"][1, 0] = True
    record = definitions(table_of(columns))["recall_tag_blur"].record(50, seed=0)
    assert record.faces == 1 and record.low == record.high == record.value


def test_coarse_thresholds_hardly_change_a_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch thresholds of the bootstrap that are chosen badly: with weights of 1 they must give the value."""
    metric = definitions(table_of(scenes(ties=False)))
    ones = np.ones((PHOTOS - 1, 1))
    for name in ("ap50", "ap", "recall"):
        assert metric[name].resampled is not None
        assert metric[name].resampled(ones)[0] == pytest.approx(metric[name].value(), abs=1e-12)  # type: ignore[misc]
    monkeypatch.setattr("facelab.metrics.ranking.RESAMPLED_THRESHOLDS", 30)
    assert metric["ap50"].resampled(ones)[0] == pytest.approx(metric["ap50"].value(), abs=0.02)  # type: ignore[misc]


# Table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.full(0, 0.5)}, "columns of the detections"),
        ({"photo_id": np.zeros(PHOTOS, int)}, "a photo appears twice"),
        ({"photo_id": np.arange(PHOTOS)}, "a photo that is not listed"),
        ({"tags": np.zeros((0, 3), bool)}, "columns of the faces"),
    ],
)
def test_detection_table_refuses_wrong_columns(change: dict[str, Array], message: str) -> None:
    """Would catch detections that are counted in the wrong photo, or not at all."""
    with pytest.raises(ValueError, match=message):
        table_of(scenes() | change)


def test_detection_table_refuses_scores_without_an_order() -> None:
    """Would catch a diverged detector whose detections are sorted at random."""
    columns = scenes()
    columns["scores"][4:6] = np.nan
    with pytest.raises(ValueError, match=r"2 of \d+ scores are NaN"):
        table_of(columns)


def test_detection_without_finite_box_is_false() -> None:
    """Would catch a detection with NaN that finds a face or disappears."""
    columns = scenes()
    before = curves(table_of(columns))["ap50"]
    columns["boxes"][:] = np.nan
    points = curves(table_of(columns))["ap50"]
    assert points.recall.max() == 0 and points.false_per_photo[-1] > before.false_per_photo[-1]


def test_count_photos_adds_up() -> None:
    """Would catch found faces of another photo, and detections below the score that count."""
    table = table_of(scenes())
    counts = count_photos(table, 0.35)
    matches = [m for m in loop_matches(table, 0.5, ~table.ignore) if m[0] >= 0.35]
    for photo in range(PHOTOS):
        faces = sum((table.true_photo == photo) & ~table.ignore)
        found = sum(m[1] == photo and m[3] >= 0 for m in matches)
        false = sum(m[1] == photo and m[3] == -1 for m in matches)
        assert [column[photo] for column in counts] == [faces, found, faces - found, false]


# Files


def test_table_survives_writing_and_reading(tmp_path: Path) -> None:
    """Would catch a file whose detections give other numbers when they are evaluated again."""
    table, names = table_of(scenes()), [f"{i % 3}--Event/photo {i}.jpg" for i in range(200)]
    write_detection_table(table, tmp_path / "detections.npz", names)
    again, photos = read_detection_table(tmp_path / "detections.npz")
    assert_same(again, table)
    assert photos == names[100 : 100 + PHOTOS]
    with pytest.raises(ValueError, match="the table has photo 129, but the split has 5 photos"):
        write_detection_table(table, tmp_path / "other.npz", names[:5])


def test_read_table_names_the_broken_array(tmp_path: Path) -> None:
    """Would catch a traceback for another file, or arrays that broadcast to wrong boxes."""
    path = tmp_path / "detections.npz"
    write_detection_table(table_of(scenes()), path, ["a"] * 200)
    columns = dict(np.load(path))
    for change, message in (
        (
            {"boxes": columns["boxes"][:, :3]},
            r"`boxes` contains float64 in the shape \(\d+, 3\), expected numbers .*D, 4",
        ),
        ({"scores": columns["scores"][:-1]}, "`scores`"),
        ({"photo": columns["photo"] + 1.5}, "`photo` contains float64"),
        ({"photo": columns["photo"] + 30}, "`photo` contains rows that the 30 photos do not have"),
        ({"scores": columns["scores"] * np.nan}, r"detections\.npz: \d+ of \d+ scores"),
    ):
        np.savez(path, **(columns | change))
        with pytest.raises(ValueError, match=message):
            read_detection_table(path)
    np.savez(path, boxes=columns["boxes"])
    with pytest.raises(ValueError, match="has no array `photo_id`; this is not a"):
        read_detection_table(path)
    write_detection_table(table_of(scenes()), path, ["a"] * 200)
    whole = path.read_bytes()
    np.save(tmp_path / "one.npy", columns["boxes"])
    broken = whole[:3000] + b"\0" * 90 + whole[3090:]
    for content in (b"", b"x,y\n", whole[:-9], broken, (tmp_path / "one.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"detections\.npz is not a file of NumPy arrays"):
            read_detection_table(path)


def test_csv_files_contain_what_the_table_says(tmp_path: Path) -> None:
    """Would catch detections in the row of another photo, a hit that is called false, and rounded or lost numbers."""
    table, names = table_of(scenes()), [str(i) for i in range(200)]
    write_detections(table, tmp_path / "detections.csv", names)
    write_photos(table, tmp_path / "photos.csv", names)
    rows = list(csv.DictReader((tmp_path / "detections.csv").open()))
    shown = np.flatnonzero(table.scores >= 0.3)
    assert len(rows) == len(shown) > 100
    matches = {d: face for _, _, d, face in loop_matches(table, 0.5, ~table.ignore)}
    for row, d in zip(rows, shown, strict=True):
        assert row["photo"] == str(table.photo_id[table.photo[d]])
        assert [float(row[name]) for name in ("score", "x0", "y0", "x1", "y1")] == [table.scores[d], *table.boxes[d]]
        assert float(row["y_point3"] or "nan") == pytest.approx(table.points[d, 3, 1], nan_ok=True, abs=0)
        assert row["face_id"] == (str(table.face_id[matches[d]]) if matches[d] >= 0 else "")
    photos = list(csv.DictReader((tmp_path / "photos.csv").open()))
    assert [row["photo"] for row in photos] == names[100 : 100 + PHOTOS]
    assert sum(int(row["found"]) for row in photos) == sum(bool(row["face_id"]) for row in rows)
    assert [int(row["skipped"]) for row in photos] == table.skipped.astype(int).tolist()
    assert sum(int(row["faces"]) + int(row["ignored"]) for row in photos) == len(table.face_id)


# Collection


def batches(photos: list[int], scale: float = 2.0) -> tuple[Detections, DetectionBatch]:
    """Return some photos of ``scenes`` as a batch whose images are ``scale`` times as large and moved."""
    columns = {name: torch.tensor(column) for name, column in scenes().items()}
    ids = torch.tensor(photos, dtype=torch.int64)
    detections, faces = (
        torch.cat([torch.full((0,), 0), *(torch.nonzero(columns[name] == photo + 100)[:, 0] for photo in photos)])
        for name in ("photo", "true_photo")
    )
    row = {photo + 100: i for i, photo in enumerate(photos)}
    photo, true_photo = (
        torch.tensor([row[int(each)] for each in columns[name][rows]], dtype=torch.int64)
        for name, rows in (("photo", detections), ("true_photo", faces))
    )
    to_photo = torch.tensor([[1 / scale, 0, -3], [0, 1 / scale, 5], [0, 0, 1]]).repeat(len(photos), 1, 1)

    def moved(points: torch.Tensor) -> torch.Tensor:
        flat = points.reshape(len(points), points.shape[1:].numel() // 2, 2)
        return ((flat - torch.tensor([-3.0, 5])) * scale).reshape(points.shape).float()

    points = moved(columns["true_points"][faces])
    batch = DetectionBatch(
        image=torch.zeros(len(photos), 3, 8, 8, dtype=torch.uint8),
        size=torch.where(columns["skipped"][ids, None], 0, torch.tensor([[8, 8]])),
        to_photo=to_photo,
        photo_id=ids + 100,
        boxes=moved(columns["true_boxes"][faces]),
        points=points,
        valid=~points.isnan().any(-1),
        pose=columns["pose"][faces].float(),
        tags=columns["tags"][faces],
        ignore=columns["ignore"][faces],
        face_id=columns["face_id"][faces],
        photo=true_photo,
    )
    found = Detections(
        boxes=moved(columns["boxes"][detections]),
        scores=columns["scores"][detections].float(),
        points=moved(columns["points"][detections]),
        photo=photo,
        cut=columns["cut"][ids],
    )
    return found, batch


def collected(*groups: list[int]) -> DetectionTable:
    metric = DetectionErrors(TAGS)
    for photos in groups:
        metric.update(*batches(photos))
    return metric.table()


@pytest.fixture(scope="module")
def whole() -> DetectionTable:
    return collected(list(range(PHOTOS)))


def test_detection_errors_measures_in_the_photo(whole: DetectionTable) -> None:
    """Would catch boxes left in pixels of the image, a matrix of another photo, and a lost column."""
    expected = table_of(scenes())
    for name in whole._fields[1:]:
        np.testing.assert_allclose(getattr(whole, name), getattr(expected, name), atol=1e-3, err_msg=name)


def test_detection_errors_does_not_depend_on_batches(whole: DetectionTable) -> None:
    """Would catch repeated photos that count twice, an order that matters, and an empty batch or photo."""
    assert_same(collected([9, 3], [5, 4], *([i] for i in range(PHOTOS - 1, -1, -1)), [2, 1], []), whole)
    assert len(collected().photo_id) == 0
    assert definitions(collected([4]))["photos"].value() == 1


def test_detection_errors_has_no_point_that_is_not_valid() -> None:
    """Would catch a point that augmentation moved out of the image and marked as not valid, but that counts."""
    found, batch = batches([0, 1])
    metric = DetectionErrors(TAGS)
    metric.update(found, batch._replace(points=torch.ones_like(batch.points), valid=torch.zeros_like(batch.valid)))
    assert not metric.table().valid.any()


def test_detection_errors_refuses_wrong_shapes() -> None:
    """Would catch scores (D, 1) that broadcast, or tags of another dataset."""
    found, batch = batches([0, 1])
    with pytest.raises(ValueError, match=r"scores has the shape \(\d+, 1\), expected"):
        DetectionErrors(TAGS).update(found._replace(scores=found.scores[:, None]), batch)
    with pytest.raises(ValueError, match="tags has the shape"):
        DetectionErrors(("blur",)).update(found, batch)


def _collect_on_rank(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    metric = DetectionErrors(TAGS)
    sampler: DistributedSampler[Any] = DistributedSampler(
        TensorDataset(torch.zeros(PHOTOS - 1)), 2, rank, shuffle=False
    )
    for photos in torch.tensor(list(sampler)).split(4):
        metric.update(*batches(photos.tolist()))
    write_detection_table(metric.table(), folder / f"all{rank}.npz", ["a"] * 200)
    metric.reset()
    if rank:
        metric.update(*batches([2]))
    write_detection_table(metric.table(), folder / f"one{rank}.npz", ["a"] * 200)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_detection_errors_gathers_an_identical_table_on_two_ranks(tmp_path: Path) -> None:
    """Would catch a repeated or lost photo, and a rank without photos that blocks or breaks the gathering."""
    mp.spawn(_collect_on_rank, args=(tmp_path,), nprocs=2)
    for rank in range(2):
        assert_same(read_detection_table(tmp_path / f"all{rank}.npz")[0], collected(list(range(PHOTOS - 1))))
        assert_same(read_detection_table(tmp_path / f"one{rank}.npz")[0], collected([2]))


def test_example_defines_every_metric() -> None:
    """Would catch a column that is missing before the first test, or a value that is not defined there."""
    names = definitions(example(TAGS)).keys()
    assert names == definitions(table_of(scenes())).keys()
    assert definitions(example(TAGS))["ap50"].value() == pytest.approx(1)
    assert detection.definitions(example(()))["nme5_box"].value() == 0


def test_recall_first_counts_the_best_detections_of_each_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a limit over all photos, the detections of the lowest scores, or one detection too many."""
    monkeypatch.setattr(detection, "PROPOSALS", (1, 3, 1000))
    table = detection_table(TAGS, **scenes(ties=False)).readable()
    found = definitions(table)
    for most in detection.PROPOSALS:
        rows = [
            row
            for photo in range(len(table.photo_id))
            for row in sorted(np.flatnonzero(table.photo == photo), key=lambda row: -table.scores[row])[:most]
        ]
        columns = ("boxes", "scores", "points", "photo")
        few = table._replace(**{name: getattr(table, name)[np.sort(rows)] for name in columns})
        recall = sum(m[3] >= 0 for m in loop_matches(few, 0.5, ~table.ignore)) / int((~table.ignore).sum())
        assert found[f"recall_first_{most}"].value() == pytest.approx(recall)
    values = [found[f"recall_first_{most}"].value() for most in detection.PROPOSALS]
    assert values[0] < values[1] < values[2] == found["recall"].value()
    limits = found["recall_first_3"].record(200, 0)
    assert limits.low < values[1] < limits.high
