"""Tests of the heatmap coder: errors over the whole crop, unusual maps, and values of the reference code."""

import io
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from facelab.coders.heatmap import Decoder, HeatmapCoder, Heatmaps
from facelab.errors import ConfigError
from facelab.faces.geometry import from_grid

SIZE, STRIDE = 256, 4
DECODERS: tuple[Decoder, ...] = ("dark", "quarter", "soft_argmax")


def coder(decoder: Decoder = "dark", sigma: float = 1.5, cell: bool = False, border: bool = False) -> HeatmapCoder:
    return HeatmapCoder(STRIDE, sigma, decoder, cell, border)


def encoded(points: Tensor, with_coder: HeatmapCoder) -> Heatmaps:
    return with_coder.encode(points, torch.ones(points.shape[:2], dtype=torch.bool), SIZE)


def round_trip(decoder: Decoder, sigma: float, **options: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Encode and decode P points of the whole crop.

    Returns:
        Signed error ``(P, 2)`` in pixels, its length ``(P,)``, and whether a point is within 3 sigma of the border.
    """
    points = torch.rand(20, 100, 2, generator=torch.Generator().manual_seed(0)) * SIZE - 0.5
    both = coder(decoder, sigma, **options)
    error = (both.decode(encoded(points, both))[0] - points).flatten(0, 1)
    near = (points + 0.5).sub(SIZE / 2).abs().amax(-1).flatten() > SIZE / 2 - 3 * sigma * STRIDE
    return error, error.norm(dim=-1), near


@pytest.mark.parametrize("decoder", ["dark", "soft_argmax"])
@pytest.mark.parametrize("sigma", [0.8, 1.0, 1.5, 2.0, 3.0])
def test_heatmap_coder_is_exact_in_the_whole_crop(decoder: Decoder, sigma: float) -> None:
    """Would catch a shift by half a cell, a small window, and peaks at the border that are moved inwards."""
    error, length, _ = round_trip(decoder, sigma)
    assert length.max() < 0.05
    assert error.mean(0).abs().max() < 0.001


def test_quarter_halves_the_error_of_whole_cells() -> None:
    """Would catch an offset to the wrong side."""
    error, length, near = round_trip("quarter", 1.5)
    assert length[~near].mean() == pytest.approx(0.765, abs=0.02)  # 1.53 without the offset
    assert error[~near].mean(0).abs().max() < 0.05
    assert round_trip("quarter", 1.5, cell=True)[1].mean() == pytest.approx(1.53, abs=0.05)


@pytest.mark.parametrize("decoder", DECODERS)
def test_encode_gives_a_peak_of_one_at_the_landmark(decoder: Decoder) -> None:
    """Would catch a Gaussian whose sum is 1, and one that is not at the centre of its cell."""
    points = from_grid(torch.tensor([[[20.0, 30.0], [0.0, 63.0]]]), STRIDE)
    target = encoded(points, coder(decoder))
    assert target.maps[0, 0, 30, 20] == target.maps[0, 1, 63, 0] == 1
    assert target.maps[0, 0, 30, 22] == pytest.approx(torch.tensor(-4 / (2 * 1.5**2)).exp().item())
    assert target.maps[0, 0, 31, 20] == target.maps[0, 0, 29, 20] == target.maps[0, 0, 30, 21]
    decoded, confidence = coder(decoder).decode(target)
    torch.testing.assert_close(decoded[:, :1], points[:, :1], atol=0.01, rtol=0)
    assert confidence.tolist() == [[1, 1]]


def test_encode_gives_empty_maps_to_missing_and_outer_landmarks() -> None:
    """Would catch NaN in a map, and the peak of a landmark outside the crop moved to the border."""
    points = torch.tensor([[[-0.6, 9.0], [9.0, 255.6], [torch.nan, 9.0], [9.0, 9.0], [-0.5, 255.4], [1e9, -1e9]]])
    valid = torch.tensor([[True, True, True, False, True, True]])
    maps = coder().encode(points, valid, SIZE).maps[0]
    assert [float(one.max()) > 0.5 for one in maps] == [False, False, False, False, True, False]
    assert maps[[0, 1, 2, 3, 5]].abs().max() == 0


@pytest.mark.parametrize("decoder", DECODERS)
def test_decode_gives_finite_points_on_unusual_maps(decoder: Decoder) -> None:
    """Would catch NaN of a logarithm or a division, and confidence on a map of equal values."""
    flat = torch.stack([torch.zeros(64, 64), torch.full((64, 64), -0.2), torch.full((64, 64), 0.3)])
    places = [(0, 0), (63, 63), (0, 31), (31, 63), (1, 1), (62, 2), (5, 6), (20, 20)]
    hot = torch.zeros(len(places), 64, 64)
    for one, (x, y) in zip(hot, places, strict=True):
        one[y, x] = 1
    noise = torch.randn(8, 64, 64, generator=torch.Generator().manual_seed(0))
    maps = torch.cat([flat, hot, hot - 0.2, noise, -noise.abs(), torch.eye(64)[None], 1e30 * noise])
    points, confidence = coder(decoder).decode(Heatmaps(maps[None]))
    assert points.isfinite().all() and confidence.isfinite().all()
    assert ((points >= -0.5 - STRIDE) & (points < SIZE - 0.5 + STRIDE)).all()
    assert confidence[0, :3].tolist() == [0, 0, 0]
    assert ((confidence >= 0) & (confidence <= 1)).all()
    expected = from_grid(torch.tensor(places).float(), STRIDE)
    # At the border a hot cell is a part of a peak, whose centre may be half a cell outside.
    bound = STRIDE / 2 if decoder == "soft_argmax" else 1e-4
    for first in (3, 3 + len(places)):  # one hot cell among zeros and among negative values
        difference = (points[0, first : first + len(places)] - expected).abs()
        assert difference[-2:].max() < 1e-4 and difference.max() <= bound


def test_decode_ignores_a_constant_added_to_a_map() -> None:
    """Would catch a decoder that depends on the values far from the peak, which networks do not predict exactly."""
    points = torch.rand(1, 100, 2, generator=torch.Generator().manual_seed(0)) * 200 + 28
    maps = encoded(points, coder()).maps
    for decoder, bound in (("dark", 0.1), ("soft_argmax", 0.2)):
        decoded, _ = coder(decoder).decode(Heatmaps(maps - 0.05))  # type: ignore[arg-type]
        assert (decoded - points).norm(dim=-1).max() < bound


@pytest.mark.parametrize("decoder", DECODERS)
def test_decode_treats_each_map_alone(decoder: Decoder) -> None:
    """Would catch exchanged rows and columns, and exchanged faces and landmarks."""
    points = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(0)) * 200 + 28
    maps = encoded(points, coder(decoder)).maps
    whole, _ = coder(decoder).decode(Heatmaps(maps))
    for face, landmark in itertools.product(range(3), range(5)):
        alone, _ = coder(decoder).decode(Heatmaps(maps[face : face + 1, landmark : landmark + 1]))
        torch.testing.assert_close(alone[0, 0], whole[face, landmark])
    transposed, _ = coder(decoder).decode(Heatmaps(maps.mT.contiguous()))
    torch.testing.assert_close(transposed, whole.flip(-1))


@pytest.mark.parametrize("decoder", DECODERS)
def test_decode_can_be_exported(decoder: Decoder) -> None:
    """Would catch an operation whose output shape depends on values, such as nonzero."""

    class Decode(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.coder = coder(decoder)

        def forward(self, maps: Tensor) -> Any:
            return self.coder.decode(Heatmaps(maps))

    maps = torch.rand(2, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    program = torch.export.export(Decode(), (maps,))
    assert not [node for node in program.graph.nodes if "nonzero" in str(node.target)]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(maps), Decode()(maps))


def test_heatmap_coder_refuses_values_that_do_not_fit() -> None:
    """Would catch an unclear error in the first step, and an option without effect."""
    points, valid = torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.bool)
    for size in (254, 8):
        with pytest.raises(ConfigError, match=rf"crop.size={size} must be a multiple of coder.stride=4"):
            coder().encode(points, valid, size)
    with pytest.raises(ConfigError, match="official_border"):
        coder(border=True)


# Values of generate_target and decode_preds of HRNet-Facial-Landmark-Detection (commit f776dbe)

FIRST_CELLS = {
    # (sigma, cell): first column above 0, column of the peak, last column above 0, of 64 columns
    (1.0, 0): (0, 0, 3),
    (1.0, 20): (17, 20, 23),
    (1.0, 63): (60, 63, 63),
    (1.5, 0): (0, 1, 4),
    (1.5, 3): (0, 4, 7),
    (1.5, 4): (0, 5, 8),
    (1.5, 5): (0, 5, 9),
    (1.5, 20): (15, 20, 24),
    (1.5, 61): (56, 61, 63),
    (2.0, 2): (0, 2, 8),
}


@pytest.mark.parametrize(("case", "columns"), FIRST_CELLS.items(), ids=str)
def test_encode_official_options_equal_the_reference_code(
    case: tuple[float, int], columns: tuple[int, int, int]
) -> None:
    """Would catch another window, and another shift of the peak in the first cells."""
    sigma, cell = case
    first, peak, last = columns
    point = from_grid(torch.tensor([[[cell + 0.3, 30.4]]]), STRIDE)  # any position in the cell
    row = encoded(point, coder("quarter", sigma, cell=True, border=True)).maps[0, 0, 30]
    positive = row.nonzero()[:, 0]
    assert (int(positive[0]), int(row.argmax()), int(positive[-1])) == (first, peak, last)
    assert row[peak] == 1
    assert row[peak + 1 if peak < 63 else 62] == pytest.approx(torch.tensor(-1 / (2 * sigma**2)).exp().item())
    without = encoded(point, coder("quarter", sigma, cell=True)).maps[0, 0]
    assert int(without.flatten().argmax()) == 30 * 64 + cell


def test_quarter_equals_the_reference_code() -> None:
    """Would catch another rule for border cells, and for maps without a positive value."""
    maps = torch.zeros(1, 6, 64, 64)
    maps[0, 0, 10, 20], maps[0, 0, 10, 21], maps[0, 0, 9, 20] = 1.0, 0.5, 0.5  # higher on the right and above
    maps[0, 1, 10, 20] = 1.0  # equal neighbours
    maps[0, 2, 0, 20], maps[0, 2, 0, 21] = 1.0, 0.5  # first row
    maps[0, 3, 62, 62], maps[0, 3, 62, 61] = 1.0, 0.5  # last row and column with an offset
    maps[0, 4, 10, 63], maps[0, 4, 11, 63] = 1.0, 0.5  # last column
    maps[0, 5] = -1.0
    points, _ = coder("quarter").decode(Heatmaps(maps))
    cells = [[20.25, 9.75], [20, 10], [20, 0], [61.75, 62], [63, 10], [-1, -1]]
    torch.testing.assert_close(points[0], from_grid(torch.tensor(cells), STRIDE))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_decode_gives_no_point_for_a_diverged_map(decoder: Decoder, value: float) -> None:
    """Would catch a diverged network whose points look like those of a face."""
    maps = encoded(torch.full((1, 2, 2), 100.0), coder()).maps
    maps[0, 0, 3, 4] = value
    points, confidence = coder(decoder).decode(Heatmaps(maps))
    assert points[0, 0].isnan().all() and points[0, 1].isfinite().all()
    assert confidence[0, 0] == 0 < confidence[0, 1]
