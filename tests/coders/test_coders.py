"""Tests of the coders, which convert points to network targets and back."""

from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from facelab.coders.pipnet import PIPCoder, PIPMaps, at_cell
from facelab.coders.regression import RegressionCoder
from facelab.errors import ConfigError
from facelab.faces.geometry import flip_image, to_cells, transform_points
from facelab.faces.layouts import AFLW19, COFW29, FIVE5, IBUG68, WFLW98, Layout

SIZE = 256


@pytest.fixture(scope="module")
def torchlm() -> Iterator[ModuleType]:
    """Yield the PIPNet module of torchlm 0.1.6.10, a port of the authors' code that includes their mean faces."""
    integrate = pytest.importorskip("scipy.integrate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integrate, "simps", integrate.simpson, raising=False)  # its name before SciPy 1.14
        yield pytest.importorskip("torchlm.models.pipnet._impls")


def random_points(layout: Layout, batch: int = 3, margin: float = 0.0, seed: int = 0) -> Tensor:
    """Return random points in the crop and in a margin around it, in pixels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, layout.num_points, 2, generator=generator) * (SIZE + 2 * margin) - 0.5 - margin


def random_maps(layout: Layout, batch: int, num_neighbours: int, seed: int = 0) -> PIPMaps:
    """Return maps as from an untrained network, in which no two votes agree."""
    generator = torch.Generator().manual_seed(seed)
    n, c = layout.num_points, num_neighbours
    shapes = ((batch, n, 8, 8), (batch, n, 2, 8, 8), (batch, n, c, 2, 8, 8))
    return PIPMaps(*(torch.rand(shape, generator=generator) for shape in shapes))


def pip_coder(
    layout: Layout, stride: int = 32, num_neighbours: int = 4, official: bool = False, known: bool = True
) -> PIPCoder:
    coder = PIPCoder(layout, stride, num_neighbours, official)
    if known:
        coder.set_mean_shape(random_points(layout, batch=1, seed=9)[0])
    return coder


@pytest.mark.parametrize("stride", [16, 32, 64, 128])
@pytest.mark.parametrize("layout", [FIVE5, IBUG68], ids=lambda layout: layout.name)
def test_pip_coder_decodes_what_it_encodes(layout: Layout, stride: int) -> None:
    """Would catch half-pixel errors, swapped axes, a wrong cell order, and clamped offsets of outer points."""
    coder = pip_coder(layout, stride)
    points = random_points(layout, margin=40)
    decoded, confidence = coder.decode(coder.encode(points, torch.ones(points.shape[:2], dtype=torch.bool), SIZE))
    error = decoded - points
    assert error.abs().max() < 0.05
    assert error.mean(dim=(0, 1)).abs().max() < 1e-3
    assert (confidence == 1).all()


def test_pip_coder_commutes_with_the_flip() -> None:
    """Would catch a grid counted from pixel centres, whose cells do not flip onto cells."""
    points = random_points(IBUG68)
    valid = torch.ones(points.shape[:2], dtype=torch.bool)
    swap = torch.tensor(IBUG68.flip)
    flipped = transform_points(torch.tensor(flip_image(SIZE), dtype=torch.float32), points)[:, swap]
    coder = pip_coder(IBUG68)
    maps, maps_of_flipped = coder.encode(points, valid, SIZE), coder.encode(flipped, valid, SIZE)
    torch.testing.assert_close(maps.score[:, swap].flip(-1), maps_of_flipped.score)
    back = transform_points(torch.tensor(flip_image(SIZE), dtype=torch.float32), coder.decode(maps_of_flipped)[0])[
        :, swap
    ]
    torch.testing.assert_close(back, coder.decode(maps)[0], atol=1e-3, rtol=0)


def test_pip_coder_encodes_a_worked_example() -> None:
    """Would catch a cell, an offset or a neighbour offset that differs from the paper (one worked example)."""
    coder = PIPCoder(FIVE5, 32, 1, False)
    points = torch.tensor([[[15.5, 23.5], [47.5, 7.5], [31.5, 31.5], [7.5, 55.5], [79.5, -8.5]]])
    coder.set_mean_shape(points[0])
    maps = coder.encode(points, torch.ones(1, 5, dtype=torch.bool), 64)
    assert coder.neighbours[:, 0].tolist() == [2, 2, 0, 0, 1]
    assert maps.score.flatten(2).argmax(-1).tolist() == [[0, 1, 3, 2, 1]]  # the last cell is clamped
    assert maps.score.sum() == 5
    index = maps.score.flatten(2).argmax(-1)
    offsets = [[0.5, 0.75], [0.5, 0.25], [0.0, 0.0], [0.25, 0.75], [1.5, -0.25]]
    neighbours = [[1.0, 1.0], [0.0, 1.0], [-0.5, -0.25], [0.5, -0.25], [0.5, 0.25]]
    assert at_cell(maps.offset, index).tolist() == [offsets]
    assert at_cell(maps.neighbour, index)[:, :, 0].tolist() == [neighbours]


def test_pip_coder_masks_missing_landmarks() -> None:
    """Would catch NaN spread from a missing landmark to its neighbours, and finite values with ``valid=False``."""
    points = random_points(IBUG68)
    valid = torch.ones(points.shape[:2], dtype=torch.bool)
    valid[0, 3], valid[1] = False, False
    points[2, 5] = float("nan")  # although it is marked as valid
    coder = pip_coder(IBUG68)
    maps = coder.encode(points, valid, SIZE)
    annotated = valid & points.isfinite().all(-1)
    assert torch.equal(maps.score.sum((2, 3)), annotated.float())
    decoded, confidence = coder.decode(maps)
    assert (decoded - points)[annotated].abs().max() < 0.05
    assert decoded[~annotated].isnan().all()
    assert (confidence[~annotated] == 0).all()


def test_pip_coder_merges_all_votes() -> None:
    """Would catch votes for another landmark or counted twice, in comparison with a loop over the definition."""
    coder = pip_coder(AFLW19)
    maps = random_maps(AFLW19, 2, 4)
    decoded, confidence = coder.decode(maps)
    for face in range(2):
        votes_of: list[list[Tensor]] = [[] for _ in range(AFLW19.num_points)]
        for i, score in enumerate(maps.score[face]):
            y, x = divmod(int(score.argmax()), 8)
            cell = torch.tensor([x, y])
            votes_of[i].append(cell + maps.offset[face, i, :, y, x])
            for j, neighbour in enumerate(coder.neighbours[i].tolist()):
                votes_of[neighbour].append(cell + maps.neighbour[face, i, j, :, y, x])
            assert confidence[face, i] == score.max()
        expected = torch.stack([torch.stack(votes).mean(0) for votes in votes_of])
        torch.testing.assert_close(to_cells(decoded[face], 32), expected)


def test_pip_coder_limits_confidence_to_0_and_1() -> None:
    """Would catch raw scores as confidence: the network regresses them without bounds."""
    maps = random_maps(FIVE5, 1, 4)
    low, high = (pip_coder(FIVE5).decode(maps._replace(score=maps.score + shift))[1] for shift in (-9, 9))
    assert (low == 0).all()
    assert (high == 1).all()


def test_pip_coder_decodes_without_a_mean_shape() -> None:
    """Would catch a merge over an empty table: without a mean shape each landmark uses its own prediction only."""
    maps = random_maps(AFLW19, 2, 4)
    without_neighbours = PIPCoder(AFLW19, 32, 0, False).decode(maps._replace(neighbour=maps.neighbour[:, :, :0]))[0]
    torch.testing.assert_close(pip_coder(AFLW19, known=False).decode(maps)[0], without_neighbours)


def test_pip_coder_saves_its_tables_in_the_state_dict() -> None:
    """Would catch tables whose shape depends on the mean shape, so that a checkpoint does not load."""
    for official in (False, True):
        trained, fresh = (
            pip_coder(IBUG68, official=official, num_neighbours=10),
            pip_coder(IBUG68, known=False, num_neighbours=10),
        )
        fresh.load_state_dict(trained.state_dict())
        maps = random_maps(IBUG68, 1, 10)
        assert torch.equal(fresh.decode(maps)[0], trained.decode(maps)[0])
        assert not list(trained.parameters())


def test_pip_coder_decodes_in_float32_under_autocast() -> None:
    """Would catch a merge in half precision: bfloat16 rounds a coordinate of 200 pixels to a whole one."""
    coder, maps = pip_coder(IBUG68), random_maps(IBUG68, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        decoded = coder.decode(maps)[0]
    assert torch.equal(decoded, coder.decode(maps)[0])


def test_pip_coder_refuses_invalid_settings() -> None:
    """Would catch a crop of partial cells, more neighbours than landmarks, and an unusable mean shape."""
    with pytest.raises(ConfigError, match=r"num_neighbours=5 must be below the 5 points of five5"):
        PIPCoder(FIVE5, 32, 5, False)
    with pytest.raises(ConfigError, match=r"crop\.size=250 must be a multiple of coder\.stride=32"):
        pip_coder(FIVE5).encode(random_points(FIVE5), torch.ones(3, 5, dtype=torch.bool), 250)
    with pytest.raises(ValueError, match=r"the mean shape must be \(5, 2\), got \(4, 2\)"):
        pip_coder(FIVE5).set_mean_shape(torch.rand(4, 2))
    with pytest.raises(ValueError, match=r"landmarks \[1\] are missing"):
        pip_coder(FIVE5).set_mean_shape(torch.tensor([[0.0, 0], [float("nan"), 0], [2, 0], [3, 0], [4, 0]]))
    with pytest.raises(ConfigError, match=r"landmarks \[4\] are nobody's neighbour"):
        far = torch.tensor([[0.0, 0], [1, 0], [2, 0], [3, 0], [99, 0]])
        pip_coder(FIVE5, num_neighbours=1, official=True, known=False).set_mean_shape(far)


@pytest.mark.parametrize(
    ("layout", "mean_face", "first", "total", "longest"),
    [
        (IBUG68, "300W", [17, 1, 36, 18, 41, 37, 2, 19, 40, 38], 27761, 22),
        (WFLW98, "WFLW", [1, 2, 33, 3, 60, 41, 4, 34, 61, 67], 54772, 17),
        (COFW29, "COFW", [8, 5, 4, 12, 16, 13, 10, 2, 18, 3], 4141, 19),
        (AFLW19, "AFLW", [1, 6, 7, 2, 8, 3, 12, 9, 13, 10], 1652, 18),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pip_coder_matches_the_neighbours_and_merge_of_the_reference(
    torchlm: ModuleType, layout: Layout, mean_face: str, first: list[int], total: int, longest: int
) -> None:
    """Would catch another order of neighbours, and an official merge that repeats other votes than the reference."""
    mean_face_text = torchlm._DEFAULT_MEANFACE_STRINGS[mean_face]
    mean_shape = torch.tensor([float(value) for value in mean_face_text.split()]).view(-1, 2)
    coder = PIPCoder(layout, 32, 10, True)
    coder.set_mean_shape(mean_shape * SIZE)
    assert coder.neighbours[0].tolist() == first
    assert int(coder.neighbours.sum()) == total
    torch.testing.assert_close(1 - coder.votes.sum(1), torch.full((layout.num_points,), 1 / (1 + longest)))

    maps = random_maps(layout, 2, 10)
    _, index1, index2, length, _ = torchlm._get_meanface(mean_face_text, 10)
    for face, points in enumerate(coder.decode(maps)[0]):
        # The network of the reference returns five maps: scores, x, y, and x and y of the neighbours.
        x, y = maps.offset[face].unbind(1)
        nb_x, nb_y = maps.neighbour[face].flatten(0, 1).unbind(1)
        outputs = [part[None] for part in (maps.score[face], x, y, nb_x, nb_y)]
        net = SimpleNamespace(
            forward=lambda image, outputs=outputs: outputs,
            eval=lambda: None,
            parameters=lambda outputs=outputs: iter(outputs),
            meanface_status=True,
            input_size=SIZE,
            net_stride=32,
            num_nb=10,
            num_lms=layout.num_points,
            reverse_index1=index1,
            reverse_index2=index2,
            max_len=length,
        )
        expected = torchlm._detecting_impl(net, np.zeros((SIZE, SIZE, 3), np.uint8))
        np.testing.assert_allclose(to_cells(points, 1), expected, atol=1e-3)


# Regression


def test_regression_coder_encodes_the_edges_of_the_crop() -> None:
    """Would catch fractions between the centres of the outer pixels, half a pixel off, and swapped axes."""
    points = torch.tensor([[[-0.5, -0.5], [SIZE - 0.5, -0.5], [(SIZE - 1) / 2, SIZE / 4 - 0.5], [0.0, SIZE * 2 - 0.5]]])
    target = RegressionCoder(SIZE).encode(points, torch.ones(1, 4, dtype=torch.bool), SIZE)
    assert target.tolist() == [[[0, 0], [1, 0], [0.5, 0.25], [0.5 / SIZE, 2]]]


@pytest.mark.parametrize("size", [64, 112, 160])
def test_regression_coder_decodes_what_it_encodes(size: int) -> None:
    """Would catch another size for decoding, points clamped to the crop, and targets rounded to half precision."""
    points, valid = random_points(IBUG68, margin=40), torch.ones(3, IBUG68.num_points, dtype=torch.bool)
    coder = RegressionCoder(size)
    with torch.autocast("cpu", torch.bfloat16):
        decoded, confidence = coder.decode(coder.encode(points.double(), valid, size))
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, points, atol=1e-4, rtol=0)
    assert torch.equal(confidence, torch.ones(3, IBUG68.num_points))
    assert not coder.state_dict()


def test_regression_coder_commutes_with_the_flip() -> None:
    """Would catch fractions that a flip of the crop does not change to 1 minus themselves."""
    points, valid = random_points(IBUG68), torch.ones(3, IBUG68.num_points, dtype=torch.bool)
    flipped = transform_points(torch.tensor(flip_image(SIZE), dtype=torch.float32), points)
    x, y = RegressionCoder(SIZE).encode(points, valid, SIZE).unbind(-1)
    torch.testing.assert_close(RegressionCoder(SIZE).encode(flipped, valid, SIZE), torch.stack([1 - x, y], -1))


def test_regression_coder_masks_missing_landmarks() -> None:
    """Would catch finite values with ``valid=False`` as a target, and a single coordinate of half a landmark."""
    points, valid = random_points(FIVE5), torch.ones(3, 5, dtype=torch.bool)
    valid[0, 3] = False
    points[2, 1, 0] = float("nan")
    target = RegressionCoder(SIZE).encode(points, valid, SIZE)
    annotated = torch.ones(3, 5, dtype=torch.bool)
    annotated[0, 3] = annotated[2, 1] = False
    assert target[~annotated].isnan().all()
    assert target[annotated].isfinite().all()


def test_regression_coder_refuses_another_crop_size() -> None:
    """Would catch training on crops of one size and decoding for another."""
    with pytest.raises(ConfigError, match=r"coder\.size=112 must be the crop's side, which is 96"):
        RegressionCoder(112).encode(random_points(FIVE5), torch.ones(3, 5, dtype=torch.bool), 96)
