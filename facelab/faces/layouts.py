"""Landmark layouts: the meaning of each landmark index. No other file contains an index.

The constants are the layouts of the field, each named after its dataset and its number of points. The ``name`` of a
layout identifies it: compare names, not objects, since every worker process has a copy of the layout.

"Left" is left **in the image** (the subject's right side), as in the numbering of all these schemes. Indices count
from 0.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from facelab.faces.geometry import Array, ArrayOrTensor

POSE_FLIP = (3, 2, 1, 0, 7, 6, 5, 4, 9, 8, 11, 10, 12, 13)
"""Permutation that flips the points of :data:`facelab.faces.pose.MODEL`: outer and inner end of the left brow, inner
and outer end of the right brow, corners of the left eye (outer, inner) and of the right eye (inner, outer), left and
right nose wing, left and right mouth corner, lower lip, chin."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Landmark layout: the number of points and the meaning of each index.

    Raises:
        ValueError: the flip is not a permutation or not its own inverse, an index does not exist, or the flip does not
            map a table to itself. The message contains the layout, the table and the wrong indices.
    """

    name: str
    num_points: int
    flip: tuple[int, ...]
    """Permutation of the points after x has been flipped, its own inverse: ``flipped[i] = points[flip[i]]``."""
    eye_corners: tuple[int, int]
    """Outer corners of the left and the right eye; their distance is the inter-ocular distance. Eye centres in a layout
    without corners, whose inter-ocular distance is then the inter-pupil distance."""
    pupils: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    """Points whose centroids are the left and the right pupil; empty if the layout has none."""
    five: tuple[tuple[int, ...], ...] = ()
    """Points whose centroids are left eye, right eye, nose tip, left and right mouth corner; empty if not defined."""
    regions: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """Name of a part of the face to the lines that draw it. A line whose last index is its first is closed, a line of
    one index is a dot. All regions together contain every point; the points of a region are the set of its indices."""
    pose: tuple[int, ...] = ()
    """Points of :data:`facelab.faces.pose.MODEL`, in its order; empty if the layout does not have all of them."""

    def __post_init__(self) -> None:
        self._check_flip()
        self._check_partners("eye_corners", [(i,) for i in self.eye_corners], (1, 0))
        self._check_partners("pupils", self.pupils, (1, 0))
        if self.five:
            self._check_partners("five", self.five, (1, 0, 2, 4, 3))
        if self.pose:
            self._check_partners("pose", [(i,) for i in self.pose], POSE_FLIP)
        names = list(self.regions)
        if unpaired := [name for name in names if _other_side(name) not in self.regions]:
            raise ValueError(f"layout {self.name!r}: regions {unpaired} have no partner on the other side")
        partners = tuple(names.index(_other_side(name)) for name in names)
        self._check_partners("regions", [sum(self.regions[name], ()) for name in names], partners)

    def _check_flip(self) -> None:
        """Refuse a flip that is not a permutation and its own inverse."""
        if sorted(self.flip) != list(range(self.num_points)):
            raise ValueError(
                f"layout {self.name!r}: flip is not a permutation of 0 .. {self.num_points - 1} "
                f"({len(self.flip)} entries, {len(set(self.flip))} different)"
            )
        if wrong := [i for i, j in enumerate(self.flip) if self.flip[j] != i]:
            raise ValueError(f"layout {self.name!r}: flip is not its own inverse at {wrong}")

    def _check_partners(self, table: str, rows: Collection[tuple[int, ...]], partners: tuple[int, ...]) -> None:
        """Check that the flip maps row k of a table to row ``partners[k]``, as a set of points."""
        sets = [set(row) for row in rows]
        if len(sets) != len(partners):
            raise ValueError(f"layout {self.name!r}: {table} has {len(sets)} entries, expected {len(partners)}")
        if unknown := sorted(i for row in sets for i in row if not 0 <= i < self.num_points):
            raise ValueError(f"layout {self.name!r}: {table} contains {unknown}; there are {self.num_points} points")
        for row, partner in zip(sets, partners, strict=True):
            if (image := {self.flip[i] for i in row}) != sets[partner]:
                raise ValueError(
                    f"layout {self.name!r}: the flip maps {sorted(row)} of {table} to {sorted(image)}, "
                    f"but its partner in the table is {sorted(sets[partner])}"
                )

    def flipped(self, points: ArrayOrTensor) -> ArrayOrTensor:
        """Swap left and right points ``(..., N, 2)`` whose x has been flipped."""
        return points[..., list(self.flip), :]


def _other_side(region: str) -> str:
    """Return the name of the region on the other side; a name without a side is returned unchanged."""
    for side, other in (("left_", "right_"), ("right_", "left_")):
        if region.startswith(side):
            return other + region.removeprefix(side)
    return region


def _flip(num_points: int, *swaps: tuple[Iterable[int], Iterable[int]]) -> tuple[int, ...]:
    """Return the permutation that swaps left points with their right partners and keeps all others."""
    flip = list(range(num_points))
    for left, right in swaps:
        for i, j in zip(left, right, strict=True):
            flip[i], flip[j] = j, i
    return tuple(flip)


def _line(first: int, last: int) -> tuple[int, ...]:
    """Return consecutive indices, both ends included."""
    return tuple(range(first, last + 1))


def _ring(first: int, last: int) -> tuple[int, ...]:
    """Return consecutive indices, and the first once more at the end."""
    return (*range(first, last + 1), first)


# The layouts

IBUG68 = Layout(
    name="ibug68",
    num_points=68,
    flip=_flip(
        68,
        (range(8), range(16, 8, -1)),  # contour; 8 is the chin
        (range(17, 22), range(26, 21, -1)),  # brows from the outer to the inner end
        ((31, 32), (35, 34)),  # base of the nose
        (range(36, 42), (45, 44, 43, 42, 47, 46)),  # outer corner, upper lid, inner corner, lower lid
        ((48, 49, 50, 58, 59), (54, 53, 52, 56, 55)),  # outer lips
        ((60, 61, 67), (64, 63, 65)),  # inner lips
    ),
    eye_corners=(36, 45),
    pupils=(_line(36, 41), _line(42, 47)),
    five=(_line(36, 41), _line(42, 47), (30,), (48,), (54,)),
    regions={
        "jaw": (_line(0, 16),),
        "left_brow": (_line(17, 21),),
        "right_brow": (_line(22, 26),),
        "nose": (_line(27, 30), _line(31, 35)),
        "left_eye": (_ring(36, 41),),
        "right_eye": (_ring(42, 47),),
        "mouth": (_ring(48, 59),),
        "inner_mouth": (_ring(60, 67),),
    },
    pose=(17, 21, 22, 26, 36, 39, 42, 45, 31, 35, 48, 54, 57, 8),
)
"""68 points of 300W, 300W-LP, AFLW2000-3D, 300VW, COFW-68, Menpo (semi-frontal), MERL-RAV. The scheme has no pupils;
the centroid of the six points of an eye replaces them."""

_CONTOUR_AND_BROWS = (
    (range(16), range(32, 16, -1)),  # contour; 16 is the chin
    (range(33, 42), (46, 45, 44, 43, 42, 50, 49, 48, 47)),  # upper edge inwards, lower edge outwards
)

WFLW98 = Layout(
    name="wflw98",
    num_points=98,
    flip=_flip(
        98,
        *_CONTOUR_AND_BROWS,
        ((55, 56), (59, 58)),
        (range(60, 68), (72, 71, 70, 69, 68, 75, 74, 73)),
        ((76, 77, 78, 86, 87), (82, 81, 80, 84, 83)),
        ((88, 89, 95), (92, 91, 93)),
        ((96,), (97,)),
    ),
    eye_corners=(60, 72),
    pupils=((96,), (97,)),
    five=((96,), (97,), (54,), (76,), (82,)),
    regions={
        "jaw": (_line(0, 32),),
        "left_brow": (_ring(33, 41),),
        "right_brow": (_ring(42, 50),),
        "nose": (_line(51, 54), _line(55, 59)),
        "left_eye": (_ring(60, 67),),
        "right_eye": (_ring(68, 75),),
        "mouth": (_ring(76, 87),),
        "inner_mouth": (_ring(88, 95),),
        "pupils": ((96,), (97,)),
    },
    pose=(33, 38, 50, 46, 60, 64, 68, 72, 55, 59, 76, 82, 85, 16),
)
"""98 points of WFLW."""

LAPA106 = Layout(
    name="lapa106",
    num_points=106,
    flip=_flip(
        106,
        *_CONTOUR_AND_BROWS,
        (range(55, 60), range(65, 60, -1)),
        (range(66, 75), (79, 78, 77, 76, 75, 82, 81, 80, 83)),  # 74 and 83: eye centres
        ((84, 85, 86, 94, 95), (90, 89, 88, 92, 91)),
        ((96, 97, 103), (100, 99, 101)),
        ((104,), (105,)),
    ),
    eye_corners=(66, 79),
    pupils=((104,), (105,)),
    five=((104,), (105,), (54,), (84,), (90,)),
    regions={
        "jaw": (_line(0, 32),),
        "left_brow": (_ring(33, 41),),
        "right_brow": (_ring(42, 50),),
        "nose": (_line(51, 54), _line(55, 65)),
        "left_eye": (_ring(66, 73), (74,)),
        "right_eye": (_ring(75, 82), (83,)),
        "mouth": (_ring(84, 95),),
        "inner_mouth": (_ring(96, 103),),
        "pupils": ((104,), (105,)),
    },
    pose=(33, 38, 50, 46, 66, 70, 75, 79, 58, 62, 84, 90, 93, 16),
)
"""106 points of LaPa, and as far as is known of the JD-landmark challenges. Eye centre and pupil (74 and 104, 83 and
105) coincide in the labels of LaPa."""

COFW29 = Layout(
    name="cofw29",
    num_points=29,
    flip=_flip(
        29,
        ((0, 2, 4, 5), (1, 3, 6, 7)),  # brows: outer end, inner end, upper middle, lower middle
        ((8, 10, 12, 13, 16), (9, 11, 14, 15, 17)),  # eyes: outer and inner corner, upper and lower lid, pupil
        ((18, 22), (19, 23)),  # nose wings, mouth corners
    ),
    eye_corners=(8, 9),
    pupils=((16,), (17,)),
    five=((16,), (17,), (20,), (22,), (23,)),
    regions={
        "jaw": ((28,),),
        "left_brow": ((0, 4, 2, 5, 0),),
        "right_brow": ((1, 6, 3, 7, 1),),
        "nose": ((20, 21), (18, 21, 19)),
        "left_eye": ((8, 12, 10, 13, 8),),
        "right_eye": ((9, 14, 11, 15, 9),),
        "mouth": ((22, 24, 23, 27, 22),),
        "inner_mouth": ((22, 25, 23, 26, 22),),
        "pupils": ((16,), (17,)),
    },
    pose=(0, 2, 3, 1, 8, 10, 11, 9, 18, 19, 22, 23, 27, 28),
)
"""29 points of COFW. The inner lips share the mouth corners. The nose wings are the outermost points of the wings,
farther out and back than those of the pose model: the pitch is about 5 degrees higher than from the points of LaPa."""

AFLW19 = Layout(
    name="aflw19",
    num_points=19,
    flip=_flip(
        19,
        (range(3), range(5, 2, -1)),
        (range(6, 9), range(11, 8, -1)),
        ((12, 15), (14, 17)),
    ),
    eye_corners=(6, 11),
    pupils=((7,), (10,)),
    five=((7,), (10,), (13,), (15,), (17,)),
    regions={
        "jaw": ((18,),),
        "left_brow": (_line(0, 2),),
        "right_brow": (_line(3, 5),),
        "nose": (_line(12, 14),),
        "left_eye": (_line(6, 8),),
        "right_eye": (_line(9, 11),),
        "mouth": (_line(15, 17),),
    },
)
"""19 points of AFLW, without its two ear points. It has eye corners (6, 11), and eye centres (7, 10) as pupils. It has
no lower lip, hence no pose. The protocol of AFLW normalises by the side of the face box, not by the eyes."""

FIVE5 = Layout(
    name="five5",
    num_points=5,
    flip=_flip(5, ((0, 3), (1, 4))),
    eye_corners=(0, 1),
    pupils=((0,), (1,)),
    five=((0,), (1,), (2,), (3,), (4,)),
    regions={"left_eye": ((0,),), "right_eye": ((1,),), "nose": ((2,),), "mouth": (_line(3, 4),)},
)
"""5 points of face detectors: eye centres, nose tip, mouth corners. It has no eye corners, the eye centres replace
them: an error normalised by inter-ocular distance is normalised by inter-pupil distance."""

# The LaPa index of every point of a layout that is a selection or a re-ordering of the points of LaPa

# fmt: off
_LAPA106_IN_ALPHA = [
    1, 9, 10, 11, 12, 13, 14, 15, 16, 2, 3, 4, 5, 6, 7, 8, 0,  # contour to the chin
    24, 23, 22, 21, 20, 19, 18, 32, 31, 30, 29, 28, 27, 26, 25, 17,  # contour from the chin
    43, 48, 49, 51, 50, 46, 47, 45, 44, 102, 103, 104, 105, 101, 100, 99, 98, 97,  # brows
    72, 73, 74, 86, 75, 76, 77, 78, 79, 80, 85, 84, 83, 82, 81,  # nose
    35, 41, 40, 42, 39, 37, 33, 36, 34, 89, 95, 94, 96, 93, 91, 87, 90, 88,  # eyes and their centres
    52, 64, 63, 71, 67, 68, 61, 58, 59, 53, 56, 55, 65, 66, 62, 70, 69, 57, 60, 54,  # lips
    38, 92,  # pupils
]
# fmt: on
_ALPHA106_IN_LAPA = [_LAPA106_IN_ALPHA.index(i) for i in range(LAPA106.num_points)]

_WFLW98_IN_LAPA = [*range(55), *range(58, 63), *range(66, 74), *range(75, 83), *range(84, 106)]

# fmt: off
_COFW29_IN_LAPA = [
    33, 46, 38, 50, 35, 40, 44, 48,  # brows
    66, 79, 70, 75, 68, 72, 77, 81, 104, 105,  # eyes and pupils
    57, 63, 54, 60, 84, 90, 87, 98, 102, 93, 16,  # nose, mouth, chin
]
# fmt: on


def _renumbered(name: str, layout: Layout, order: list[int]) -> Layout:
    """Re-order a layout: point i of the result is point ``order[i]`` of ``layout``."""
    new = {old: i for i, old in enumerate(order)}

    def rows(table: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        """Renumber the indices of a table."""
        return tuple(tuple(new[i] for i in row) for row in table)

    left, right = layout.eye_corners
    left_pupil, right_pupil = rows(layout.pupils)
    return Layout(
        name=name,
        num_points=layout.num_points,
        flip=tuple(new[layout.flip[old]] for old in order),
        eye_corners=(new[left], new[right]),
        pupils=(left_pupil, right_pupil),
        five=rows(layout.five),
        regions={region: rows(lines) for region, lines in layout.regions.items()},
        pose=tuple(new[i] for i in layout.pose),
    )


ALPHA106 = _renumbered("alpha106", LAPA106, _ALPHA106_IN_LAPA)
"""106 points of Face++ sorted by their names: InsightFace's ``2d106det`` and the data of pfld_106, often called "JD".
The points are those of LaPa in another order, so every table is derived from :data:`LAPA106`. The pose indices
therefore differ from those of pfld_106, whose list has a side of the nose (75) in place of the inner corner of the left
eye (39) and the outermost points of the nose wings (77, 83) in place of the points at the base of the nose (78, 84)."""

# Conversions


def _weights(source: Layout, target: Layout, mix: Mapping[int, Mapping[int, float]]) -> Array:
    """Build the matrix ``(M, N)`` from a table: target point -> source point -> weight."""
    weights = np.zeros((target.num_points, source.num_points))
    for i, parts in mix.items():
        for j, weight in parts.items():
            weights[i, j] = weight
    return weights


def _copied(targets: Iterable[int], sources: Iterable[int]) -> dict[int, dict[int, float]]:
    """Return a table of copied points, see :func:`_weights`."""
    return {i: {j: 1.0} for i, j in zip(targets, sources, strict=True)}


def _mixed(weights: tuple[float, float], *triples: tuple[int, int, int]) -> dict[int, dict[int, float]]:
    """Return a table of points between two points: (target, source, source), with one pair of weights."""
    return {target: dict(zip(sources, weights, strict=True)) for target, *sources in triples}


def _chained(first: Array, second: Array) -> Array:
    """Compose two conversions, ``first`` before ``second``.

    A row is zero if it depends on a point that ``first`` does not define.
    """
    undefined = (second[:, ~first.any(axis=1)] != 0).any(axis=1)
    return np.where(undefined[:, None], 0.0, second @ first)


def _conversions() -> dict[tuple[str, str], Array]:
    """Build the matrices of all conversions."""
    halves, thirds = (1 / 2, 1 / 2), (2 / 3, 1 / 3)
    to_lapa = {
        WFLW98.name: _weights(WFLW98, LAPA106, _copied(_WFLW98_IN_LAPA, range(WFLW98.num_points))),
        COFW29.name: _weights(COFW29, LAPA106, _copied(_COFW29_IN_LAPA, range(COFW29.num_points))),
        ALPHA106.name: _weights(ALPHA106, LAPA106, _copied(_ALPHA106_IN_LAPA, range(ALPHA106.num_points))),
        IBUG68.name: _weights(
            IBUG68,
            LAPA106,
            _copied(range(0, 33, 2), range(17))
            | _copied([*range(33, 38), *range(42, 47)], range(17, 27))
            | _copied([*range(51, 55), *range(58, 63)], range(27, 36))
            | _copied((66, 70, 75, 79), (36, 39, 42, 45))
            | _mixed(halves, (68, 37, 38), (72, 40, 41), (77, 43, 44), (81, 46, 47))
            | _copied(range(84, 104), range(48, 68)),
        ),
    }
    wflw_to_68 = _weights(
        WFLW98,
        IBUG68,
        _copied(range(17), range(0, 33, 2))
        | _copied((17, 26), (33, 46))
        | _mixed(halves, (18, 34, 41), (19, 35, 40), (20, 36, 39), (21, 37, 38))
        | _mixed(halves, (22, 42, 50), (23, 43, 49), (24, 44, 48), (25, 45, 47))
        | _copied(range(27, 36), range(51, 60))
        | _copied((36, 39, 42, 45), (60, 64, 68, 72))
        | _mixed(thirds, (37, 61, 62), (38, 63, 62), (40, 65, 66), (41, 67, 66))
        | _mixed(thirds, (43, 69, 70), (44, 71, 70), (46, 73, 74), (47, 75, 74))
        | _copied(range(48, 68), range(76, 96)),
    )
    # The transpose of a selection of points maps them back.
    from_lapa = {name: to_lapa[name].T for name in (WFLW98.name, COFW29.name, ALPHA106.name)}
    from_lapa[IBUG68.name] = _chained(from_lapa[WFLW98.name], wflw_to_68)
    conversions = {(name, LAPA106.name): weights for name, weights in to_lapa.items()}
    conversions |= {(LAPA106.name, name): weights for name, weights in from_lapa.items()}
    conversions |= {(a, b): _chained(to_lapa[a], from_lapa[b]) for a in to_lapa for b in from_lapa if a != b}
    for layout in (IBUG68, WFLW98, LAPA106, ALPHA106, COFW29, AFLW19):
        mix = {i: dict.fromkeys(points, 1 / len(points)) for i, points in enumerate(layout.five)}
        conversions[layout.name, FIVE5.name] = _weights(layout, FIVE5, mix)
    for weights in conversions.values():
        weights.flags.writeable = False
    return conversions


CONVERSIONS: dict[tuple[str, str], Array] = _conversions()
"""Names of source and target layout to weights ``(M, N)``: target point i is the sum of ``weights[i, j]`` times source
point j. A row sums to 1; it is zero if the source has no equivalent of the point.

The conversions of WFLW98, COFW29, ALPHA106 and IBUG68 to LAPA106, of WFLW98 to IBUG68, and to FIVE5 are defined
directly; the others are compositions of these and of inverted selections, through LAPA106. The eye centres of LaPa (74,
83) are not filled by the pupils of another layout. The brows of IBUG68 are centre lines, but are converted to the upper
edge of LaPa: an approximation.

WFLW98 to IBUG68 departs from the code of PIPNet (Jin, Liao, Shao, IJCV 2021). Lid points are weighted by exact thirds
instead of 0.666 and 0.333, which move a point towards the origin by a thousandth of its coordinates. A brow point is
the midpoint of upper and lower edge; the code of PIPNet averages y alone and keeps the x of the upper edge, so its
result changes when the image is rotated.
"""
