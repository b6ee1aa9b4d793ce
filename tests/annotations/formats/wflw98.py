"""WFLW: one list for train and one for test; a line is one face with its rectangle and flags."""

from pathlib import Path

from writing import flat, image, some_points
from writing import write as write_file

from facelab.annotations.wflw98 import WFLW
from facelab.faces.layouts import WFLW98

LISTS = Path("WFLW_annotations", "list_98pt_rect_attr_train_test")
KNOWN = ("WFLW_images/0--Parade/7.jpg", some_points(WFLW98, 7))
LINE = (LISTS / "list_98pt_rect_attr_train.txt", 5, None)
REAL = {"frl98": ("train", "val", "test"), "WFLW": ("test",)}


def wflw_line(name: str, seed: int, flags: str = "0 0 0 0 0 0") -> str:
    return f"{flat(some_points(WFLW98, seed), ' ')} 10 20 110 140 {flags} {name}\n"


def write(root: Path) -> None:
    names = [f"0--Parade/{i}.jpg" for i in range(40)]
    write_file(root / LISTS / "list_98pt_rect_attr_train.txt", "".join(map(wflw_line, names, range(40))))
    test = [
        wflw_line("1--Handshaking/a.jpg", 100, "1 0 0 0 0 1"),
        wflw_line("1--Handshaking/b.jpg", 101),
        wflw_line("1--Handshaking/a.jpg", 102, "0 1 1 1 1 0"),
    ]
    write_file(root / LISTS / "list_98pt_rect_attr_test.txt", "".join(test))
    for name in (*names, "1--Handshaking/a.jpg", "1--Handshaking/b.jpg"):
        image(root / "WFLW_images" / name)


def read(root: Path, *, skip: bool = False, val_share: float = 0.25) -> WFLW:
    return WFLW("wflw98", str(root), WFLW98, val_share=val_share, skip_unpaired=skip)
