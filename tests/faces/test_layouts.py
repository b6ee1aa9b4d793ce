"""Tests of the layouts and conversions: an error in an index table swaps or loses points without a message."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import face_data

from facelab.faces import layouts
from facelab.faces.convert import convert
from facelab.faces.geometry import Array, bounding_box, transform_points
from facelab.faces.layouts import (
    AFLW19,
    ALPHA106,
    COFW29,
    CONVERSIONS,
    FIVE5,
    IBUG68,
    LAPA106,
    WFLW98,
    Layout,
)
from facelab.faces.pose import estimate_pose, rotation

LAYOUTS = {value.name: value for value in vars(layouts).values() if isinstance(value, Layout)}
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
every_conversion = pytest.mark.parametrize("names", CONVERSIONS, ids="-".join)

# The permutations in the datasets' own loaders; for the alphabetical order, in projects that use pfld_106. Layouts that
# nobody published have none.
# fmt: off
FLIPS = {
    "ibug68": [
        16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 27,
        28, 29, 30, 35, 34, 33, 32, 31, 45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40, 54, 53, 52, 51, 50, 49,
        48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
    ],
    "wflw98": [
        32, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6,
        5, 4, 3, 2, 1, 0, 46, 45, 44, 43, 42, 50, 49, 48, 47, 37, 36, 35, 34, 33, 41, 40, 39, 38, 51, 52, 53,
        54, 59, 58, 57, 56, 55, 72, 71, 70, 69, 68, 75, 74, 73, 64, 63, 62, 61, 60, 67, 66, 65, 82, 81, 80, 79,
        78, 77, 76, 87, 86, 85, 84, 83, 92, 91, 90, 89, 88, 95, 94, 93, 97, 96,
    ],
    "lapa106": [
        32, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6,
        5, 4, 3, 2, 1, 0, 46, 45, 44, 43, 42, 50, 49, 48, 47, 37, 36, 35, 34, 33, 41, 40, 39, 38, 51, 52, 53,
        54, 65, 64, 63, 62, 61, 60, 59, 58, 57, 56, 55, 79, 78, 77, 76, 75, 82, 81, 80, 83, 70, 69, 68, 67, 66,
        73, 72, 71, 74, 90, 89, 88, 87, 86, 85, 84, 95, 94, 93, 92, 91, 100, 99, 98, 97, 96, 103, 102, 101, 105,
        104,
    ],
    "alpha106": [
        0, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11,
        12, 13, 14, 15, 16, 87, 88, 93, 91, 90, 92, 89, 94, 96, 95, 101, 100, 99, 97, 98, 105, 104, 102, 103,
        61, 53, 57, 58, 59, 54, 55, 56, 60, 52, 62, 67, 68, 69, 70, 63, 64, 65, 66, 71, 72, 73, 74, 81, 82, 83,
        84, 85, 80, 75, 76, 77, 78, 79, 86, 33, 34, 39, 37, 36, 38, 35, 40, 42, 41, 46, 47, 45, 44, 43, 50, 51,
        49, 48,
    ],
    "cofw29": [
        1, 0, 3, 2, 6, 7, 4, 5, 9, 8, 11, 10, 14, 15, 12, 13, 17, 16, 19, 18, 20, 21, 23, 22, 24, 25, 26, 27,
        28,
    ],
    "aflw19": [
        5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 14, 13, 12, 17, 16, 15, 18,
    ],
    "five5": [
        1, 0, 2, 4, 3,
    ],
}
# fmt: on


def face_plusplus_names() -> list[str]:
    """Return the 106 names of the Face++ scheme, sorted; the alphabetical layout has this order."""
    names = ["contour_chin", "mouth_left_corner", "mouth_right_corner", "nose_middle_contour", "nose_tip"]
    names += [f"contour_{side}{i}" for side in ("left", "right") for i in range(1, 17)]
    for side, inner, outer in (("left", "right", "left"), ("right", "left", "right")):
        brow, eye = f"{side}_eyebrow", f"{side}_eye"
        names += [f"{brow}_{outer}_corner", f"{brow}_upper_{inner}_corner", f"{brow}_lower_{inner}_corner"]
        names += [f"{brow}_{edge}_{part}" for edge in ("upper", "lower") for part in ("middle", *QUARTERS)]
        names += [f"{eye}_{part}" for part in ("left_corner", "right_corner", "top", "bottom", "center", "pupil")]
        names += [f"{eye}_{edge}_{quarter}" for edge in ("upper", "lower") for quarter in QUARTERS]
        names += [f"mouth_upper_lip_{side}_contour{i}" for i in range(1, 5)]
        names += [f"mouth_lower_lip_{side}_contour{i}" for i in range(1, 4)]
        names += [f"nose_{side}_contour{i}" for i in range(1, 6)]
    names += [f"mouth_{lip}_lip_{edge}" for lip in ("upper", "lower") for edge in ("top", "bottom")]
    names += [f"nose_bridge{i}" for i in range(1, 4)]
    return sorted(names)


QUARTERS = ("left_quarter", "right_quarter")


@pytest.mark.parametrize("name", FLIPS)
def test_layout_flip_is_the_published_permutation(name: str) -> None:
    """Would catch a pair of partners in the wrong place: the flip would train two points towards each other."""
    assert list(LAYOUTS[name].flip) == FLIPS[name]


def test_alpha106_matches_the_sorted_names() -> None:
    """Would catch an error in the LaPa to alphabetical table that the flip alone would not show."""
    names = face_plusplus_names()
    assert len(names) == ALPHA106.num_points == len(set(names))
    swap = {"left": "right", "right": "left"}
    other_side = ["".join(swap.get(part, part) for part in _split_sides(name)) for name in names]
    assert [names.index(name) for name in other_side] == list(ALPHA106.flip)
    assert [names[i] for i in ALPHA106.eye_corners] == ["left_eye_left_corner", "right_eye_right_corner"]
    assert [names[i] for (i,) in ALPHA106.pupils] == ["left_eye_pupil", "right_eye_pupil"]
    assert [names[i] for (i,) in ALPHA106.five[2:]] == ["nose_tip", "mouth_left_corner", "mouth_right_corner"]
    assert [names[i] for i in ALPHA106.pose] == [
        "left_eyebrow_left_corner",
        "left_eyebrow_lower_right_corner",
        "right_eyebrow_lower_left_corner",
        "right_eyebrow_right_corner",
        "left_eye_left_corner",
        "left_eye_right_corner",
        "right_eye_left_corner",
        "right_eye_right_corner",
        "nose_left_contour4",
        "nose_right_contour4",
        "mouth_left_corner",
        "mouth_right_corner",
        "mouth_lower_lip_bottom",
        "contour_chin",
    ]
    prefixes = {"jaw": "contour", "nose": "nose", "mouth": "mouth", "inner_mouth": "mouth", "left_brow": "left_eyebrow"}
    for region, prefix in prefixes.items():
        assert all(names[i].startswith(prefix) for line in ALPHA106.regions[region] for i in line), region


def _split_sides(name: str) -> list[str]:
    return name.replace("left", "|left|").replace("right", "|right|").split("|")


@every_layout
def test_layout_regions_cover_every_point(layout: Layout) -> None:
    """Would catch a point that no region draws or measures."""
    drawn = {i for lines in layout.regions.values() for line in lines for i in line}
    assert drawn == (set(range(layout.num_points)) if layout.regions else set())


@every_layout
def test_layout_survives_pickling(layout: Layout) -> None:
    """Would catch a layout that worker processes cannot receive, or receive changed."""
    copy = pickle.loads(pickle.dumps(layout))
    assert dataclasses.asdict(copy) == dataclasses.asdict(layout)
    points = np.random.default_rng(0).normal(size=(layout.num_points, 2))
    if (layout.name, FIVE5.name) in CONVERSIONS:
        assert np.array_equal(convert(points, copy, FIVE5), convert(points, layout, FIVE5))
    assert convert(points, copy, layout) is points


@every_layout
def test_layout_flipped_is_its_own_inverse_in_numpy_and_torch(layout: Layout) -> None:
    """Would catch a flip that works on only one of the two, or permutes the wrong axis."""
    points = np.random.default_rng(0).normal(size=(2, 3, layout.num_points, 2))
    once = layout.flipped(points)
    assert np.array_equal(once[..., 0, :], points[..., layout.flip[0], :])
    assert np.array_equal(layout.flipped(once), points)
    assert np.array_equal(layout.flipped(torch.from_numpy(points)).numpy(), once)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"flip": (1, 0, 2, 3)}, "not a permutation of 0 .. 4"),
        ({"flip": (1, 0, 2, 3, 3)}, "not a permutation"),
        ({"flip": (1, 2, 0, 4, 3)}, r"not its own inverse at \[0, 1, 2\]"),
        ({"eye_corners": (0, 3)}, "eye_corners"),
        ({"eye_corners": (0, 5)}, r"eye_corners contains \[5\]"),
        ({"eye_corners": (-5, 1)}, r"eye_corners contains \[-5\]"),
        ({"pupils": ((0,), (3,))}, "pupils"),
        ({"pupils": ((0,), ())}, "pupils"),
        ({"five": ((0,), (1,), (2,), (4,), (4,))}, "five"),
        ({"five": ((0,), (1,), (3,), (3,), (4,))}, "five"),
        ({"five": ((0,), (1,))}, "five has 2 entries, expected 5"),
        ({"pose": (0, 1)}, "pose has 2 entries, expected 14"),
        ({"pose": (0,) * 14}, "pose"),
        ({"regions": {"left_eye": ((0,),), "right_eye": ((3,),)}}, "regions"),
        ({"regions": {"left_eye": ((0,),)}}, r"\['left_eye'\] have no partner"),
        ({"regions": {"mouth": ((2, 3),)}}, "regions"),
    ],
)
def test_layout_refuses_an_inconsistent_table(change: dict, complaint: str) -> None:
    """Would catch a mistake in a custom layout that would otherwise only show as a slightly worse network."""
    with pytest.raises(ValueError, match=complaint) as error:
        dataclasses.replace(FIVE5, name="mine", **change)
    assert "'mine'" in str(error.value)


def test_layout_needs_only_flip_and_eye_corners() -> None:
    """Would catch a check that requires tables which a custom layout may omit."""
    layout = Layout(name="mine", num_points=2, flip=(1, 0), eye_corners=(0, 1))
    assert layout.pupils == ((), ())
    assert layout.pose == layout.five == ()


# Conversions


@every_conversion
def test_conversion_weights_are_means_and_read_only(names: tuple[str, str]) -> None:
    """Would catch weights that scale a point (0.666 + 0.333), or a table that a user changes by accident."""
    source, target = names
    weights = CONVERSIONS[names]
    assert weights.shape == (LAYOUTS[target].num_points, LAYOUTS[source].num_points)
    total = weights.sum(axis=1)
    assert np.allclose(total[total > 0], 1, atol=1e-15)
    assert (weights >= 0).all()
    with pytest.raises(ValueError, match="read-only"):
        weights[0, 0] = 2


@every_conversion
def test_convert_commutes_with_the_flip(names: tuple[str, str]) -> None:
    """Would catch a point taken from the wrong side, or from a neighbour on one side only."""
    source, target = (LAYOUTS[name] for name in names)
    points = np.random.default_rng(0).normal(size=(source.num_points, 2))
    first = convert(source.flipped(points), source, target)
    assert np.allclose(first, target.flipped(convert(points, source, target)), atol=1e-12, equal_nan=True)


def _nonzero_weights(weights: Array) -> dict[int, dict[int, float]]:
    """Return the nonzero weights of each target point, by index of the source point."""
    return {i: {int(j): float(row[j]) for j in np.flatnonzero(row)} for i, row in enumerate(weights)}


def test_conversion_wflw98_to_ibug68_matches_a_table_by_hand() -> None:
    """Would catch lid thirds or brow halves computed from the wrong neighbours."""
    parts = _nonzero_weights(CONVERSIONS["wflw98", "ibug68"])
    assert {i: parts[i] for i in (0, 8, 17, 21, 22, 26, 30, 36, 45, 48, 67)} == {
        0: {0: 1},
        8: {16: 1},
        17: {33: 1},
        21: {37: 0.5, 38: 0.5},
        22: {42: 0.5, 50: 0.5},
        26: {46: 1},
        30: {54: 1},
        36: {60: 1},
        45: {72: 1},
        48: {76: 1},
        67: {95: 1},
    }
    third, two = 1 / 3, 2 / 3
    assert {i: parts[i] for i in (37, 38, 40, 41)} == {
        37: {61: two, 62: third},
        38: {62: third, 63: two},
        40: {65: two, 66: third},
        41: {66: third, 67: two},
    }
    assert _nonzero_weights(CONVERSIONS["lapa106", "ibug68"])[46] == {80: two, 81: third}


def test_conversions_to_lapa106_match_tables_by_hand() -> None:
    """Would catch wrong eye points in LaPa's places: mmpose writes WFLW's 60 .. 74 for COFW's eyes."""
    parts = _nonzero_weights(CONVERSIONS["ibug68", "lapa106"])
    assert {i: parts[i] for i in (32, 33, 37, 42, 58, 66, 67, 68, 70, 72, 77, 81, 103)} == {
        32: {16: 1},
        33: {17: 1},
        37: {21: 1},
        42: {22: 1},
        58: {31: 1},
        66: {36: 1},
        67: {},
        68: {37: 0.5, 38: 0.5},
        70: {39: 1},
        72: {40: 0.5, 41: 0.5},
        77: {43: 0.5, 44: 0.5},
        81: {46: 0.5, 47: 0.5},
        103: {67: 1},
    }
    cofw = {
        0: 33,
        2: 38,
        4: 35,
        5: 40,
        1: 46,
        3: 50,
        6: 44,
        7: 48,
        8: 66,
        10: 70,
        12: 68,
        13: 72,
        11: 75,
        9: 79,
        14: 77,
    }
    cofw |= {15: 81, 18: 57, 19: 63, 20: 54, 21: 60, 22: 84, 23: 90, 24: 87, 25: 98, 26: 102, 27: 93, 28: 16}
    cofw |= {16: 104, 17: 105}
    lapa = {i: row for i, row in _nonzero_weights(CONVERSIONS["cofw29", "lapa106"]).items() if row}
    assert lapa == {target: {source: 1} for source, target in cofw.items()}


def test_convert_marks_points_missing_in_wflw98_as_nan() -> None:
    """Would catch a conversion that invents a point which WFLW does not annotate."""
    points = convert(np.ones((98, 2), np.float32), WFLW98, LAPA106)
    assert np.flatnonzero(np.isnan(points).any(axis=1)).tolist() == [55, 56, 57, 63, 64, 65, 74, 83]
    assert points.dtype == np.float32


@pytest.mark.parametrize(("there", "through"), [(ALPHA106, LAPA106), (WFLW98, LAPA106), (COFW29, ALPHA106)])
def test_convert_round_trip_is_exact(there: Layout, through: Layout) -> None:
    """Would catch an order that is not inverted by its inverse (the argument of argsort the wrong way round)."""
    points = np.random.default_rng(0).normal(size=(4, there.num_points, 2))
    assert np.array_equal(convert(convert(points, there, through), through, there), points)


def test_convert_loses_only_points_that_need_a_missing_one() -> None:
    """Would catch a NaN that spreads through a matrix product to every point, or vanishes in a mean."""
    points = np.random.default_rng(0).normal(size=(3, 98, 2))
    points[1, 62] = np.nan
    converted = convert(points, WFLW98, IBUG68)
    assert np.argwhere(np.isnan(converted).any(axis=-1)).tolist() == [[1, 37], [1, 38]]


@pytest.mark.parametrize("layout", [IBUG68, WFLW98, LAPA106, ALPHA106, COFW29, AFLW19], ids=lambda x: x.name)
def test_convert_to_five5_takes_centroids(layout: Layout) -> None:
    """Would catch a sum instead of a mean, or eyes and mouth corners exchanged."""
    points = np.random.default_rng(0).normal(size=(2, layout.num_points, 2))
    expected = np.stack([points[:, list(group)].mean(axis=1) for group in layout.five], axis=1)
    assert np.allclose(convert(points, layout, FIVE5), expected)


def test_convert_errors_list_possible_layouts() -> None:
    """Would catch a bare KeyError, and points of one layout read as another's."""
    with pytest.raises(ValueError, match="from layout 'five5' to 'wflw98'; 'five5' converts to: none"):
        convert(np.zeros((5, 2)), FIVE5, WFLW98)
    with pytest.raises(ValueError, match="from layout 'aflw19' to 'ibug68'; 'aflw19' converts to: five5"):
        convert(np.zeros((19, 2)), AFLW19, IBUG68)
    with pytest.raises(ValueError, match=r"shape \(98, 2\), but layout 'ibug68'"):
        convert(np.zeros((98, 2)), IBUG68, FIVE5)


# Real faces


def _read_rows(path: Path, layout: Layout, separator: str | None) -> dict[str, Array]:
    """Read lines of numbers with a name before or after them."""
    rows: dict[str, Array] = {}
    for line in path.read_text().splitlines():
        fields = line.split(separator)
        name, numbers = (fields[0], fields[1:]) if separator else (fields[-1], fields)
        if name:
            rows[f"{name} {len(rows)}"] = np.array(numbers[: 2 * layout.num_points], float).reshape(-1, 2)
    return rows


def _read_lapa(folder: Path) -> dict[str, Array]:
    return {path.stem: np.loadtxt(path, skiprows=1) for path in sorted(folder.glob("*/landmarks/*.txt"))}


def _real_faces(layout: Layout) -> Array:
    if layout is IBUG68:
        return np.stack(list(_read_rows(face_data("ytf68") / "test_frames_keypoints.csv", layout, ",").values()))
    if layout is WFLW98:
        lists = face_data("WFLW", "WFLW_annotations", "list_98pt_rect_attr_train_test")
        return np.stack(list(_read_rows(lists / "list_98pt_rect_attr_test.txt", layout, None).values()))
    return convert(np.stack(list(_read_lapa(face_data("frl106")).values())), LAPA106, layout)


@pytest.mark.parametrize("layout", [IBUG68, WFLW98, LAPA106, ALPHA106, COFW29], ids=lambda x: x.name)
def test_layout_flip_maps_the_mean_face_onto_itself(layout: Layout) -> None:
    """Would catch a permutation that is consistent in itself, but not the one of the dataset's files."""
    faces = _real_faces(layout)
    pose = estimate_pose(faces, layout)
    faces = transform_points(rotation(pose * [0, 0, -1]), faces)[np.abs(pose[:, 0]) < 20]  # upright, nearly frontal
    box = bounding_box(faces)[:, None]
    mean = ((faces - box[..., :2]) / (box[..., 2:] - box[..., :2])).mean(axis=0)
    flipped = mean * [-1, 1] + [2 * mean[:, 0].mean(), 0]
    distance = np.linalg.norm(flipped[:, None] - mean, axis=-1)  # (flipped point, point)
    partner = distance[np.arange(layout.num_points), layout.flip]
    # fraction of the face's box; neighbours are farther apart, except coinciding points (pupil and eye centre)
    slack = 0.005
    assert np.flatnonzero(partner > distance.min(axis=1) + slack).tolist() == []


def test_convert_wflw98_to_lapa106_agrees_on_the_same_portraits() -> None:
    """Would catch a misplaced point: both layouts of these portraits are made from one annotation."""
    lapa = _read_lapa(face_data("frl106"))
    lists = face_data("frl98", "WFLW_annotations", "list_98pt_rect_attr_train_test").glob("*.txt")
    wflw = {Path(k.split(" ")[0]).stem: v for path in lists for k, v in _read_rows(path, WFLW98, None).items()}
    assert len(wflw) == len(lapa)
    truth = np.stack([lapa[name] for name in wflw])
    converted = convert(np.stack(list(wflw.values())), WFLW98, LAPA106)
    eyes = np.linalg.norm(truth[:, LAPA106.eye_corners[0]] - truth[:, LAPA106.eye_corners[1]], axis=-1)
    error = np.linalg.norm(converted - truth, axis=-1) / eyes[:, None]
    assert np.nanmax(error.mean(axis=0)) < 0.01
