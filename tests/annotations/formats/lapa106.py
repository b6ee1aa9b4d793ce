"""LaPa: two folders per split, images and points; each file of points starts with their number."""

from pathlib import Path

from writing import image, pairs, some_points
from writing import write as write_file

from facelab.annotations.lapa106 import LaPa
from facelab.faces.layouts import LAPA106, Layout

KNOWN = ("val/images/val1.jpg", some_points(LAPA106, 1))
LINE = (Path("train/landmarks/train1.txt"), 5, None)
REAL = {"frl106": ("train", "val", "test"), "lisa106": ("test",)}


def write(root: Path, layout: Layout = LAPA106) -> None:
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        for i in range(count):
            image(root / part / "images" / f"{part}{i}.jpg")
            points = some_points(layout, i)
            write_file(root / part / "landmarks" / f"{part}{i}.txt", f"{layout.num_points}\n{pairs(points)}")


def read(root: Path, *, skip: bool = False) -> LaPa:
    return LaPa("lapa106", str(root), LAPA106, skip_unpaired=skip)
