import csv
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from conftest import face_data
from scipy.integrate import simpson
from torch.utils.data import DistributedSampler, TensorDataset

from facelab.annotations.wflw98 import WFLW
from facelab.faces import geometry, layouts
from facelab.faces.batch import LandmarkBatch
from facelab.faces.crop import Crop
from facelab.faces.geometry import Array
from facelab.faces.layouts import Layout
from facelab.metrics import landmarks
from facelab.metrics.face_errors import FaceErrors
from facelab.metrics.face_table import (
    NORMALISERS,
    FaceTable,
    face_table,
    mean_error,
    nme_in_crop,
    nme_per_face,
    read_faces,
    write_faces,
)
from facelab.metrics.landmarks import Difference, Statistic
from facelab.metrics.record import Metric

LAYOUT = Layout(
    name="six",
    num_points=6,
    flip=(1, 0, 3, 2, 4, 5),
    eye_corners=(0, 1),
    pupils=((2, 0), (3, 1)),
    regions={"eyes": ((0, 2), (3, 1)), "mouth": ((4, 5, 4),)},
)
NO_PUPILS = Layout(name="bare", num_points=6, flip=LAYOUT.flip, eye_corners=(0, 1))
TAGS = ("blur", "pose")
FACES = 23


def values(table: FaceTable) -> dict[str, float]:
    """Return the values of all metrics of a table by name."""
    return {name: definition.value() for name, definition in landmarks.definitions(table).items()}


def make_batch(faces: int = FACES, seed: int = 0) -> tuple[torch.Tensor, LandmarkBatch]:
    """Return predictions and a batch: faces of 10 to 300 pixels, one crop each, some points and poses missing."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.linspace(10, 300, faces)[:, None, None]
    scale = size / 64  # photo pixels per crop pixel
    to_photo = torch.eye(3).repeat(faces, 1, 1)
    to_photo[:, :2, :2] *= scale
    to_photo[:, :2, 2] = 500 * torch.rand(faces, 2, generator=generator)
    points = 64 * torch.rand(faces, LAYOUT.num_points, 2, generator=generator)
    valid = torch.rand(faces, LAYOUT.num_points, generator=generator) > 0.1
    valid[faces // 2] = False
    points[~valid] = torch.nan
    pose = 180 * torch.rand(faces, 3, generator=generator) - 90
    pose[faces // 3] = torch.nan
    batch = LandmarkBatch(
        image=torch.zeros(faces, 3, 64, 64, dtype=torch.uint8),
        points=points,
        valid=valid,
        visible=valid,
        tags=torch.rand(faces, len(TAGS), generator=generator) > 0.5,
        pose=pose,
        to_photo=to_photo,
        face_id=torch.arange(faces),
    )
    return points.nan_to_num() + 3 * torch.randn(points.shape, generator=generator), batch


def select_rows(batch: LandmarkBatch, index: Any) -> LandmarkBatch:
    return LandmarkBatch(*(field[index] for field in batch))


def measure(predicted: torch.Tensor, batch: LandmarkBatch, layout: Layout = LAYOUT) -> FaceTable:
    metric = FaceErrors(layout, TAGS)
    metric.update(predicted, batch)
    return metric.table()


def records_of(table: FaceTable) -> dict[str, Metric]:
    return {name: metric.record(10, seed=0) for name, metric in landmarks.definitions(table).items()}


def columns_of(table: FaceTable) -> dict[str, Any]:
    """Return the columns with one row per face."""
    return {name: column for name, column in table._asdict().items() if name not in ("layout", "tag_names")}


def assert_same(a: FaceTable, b: FaceTable) -> None:
    assert (a.layout.name, a.tag_names) == (b.layout.name, b.tag_names)
    for name in columns_of(a):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.fixture
def table() -> FaceTable:
    return measure(*make_batch())


def reference(predicted: torch.Tensor, batch: LandmarkBatch) -> dict[str, list[float]]:
    """Compute the errors per face with plain loops, from the definitions."""
    result: dict[str, list[float]] = {"ioc": [], "ipd": [], "box": [], "diag": [], "eyes": [], "mouth": []}
    for face in range(len(predicted)):
        matrix = batch.to_photo[face].double().numpy()
        truth: dict[int, np.ndarray] = {}
        error: dict[int, float] = {}
        for i in range(LAYOUT.num_points):
            if batch.valid[face, i]:
                truth[i] = (matrix @ [*batch.points[face, i].tolist(), 1.0])[:2]
                error[i] = float(np.hypot(*((matrix @ [*predicted[face, i].tolist(), 1.0])[:2] - truth[i])))
        xs, ys = [p[0] for p in truth.values()], [p[1] for p in truth.values()]
        w, h = (max(xs) - min(xs), max(ys) - min(ys)) if truth else (np.nan, np.nan)
        lengths = {"ioc": np.nan, "ipd": np.nan, "box": (w * h) ** 0.5, "diag": (w * w + h * h) ** 0.5}
        if {0, 1} <= truth.keys():
            lengths["ioc"] = float(np.hypot(*(truth[0] - truth[1])))
        if {0, 1, 2, 3} <= truth.keys():
            lengths["ipd"] = float(np.hypot(*((truth[0] + truth[2]) / 2 - (truth[1] + truth[3]) / 2)))
        for name, length in lengths.items():
            result[name].append(sum(error.values()) / len(error) / length if error and length >= 1 else np.nan)
        for name, members in {"eyes": (0, 1, 2, 3), "mouth": (4, 5)}.items():
            some = [error[i] for i in members if i in error]
            result[name].append(sum(some) / len(some) / lengths["ioc"] if some and lengths["ioc"] >= 1 else np.nan)
    return result


def mean(values: list[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return sum(defined) / len(defined) if defined else np.nan


def test_summary_agrees_with_plain_loops() -> None:
    """Would catch a wrong normaliser, axis, bucket edge, tag column, region or mask in the vectorised code."""
    predicted, batch = make_batch()
    table, e = measure(predicted, batch), reference(predicted, batch)
    yaw, size = batch.pose[:, 0].abs().tolist(), table.box.tolist()
    assert np.isnan(yaw).any()
    expected = {f"nme_{name}": mean(e[name]) for name in ("ioc", "ipd", "box", "diag")}
    expected |= {f"nme_ioc_region_{name}": mean(e[name]) for name in ("eyes", "mouth")}
    defined = [value for value in e["ioc"] if not np.isnan(value)]
    for name, t in {"08": 0.08, "10": 0.10}.items():
        expected[f"fr{name}_ioc"] = sum(value > t for value in defined) / len(defined)
        expected[f"auc{name}_ioc"] = sum(max(0.0, t - value) for value in defined) / len(defined) / t
    yaws = {
        "0_30": mean([v for v, y in zip(e["box"], yaw, strict=True) if y <= 30]),
        "30_60": mean([v for v, y in zip(e["box"], yaw, strict=True) if 30 < y <= 60]),
        "60_90": mean([v for v, y in zip(e["box"], yaw, strict=True) if y > 60]),
    }
    expected |= {f"nme_box_yaw_{name}": value for name, value in yaws.items()}
    expected["nme_box_yaw_mean"] = sum(yaws.values()) / 3
    for i, tag in enumerate(TAGS):
        expected[f"nme_ioc_tag_{tag}"] = mean([v for v, on in zip(e["ioc"], batch.tags[:, i], strict=True) if on])
    for name, low, high in (("0_32", 0, 32), ("32_64", 32, 64), ("64_128", 64, 128), ("128_up", 128, np.inf)):
        expected[f"nme_box_size_{name}"] = mean([v for v, s in zip(e["box"], size, strict=True) if low <= s < high])
    expected |= {"faces": FACES - 1, "faces_skipped": 1}
    numbers = values(table)
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert not any(np.isnan(value) for value in numbers.values())
    for normaliser in NORMALISERS:
        np.testing.assert_allclose(nme_per_face(table, normaliser), e[normaliser], rtol=1e-5)


def test_yaw_and_size_buckets_include_their_edges(table: FaceTable) -> None:
    """Would catch a face at exactly 30 or 60 degrees, or 32 pixels, in the wrong bucket."""
    pose = np.array([[yaw, 0, 0] for yaw in (-30.0, 30.1, 60.0, -60.1, 95.0, np.nan)])
    edges = table._replace(pose=pose, box=np.array([31.9, 32.0, 63.9, 64.0, 128.0, np.nan]))
    assert {k: v.nonzero()[0].tolist() for k, v in landmarks.yaw_buckets(edges).items()} == {
        "0_30": [0],
        "30_60": [1, 2],
        "60_90": [3, 4],
    }
    assert {k: v.nonzero()[0].tolist() for k, v in landmarks.size_buckets(edges).items()} == {
        "0_32": [0],
        "32_64": [1, 2],
        "64_128": [3],
        "128_up": [4],
    }


def test_summary_is_zero_for_perfect_predictions() -> None:
    """Would catch any offset between prediction and truth, such as half a pixel."""
    _, batch = make_batch()
    numbers = values(measure(batch.points.nan_to_num(), batch))
    for name, value in numbers.items():
        if name.startswith(("nme", "fr", "auc")):
            assert value == (1 if name.startswith("auc") else 0), name


def test_nme_per_face_of_a_constant_offset() -> None:
    """Would catch errors measured per axis, squared, or in pixels of the crop instead of the photo."""
    _, batch = make_batch()
    table = measure(batch.points.nan_to_num() + torch.tensor([3.0, 4.0]), batch)
    scale = batch.to_photo[:, 0, 0].numpy()
    for normaliser in NORMALISERS:
        e, length = nme_per_face(table, normaliser), getattr(table, normaliser)
        assert np.isfinite(e).sum() > 10
        defined = ~np.isnan(e)
        np.testing.assert_allclose(e[defined], (5 * scale / length)[defined], rtol=1e-5)
    readable = table.valid.any(axis=1)
    np.testing.assert_allclose(mean_error(table)[readable], (5 * scale)[readable], rtol=1e-6)


def test_nme_per_face_divides_by_the_normaliser(table: FaceTable) -> None:
    """Would catch exchanged box and diagonal: diag >= sqrt(2) box, and NME times normaliser is constant."""
    face = table.valid.any(axis=1)
    assert (table.diag[face] >= np.sqrt(2) * table.box[face] - 1e-9).all()
    for normaliser in NORMALISERS:
        product = nme_per_face(table, normaliser) * getattr(table, normaliser)
        defined = ~np.isnan(product)
        np.testing.assert_allclose(product[defined], mean_error(table)[defined])


@pytest.mark.parametrize("threshold", [0.05, 0.07, 0.08, 0.10])
def test_auc_is_the_integral_of_the_ced(threshold: float) -> None:
    """Would catch a wrong closed form, and a grid that exceeds the threshold by a step."""
    e = np.abs(np.random.default_rng(0).normal(0.05, 0.03, 2500))
    grid = np.linspace(0, threshold, round(threshold / 1e-4) + 1)
    curve = landmarks.ced(e, grid)
    assert landmarks.auc(e, threshold) == pytest.approx(simpson(curve, x=grid) / threshold, abs=2e-5)
    assert landmarks.failure_rate(e, threshold) == pytest.approx(1 - curve[-1])


def test_failure_rate_excludes_an_error_at_the_threshold() -> None:
    """Would catch >= in the failure rate, or < in the distribution."""
    e = np.array([0.05, 0.08, 0.09, np.nan])
    assert landmarks.failure_rate(e, 0.08) == pytest.approx(1 / 3)
    np.testing.assert_allclose(landmarks.ced(e, np.array([0.05, 0.08, 0.085, 1.0])), [1 / 3, 2 / 3, 2 / 3, 1])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nme_is_infinite_for_a_point_without_prediction(bad: float) -> None:
    """Would catch a diverged network whose NaN predictions vanish from the mean, which then looks better."""
    predicted, batch = make_batch()
    table = measure(predicted, batch)
    face = int(np.isfinite(nme_per_face(table, "ioc")).nonzero()[0][0])
    point = int(batch.valid[face].nonzero()[0])
    predicted = predicted.clone()
    predicted[face, point, 1] = bad
    e, before = nme_per_face(measure(predicted, batch), "ioc"), nme_per_face(table, "ioc")
    assert np.isposinf(e[face])
    np.testing.assert_array_equal(np.delete(e, face), np.delete(before, face))
    numbers = values(measure(predicted, batch))
    assert np.isposinf(numbers["nme_ioc"])
    assert np.isfinite([numbers["fr08_ioc"], numbers["auc08_ioc"], landmarks.ced(e, np.array([1.0]))[0]]).all()
    assert landmarks.failure_rate(e[[face]], 0.1) == 1
    assert landmarks.auc(e[[face]], 0.1) == 0


def test_face_errors_ignores_invalid_points() -> None:
    """Would catch a point without annotation that counts in an error, a box or an eye distance."""
    predicted, batch = make_batch()
    points, elsewhere = batch.points.clone(), predicted.clone()
    points[~batch.valid], elsewhere[~batch.valid] = 1e6, torch.nan
    assert_same(measure(predicted, batch), measure(elsewhere, batch._replace(points=points)))


def test_face_errors_refuses_valid_points_without_coordinates() -> None:
    """Would catch a reader that marks NaN as annotated, which would count as a failure of the network."""
    predicted, batch = make_batch()
    batch.valid[5] = True
    batch.points[5, 2] = torch.nan
    with pytest.raises(ValueError, match=r"faces \[5\] of the split \(1 in all\)"):
        measure(predicted, batch)


def test_face_errors_refuses_wrong_shapes() -> None:
    """Would catch predictions of another layout, or tags of another dataset, that broadcast silently."""
    predicted, batch = make_batch()
    with pytest.raises(ValueError, match=r"predicted has the shape \(23, 1, 2\), expected \(23, 6, 2\)"):
        measure(predicted[:, :1], batch)
    with pytest.raises(ValueError, match="tags has the shape"):
        measure(predicted, batch._replace(tags=batch.tags[:, :1]))
    metric = FaceErrors(LAYOUT, TAGS)
    metric.update(predicted, batch)
    metric.tag_names = ("blur",)
    with pytest.raises(ValueError, match="each face has 2 tags"):
        metric.table()


def test_face_errors_does_not_depend_on_batches(table: FaceTable) -> None:
    """Would catch means of batch means, and an order that depends on the order of the data."""
    predicted, batch = make_batch()
    order = torch.randperm(FACES, generator=torch.Generator().manual_seed(1))
    metric = FaceErrors(LAYOUT, TAGS)
    for _ in range(2):  # the second time after a reset
        for indices in order.split(4):
            metric.update(predicted[indices], select_rows(batch, indices))
        assert_same(metric.table(), table)
        metric.reset()
    for indices in order.split(5):
        metric(predicted[indices], select_rows(batch, indices))
    assert_same(metric.table(), table)


def test_face_errors_counts_repeated_faces_once(table: FaceTable) -> None:
    """Would catch faces from the padding of a distributed sampler counted twice, or their later copy used."""
    predicted, batch = make_batch()
    metric = FaceErrors(LAYOUT, TAGS)
    metric.update(predicted, batch)
    metric.update(predicted[:3] + 100, select_rows(batch, slice(3)))
    assert_same(metric.table(), table)


def test_face_errors_copies_the_batch(table: FaceTable) -> None:
    """Would catch a table that changes when a later step overwrites the tensors of the batch."""
    predicted, batch = make_batch()
    metric = FaceErrors(LAYOUT, TAGS)
    metric.update(predicted, batch)
    predicted.zero_(), batch.points.zero_()
    assert_same(metric.table(), table)


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_summary_accepts_a_split_without_faces() -> None:
    """Would catch a crash at the end of a split without faces."""
    metric = FaceErrors(LAYOUT, TAGS)
    empty = metric.table()
    assert empty.error.shape == (0, LAYOUT.num_points) and empty.tags.shape == (0, len(TAGS))
    numbers = values(empty)
    assert numbers.pop("faces") == numbers.pop("faces_skipped") == 0
    assert (
        numbers and np.isnan([value for name, value in numbers.items() if name.startswith(("nme", "fr", "auc"))]).all()
    )
    assert not any(record.faces for record in records_of(empty).values())
    e = nme_per_face(empty, "box")
    assert np.isnan(landmarks.bootstrap(e, landmarks.nme, 10, seed=0)).all()
    assert np.isnan(landmarks.ced(e, np.array([0.1]))).all()
    assert landmarks.paired_bootstrap(e[None], e, landmarks.nme, 10, seed=0)[0].faces == 0


def _measure_on_rank(rank: int, folder: Path) -> None:
    """Measure on one of two ranks: an odd split that a sampler divides and pads, then a split of one face."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    predicted, batch = make_batch()
    metric = FaceErrors(LAYOUT, TAGS)
    sampler: DistributedSampler[Any] = DistributedSampler(TensorDataset(predicted), shuffle=False)
    for indices in torch.tensor(list(sampler)).split(5):
        metric.update(predicted[indices], select_rows(batch, indices))
    np.savez(folder / f"odd{rank}.npz", **columns_of(metric.table()))
    metric.reset()
    if rank == 1:
        metric.update(predicted[:1], select_rows(batch, slice(1)))
    np.savez(folder / f"one{rank}.npz", **columns_of(metric.table()))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_face_errors_gathers_an_identical_table_on_two_ranks(table: FaceTable, tmp_path: Path) -> None:
    """Would catch a repeated or lost face, and a rank without faces that blocks or breaks the gathering."""
    mp.spawn(_measure_on_rank, args=(tmp_path,), nprocs=2)
    single = table.select(slice(1))
    for rank in range(2):
        assert_same(FaceTable(LAYOUT, TAGS, **np.load(tmp_path / f"odd{rank}.npz")), table)
        assert_same(FaceTable(LAYOUT, TAGS, **np.load(tmp_path / f"one{rank}.npz")), single)


def test_face_errors_does_not_depend_on_the_crop(table: FaceTable) -> None:
    """Would catch errors or normalisers measured in the crop: another crop must give the same table."""
    predicted, batch = make_batch()
    turn = torch.from_numpy(geometry.affine_about_centre(64, degrees=33, scale=0.7, shift=(5, -9))).float()
    turned = batch._replace(
        points=geometry.transform_points(turn, batch.points), to_photo=batch.to_photo @ torch.linalg.inv(turn)
    )
    other = measure(geometry.transform_points(turn, predicted), turned)
    for name in ("error", "ioc", "ipd", "box", "diag"):
        np.testing.assert_allclose(getattr(other, name), getattr(table, name), rtol=1e-3, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_face_errors_computes_in_float64_under_autocast(dtype: torch.dtype) -> None:
    """Would catch photo coordinates rounded by autocast: neighbours at 4,000 in bfloat16 are 16 pixels apart."""
    _, batch = make_batch()
    batch.to_photo[:, :2, 2] += 4000
    predicted = (batch.points.nan_to_num() + 2).round().to(dtype)
    batch = batch._replace(points=batch.points.round())
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        metric = FaceErrors(LAYOUT, TAGS).to(torch.bfloat16)
        metric.update(predicted, batch)
    table = metric.table()
    expected = np.sqrt(8) * batch.to_photo[:, 0, 0, None].double().numpy() * np.ones(LAYOUT.num_points)
    np.testing.assert_allclose(table.error[table.valid], expected[table.valid], rtol=1e-9)


def test_summary_names_follow_the_layout_and_the_data(table: FaceTable) -> None:
    """Would catch a NaN logged for a metric the layout or dataset cannot have, and a name missing in some epochs."""
    predicted, batch = make_batch()
    names = set(values(table))
    bare = measure(predicted, batch._replace(pose=torch.full_like(batch.pose, torch.nan)), NO_PUPILS)
    assert names - set(values(bare)) >= {
        "nme_ipd",
        "nme_box_yaw_0_30",
        "nme_box_yaw_30_60",
        "nme_box_yaw_60_90",
        "nme_box_yaw_mean",
        "nme_ioc_region_eyes",
        "nme_ioc_region_mouth",
    }
    frontal = values(table._replace(pose=np.zeros_like(table.pose)))
    assert set(frontal) == names
    assert np.isnan(frontal["nme_box_yaw_60_90"]) and np.isnan(frontal["nme_box_yaw_mean"])


@pytest.mark.parametrize("layout", [v for v in vars(layouts).values() if isinstance(v, Layout)], ids=lambda v: v.name)
def test_summary_measures_every_layout(layout: Layout) -> None:
    """Would catch a layout whose tables the metrics cannot use, such as a region without points."""
    faces, points = 8, (8, layout.num_points, 2)
    random = np.random.default_rng(0)
    truth = 100 * random.random(points)
    table = face_table(
        layout,
        face_id=np.arange(faces),
        predicted=truth + random.normal(0, 1, points),
        points=truth,
        valid=np.ones(points[:2], bool),
        to_photo=np.tile(np.eye(3), (faces, 1, 1)),
        pose=np.full((faces, 3), np.nan),
        tags=np.zeros((faces, 0), bool),
        tag_names=(),
    )
    numbers = values(table)
    assert ("nme_ipd" in numbers) == all(layout.pupils)
    regions = [numbers[f"nme_ioc_region_{region}"] for region in layout.regions]
    assert np.isfinite([numbers["nme_ioc"], numbers["nme_box"], *regions]).all()


@pytest.mark.parametrize(
    ("source", "sizes"), [("AFLW2000-3D", (1312, 383, 305)), ("AFLW2000-3D-new", (1306, 462, 232))]
)
def test_yaw_buckets_and_normalisers_on_aflw2000(source: str, sizes: tuple[int, ...]) -> None:
    """Would catch another bucket rule than 3DDFA's, and ratios of normalisers that differ from real faces.

    On the mean face of DAN the inter-pupil error is 1.39 times the inter-ocular one, the box error 0.62 times and the
    diagonal error 0.44 times.
    """
    folder = face_data("samples", "aflw2000_gt")
    points = np.load(folder / "AFLW2000-3D.pts68.npy")[:, :2].swapaxes(1, 2)
    yaw = np.load(folder / f"{source}.pose.npy")
    faces = len(yaw)
    table = face_table(
        layouts.IBUG68,
        face_id=np.arange(faces),
        predicted=points,
        points=points,
        valid=np.ones(points.shape[:2], bool),
        to_photo=np.tile(np.eye(3), (faces, 1, 1)),
        pose=np.stack([yaw, yaw, yaw], axis=1),
        tags=np.zeros((faces, 0), bool),
        tag_names=(),
    )
    buckets = landmarks.yaw_buckets(table)
    assert tuple(int(bucket.sum()) for bucket in buckets.values()) == sizes
    frontal = buckets["0_30"]
    for normaliser, ratio in {"ipd": 1.39, "box": 0.62, "diag": 0.44}.items():
        assert np.median((table.ioc / getattr(table, normaliser))[frontal]) == pytest.approx(ratio, rel=0.05)


def test_faces_and_left_out_add_up_to_all_faces(table: FaceTable) -> None:
    """Would catch a face that disappears without being counted, and eye corners that coincide in profile."""
    ioc = table.ioc.copy()
    wide = np.isfinite(ioc).nonzero()[0][0]
    ioc[wide] = 0.9
    narrow = table._replace(ioc=ioc)
    assert np.isnan(nme_per_face(narrow, "ioc")[wide])
    records = records_of(narrow)
    measured = {name: record.faces for name, record in records.items()}
    missing = {name: record.left_out for name, record in records.items()}
    assert measured["nme_ioc"] == np.isfinite(table.ioc).sum() - 1
    for name in ("nme_ioc", "nme_ipd", "nme_box", "nme_diag", "nme_ioc_region_mouth", "nme_box_yaw_mean"):
        assert measured[name] + missing[name] == FACES, name
    assert measured["nme_ioc_tag_blur"] + missing["nme_ioc_tag_blur"] == narrow.tags[:, 0].sum()
    assert missing["nme_box_yaw_mean"] == 2  # one face is unreadable, the yaw of another is unknown
    assert missing["nme_box"] == 1
    assert measured["fr08_ioc"] == measured["nme_ioc"] and missing["fr08_ioc"] == missing["nme_ioc"]
    assert (measured["faces_skipped"], missing["faces_skipped"]) == (FACES, 0)


def test_bootstrap_covers_the_true_mean() -> None:
    """Would catch an interval of the wrong width, such as one of the errors instead of their mean."""
    random = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        low, high = landmarks.bootstrap(random.normal(0.05, 0.02, 200), landmarks.nme, 400, seed=trial)
        hits += low <= 0.05 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_bootstrap_is_reproducible_and_ignores_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch draws that do not depend on the seed, NaN in an interval, and blocks that lose or repeat a draw."""
    e = np.abs(np.random.default_rng(0).normal(0.05, 0.02, 300))
    area = partial(landmarks.auc, threshold=0.08)
    once = landmarks.bootstrap(e, area, 1000, seed=3)
    assert once != landmarks.bootstrap(e, area, 1000, seed=4)
    assert once == landmarks.bootstrap(np.concatenate([e, [np.nan] * 50]), area, 1000, seed=3)
    monkeypatch.setattr(landmarks, "BLOCK", 300 * 7)
    assert once == landmarks.bootstrap(e, area, 1000, seed=3)
    low, high = landmarks.bootstrap(np.append(e, np.inf), landmarks.nme, 1000, seed=3)
    assert np.isfinite(low) and np.isposinf(high)


def compare_one(a: Array, b: Array, statistic: Statistic, resamples: int) -> Difference:
    """Compare one run with another one."""
    return landmarks.paired_bootstrap(a[None], b, statistic, resamples, seed=0)[0]


def test_paired_bootstrap_detects_a_difference_within_the_intervals() -> None:
    """Would catch draws that differ between the runs, and a reversed sign."""
    random = np.random.default_rng(0)
    a = np.abs(random.normal(0.05, 0.03, 400))
    b = a - 0.001 + random.normal(0, 0.002, 400)
    a[7] = b[9] = np.nan
    better = compare_one(a, b, landmarks.nme, 1000)
    in_both = ~(np.isnan(a) | np.isnan(b))
    assert better.value == pytest.approx(a[in_both].mean() - b[in_both].mean())
    assert 0 < better.low < better.value < better.high and better.faces == 398
    assert better.smaller == pytest.approx((a < b)[in_both].mean()) and 0.2 < better.smaller < 0.5
    assert better.probability == pytest.approx(2 / 1001)
    assert landmarks.bootstrap(a, landmarks.nme, 1000, seed=0)[0] < landmarks.bootstrap(b, landmarks.nme, 1000, 0)[1]
    noise = compare_one(a, a + random.normal(0, 0.002, 400), landmarks.nme, 1000)
    assert noise.low < 0 < noise.high and noise.probability > 0.05
    assert compare_one(a, a, landmarks.nme, 100).probability == 1
    with pytest.raises(ValueError, match="common_faces"):
        landmarks.paired_bootstrap(a[None], b[1:], landmarks.nme, 100, seed=0)


def test_paired_bootstrap_equals_the_statistic_of_resampled_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch a rate or an area that is no mean of a number per face, and runs that change each other's numbers."""
    random = np.random.default_rng(2)
    a, b = np.abs(random.normal(0.06, 0.03, (4, 300))), np.abs(random.normal(0.06, 0.03, 300))
    a[1, :40] = a[3, 200] = b[5] = np.nan  # three sets of common faces
    statistics: dict[str, Statistic] = {"nme": landmarks.nme}
    statistics["fr"] = partial(landmarks.failure_rate, threshold=0.08)
    statistics["auc"] = partial(landmarks.auc, threshold=0.08)
    for name, statistic in statistics.items():
        together = landmarks.paired_bootstrap(a, b, statistic, 500, seed=0)
        for one, difference in zip(a, together, strict=True):
            both = np.stack([one, b])[:, ~(np.isnan(one) | np.isnan(b))]
            drawn = np.subtract(*landmarks._resample(both, statistic, 500, seed=0))
            expected = (np.subtract(*statistic(both)), *np.quantile(drawn, [0.025, 0.975], method="inverted_cdf"))
            assert difference[:3] == pytest.approx(expected, abs=1e-12), name
            assert difference.faces == both.shape[1]
            assert difference == pytest.approx(compare_one(one, b, statistic, 500), abs=1e-12)
    monkeypatch.setattr(landmarks, "BLOCK", 300 * 7)
    landmarks._counts.cache_clear()
    in_blocks = landmarks.paired_bootstrap(a, b, statistic, 500, seed=0)
    assert np.asarray(in_blocks) == pytest.approx(np.asarray(together), abs=1e-12)


def test_paired_bootstrap_of_exchanged_runs_has_the_other_sign() -> None:
    """Would catch a verdict that depends on which run is named first."""
    random = np.random.default_rng(3)
    a, b = random.normal(0.05, 0.03, 50), random.normal(0.05, 0.03, 50)
    there, back = compare_one(a, b, landmarks.nme, 1000), compare_one(b, a, landmarks.nme, 1000)
    assert (there.low, there.high) == (-back.high, -back.low)
    assert there.probability == back.probability


def test_paired_bootstrap_gives_an_infinite_difference_no_interval() -> None:
    """Would catch an interval that leaves out a face without a prediction."""
    a, b = np.array([0.1, 0.2, np.inf, 0.3]), np.array([0.1, 0.1, 0.1, 0.1])
    difference = compare_one(a, b, landmarks.nme, 100)
    assert difference.value == np.inf and difference.faces == 4 and np.isnan(difference[1:4]).all()
    assert np.isnan(compare_one(a, a, landmarks.nme, 100).value)
    assert compare_one(a, b, partial(landmarks.failure_rate, threshold=0.25), 100)[:1] == (0.5,)


def test_stratified_bootstrap_draws_from_each_group_separately() -> None:
    """Would catch draws from all groups together, equal draws for all groups, and groups weighted by size."""
    random = np.random.default_rng(1)
    groups = [random.normal(mean, 0.01, faces) for mean, faces in ((0.1, 400), (0.2, 400), (0.6, 25))]
    low, high = landmarks.stratified_bootstrap(groups, landmarks.nme, 2000, seed=0)
    spread = np.sqrt(sum(e.var() / len(e) for e in groups)) / 3
    assert low < np.mean([e.mean() for e in groups]) < high
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.1)
    opposite = [groups[0], 0.3 - groups[0]]  # draws at the same rows would cancel
    low, high = landmarks.stratified_bootstrap(opposite, landmarks.nme, 2000, seed=0)
    assert high - low == pytest.approx(2 * 1.96 * groups[0].std() / np.sqrt(2 * 400), rel=0.1)
    left_out = [np.append(e, np.nan) for e in groups]
    assert landmarks.stratified_bootstrap(left_out, landmarks.nme, 2000, seed=0) == (
        landmarks.stratified_bootstrap(groups, landmarks.nme, 2000, seed=0)
    )
    assert np.isnan(landmarks.stratified_bootstrap([groups[0], np.empty(0)], landmarks.nme, 100, seed=0)).all()


def test_common_faces_matches_face_ids() -> None:
    """Would catch faces of two runs paired by their row in the file."""
    a, b = np.array([0, 2, 3, 7]), np.array([3, 7, 2, 9])
    rows_a, rows_b = landmarks.common_faces(a, b)
    np.testing.assert_array_equal(a[rows_a], [2, 3, 7])
    np.testing.assert_array_equal(b[rows_b], [2, 3, 7])


def test_definitions_name_their_parts(table: FaceTable) -> None:
    """Would catch a part that the figures put into another breakdown than its name says, or leave out."""
    parts: dict[tuple[str, str], list[str]] = {}
    for name, metric in landmarks.definitions(table).items():
        if metric.breakdown:
            parts.setdefault((metric.whole, metric.breakdown), []).append(metric.part)
            assert name == f"{metric.whole}_{metric.breakdown}_{metric.part}"
    assert parts == {
        ("nme_box", "yaw"): list(landmarks.YAW_BUCKETS),
        ("nme_ioc", "tag"): list(TAGS),
        ("nme_ioc", "region"): list(LAYOUT.regions),
        ("nme_box", "size"): list(landmarks.SIZE_BUCKETS),
    }
    unknown = table._replace(pose=np.full_like(table.pose, np.nan))
    assert not [name for name in landmarks.definitions(unknown) if "yaw" in name]


def test_definitions_have_a_unit_and_a_direction(table: FaceTable) -> None:
    """Would catch a higher AUC marked as worse, and a number of faces shown in percent or with an interval."""
    records = records_of(table)
    assert {name for name, record in records.items() if record.better == "higher"} == {"auc08_ioc", "auc10_ioc"}
    assert {name for name, record in records.items() if record.better == "none"} == {"faces", "faces_skipped"}
    assert {name for name, record in records.items() if record.unit != "fraction"} == {"faces", "faces_skipped"}
    assert np.isnan([records["faces"].low, records["faces"].high]).all()
    low, high = landmarks.bootstrap(nme_per_face(table, "box"), landmarks.nme, 10, seed=0)
    assert records["nme_box"][:5] == (values(table)["nme_box"], low, high, FACES - 1, 1)


def test_nme_in_crop_differs_only_in_a_stretched_crop(table: FaceTable) -> None:
    """Would catch the error of one frame divided by the length of the other, and a crop's resolution in the result."""
    np.testing.assert_allclose(nme_in_crop(table), nme_per_face(table, "ioc"), rtol=1e-5)
    corners, far = np.array([[10.0, 10], [30, 10], [20, 30]]), np.array([[0.0, 0], [0, 0], [0, 6]])
    layout = Layout(name="three", num_points=3, flip=(1, 0, 2), eye_corners=(0, 1))
    stretched = face_table(
        layout,
        face_id=np.arange(1),
        predicted=(corners + far)[None],
        points=corners[None],
        valid=np.ones((1, 3), bool),
        to_photo=np.diag([1.0, 0.5, 1.0])[None],  # the crop is twice as tall as the photo
        pose=np.full((1, 3), np.nan),
        tags=np.zeros((1, 0), bool),
        tag_names=(),
    )
    numbers = values(stretched)
    assert numbers["nme_ioc"] == pytest.approx(3 / 3 / 20) and numbers["nme_ioc_crop"] == pytest.approx(6 / 3 / 20)


@pytest.mark.parametrize(("square", "ratio"), [(False, 0.86), (True, 1.0)])
def test_nme_in_crop_on_rectangles_of_wflw(square: bool, ratio: float) -> None:
    """Would catch another frame than that of PIPNet's papers, which reads 12 to 16 % lower on these rectangles."""
    crop = Crop(256, 1.2, square=square, shift=(0.0, 0.0), box="given")
    data = WFLW("wflw98", str(face_data("WFLW")), layouts.WFLW98, val_share=0.1, skip_unpaired=False)
    faces = [face for photo in data.photos("test") for face in photo.faces]
    to_crop = np.stack([crop.matrix(face.box, None) for face in faces])
    points = geometry.transform_points(to_crop, np.stack([face.points for face in faces]).astype(np.float64))
    table = face_table(
        layouts.WFLW98,
        face_id=np.arange(len(faces)),
        predicted=points + np.random.default_rng(0).normal(0, 4, points.shape),
        points=points,
        valid=np.ones(points.shape[:2], bool),
        to_photo=np.linalg.inv(to_crop),
        pose=np.full((len(faces), 3), np.nan),
        tags=np.zeros((len(faces), 0), bool),
        tag_names=(),
    )
    numbers = values(table)
    assert numbers["nme_ioc_crop"] / numbers["nme_ioc"] == pytest.approx(ratio, abs=0.02 if ratio < 1 else 1e-6)


@pytest.mark.parametrize("faces", [1, 2, 10, 20, 101])
def test_percentile_is_the_error_of_a_face(faces: int) -> None:
    """Would catch a percentile that is interpolated, off by one face, or undefined because one error is infinite."""
    e = np.random.default_rng(faces).permutation(np.append(np.arange(1.0, faces), np.inf))
    for percent in (50, 90, 95, 100):
        value = landmarks.percentile(np.append(e, np.nan), percent)
        assert value == np.quantile(np.nan_to_num(e, posinf=faces), percent / 100, method="inverted_cdf") or (
            np.isposinf(value) and percent > 100 * (faces - 1) / faces
        )
        assert (e <= value).mean() >= percent / 100 > (e < value).mean()
    rows = np.stack([e, np.full(faces, np.nan)])
    assert np.isnan(landmarks.percentile(rows, 50)).tolist() == [False, True]
    assert np.isnan(landmarks.percentile(np.empty((2, 0)), 50)).all()


def test_read_faces_returns_what_write_faces_wrote(table: FaceTable, tmp_path: Path) -> None:
    """Would catch rounding, a shifted column, a photo taken by row instead of by face, and an incomplete file."""
    photos = [f'täble, "{i}".jpg' for i in range(2 * FACES)]
    path = tmp_path / "faces.csv"
    path.write_text("old")
    table = table._replace(face_id=table.face_id * 2)
    write_faces(table, path, photos)
    assert [file.name for file in tmp_path.iterdir()] == ["faces.csv"]
    read = read_faces(path)
    np.testing.assert_array_equal(read["face_id"], table.face_id)
    assert read["photo"].tolist() == photos[::2]
    for normaliser in NORMALISERS:
        np.testing.assert_array_equal(read[normaliser], getattr(table, normaliser))
        np.testing.assert_array_equal(read[f"nme_{normaliser}"], nme_per_face(table, normaliser))
    np.testing.assert_array_equal(read["error_px"], mean_error(table))
    np.testing.assert_array_equal(np.stack([read["yaw"], read["pitch"], read["roll"]], 1), table.pose)
    np.testing.assert_array_equal(read["points"], table.valid.sum(1))
    np.testing.assert_array_equal(np.stack([read["tag_blur"], read["tag_pose"]], 1), table.tags)
    with path.open(newline="") as file:
        assert "nan" not in {cell for row in csv.reader(file) for cell in row}


def test_read_faces_and_write_faces_refuse_faults(table: FaceTable, tmp_path: Path) -> None:
    """Would catch a broken faces.csv compared as if it were complete, and a split shorter than its table."""
    path = tmp_path / "faces.csv"
    with pytest.raises(ValueError, match="face 22, but the split has 3"):
        write_faces(table, path, ["a", "b", "c"])
    assert not path.exists()
    write_faces(table, path, ["x"] * FACES)
    text = path.read_text()
    for broken, message in (
        ("", ":1: starts with"),
        (text.replace("face_id", "row", 1), ":1: starts with"),
        (text[:-30], f":{FACES + 1}: "),
        (text.replace("\n2,x,", "\n2,x,oops", 1), ":4: column nme_ioc contains"),
    ):
        path.write_text(broken)
        with pytest.raises(ValueError, match=message):
            read_faces(path)
    empty = table.select(slice(0))
    write_faces(empty, path, [])
    assert all(len(column) == 0 for column in read_faces(path).values())


def test_summary_is_fast_for_thousands_of_faces() -> None:
    """Would catch a loop over faces, which is too slow for a summary after every validation."""
    predicted, batch = make_batch(5000)
    table = measure(predicted, batch)
    start = time.perf_counter()
    values(table)
    assert time.perf_counter() - start < 1


def test_summary_includes_errors_of_predicted_angles() -> None:
    """Would catch the long way from 175 to -175, errors without a prediction, and errors of unreadable faces."""
    predicted, batch = make_batch()
    assert not [name for name in values(measure(predicted, batch)) if name.startswith("mae")]
    blank = ~batch.valid.any(1)
    assert blank.any()
    pose = (batch.pose + torch.tensor([4.0, -350, 0]) + 90 * blank[:, None] + 180) % 360 - 180
    metric = FaceErrors(LAYOUT, TAGS)
    for part in (slice(0, 9), slice(5, FACES)):  # some faces twice
        metric.update(predicted[part], select_rows(batch, part), pose[part])
    table = metric.table()
    numbers, records = values(table), records_of(table)
    errors = [numbers[f"mae_{name}"] for name in ("yaw", "pitch", "roll", "angle")]
    assert errors == pytest.approx([4, 10, 0, 14 / 3], abs=1e-4)
    assert records["mae_yaw"].faces == FACES - int(blank.sum()) - 1  # one face has no true pose
    assert records["mae_yaw"].unit == "degrees"


@pytest.mark.parametrize("layout", [layouts.IBUG68, layouts.WFLW98])
def test_example_has_every_metric(layout: Layout) -> None:
    """Would catch a monitored metric that is refused although a validation logs it."""
    names = landmarks.definitions(landmarks.example(layout, ("a", "b")))
    assert set(names) >= {
        "nme_box",
        "nme_ioc_tag_b",
        "mae_yaw",
        "nme_box_yaw_mean",
        "faces",
    }
    assert ("nme_ipd" in names) == all(layout.pupils)


def test_definition_leaves_faces_without_a_number_out_of_value_and_interval() -> None:
    """Would catch a statistic that gets NaN for the value and not for the interval."""
    record = landmarks.Definition(np.array([1.0, 2.0, np.nan]), lambda e: np.median(e, axis=-1)).record(100, seed=0)
    assert (record.value, record.low, record.high, record.faces, record.left_out) == (1.5, 1.0, 2.0, 2, 1)
