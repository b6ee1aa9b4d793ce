"""PASCAL VOC: an XML file per photo, and a list for each split."""

from pathlib import Path
from typing import Literal

from writing import image
from writing import write as write_file

from facelab.annotations.voc import VOC
from facelab.faces.layouts import FIVE5

CLASSES = ("face", "mask", "with_mask", "without_mask", "mask_weared_incorrect")
"""Classes of the files that the tests write, and of ``mask_voc``."""
BOX = ("JPEGImages/train0.jpg", [[-0.5, 9.5, 9.5, 29.5], [99.5, 49.5, 100.5, 79.5]])
REAL = {"mask_voc": ("train", "val")}


def thing(name: str, corners: tuple[float, ...], flags: str = "") -> str:
    """Format an object."""
    edges = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
    return f"<object><name>{name}</name>{flags}<bndbox>{box}</bndbox></object>"


def annotation(*things: str) -> str:
    """Format the XML file of a photo."""
    return f"<annotation><filename>other.png</filename>{''.join(things)}</annotation>\n"


def write(root: Path) -> None:
    for part in ("train", "val", "test"):
        names = [f"{part}{i}" for i in range(3)]
        write_file(root / "ImageSets" / "Main" / f"{part}.txt", "".join(f"{name}\n" for name in names))
        for name in names:
            image(root / "JPEGImages" / f"{name}.jpg")
        difficult = thing("mask", (101, 51, 101, 80), "<difficult>1</difficult><truncated>0</truncated>")
        write_file(root / "Annotations" / f"{names[0]}.xml", annotation(thing("face", (1, 11, 10, 30)), difficult))
        write_file(root / "Annotations" / f"{names[1]}.xml", annotation())
        write_file(root / "Annotations" / f"{names[2]}.xml", annotation(thing("face", (3, 4, 50.5, 60))))


def read(root: Path, *, skip: bool = False, origin: Literal[0, 1] = 1, classes: tuple[str, ...] = CLASSES) -> VOC:
    return VOC("voc", str(root), FIVE5, classes, origin, skip_unpaired=skip)
