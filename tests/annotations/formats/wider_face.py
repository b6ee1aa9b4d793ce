"""WIDER FACE: official files of train and val, RetinaFace's label.txt, and the lists of the evaluation tools."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat
from writing import image
from writing import write as write_file

from facelab.annotations.wider_face import LISTS, WiderFace
from facelab.faces.layouts import FIVE5

TRAIN = Path("wider_face_split", "wider_face_train_bbx_gt.txt")
VAL = Path("wider_face_split", "wider_face_val_bbx_gt.txt")
TRAIN_LABELS = Path("retinaface_gt", "train", "label.txt")
BOX = (
    "WIDER_val/images/1--Handshaking/crowd.jpg",
    [[9.5, 19.5, 39.5, 59.5], [99.5, 49.5, 99.5, 79.5], [4.5, 4.5, 2.5, 9.5]],
)
LINE = (TRAIN, 3, None)
REAL = {"WIDER": ("train", "val", "test")}

CROWD = [[10, 20, 30, 40, 0, 0, 0, 0, 0, 0], [100, 50, 0, 30, 2, 0, 0, 0, 0, 0], [5, 5, -2, 5, 1, 1, 1, 1, 2, 1]]
"""Rows of the official val: an ordinary face, one without width, one with a negative width and every attribute."""
EMPTY = [[0] * 10]
"""Row of a photo without a face."""
POINTS = "12.5 30 0.0 22 30 1.0 17 40 0.0 -1.0 -1.0 -1.0 21 51 0.0 0.9"
"""Points of a face in a label.txt; the second is hidden, the fourth is not annotated."""


def official(photos: dict[str, list[list[int]]]) -> str:
    """Format photos as an official file; a photo without a face has a row of zeros."""
    return "".join(
        f"{name}\n{0 if rows == EMPTY else len(rows)}\n" + "".join(" ".join(map(str, row)) + " \n" for row in rows)
        for name, rows in photos.items()
    )


def labels(photos: dict[str, list[str]]) -> str:
    """Format photos as a label.txt."""
    return "".join(f"# {name}\n" + "".join(f"{row}\n" for row in rows) for name, rows in photos.items())


def write_lists(folder: Path, photos: dict[str, list[list[int]]], kept: dict[str, dict[str, list[int]]]) -> None:
    """Write the .mat files of the lists; the rows of ``kept`` count from 1."""

    def cells(items: list[Any]) -> Any:
        """Return a column of cells."""
        column = np.empty((len(items), 1), object)
        for i, item in enumerate(items):
            column[i, 0] = item
        return column

    folder.mkdir(parents=True, exist_ok=True)
    events = sorted({name.split("/")[0] for name in photos})
    for each in LISTS:
        of_event = [[name for name in photos if name.split("/")[0] == event] for event in events]
        savemat(
            folder / f"wider_{each}_val.mat",
            {
                "event_list": cells(events),
                "file_list": cells(
                    [cells([name.split("/")[1].rpartition(".")[0] for name in names]) for names in of_event]
                ),
                "face_bbx_list": cells(
                    [cells([np.array(photos[name], np.int32)[:, :4] for name in names]) for names in of_event]
                ),
                "gt_list": cells(
                    [
                        cells([np.array(kept[each].get(name, []), np.uint8).reshape(-1, 1) for name in names])
                        for names in of_event
                    ]
                ),
            },
        )


def write(root: Path) -> None:
    train = {f"0--Parade/{i}.jpg": [[i, 2 * i, 30 + i, 40, 0, 0, 0, 0, 0, 0]] for i in range(1, 41)}
    train["0--Parade/none.jpg"] = EMPTY
    val = {"1--Handshaking/crowd.jpg": CROWD, "1--Handshaking/none.jpg": EMPTY, "2--Show/one.jpg": CROWD[:1]}
    write_file(root / TRAIN, official(train))
    write_file(root / VAL, official(val))
    with_points = {
        name: [f"{x} {y} {w} {h} {POINTS}" for x, y, w, h, *_ in rows] for name, rows in train.items() if rows != EMPTY
    }
    write_file(root / TRAIN_LABELS, labels(with_points))
    write_file(root / "retinaface_gt" / "val" / "label.txt", labels({"2--Show/one.jpg": ["10 20 30 40"]}))
    kept = {"easy": {}, "medium": {"1--Handshaking/crowd.jpg": [1]}, "hard": {"1--Handshaking/crowd.jpg": [1, 3]}}
    write_lists(root / "ground_truth", val, kept)  # type: ignore[arg-type]
    for part, photos in (("train", train), ("val", val)):
        for name in photos:
            image(root / f"WIDER_{part}" / "images" / name)


def read(root: Path, *, skip: bool = False, labels: Any = "both", lists: str | None = "ground_truth") -> WiderFace:
    return WiderFace("wider_face", str(root), FIVE5, labels, lists, val_share=0.25, skip_unpaired=skip)
