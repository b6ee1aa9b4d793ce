"""Custom data with one folder per split."""

from pathlib import Path

from writing import image, pairs, some_points
from writing import write as write_file

from facelab.faces.layouts import IBUG68
from formats.folder import read as read

KNOWN = ("train/images/5.jpg", some_points(IBUG68, 5))
LINE = (Path("train/landmarks/4.txt"), 5, None)
MAY_BE_MISSING = True


def write(root: Path) -> None:
    for part, count in (("train", 40), ("test", 2)):
        for i in range(count):
            image(root / part / "images" / f"{i}.jpg")
            write_file(root / part / "landmarks" / f"{i}.txt", pairs(some_points(IBUG68, i)))
