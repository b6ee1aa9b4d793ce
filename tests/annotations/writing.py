"""Writers of annotation files in the formats of the datasets and label tools."""

from pathlib import Path

import numpy as np

from facelab.faces.geometry import Array
from facelab.faces.layouts import Layout


def some_points(layout: Layout, seed: int = 0) -> Array:
    """Draw points with three decimals, some of them left of or above the image."""
    return np.random.default_rng(seed).uniform(-20, 200, (layout.num_points, 2)).round(3)


def image(path: Path) -> None:
    """Create an empty file: no reader opens an image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def write(path: Path, text: str) -> None:
    """Write a text file and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def pairs(points: Array) -> str:
    """Format points as lines ``x y``."""
    return "".join(f"{x:.6f} {y:.6f}\n" for x, y in points)


def flat(points: Array, separator: str) -> str:
    """Format all coordinates on one line."""
    return separator.join(f"{value:.6f}" for value in points.ravel())


def pts(points: Array) -> str:
    """Format points as a .pts file."""
    return f"version: 1\nn_points:  {len(points)}\n{{\n{pairs(points)}}}\n"
