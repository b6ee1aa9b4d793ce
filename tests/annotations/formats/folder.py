"""Custom data: images with files of points in one folder."""

from pathlib import Path
from typing import Any

from writing import image, pairs, pts, some_points
from writing import write as write_file

from facelab.annotations.folder import Folder
from facelab.faces.layouts import IBUG68

KNOWN = ("3.PNG", some_points(IBUG68, 3) - 1)  # .pts counts from 1
LINE = (Path("0.txt"), 5, None)
MAY_BE_MISSING = True


def write(root: Path) -> None:
    for i in range(40):
        image(root / f"{i}.{('jpg', 'PNG')[i % 2]}")
        points = some_points(IBUG68, i)
        write_file(root / f"{i}.{('txt', 'pts')[i % 2]}", pts(points) if i % 2 else pairs(points))


def read(root: Path, *, skip: bool = False, pts_origin: int = 1, **options: Any) -> Folder:
    values: dict[str, Any] = {
        "layout": IBUG68,
        "orientation": "shown",
        "units": "pixels",
        "missing": [],
        "splits": {},
        "val_share": 0.25,
        "test_share": 0.25,
    }
    return Folder("mine", str(root), pts_origin=pts_origin, skip_unpaired=skip, **values | options)
